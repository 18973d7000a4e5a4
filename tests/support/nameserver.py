"""A name server for tests, on UDP and TCP of one port: it answers what a test says, late, wrongly, or not at all."""

from __future__ import annotations

import heapq
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address
from itertools import count
from types import TracebackType
from typing import Any

import attrs

NXDOMAIN, SERVFAIL, REFUSED = 3, 2, 5
MAX_DATAGRAM = 512
"""Without EDNS (RFC 1035 2.3.4)."""


@attrs.frozen
class Said:
    """An answer. Without addresses and with no other code the name has no A records."""

    addresses: Sequence[str] = ()
    ttl: int = 300
    code: int = 0
    late: float = 0
    """How many seconds later it leaves."""
    cname: str = ""
    """The name that the first is another name of."""
    minimum: int | None = None
    """The minimum of the zone's SOA, which stands in the authority section; None: there is none."""
    other_question: str = ""
    """The name that it says it was asked for."""
    other_number: bool = False
    before: Sequence[bytes] = ()
    """Datagrams that leave before it, of which each ID stands in the message as it should."""
    never: bool = False
    """Only `before` is sent."""


NOTHING = Said(never=True)
NO_SUCH_NAME = Said(code=NXDOMAIN, minimum=300)

Answering = Callable[[str], Said]
"""What is said to the question for a name, in lower case."""


def name_of(address: str, zone: str) -> str:
    """The name of a client in a list, as RFC 5782 writes it."""
    packed = ip_address(address).packed
    labels = list(packed.hex()) if len(packed) == 16 else [str(octet) for octet in packed]
    return ".".join([*reversed(labels), zone])


def lists(zones: Mapping[str, Mapping[str, Sequence[str] | Said]]) -> Answering:
    """Lists with these clients, and with the entries for tests of IPv4. In a zone `*` is everybody else, and `-` in its
    place takes out the entries for tests."""
    said: dict[str, Said] = {}
    others: dict[str, Said] = {}
    for zone, entries in zones.items():
        known: dict[str, Sequence[str] | Said] = {"127.0.0.2": ["127.0.0.2"], **entries}
        if "-" in entries:
            known = {key: value for key, value in entries.items() if key != "-"}
        for key, value in known.items():
            answer = value if isinstance(value, Said) else Said(value)
            if key == "*":
                others[zone] = answer
            else:
                said[name_of(key, zone)] = answer

    def answer(name: str) -> Said:
        found = said.get(name)
        if found is None:
            found = next((each for zone, each in others.items() if name.endswith(f".{zone}")), NO_SUCH_NAME)
        return found

    return answer


def labels(name: str) -> bytes:
    return b"".join(bytes([len(each)]) + each.encode() for each in name.split(".")) + b"\0"


def message(said: Said, query: bytes, name: str, *, truncated: bool = False) -> bytes:
    """The answer as octets."""
    number = struct.unpack("!H", query[:2])[0] ^ (0x5555 if said.other_number else 0)
    question = labels(said.other_question) + b"\0\1\0\1" if said.other_question else query[12:]
    records, owner = [], b"\xc0\x0c"
    if said.cname:
        data = labels(said.cname)
        records.append(owner + struct.pack("!HHIH", 5, 1, said.ttl, len(data)) + data)
        owner = data
    for address in said.addresses:
        records.append(owner + struct.pack("!HHIH", 1, 1, said.ttl, 4) + ip_address(address).packed)
    authority = b""
    if said.minimum is not None:
        data = labels("ns.example") * 2 + struct.pack("!5I", 1, 1, 1, 1, said.minimum)
        authority = labels("example") + struct.pack("!HHIH", 6, 1, 86400, len(data)) + data
    flags = 0x8180 | said.code | (0x0200 if truncated else 0)
    if truncated:
        records = []
    head = struct.pack("!6H", number, flags, 1, len(records), bool(authority), 0)
    return head + question + b"".join(records) + authority


