"""An IP filter for crowds: how it answers depends on the client's network, and it takes its time.

A test that needs it in `twist` puts this file into a folder twisted/plugins on PYTHONPATH.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.plugin import IPlugin
from zope.interface import implementer

from twisted_smtpguard.interfaces import (
    PASS,
    TRUST,
    IIPFilter,
    IIPFilterFactory,
    Peer,
    refuse,
)


class SlowAnswers:
    """Each method is a way to answer, after `seconds` where it is late."""

    def __init__(self, clock: Any, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds

    def _later(self, answer: Callable[[], object]) -> Deferred[Any]:
        return deferLater(self._clock, self._seconds, answer)

    def pass_at_once(self) -> object:
        return PASS

    def pass_late(self) -> object:
        return self._later(lambda: PASS)

    def trust_late(self) -> object:
        return self._later(lambda: TRUST)

    def refuse_late(self) -> object:
        return self._later(refuse)

    async def coroutine(self) -> object:
        return await self._later(lambda: PASS)

    def raise_at_once(self) -> object:
        raise RuntimeError("it cannot say")

    def raise_late(self) -> object:
        return self._later(self.raise_at_once)

    def rubbish_at_once(self) -> object:
        return "pass"

    def rubbish_late(self) -> object:
        return self._later(lambda: None)

    def never(self) -> object:
        return Deferred()

    def never_and_cannot_be_cancelled(self) -> object:
        def canceller(_: object) -> None:
            raise RuntimeError("it goes on")

        return Deferred(canceller)

    def after_it_was_cancelled(self) -> object:
        answer: Deferred[Any] = Deferred()
        self._clock.callLater(3 * self._seconds, answer.callback, PASS)
        return answer


WAYS = tuple(name for name in vars(SlowAnswers) if not name.startswith("_"))
AT_ONCE = ("pass_at_once", "raise_at_once", "rubbish_at_once")
NEVER = ("never", "never_and_cannot_be_cancelled", "after_it_was_cancelled")
"""Those that take as long as a filter may take."""


@implementer(IIPFilter)
class SlowFilter:
    """Answers 127.0.N.x in the N-th of `ways`, which begin anew after the last."""

    def __init__(self, clock: Any, seconds: float, ways: tuple[str, ...] = WAYS) -> None:
        self._answers = SlowAnswers(clock, seconds)
        self._ways = ways

    def check(self, peer: Peer) -> Any:
        way = way_of(str(peer.address), self._ways)
        return getattr(self._answers, way)()


def way_of(address: str, ways: tuple[str, ...] = WAYS) -> str:
    """In which way a client at `address` is answered."""
    return ways[int(address.split(".")[2]) % len(ways)]


@implementer(IPlugin, IIPFilterFactory)
class SlowFilterFactory:
    name = "slow"
    summary = "Answers late, never, and with rubbish."
    argument_format = (
        "How many seconds late, and perhaps a colon and the one way in which to answer everybody."
    )

    def make_filter(self, argument: str, reactor: Any) -> SlowFilter:
        seconds, _, way = argument.partition(":")
        return SlowFilter(reactor, float(seconds), (way,) if way else WAYS)


slow = SlowFilterFactory()
