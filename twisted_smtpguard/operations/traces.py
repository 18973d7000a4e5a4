"""`trace`: the dialogues of some clients as they happen, for an operator who wants to see what goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted_smtpguard.hooks.faults import safely
from twisted_smtpguard.log.eventlog import utc
from twisted_smtpguard.operations.sessions import Network
from twisted_smtpguard.transport.factory import SMTPGuardFactory
from twisted_smtpguard.transport.protocol import SMTPGuardProtocol
from twisted_smtpguard.transport.tap import GUARD, Tap

MAX_TRACES = 8
"""The most traces at once. Each line is made for each of them."""

MAX_SECONDS = 24 * 3600
"""How long a trace may last."""

Row = dict[str, Any]


class Traces:
    """The traces of one guard. While there is none, no connection is tapped."""

    def __init__(self, factory: SMTPGuardFactory) -> None:
        self._factory = factory
        self._traces: list[Trace] = []
        self._taps: dict[SMTPGuardProtocol, Tap] = {}

    def start(self, network: str, seconds: float) -> Trace:
        """Trace the connections of clients in `network`, an address, a CIDR or `unix`, those that are open too, for so
        many seconds. ValueError: it is no network, the time is too long, or there are too many traces."""
        clients = Network(network)
        if not 0 < seconds <= MAX_SECONDS:
            raise ValueError(f"a trace lasts for at most {MAX_SECONDS // 3600} hours")
        if len(self._traces) >= MAX_TRACES:
            raise ValueError(f"there are {MAX_TRACES} traces already, and no more are made")
        trace = Trace(clients, self._ended)
        self._traces.append(trace)
        trace.timer = self._factory.context.call_later(seconds, trace.end)
        self._factory.on_connection = self._connected
        for engine in self._factory.sessions():
            self._tap(engine.host, began=True)
        return trace

    def _connected(self, protocol: SMTPGuardProtocol) -> None:
        if self._tap(protocol, began=False):
            self._say(protocol, GUARD, "[connected]")

    def _tap(self, protocol: Any, *, began: bool) -> bool:
        """Tap a connection if a trace wants it, or may want it once a proxy has named the client. Returns whether."""
        proxies = self._factory.proxies
        if protocol in self._taps or not (
            self._wanted(protocol.engine.peer_name)
            or (proxies is not None and proxies.has(protocol.address()))
        ):
            return False
        tell, forget = partial(self._say, protocol), partial(self._taps.pop, protocol, None)
        self._taps[protocol] = Tap(protocol, tell, forget, began=began)
        return True

    def _wanted(self, peer: str) -> bool:
        return any(peer in trace.clients for trace in self._traces)

    def _say(self, protocol: SMTPGuardProtocol, who: str, text: str) -> None:
        """Called by a tap for each line."""
        engine, now = protocol.engine, self._factory.context.seconds()
        peer = engine.peer_name
        row = {
            "time": f"{utc(now)[:-1]}.{int(now * 1000) % 1000:03}Z",
            "client": peer,
            "session": engine.name,
            "from": who,
            "text": text,
        }
        for trace in [each for each in self._traces if peer in each.clients]:
            if not safely(self._factory.context.events.failure, "a trace could not be told", trace.row, row):
                trace.stop()

    def _ended(self, trace: Trace) -> None:
        self._traces.remove(trace)
        if not self._traces:
            self._factory.on_connection = None
            while self._taps:
                self._taps.popitem()[1].remove()


def _nothing(*_: object) -> None:
    pass


class Trace:
    """One trace. It ends by itself. `clients` are those whose connections are traced."""

    def __init__(self, clients: Network, ended: Callable[[Trace], object]) -> None:
        self.clients = clients
        self.timer: Any = None
        self._ended: Callable[[Trace], object] | None = ended
        self.row: Callable[[Row], object] = _nothing
        self._end: Callable[[], object] = _nothing

    def begin(self, row: Callable[[Row], object], end: Callable[[], object]) -> None:
        """Call `row` with each line from now on, as a dict of what JSON has, and `end` at the end. `row` must return at
        once, since the connection waits for it: a reader that is slow has to leave lines out."""
        self.row, self._end = row, end
        if self._ended is None:
            end()

    def end(self) -> None:
        """Called when the time is over."""
        end = self._end
        self.stop()
        end()

    def stop(self) -> None:
        """End the trace: nothing is called any more. May be called twice."""
        ended, self._ended = self._ended, None
        self.row = self._end = _nothing
        if ended is not None:
            if self.timer.active():
                self.timer.cancel()
            ended(self)