def name_in(query: bytes) -> str:
    """The name that is asked for."""
    found, at = [], 12
    while query[at]:
        found.append(query[at + 1 : at + 1 + query[at]].decode())
        at += 1 + query[at]
    return ".".join(found).lower()


class NameServer:
    """It runs, in a thread, while the block runs. `answering` may be replaced at any time."""

    def __init__(self, answering: Answering, host: str = "127.0.0.1") -> None:
        self.answering = answering
        self.questions: list[str] = []
        """The names of all questions."""
        self.by_tcp: list[str] = []
        """Those of them that came by TCP."""
        self.most_waiting = 0
        """How many questions had come at most that were not answered yet, of those that are answered late."""
        self.by_tcp_says: Answering | None = None
        """What it says by TCP, if that is something else."""
        self.tcp = True
        """Whether it answers by TCP."""
        self.keeps_open = False
        """Whether it leaves the end of a TCP connection to whoever has asked."""
        self.left = 0
        """How many of those have ended it."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._udp = socket.socket(family, socket.SOCK_DGRAM)
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        while True:
            self._udp.bind((host, 0))
            try:
                self._listener.bind(self._udp.getsockname())
                break
            except OSError:
                # Another process has the same port of TCP.
                self._udp.close()
                self._udp = socket.socket(family, socket.SOCK_DGRAM)
        self._udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * 1024 * 1024)
        self._listener.listen(128)
        self.host, self.port = self._udp.getsockname()[:2]
        self._late: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = count()
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def address(self) -> str:
        """As resolver= has it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __enter__(self) -> NameServer:
        for each, take in (
            (self._udp, self._datagram),
            (self._listener, self._accept),
            (self._woken, self._stop),
        ):
            each.setblocking(False)
            self._selector.register(each, selectors.EVENT_READ, take)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Answer no more: its port is free."""
        if self._thread.is_alive():
            self._wake.send(b"x")
            self._thread.join()
        for each in (self._udp, self._listener, self._wake, self._woken):
            each.close()

    def _run(self) -> None:
        self._running = True
        while self._running:
            wait = max(0, self._late[0][0] - time.monotonic()) if self._late else None
            for key, _ in self._selector.select(wait):
                key.data(key.fileobj)
            while self._late and self._late[0][0] <= time.monotonic():
                heapq.heappop(self._late)[2]()
        self._selector.close()

    def _stop(self, _: Any) -> None:
        self._running = False

    def _datagram(self, _: Any) -> None:
        while True:
            try:
                query, client = self._udp.recvfrom(4096)
            except OSError:
                return
            name = name_in(query)
            self.questions.append(name)
            said = self.answering(name)

            def send(said: Said = said, query: bytes = query, client: Any = client, name: str = name) -> None:
                for octets in said.before:
                    self._udp.sendto(octets.replace(b"ID", query[:2], 1), client)
                if not said.never:
                    whole = message(said, query, name)
                    if len(whole) > MAX_DATAGRAM:
                        whole = message(said, query, name, truncated=True)
                    self._udp.sendto(whole, client)

            if said.late:
                heapq.heappush(self._late, (time.monotonic() + said.late, next(self._numbers), send))
                self.most_waiting = max(self.most_waiting, len(self._late))
            else:
                send()

    def _accept(self, _: Any) -> None:
        stream, _ = self._listener.accept()
        stream.settimeout(5)
        # Whoever asks may leave at any time.
        with stream, suppress(OSError):
            if not self.tcp:
                return
            query = stream.recv(4096)[2:]
            name = name_in(query)
            self.questions.append(name)
            self.by_tcp.append(name)
            whole = message((self.by_tcp_says or self.answering)(name), query, name)
            # In pieces, as TCP may bring it.
            framed = struct.pack("!H", len(whole)) + whole
            for at in range(0, len(framed), 700):
                stream.sendall(framed[at : at + 700])
            if self.keeps_open and stream.recv(1) == b"":
                self.left += 1
