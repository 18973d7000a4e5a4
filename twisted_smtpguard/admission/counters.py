"""The counter store in the memory of this process. Its size is bounded."""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict
from typing import TypeVar

from zope.interface import implementer

from twisted_smtpguard.interfaces import IReadableCounterStore

T = TypeVar("T")

_ONE_EVENT = 1j
_NO_WINDOW = complex(-math.inf, 0)


@implementer(IReadableCounterStore)
class LocalCounterStore:
    """A counter store that always answers at once. For each `counter` it remembers `max_clients` clients; 0: all.

    The first client to be forgotten is the one for which `acquire` or `add` was called least recently: a client that
    goes on trying is remembered, however many strangers come. A forgotten client starts anew, with no places. In a full
    table a client costs up to 400 octets with its key, in Python 3.10 up to 500. The store is for one process and one
    thread.
    """

    def __init__(self, max_clients: int) -> None:
        self._max_clients = max_clients
        self._places: defaultdict[str, OrderedDict[str, int]] = defaultdict(OrderedDict)
        # A window is one complex number: its beginning is the real part, its events are the imaginary part. A tuple
        # would cost 64 octets more, a list 80, and the garbage collector would visit all of them.
        self._windows: defaultdict[str, OrderedDict[str, complex]] = defaultdict(OrderedDict)

    def set_max_clients(self, max_clients: int) -> None:
        """Remember so many clients from now on; 0: all."""
        self._max_clients = max_clients
        for places in self._places.values():
            self._forget(places)
        for windows in self._windows.values():
            self._forget(windows)

    def acquire(self, counter: str, client: str, limit: int) -> int:
        """Take a place, and return how many `client` then holds. Above `limit` (0: no limit) nothing is taken."""
        places = self._places[counter]
        held = places.get(client, 0)
        if held:
            places.move_to_end(client)
        if not limit or held < limit:
            self._put(places, client, held + 1)
        return held + 1

    def release(self, counter: str, client: str) -> None:
        """Give back a place. If the client was forgotten meanwhile, nothing happens."""
        places = self._places[counter]
        held = places.get(client, 0)
        if held > 1:
            places[client] = held - 1
        elif held:
            del places[client]

    def add(self, counter: str, client: str, events: int, seconds: float, now: float) -> int:
        """Count `events`, and return how many there were in this window of `seconds`, these included. The result is
        never below 0: an event that is taken back may be of a window that has ended, or of a client that was
        forgotten."""
        windows = self._windows[counter]
        window = windows.get(client, _NO_WINDOW)
        if 0 <= now - window.real < seconds:
            # The usual case.
            window += events * _ONE_EVENT
            if window.imag < 0:
                window = complex(window.real, 0)
            windows[client] = window
        else:
            before = 0.0
            if now < window.real:
                # The clock was set back. The client keeps its events, for no longer than one more window.
                before = window.imag
            elif events <= 0:
                # A window begins with an event, and there is none to count.
                return 0
            window = complex(now, max(0, before + events))
            self._put(windows, client, window)
        windows.move_to_end(client)
        return int(window.imag)

    def look(self, counter: str, client: str, seconds: float, now: float) -> tuple[int, float]:
        """The events of `client` in its window of `seconds`, and the seconds that are left of it; with 0 seconds the
        places that it holds, and 0. Nothing changes."""
        if not seconds:
            return self._places[counter].get(client, 0), 0.0
        window = self._windows[counter].get(client, _NO_WINDOW)
        # If the clock was set back, the client keeps its events for one more window.
        left = seconds - max(0.0, now - window.real)
        return (int(window.imag), left) if left > 0 else (0, 0.0)

    def _put(self, table: OrderedDict[str, T], client: str, value: T) -> None:
        """Set the value of a client. If the table is full, the least recently used client is forgotten."""
        table[client] = value
        self._forget(table)

    def _forget(self, table: OrderedDict[str, T]) -> None:
        while 0 < self._max_clients < len(table):
            table.popitem(last=False)
