"""The events of a mail server behind. docs/reference/events.md is checked against this file.

A delivery has no `Events`: whoever makes one from a plugin has none either. So these are not counted, and have budgets
of their own, since each session of a flood may cause one.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence

from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from twisted_smtpguard.eventlog import EventLog, word
from twisted_smtpguard.linebudget import LineBudget
from twisted_smtpguard.smtp.replies import Reply, text_of

MAX_LINES = 10
"""Of one event in a second."""

AGAIN_SECONDS = 3600.0
"""After which a command that is still refused is told of again."""

MAX_VERDICTS_SHOWN = 5
"""Of a message. How many there are is always logged."""

MAX_VERDICT_CHARACTERS = 200
"""What is logged of one of several verdicts."""


class Notices:
    """Of the server that is called `upstream`. `problem` is anything, the server's own words too. Without `clock` the
    system's time is taken."""

    def __init__(self, upstream: str, clock: IReactorTime | None = None) -> None:
        self._upstream = word(upstream)
        self._seconds = time.time if clock is None else clock.seconds
        self._log = EventLog(self._seconds)
        self._told_at: dict[tuple[str, str], float] = {}
        """Of each command and code. There are a few commands, and 400 codes."""
        # One for each event: many mixed verdicts do not hide that the server is down.
        self._budgets: defaultdict[str, LineBudget] = defaultdict(lambda: LineBudget(MAX_LINES, 0))

    def down(self, problem: str) -> None:
        """The server behind cannot be reached, or cannot be used as configured. Once until it can, or until that
        changes."""
        self._warn("upstream_down", problem)

    def up(self) -> None:
        """The server behind can be reached again."""
        self._warn("upstream_up", remark="it can be reached again")

    def full(self, connections: int, problem: str) -> None:
        """The server behind takes no more connections than these. Once until it does."""
        self._warn("upstream_full", problem, connections=connections)

    def command_refused(self, command: str, code: str, problem: str) -> None:
        """The server behind refuses a command of the guard's own that is about a client, who hears a 451. Once an hour
        for each command and code."""
        now = self._seconds()
        told = self._told_at.get((command, code))
        if told is None or now - told >= AGAIN_SECONDS:
            self._told_at[command, code] = now
            self._warn("command_refused", problem, command=word(command))

    def in_clear(self, problem: str) -> None:
        """Opportunistic TLS with the server behind has failed, and mail goes on in clear. Once until it succeeds."""
        self._warn("upstream_in_clear", problem)

    def mixed(self, session: str, told: Reply, verdicts: Sequence[tuple[str, Reply]]) -> None:
        """The server behind has accepted a message for some of its recipients, and refused it for others. The client
        hears `code`."""
        # Under a flood this is where most of them end, before anything is built.
        if self._allows("mixed_verdicts"):
            # Those who do not have the message first, as the client hears it.
            ordered = sorted(verdicts, key=lambda verdict: verdict[1].code < 300)
            self._log.warn(
                "mixed_verdicts",
                self._fields(
                    "mixed_verdicts",
                    session=session,
                    code=told.code,
                    recipients=len(ordered),
                    refused=sum(reply.code >= 300 for _, reply in ordered),
                ),
                f"a message was accepted for some and refused for others: {_shown(ordered)}",
            )

    def may_come_twice(self, session: str) -> None:
        """The server behind has a whole message, as far as we know, and has not said all that became of it."""
        problem = "it gave no verdict on a message, whose client is told to try again: it may come twice"
        self._warn("may_come_twice", problem, session=session)

    def failed(self, failure: Failure) -> None:
        """A connection to the server behind could not be tried, and that is no answer of the server's: our fault, or
        that of the endpoint. Logged with its traceback."""
        if self._allows("upstream_failed"):
            fields = self._fields("upstream_failed")
            self._log.failure("upstream_failed", failure, fields, "a connection could not be tried")

    def _warn(self, event: str, problem: str = "", *, remark: str = "", **fields: object) -> None:
        if self._allows(event):
            self._log.warn(event, self._fields(event, **fields), problem, remark=remark)

    def _allows(self, event: str) -> bool:
        return self._budgets[event].allows(self._upstream, event, self._seconds())

    def _fields(self, event: str, **fields: object) -> dict[str, object]:
        suppressed = self._budgets[event].take_suppressed()
        return {"upstream": self._upstream, **fields, **({"suppressed": suppressed} if suppressed else {})}


def _shown(verdicts: Sequence[tuple[str, Reply]]) -> str:
    shown = [f"<{word(address)}> {_cut(text_of(reply))}" for address, reply in verdicts[:MAX_VERDICTS_SHOWN]]
    if len(verdicts) > MAX_VERDICTS_SHOWN:
        shown.append(f"and {len(verdicts) - MAX_VERDICTS_SHOWN} more recipients")
    return "; ".join(shown)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_VERDICT_CHARACTERS else f"{text[:MAX_VERDICT_CHARACTERS]}..."
