"""Calls of foreign code while something ends. Its exceptions are logged, and never keep a slot or a place from being
freed.

At the end of a session, a message or a stop the guard calls cancellers of Deferreds, `abort()`, `session_ended()`,
transports and others before it frees what was held. All of them are called through here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from twisted.internet.defer import Deferred
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

Report: TypeAlias = Callable[[Failure, str], object]
"""Called with an exception of foreign code and a text that says what was being done: mostly `Events.failure`."""

_log = Logger()


def at_debug(failure: Failure, what: str) -> None:
    """The Report of a caller that has no other. It logs at debug, since a client decides how often this happens."""
    _log.failure("{what}", failure, level=LogLevel.debug, what=what)


def safely(report: Report, what: str, call: Callable[..., object], *args: object) -> bool:
    """Call foreign code while something ends, and return whether it raised nothing.

    An exception is reported as `what` and goes no further. So the caller always reaches its next step, which frees a
    slot or a place, or ends the next session.
    """
    try:
        call(*args)
    except BaseException:  # noqa: BLE001 - as the reactor does: other clients must still be served
        failure = Failure()
        try:
            report(failure, what)
        except BaseException:  # noqa: BLE001 - the report is foreign code too
            at_debug(Failure(), "a failure could not be reported")
        return False
    return True


def cancel(promised: Deferred[Any] | None, report: Report = at_debug) -> None:
    """Cancel `promised`, if it is not None. A canceller that raises leaves its Deferred pending, which then counts as
    one that goes on in spite of its cancellation."""
    if promised is not None:
        safely(report, "a canceller raised", promised.cancel)
