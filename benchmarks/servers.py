"""The servers that are compared: how each is started, on a core of its own, and what it tells of itself at its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import attrs

from .bounds import GUARD
from .peers import PEERS
from .vitals import Family, group_runs, pin

GUARD_INFO = "guard, info as JSON"
GUARD_INFO_TEXT = "guard, info as text"
GUARD_DEFAULTS = "guard, default limits"
GUARD_MAILDIR = "guard, Maildir"

HOSTNAME = "guard.example"
"""Whom the certificate of a server must name."""

START_SECONDS = 30
STOP_SECONDS = 60

PROTECTIONS = (
    "--profile=edge",
    # What the load of one address would run into stays on and is counted, but is out of reach.
    "--greet-delay=0",
    "--max-connections=30000",
    "--max-connections-per-client=30000",
    "--connection-rate=1000000000/60",
    "--message-rate=1000000000/60",
    "--recipient-rate=1000000000/60",
    "--max-messages=1000000000",
    "--max-junk-commands=1000000000",
)

_REFUSING = ("--max-connections=1", "--stress-read-timeout=0")
"""The only slot is held as long as the rounds last, and with its cap full a guard is in stress."""


class Wrong(Exception):  # noqa: N818 - not an error of this program
    """A reply or a count is not what it must be: nothing that was measured counts."""


@attrs.frozen
class TLS:
    """How clients of a server speak it."""

    context: ssl.SSLContext
    implicit: bool
    """Before the greeting, not behind STARTTLS."""


@attrs.frozen
class Kind:
    """A server that can be started."""

    name: str
    command: Callable[[int, bool], Sequence[str]]
    """Its words, from a port and whether it is to refuse every connection."""
    counts: Callable[[str], dict[str, int]] | None = None
    """What it has counted, from all it has printed; None if it cannot tell."""
    counted_as: Kind | None = None
    """The same server made to tell its counts, which costs it something: for a round that is not measured."""
    not_in: Collection[str] = ()
    """The keys of rows that it cannot bear, or has nothing to set against."""
    needs_holder: bool = False
    """Whether it refuses by a cap of one connection, which somebody must hold."""
    slow: str = ""
    """What it keeps clients waiting for: its greeting, a disk, the upstream server, or several processes."""
    tls: TLS | None = None
    """What our own clients speak to it; None: in clear."""


# Of the process, not of a client; refusals are told by their number.
_BESIDE = {
    *(
        "",
        "listening",
        "draining",
        "delivering",
        "filtering",
        "no_connection_cap",
        "descriptors_below_cap",
        "setup_warning",
        "stress",
        "doubtful_certificate",
    ),
    *("stopped", "reject"),
}


def _guard_counts(log: str) -> dict[str, int]:
    """From its log at info, in which a message must be one event and a connection two. (Those refused are limited.)"""
    events: Counter[str] = Counter()
    # Not splitlines(), for which the RS before each record ends a line.
    for line in log.split("\n"):
        record = json.loads(line.lstrip("\x1e")) if line.startswith("\x1e") else {}
        events[record.get("event", "")] += 1
        if record.get("event") == "stopped":
            told = {
                "accept": record["messages_accepted"],
                "connect": record["connections_accepted"],
                "disconnect": record["sessions_ended"],
            }
            logged = {name: number for name, number in events.items() if name not in _BESIDE}
            if logged != {name: number for name, number in told.items() if number}:
                raise Wrong(f"the guard has logged {logged} where it counts {told}")
            return {
                "messages": record["messages_accepted"],
                "recipients": record["recipients_accepted"],
                "refused": record["connections_refused"],
            }
    raise Wrong(f"no statistics in the guard's log: {log[-2000:]}")


def guard(
    name: str,
    python: str,
    *options: str,
    level: str = "warn",
    log_format: str = "json",
    protections: Sequence[str] = PROTECTIONS,
    deliver: str = "discard",
    tls: TLS | None = None,
    reactor: str = "",
) -> Kind:
    """The guard as `twist smtpguard` of the environment of `python`. `reactor`: by the name that `twist` knows it by;
    that which Twisted chooses if there is none."""

    def command(port: int, refusing: bool) -> list[str]:
        twist = [python, "-m", "twisted", f"--log-level={level}", f"--log-format={log_format}"]
        twist += [f"--reactor={reactor}"] if reactor else []
        listen = "--listen-tls" if tls is not None and tls.implicit else "--listen"
        own = [f"--deliver={deliver}", f"{listen}=tcp:{port}:interface=127.0.0.1", *protections, *options]
        return [*twist, "smtpguard", *own, *(_REFUSING if refusing else [])]

    counts = _guard_counts if (level, log_format) == ("info", "json") else None
    twin = None
    if counts is None:
        twin = guard(
            name,
            python,
            *options,
            level="info",
            protections=protections,
            deliver=deliver,
            tls=tls,
            reactor=reactor,
        )
    slow = "disk" if deliver.startswith("maildir:") else ""
    return Kind(name, command, counts, twin, needs_holder=True, slow=slow, tls=tls)


def on(reactor: str) -> str:
    """The name of the guard on a reactor that is not Twisted's choice."""
    return f"{GUARD} on {reactor}"


