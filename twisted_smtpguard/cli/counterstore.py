"""`--counters`: the store in which several guards count, and what is told of it. No password is ever told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from twisted_smtpguard.cli.configuration import COMMAND_LINE, Setting, variable
from twisted_smtpguard.counters.redisstore import RedisCounterStore, redis_counter_store
from twisted_smtpguard.counters.redisurl import redis_servers, shows_password

_OPTION = "counters"


def counter_store(given: Mapping[str, Sequence[Setting]], reactor: object) -> RedisCounterStore | None:
    """The store of --counters; None if there is none. `given` has the settings of each option. UsageError: there is a
    mistake in it, or a password on the command line."""
    for setting in given[_OPTION][-1:]:
        with setting.blamed():
            store = redis_counter_store(setting.text, reactor)
            if setting.origin == COMMAND_LINE and shows_password(setting.text):
                raise ValueError(
                    "every user of this host can read a password on a command line: write the URL into a file and give "
                    f"redis+file:PATH, or set {variable(_OPTION)}"
                )
        return store
    return None


def shown_counters(text: str) -> str:
    """A setting of --counters without user and password."""
    return text if text.startswith("redis+file:") else ",".join(each.name for each in redis_servers(text)())


def has_password(setting: Setting) -> bool:
    """Whether the file of options has a password, in this setting of --counters. ValueError: the setting is wrong."""
    return setting.in_file and shows_password(setting.text)


async def check_counters(store: Any) -> tuple[str, str]:
    """Connect to the store of a guard as a start would. Returns a line about a store that answers, and a warning about
    one that does not; "" for neither."""
    if not isinstance(store, RedisCounterStore):
        return "", ""
    problem = await store.check()
    if problem:
        return "", f"the guard would count alone until its counters answer: {problem}"
    return f"{store.server}: the counters answer", ""
