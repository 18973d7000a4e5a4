"""A bounded number of places, which clients share fairly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class FairPlaces(Generic[T]):
    """`most` places. When all are taken, a newcomer gets that which is held longest of the client that holds most,
    unless its own client holds as many. `evict` is called with the holder, whose place has been given back by then.

    So whoever takes all places, and keeps them, keeps nobody out but itself.
    """

    def __init__(self, most: int, evict: Callable[[T], object]) -> None:
        self.taken = 0
        self._most = most
        self._evict = evict
        self._held: dict[str, dict[T, None]] = {}
        """The holders of each client that has any, those that have held longest first."""

    def take(self, client: str, holder: T) -> bool:
        """Take a place for `holder`, who belongs to the client with this name. False: there is none for it."""
        if self.taken >= self._most:
            greediest = max(self._held, key=self._number)
            if self._number(client) >= self._number(greediest):
                return False
            evicted = next(iter(self._held[greediest]))
            self.give_back(greediest, evicted)
            self._evict(evicted)
        self._held.setdefault(client, {})[holder] = None
        self.taken += 1
        return True

    def give_back(self, client: str, holder: T) -> None:
        """Give back a place. Only the first call for a holder has an effect."""
        held = self._held.get(client, {})
        if holder in held:
            del held[holder]
            self.taken -= 1
            if not held:
                del self._held[client]

    def _number(self, client: str) -> int:
        return len(self._held.get(client, ()))