Guard: TypeAlias = "Callable[..., Kind]"
"""What makes a guard of a name, an environment and a reactor: `guard` without these."""


def guards(python: str, reactor: str = "") -> dict[str, Guard]:
    """By name: on the reactor that Twisted chooses, and on another if that is named."""
    made: dict[str, Guard] = {GUARD: partial(guard, GUARD, python)}
    if reactor:
        made[on(reactor)] = partial(guard, on(reactor), python, reactor=reactor)
    return made


def reactor_missing(python: str, reactor: str) -> str:
    """Why the environment of `python` has no such reactor, or an empty string."""
    code = "import sys; from twisted.application.reactors import installReactor; installReactor(sys.argv[1])"
    # Not here, where Python would import what stands in this folder and not what is installed.
    done = subprocess.run([python, "-c", code, reactor], capture_output=True, text=True, cwd="/", check=False)
    if not done.returncode:
        return ""
    last = done.stderr.strip().rpartition("\n")[2]
    return "twist knows no reactor of that name" if "NoSuchReactor" in last else last


def kinds(python: str = sys.executable) -> dict[str, Kind]:
    """All servers by name. `python`: of the environment whose guard is measured."""
    guards = [
        guard(GUARD, python),
        guard(GUARD_INFO, python, level="info"),
        guard(GUARD_INFO_TEXT, python, level="info", log_format="text"),
        guard(GUARD_DEFAULTS, python, protections=()),
        guard(GUARD_MAILDIR, python, deliver="maildir:Maildir"),
    ]
    own = {kind.name: kind for kind in guards}
    peers = {
        name: Kind(
            name,
            peer.command,
            peer.counts,
            Kind(name, peer.counting, peer.counts_of_counting) if peer.counting else None,
            not_in=peer.not_in,
            needs_holder=peer.needs_holder,
            slow=peer.slow,
        )
        for name, peer in PEERS.items()
    }
    return {**own, **peers}


class Server:
    """A running server."""

    def __init__(self, kind: Kind, port: int, process: subprocess.Popen[bytes], directory: Path) -> None:
        self.kind = kind
        self.name = kind.name
        self.port = port
        self.directory = directory
        self.vitals = Family(process.pid)
        self._process = process
        self.refused_before = 0
        """Connections refused before any load."""
        self._holder: socket.socket | None = None

    @property
    def printed(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def hold(self) -> None:
        """Take the only slot, until it is stopped, in a mail transaction, where the session has no other limit on
        its time than that on the next command."""
        while self._holder is None:
            arrived = socket.create_connection(("127.0.0.1", self.port))
            if arrived.recv(512).startswith(b"220"):
                arrived.sendall(b"HELO holder.example\r\n")
                arrived.recv(512)
                arrived.sendall(b"MAIL FROM:<holder@holder.example>\r\n")
                arrived.recv(512)
                self._holder = arrived
            else:
                self.refused_before += 1
                arrived.close()

    def stop(self) -> None:
        """By SIGTERM, and without a word about a fault."""
        if self._process.poll() is not None:
            raise Wrong(f"{self.name} has ended: {self.printed[-2000:]}")
        self._let_go()
        self._process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        # Those that it has started may end after it, and have something to log.
        while self._process.poll() is None or group_runs(self._process.pid):
            if time.monotonic() > deadline:
                raise Wrong(f"{self.name} does not stop")
            time.sleep(0.01)
        if "Traceback" in self.printed:
            raise Wrong(f"{self.name} has logged a fault: {self.printed[-2000:]}")

    def counts(self) -> dict[str, int]:
        """What it has counted; empty if it cannot tell. After `stop`."""
        return self.kind.counts(self.printed) if self.kind.counts else {}

    def _let_go(self) -> None:
        if self._holder is not None:
            self._holder.close()

    def kill(self) -> None:
        self._let_go()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextmanager
def running(kind: Kind, *, refusing: bool = False, core: int = 0) -> Iterator[Server]:
    """A server while the block runs, unless it is stopped before. `refusing`: every client is refused with a 421.
    `core`: another one for what is not measured."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with TemporaryDirectory() as folder:
        directory = Path(folder)
        # smtp-sink leaves root for nobody.
        directory.chmod(0o755)
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                kind.command(port, refusing),
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # The group is its own: what it starts is killed with it.
                start_new_session=True,
                preexec_fn=lambda: pin(core),  # noqa: PLW1509 - there are no threads here
            )
        server = Server(kind, port, process, directory)
        try:
            _wait_until_it_listens(server)
            if refusing and kind.needs_holder:
                server.hold()
            yield server
        finally:
            server.kill()


def _wait_until_it_listens(server: Server) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with _arrived(server) as connection:
                if connection.recv(512).startswith(b"421"):
                    server.refused_before += 1
                connection.recv(512) if server.refused_before else connection.sendall(b"QUIT\r\n")
                return
        except ConnectionRefusedError:
            if server._process.poll() is not None or time.monotonic() > deadline:
                raise Wrong(f"{server.name} does not listen: {server.printed[-2000:]}") from None
            time.sleep(0.05)


def _arrived(server: Server) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port))
    tls = server.kind.tls
    if tls is not None and tls.implicit:
        return tls.context.wrap_socket(connection, server_hostname=HOSTNAME)
    return connection
