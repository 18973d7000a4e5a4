"""Somebody else's code that is called while something ends: what it raises is logged and goes no further.

Between the moment when a session, a message or a stop is over and the moment when what it held is given back, the guard
calls cancellers of Deferreds, `abort()`, `session_ended()`, transports and others. All of them are called through here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from twisted.internet.defer import Deferred
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

Report: TypeAlias = Callable[[Failure, str], object]
"""Is told of what somebody else's code raised, and what that code was called for: mostly `Events.failure`."""

_log = Logger()


def at_debug(failure: Failure, what: str) -> None:
    """The Report of a caller that has no other. At debug: a client decides how often this happens."""
    _log.failure("{what}", failure, level=LogLevel.debug, what=what)


def safely(report: Report, what: str, call: Callable[..., object], *args: object) -> bool:
    """Call somebody else's code while something ends, and tell whether it returned.

    What it raises is reported as `what` and goes no further. So the caller always comes to its next step, which gives
    back a slot or a place, or ends the next session of all.
    """
    try:
        call(*args)
    except BaseException:  # noqa: BLE001 - as the reactor does: others are still to be served
        failure = Failure()
        try:
            report(failure, what)
        except BaseException:  # noqa: BLE001 - the same holds for the report
            at_debug(Failure(), "a failure could not be reported")
        return False
    return True


def cancel(promised: Deferred[Any] | None, report: Report = at_debug) -> None:
    """Cancel what is pending, if anything is. A canceller that raises leaves its Deferred pending: it counts as one
    that goes on in spite of its cancellation."""
    if promised is not None:
        safely(report, "a canceller raised", promised.cancel)
