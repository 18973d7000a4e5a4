"""How many steps of the interpreter a unit of work takes: `python -m benchmarks.steps`.

A step is one bytecode instruction that this process executes, as `sys.settrace` reports them; a call is one entry
into a Python function. Unlike time, both are the same on every machine with the same Python. The guard runs in this
process behind a real socket, on Twisted's default reactor, with the edge profile, every rate counted and the log at
warn; the client is another process that sends one piece and waits for its replies. Twisted's own read and turn of the
reactor are included. Figures of another Python than 3.11 are not comparable.

The client is known, and another is banned. With `--without-reputation` nobody is known or banned, no seat is reserved,
and no wider network is limited: what is more without it is the cost of that.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from types import FrameType
from typing import Any

from twisted.internet import reactor as any_reactor
from twisted.logger import LogLevel

from twisted_smtpguard import DiscardDelivery, Events, Limits, SMTPGuardFactory, Statistics
from twisted_smtpguard.limits.units import Rate
from twisted_smtpguard.reactors.quicktcp import make_quick

reactor: Any = any_reactor

BODY = b"Subject: steps\r\nFrom: <a@example.org>\r\nTo: <b@example.org>\r\n\r\n"
BODY += (b"y" * 70 + b"\r\n") * 55
RECIPIENT = b"RCPT TO:<b@example.org>\r\n"
FROM = b"MAIL FROM:<a@example.org>\r\n"
MAIL = (FROM, RECIPIENT, b"DATA\r\n", BODY + b".\r\n")
ENVELOPE = FROM + RECIPIENT + b"DATA\r\n"
SESSIONS = 20
UNITS = 20
"""Of each session."""
WARM_UP = 3
WITHOUT_REPUTATION = "--without-reputation"
REPUTATION_OFF: dict[str, Any] = {
    "ban_after": 0,
    "known_for": 0,
    "reserved_connections": 0,
    "ipv4_networks": (),
    "ipv6_networks": (),
}


class Counter:
    """Counts the steps and calls of this thread while `sys.settrace(counter.trace)` is in force."""

    def __init__(self) -> None:
        self.steps = 0
        self.calls = 0

    def trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "call":
            self.calls += 1
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
        elif event == "opcode":
            self.steps += 1
        return self.trace


class Crowd:
    """The other end, in its own process: SESSIONS clients that each send a piece, then each wait for its replies."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._sockets: list[socket.socket] = []

    def connect(self) -> None:
        """All connect, are greeted, and have said EHLO."""
        self._sockets = [socket.create_connection(("127.0.0.1", self._port)) for _ in range(SESSIONS)]
        self._expect(1)
        self.say(b"EHLO client.example.org\r\n")

    def say(self, octets: bytes, replies: int = 1) -> None:
        """Each sends the octets, and waits for so many replies."""
        for each in self._sockets:
            each.sendall(octets)
        self._expect(replies)

    def _expect(self, replies: int) -> None:
        for each in self._sockets:
            said, missing = b"", replies
            while missing:
                *lines, said = (said + each.recv(65536)).split(b"\r\n")
                missing -= sum(line[3:4] == b" " for line in lines)

    def quit(self) -> None:
        """Each says QUIT and waits for the end."""
        for each in self._sockets:
            each.sendall(b"QUIT\r\n")
        for each in self._sockets:
            while each.recv(65536):
                pass
            each.close()


def work(port: int) -> None:
    """Everything that is counted. A line on stdout, answered on stdin, stands before and after each unit's work."""
    clients = Crowd(port)

    def mark(name: str) -> None:
        print(name, flush=True)
        sys.stdin.readline()

    def kept(units: int) -> None:
        for _ in range(units):
            for piece in MAIL:
                clients.say(piece)

    def pipelined(units: int) -> None:
        clients.say(ENVELOPE, 3)
        for _ in range(units - 1):
            clients.say(BODY + b".\r\n" + ENVELOPE, 4)
        clients.say(BODY + b".\r\n")

    def recipients(units: int) -> None:
        """As many in one write: what a recipient costs without a read of its own."""
        clients.say(FROM)
        clients.say(RECIPIENT * units, units)
        clients.say(b"RSET\r\n")

    def connections(units: int) -> None:
        for _ in range(units):
            clients.connect()
            clients.quit()

    clients.connect()
    for name, some in (
        ("a mail on a kept connection", kept),
        ("a pipelined mail", pipelined),
        ("a recipient", recipients),
    ):
        some(WARM_UP)
        mark(name)
        some(UNITS)
        mark(name)
    clients.quit()
    connections(WARM_UP)
    mark("connection, EHLO, QUIT, end")
    connections(UNITS)
    mark("connection, EHLO, QUIT, end")


def main(off: dict[str, Any]) -> None:
    """Print a row for each unit of work. `off` are limits that are not those of the edge."""
    many = Rate(10**9, 60)
    limits = Limits.for_profile(
        "edge",
        greet_delay=0,
        connection_rate=many,
        message_rate=many,
        recipient_rate=many,
        max_messages=10**9,
        max_recipients=10**9,
        max_junk_commands=10**9,
        **off,
    )
    factory = SMTPGuardFactory(
        reactor,
        DiscardDelivery(),
        limits=limits,
        hostname="guard.example.org",
        events=Events(Statistics(), reactor, limits, LogLevel.warn),
    )
    if limits.ban_after:
        factory.bans.ban("192.0.2.1", limits.ban_after, "early_talker", dry_run=False)
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    # As a service does.
    make_quick(port)
    counter = Counter()

    def drive() -> None:
        arguments = [sys.executable, "-m", "benchmarks.steps", str(port.getHost().port)]
        with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as clients:
            assert clients.stdin is not None and clients.stdout is not None
            before: tuple[int, int] | None = None
            for name in clients.stdout:
                # The guard waits for its clients meanwhile; its last turn may not be over yet.
                time.sleep(0.1)
                if before is None:
                    before = counter.steps, counter.calls
                else:
                    steps, calls = (
                        (now - then) / UNITS / SESSIONS
                        for now, then in zip((counter.steps, counter.calls), before, strict=True)
                    )
                    print(f"{name.strip()}: {steps:.0f} steps in {calls:.0f} calls", flush=True)
                    before = None
                clients.stdin.write("\n")
                clients.stdin.flush()
        reactor.callFromThread(reactor.stop)

    threading.Thread(target=drive).start()
    sys.settrace(counter.trace)
    reactor.run()


if __name__ == "__main__":
    if sys.argv[1:] in ([], [WITHOUT_REPUTATION]):
        main(REPUTATION_OFF if sys.argv[1:] else {})
    else:
        work(int(sys.argv[1]))
