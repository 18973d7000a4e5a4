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

    def held_by_all(self, counter: str) -> int:
        """How many places of a counter without clients are held in other processes too; 0: this is the only one."""
        return 0


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
        counts: list[int] = []
        tables, now, max_clients = self._tables, self._seconds(), self.max_clients or math.inf
        for counter, client, limit, seconds, events in wanted:
            table = tables[counter]
            if seconds:
                window = table.get(client, _NO_WINDOW)
                if 0 <= now - window.real < seconds:
                    value: Any = window + events * _ONE_EVENT
                else:
                    value = _new_window(window, events, now)
                count = int(value.imag)
            else:
                value = count = table.get(client, 0) + events
            if limit and count > limit:
                # This is rare, and what was taken is put back.
                self._put_back(wanted[: len(counts)])
                return self._refused(wanted)
            counts.append(count)
            table[client] = value
            table.move_to_end(client)
            if len(table) > max_clients:
                table.popitem(last=False)
        return counts

    def _refused(self, wanted: Sequence[Wanted]) -> list[int]:
        """The counts of a decision in which nothing is taken."""
        for each in wanted:
            table = self._tables[each.counter]
            if each.client in table:
                table.move_to_end(each.client)
        return [count + each.events for (count, _), each in zip(self.look(wanted), wanted, strict=True)]

    def one_event(self, counter: str, limit: int, seconds: float) -> Callable[[str], int]:
        """A function that takes one event of a client and returns its count. It is `take()` of that alone in a third of
        the time, for what is counted at every mail and recipient."""
        table, now_is = self._tables[counter], self._seconds
        most, max_clients = limit or math.inf, self.max_clients or math.inf

        def count(client: str) -> int:
            now = now_is()
            window = table.get(client, _NO_WINDOW)
            if 0 <= now - window.real < seconds:
                window += _ONE_EVENT
            else:
                window = _new_window(window, 1, now)
            count = int(window.imag)
            if count <= most:
                table[client] = window
            table.move_to_end(client)
            if len(table) > max_clients:
                table.popitem(last=False)
            return count

        return count

    def events(
        self,
        counter: str,
        seconds: float,
        wanted_of: Callable[[str], Sequence[Wanted]],
        refused: Callable[[Sequence[Wanted], Sequence[int]], Any],
    ) -> Callable[[str], Any]:
        """A function that takes, for a client, the events that `wanted_of(client)` gives, one of each, which all have
        limits, or none. It returns the count of the first; if none was taken, `refused()` of what was wanted and the
        counts. It takes half as long as `take()`."""
        table, now_is = self._tables[counter], self._seconds
        max_clients = self.max_clients or math.inf

        def count(client: str) -> Any:
            now, wanted = now_is(), wanted_of(client)
            # The first is the last, so that its window is at hand in the end.
            for _, key, limit, _, _ in reversed(wanted):
                window = table.get(key, _NO_WINDOW)
                if 0 <= now - window.real < seconds:
                    window += _ONE_EVENT
                else:
                    window = _new_window(window, 1, now)
                if window.imag > limit:
                    clients = [each.client for each in wanted]
                    self._put_back(wanted[clients.index(key) + 1 :])
                    return refused(wanted, self._refused(wanted))
                table[key] = window
                table.move_to_end(key)
            while len(table) > max_clients:
                table.popitem(last=False)
            return int(window.imag)

        return count

    def give_back(self, owner: str, taken: Iterable[Wanted]) -> None:
        """Give back what was taken. What belongs to a client that was forgotten meanwhile changes nothing."""
        self._put_back(taken)

    def _put_back(self, taken: Iterable[Wanted]) -> None:
        for counter, client, _, seconds, events in taken:
            table = self._tables[counter]
            if seconds:
                window = table.get(client, _NO_WINDOW)
                if not 0 <= self._seconds() - window.real < seconds:
                    continue
                left: Any = window - events * _ONE_EVENT
                count = left.imag
            else:
                left = count = table.get(client, 0) - events
            # A window begins with its first event, so one without events is none.
            if count > 0:
                table[client] = left
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
            window, now = value or _NO_WINDOW, self._seconds()
            if not 0 <= now - window.real < seconds:
                window = _new_window(window, 0, now)
            count = int(window.imag)
            seen.append((count, window.real + seconds - now if count else 0.0))
        return seen

    def renew(self, owner: str, places: Mapping[tuple[str, str], int]) -> None:
        """Never called: places end when they are given back."""


def _new_window(window: complex, events: int, now: float) -> complex:
    """The window that begins now. If the clock was set back, the client keeps the events of its window before, for no
    longer than one more window."""
    return complex(now, events + (window.imag if now < window.real else 0))
