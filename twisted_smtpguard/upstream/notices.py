"""The log events about an upstream server. A test checks docs/reference/events.md against this file.

These events are not counted in the statistics: a delivery does not get the guard's `Events`, since a plugin can make
one. They have their own budgets of lines, since each session of a flood may cause one.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence

from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from twisted_smtpguard.log.budget import LineBudget
from twisted_smtpguard.log.eventlog import EventLog, word
from twisted_smtpguard.replies import Reply, text_of
from twisted_smtpguard.upstream.verdicts import listed

MAX_LINES = 10
"""How often each event is logged in a second."""

AGAIN_SECONDS = 3600.0
"""How long a command that was refused with the same code is not logged again."""

MAX_VERDICTS_SHOWN = 5
"""How many verdicts of a message are logged. Their number is always logged."""

MAX_VERDICT_CHARACTERS = 200
"""How much is logged of one of several verdicts."""


class Notices:
    """Logs the events of one server, which is named `upstream` in the log. `problem` may be any text, such as the
    server's own words. Without `clock` the time is the system's."""

    def __init__(self, upstream: str, clock: IReactorTime | None = None) -> None:
        self._upstream = word(upstream)
        self._seconds = time.time if clock is None else clock.seconds
        self._log = EventLog(self._seconds)
        self._told_at: dict[tuple[str, str], float] = {}
        """When each refused command and code was last logged. There are only a few commands and 400 codes."""
        # Each event has its own budget, so that a flood of one, such as mixed_verdicts, does not suppress
        # upstream_down.
        self._budgets: defaultdict[str, LineBudget] = defaultdict(lambda: LineBudget(MAX_LINES, 0))

    def down(self, problem: str) -> None:
        """The upstream server cannot be reached, or cannot be used as configured. Logged once until it can, or until
        the cause changes."""
        self._warn("upstream_down", problem)

    def up(self) -> None:
        """The upstream server can be reached again."""
        self._warn("upstream_up", remark="it can be reached again")

    def full(self, connections: int, problem: str) -> None:
        """The upstream server accepts no more connections than are open. Logged once until it does."""
        self._warn("upstream_full", problem, connections=connections)

    def command_refused(self, command: str, code: str, problem: str) -> None:
        """The upstream server refused a command of the guard's own that is about a client. The client gets a 451.
        Logged once an hour for each command and code."""
        now = self._seconds()
        if 0 <= now - self._told_at.get((command, code), float("-inf")) < AGAIN_SECONDS:
            return
        if self._allows("command_refused"):
            self._told_at[command, code] = now
            self._log.warn("command_refused", self._fields("command_refused", command=word(command)), problem)

    def in_clear(self, problem: str) -> None:
        """Opportunistic TLS with the upstream server failed, and mail is sent in clear. Logged once until a handshake
        succeeds."""
        self._warn("upstream_in_clear", problem)

    def mixed(self, session: str, told: Reply, verdicts: Sequence[tuple[str, Reply]]) -> None:
        """The upstream server accepted a message for some of its recipients and refused it for others. The client gets
        `code`."""
        # Under a flood most of these events stop here, before anything is built.
        if self._allows("mixed_verdicts"):
            shown = "; ".join(listed(verdicts, MAX_VERDICTS_SHOWN, _shown))
            self._log.warn(
                "mixed_verdicts",
                self._fields(
                    "mixed_verdicts",
                    session=session,
                    code=told.code,
                    recipients=len(verdicts),
                    refused=sum(reply.code >= 300 for _, reply in verdicts),
                ),
                f"a message was accepted for some recipients and refused for others: {shown}",
            )

    def may_come_twice(self, session: str) -> None:
        """The upstream server may have a whole message, and has not given every verdict on it."""
        problem = (
            "it gave no verdict on a message, and the client is told to try again: the message may come twice"
        )
        self._warn("may_come_twice", problem, session=session)

    def failed(self, failure: Failure) -> None:
        """A connection to the upstream server could not be attempted, by a fault of the guard or of the endpoint.
        Logged with its traceback."""
        if self._allows("upstream_failed"):
            fields = self._fields("upstream_failed")
            self._log.failure("upstream_failed", failure, fields, "a connection could not be attempted")

    def _warn(self, event: str, problem: str = "", *, remark: str = "", **fields: object) -> None:
        if self._allows(event):
            self._log.warn(event, self._fields(event, **fields), problem, remark=remark)

    def _allows(self, event: str) -> bool:
        return self._budgets[event].allows(self._upstream, event, self._seconds())

    def _fields(self, event: str, **fields: object) -> dict[str, object]:
        suppressed = self._budgets[event].take_suppressed()
        return {"upstream": self._upstream, **fields, **({"suppressed": suppressed} if suppressed else {})}


def _shown(address: str, reply: Reply) -> str:
    text = text_of(reply)
    if len(text) > MAX_VERDICT_CHARACTERS:
        text = f"{text[:MAX_VERDICT_CHARACTERS]}..."
    return f"<{word(address)}> {text}"
