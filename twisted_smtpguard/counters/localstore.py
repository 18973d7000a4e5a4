"""The counter store in the memory of this process. Its size is bounded."""

from __future__ import annotations

import math
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from zope.interface import implementer

from twisted_smtpguard.interfaces import ICounterStore
from twisted_smtpguard.values import Wanted

_ONE_EVENT = 1j
_NO_WINDOW = complex(-math.inf, 0)


class InMemoryStore:
    """The base of stores that answer at once and cannot fail."""


@implementer(ICounterStore)
class LocalCounterStore(InMemoryStore):
    """A counter store that always answers at once. For each counter it remembers `max_clients` clients; 0: all.

    The first client to be forgotten is the one for which something was wanted least recently: a client that goes on
    trying is remembered, however many strangers come. A forgotten client starts anew, with no places. In a full table a
    client costs up to 400 octets with its key, in Python 3.10 up to 500. The store is for one process and one thread,
    and does not tell owners apart. `seconds` is its clock.
    """

    lease_seconds = 0

    def __init__(self, max_clients: int, seconds: Callable[[], float] = time.monotonic) -> None:
        self.max_clients = max_clients
        self._seconds = seconds
        # A client's places are a whole number. A window is one complex number: its beginning is the real part, its
        # events are the imaginary part. A tuple would cost 64 octets more, a list 80, and the garbage collector would
        # visit all of them.
        self._tables: defaultdict[str, OrderedDict[str, Any]] = defaultdict(OrderedDict)

    def set_max_clients(self, max_clients: int) -> None:
        """Remember so many clients from now on; 0: all."""
        self.max_clients = max_clients
        for table in self._tables.values():
            while 0 < max_clients < len(table):
                table.popitem(last=False)

    def sizes(self) -> dict[str, int]:
        """How many clients are remembered, for each counter that was used."""
        return {name: len(table) for name, table in self._tables.items()}

    def take(self, owner: str, wanted: Sequence[Wanted]) -> list[int]:
        """Take all that is wanted, or nothing, and return the counts."""
        counts = []
        changes = []
        fits = True
        for counter, client, limit, seconds, events in wanted:
            table = self._tables[counter]
            if seconds:
                value: Any = self._window(table.get(client, _NO_WINDOW), events, seconds)
                count = int(value.imag)
            else:
                value = count = table.get(client, 0) + events
            counts.append(count)
            if 0 < limit < count:
                fits = False
            changes.append((table, client, value))
        for table, client, value in changes:
            if fits:
                known = client in table
                table[client] = value
                if known:
                    table.move_to_end(client)
                elif 0 < self.max_clients < len(table):
                    table.popitem(last=False)
            elif client in table:
                table.move_to_end(client)
        return counts

    def give_back(self, owner: str, taken: Iterable[Wanted]) -> None:
        """Give back what was taken. What belongs to a client that was forgotten meanwhile changes nothing."""
        for counter, client, _, seconds, events in taken:
            table = self._tables[counter]
            if seconds:
                window = table.get(client, _NO_WINDOW)
                if 0 <= self._seconds() - window.real < seconds:
                    table[client] = complex(window.real, max(0, window.imag - events))
            else:
                held = table.get(client, 0) - events
                if held > 0:
                    table[client] = held
                else:
                    table.pop(client, None)

    def look(self, wanted: Iterable[Wanted]) -> list[tuple[int, float]]:
        """Return the count of each, and the seconds after which its window ends."""
        seen = []
        for counter, client, _, seconds, _ in wanted:
            value = self._tables[counter].get(client, 0)
            if not seconds:
                seen.append((value, 0.0))
                continue
            window = self._window(value or _NO_WINDOW, 0, seconds)
            count = int(window.imag)
            seen.append((count, max(0.0, window.real + seconds - self._seconds()) if count else 0.0))
        return seen

    def renew(self, owner: str, places: Mapping[tuple[str, str], int]) -> None:
        """Never called: places end when they are given back."""

    def clients(self) -> dict[str, int]:
        """How many clients each counter has in its table."""
        return {counter: len(table) for counter, table in self._tables.items()}

    def _window(self, window: complex, events: int, seconds: float) -> complex:
        """The window of a client after `events` more: the same one, or one that begins now."""
        now = self._seconds()
        if 0 <= now - window.real < seconds:
            return window + events * _ONE_EVENT
        # If the clock was set back, the client keeps its events, for no longer than one more window.
        return complex(now, events + (window.imag if now < window.real else 0))
