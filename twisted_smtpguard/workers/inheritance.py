"""What a worker inherits from its supervisor: listening sockets, the memory that all workers share, a channel, and its
number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, MutableMapping, Sequence
from typing import NamedTuple

VARIABLE = "_SMTPGUARD_WORKER"
"""The environment variable in which a worker finds what it is told. It is no option."""

VERSION = 3
"""The version of all that a supervisor and a worker share: this, the channel, and what is in the memory. It changes
whenever one of them does, since the code of a running guard may be replaced on the disk."""

CHANNEL, TABLE, LOADS, LISTENERS = 3, 4, 5, 6
"""The descriptors of a worker. Its listeners have the last of these and those that follow."""

_OF_SYSTEMD = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


class Inheritance(NamedTuple):
    """What a worker is told."""

    number: int
    """Its number, which no other worker has at the same time; 1 is the first."""
    part: int
    """Which part it has, of `parts`, of what the workers divide between them. The first is 0."""
    parts: int
    families: tuple[int, ...]
    """The address family of each listener."""

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """The environment of the worker, made of that of the supervisor."""
        kept = {name: value for name, value in base.items() if name not in _OF_SYSTEMD}
        return {**kept, VARIABLE: json.dumps([VERSION, *self])}

    def descriptors(self, channel: int, memory: Sequence[int], listeners: Sequence[int]) -> dict[int, int]:
        """For each descriptor of the worker that of the supervisor, as spawnProcess takes it. `memory` are those of the
        table of counters and of the loads."""
        standard = {0: 0, 1: 1, 2: 2}
        shared = dict(enumerate((*memory, *listeners), TABLE))
        return {**standard, CHANNEL: channel, **shared}


def inherited(environment: MutableMapping[str, str]) -> Inheritance | None:
    """What this process is told as a worker, and no process that it starts; None: it is none.

    SystemExit: its supervisor has another version.
    """
    text = environment.pop(VARIABLE, "")
    if not text:
        return None
    version, *told = json.loads(text)
    if version != VERSION:
        raise SystemExit(
            "the supervisor of the workers runs another version, with which this one cannot work: restart the whole "
            "guard"
        )
    number, part, parts, families = told
    for descriptor in (CHANNEL, TABLE, LOADS, *range(LISTENERS, LISTENERS + len(families))):
        os.set_inheritable(descriptor, False)
    return Inheritance(number, part, parts, tuple(families))
