"""How an owner tells Redis what it holds: in parts, between which its decisions go on.

A part is short, so that no decision waits long for it. So places are taken and given back between the parts, and there
are always some of which the owner does not know yet whether it has them. Redis is told the least and the most that it
may hold of each place, and changes a count only if it is not between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from secrets import token_hex
from typing import Any, TypeAlias

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

NO_NAME = "-"
MOST_PLACES = 250
"""How many places one call of the script renews, which takes Redis about a millisecond."""


Places: TypeAlias = "Mapping[str, int]"
"""How many of each place, by its key without the prefix."""


class _Renewal:
    """`places` has the least and the most of each."""

    def __init__(self, places: dict[str, tuple[int, int]]) -> None:
        self.places = places
        self.former = NO_NAME
        """The name under which the hash of the owner goes from which its places are taken over."""
        self.done: Deferred[int] = Deferred()

    def widen(self, places: Places, less: int, more: int) -> None:
        """Some of these places may be held, or not any more: `less` or `more` says how often."""
        for name, number in places.items():
            least, most = self.places.get(name, (0, 0))
            self.places[name] = max(0, least - less * number), most + more * number


class Renewals:
    """The renewals of all owners of one store. `run` runs the script: with the verb, the owner and words."""

    def __init__(self, run: Callable[..., Deferred[Any]]) -> None:
        self._run = run
        self._queues: dict[str, list[_Renewal]] = {}
        """Of each owner the renewal that is going on, and those that are due after it."""
        self._interrupted: dict[str, str] = {}
        """The former name of a hash that was not taken over to its end."""
        self._unanswered: dict[int, tuple[str, Places]] = {}
        self._numbers = count()

    def asked(self, owner: str, places: Places) -> int:
        """Note that `owner` asks for places, of which it does not know yet whether it has them. Returns the number for
        `answered()`."""
        for renewal in self._queues.get(owner, ()):
            renewal.widen(places, 0, 1)
        number = next(self._numbers)
        self._unanswered[number] = (owner, places)
        return number

    def answered(self, number: int) -> None:
        """Note that the owner knows."""
        del self._unanswered[number]

    def given_back(self, owner: str, places: Places) -> str:
        """Note that places are given back. Returns the name under which a hash may still have some of them that were
        not taken over yet."""
        queue = self._queues.get(owner, [])
        for renewal in queue:
            renewal.widen(places, 1, 0)
        return queue[0].former if queue else NO_NAME

    def renew(self, owner: str, places: Mapping[tuple[str, str], int]) -> Deferred[int]:
        """Hold these places and no others. It does not matter whether those are among them that were asked for and are
        unanswered. The answer is how many leases have ended."""
        renewal = _Renewal(
            {f"p:{counter}:{client}": (held, held) for (counter, client), held in places.items()}
        )
        for taker, unanswered in self._unanswered.values():
            if taker == owner:
                renewal.widen(unanswered, 1, 1)
        queue = self._queues.setdefault(owner, [])
        queue.append(renewal)
        if len(queue) == 1:
            Deferred.fromCoroutine(self._work(owner, queue))
        return renewal.done

    async def _work(self, owner: str, queue: list[_Renewal]) -> None:
        while queue:
            outcome: Any
            try:
                outcome = await self._carry_out(owner, queue[0])
            except Exception:  # noqa: BLE001 - it is the caller's
                outcome = Failure()
            done = queue.pop(0).done
            if not queue:
                del self._queues[owner]
            done.callback(outcome)

    async def _carry_out(self, owner: str, renewal: _Renewal) -> int:
        if former := self._interrupted.get(owner):
            await self._take_over(owner, renewal, former, goes_on=True)
        return await self._take_over(owner, renewal, f"{owner}.{token_hex(8)}")

    async def _take_over(self, owner: str, renewal: _Renewal, former: str, *, goes_on: bool = False) -> int:
        renewal.former = former
        names = list(renewal.places)
        parts = range(0, max(len(names), 1), MOST_PLACES)
        ended = 0
        for start in parts:
            part = names[start : start + MOST_PLACES]
            words = [word for name in part for word in (name, *renewal.places[name])]
            marks = (int(start == 0 and not goes_on), int(start == parts[-1]))
            try:
                ended = await self._run("renew", owner, former, *marks, *words)
            except Exception:
                if len(parts) > 1:
                    self._interrupted[owner] = former
                raise
        self._interrupted.pop(owner, None)
        return ended
