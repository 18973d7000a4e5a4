"""What clients hold and do, counted in the memory of this process: no more is kept than the operator allows."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from typing import TypeVar

from zope.interface import implementer

from twisted_smtpguard.interfaces import ICounterStore

T = TypeVar("T")

_ONE_EVENT = 1j


@implementer(ICounterStore)
class LocalCounterStore:
    """Counts at once, and never with a Deferred. Of each `counter` it remembers `max_clients` clients; 0: all.

    The client forgotten first is the one that was least recently given to `acquire` or `add`: whoever goes on
    trying is remembered, however many strangers come. One that is forgotten starts anew, with no places. In a
    full table a client costs up to 400 octets with its key, in Python 3.10 up to 500. For one process and thread.
    """

    def __init__(self, max_clients: int) -> None:
        self._max_clients = max_clients
        self._places: defaultdict[str, OrderedDict[str, int]] = defaultdict(OrderedDict)
        # A window is one number: real is when it began, imag its events. A tuple of two costs 64 octets more, a
        # list 80, and the garbage collector would walk through all of them.
        self._windows: defaultdict[str, OrderedDict[str, complex]] = defaultdict(OrderedDict)

    def acquire(self, counter: str, client: str, limit: int) -> int:
        """Take a place, and answer how many `client` holds with it; above `limit` (0: none) nothing is taken."""
        places = self._places[counter]
        held = places.get(client, 0)
        if held:
            places.move_to_end(client)
        if not limit or held < limit:
            self._put(places, client, held + 1)
        return held + 1

    def release(self, counter: str, client: str) -> None:
        """Give a place back. It may be that of a client forgotten since: then there is nothing to do."""
        places = self._places[counter]
        held = places.get(client, 0)
        if held > 1:
            places[client] = held - 1
        elif held:
            del places[client]

    def add(self, counter: str, client: str, events: int, seconds: float, now: float) -> int:
        """Count `events`, and answer how many there were in this window of `seconds`, these included. Never less than
        0: what is taken back may be of a window that has ended, or of a client forgotten since."""
        windows = self._windows[counter]
        window = windows.get(client)
        if window is not None and 0 <= now - window.real < seconds:
            # As nearly always.
            window += events * _ONE_EVENT
            if window.imag < 0:
                window = complex(window.real, 0)
            windows[client] = window
        else:
            before = 0.0
            if window is not None and now < window.real:
                # A clock that was set back neither forgives nor holds anybody for longer than one window.
                before = window.imag
            elif events <= 0:
                # A window begins with an event, and there was none.
                return 0
            window = complex(now, max(0, before + events))
            self._put(windows, client, window)
        windows.move_to_end(client)
        return int(window.imag)

    def _put(self, table: OrderedDict[str, T], client: str, value: T) -> None:
        table[client] = value
        if self._max_clients and len(table) > self._max_clients:
            table.popitem(last=False)
