"""A real `twist smtpguard` in its own process: start it, wait for what it logs, end it."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, ClassVar, TypeAlias

from forkserver import REACTOR, TWIST, Started, starts_alike

LOCAL = "tcp:0:interface=127.0.0.1"
PATIENCE_SECONDS = 30.0
"""How long a test waits for what must come soon. Only a failure takes that long."""

Address: TypeAlias = "tuple[str, int] | str"
"""A host and a port, or the path of a UNIX socket."""

_LISTENING = re.compile(r'\blistening endpoint=\S+ address=([^\s"]+)')
# Text begins a line with the time, JSON a record with RS (RFC 7464).
_LINE = re.compile(r"^(?:\x1e|\d{4}-).*\n", re.MULTILINE)


def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait until `condition()` is true. `what` is the sentence of the failure when it never is."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def command(
    *options: str,
    listen: Sequence[str] = (LOCAL,),
    listen_tls: Sequence[str] = (),
    reactor: str = REACTOR,
    log_format: str = "text",
    log_level: str = "info",
    twist: Path = TWIST,
) -> list[str]:
    """The words that start a guard with `options`."""
    own = [f"--listen={endpoint}" for endpoint in listen]
    own += [f"--listen-tls={endpoint}" for endpoint in listen_tls]
    log = (f"--log-format={log_format}", f"--log-level={log_level}")
    return [str(twist), f"--reactor={reactor}", *log, "smtpguard", *own, *options]


def started(
    words: Sequence[str], cwd: Path, output: IO[Any], errors: IO[Any], descriptors: Sequence[int] = ()
) -> Started | subprocess.Popen[bytes]:
    """A process of `words`, forked where that makes no difference: a supervisor executes its words for each worker."""
    several = any(word.startswith("--workers") for word in words)
    if starts_alike(words[0]) and not descriptors and not several:
        return Started(words, cwd, output, errors)
    return executed(words, cwd, output, errors, descriptors)


def executed(
    words: Sequence[str], cwd: Path, output: IO[Any], errors: IO[Any], descriptors: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """A process of `words` that shares no memory with another."""
    return subprocess.Popen(
        words, cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, pass_fds=descriptors
    )


class GuardProcess:
    """A guard that listens, in `directory`: there are its Maildir and its logs, a new one each start. `descriptors` are
    those of this process that it inherits.

    As a context manager it is stopped at the end of the block, and must then have logged no traceback.
    """

    start: ClassVar[Callable[..., Started | subprocess.Popen[bytes]]] = staticmethod(started)

    def __init__(
        self,
        directory: Path,
        *options: str,
        listen: Sequence[str] = (LOCAL,),
        listen_tls: Sequence[str] = (),
        reactor: str = REACTOR,
        log_format: str = "text",
        log_level: str = "info",
        twist: Path = TWIST,
        descriptors: Sequence[int] = (),
    ) -> None:
        self.maildir = directory / "Maildir"
        number = len(list(directory.glob("*.log")))
        self._log = directory / f"{number}.log"
        self._errors = directory / f"{number}.err"
        with self._log.open("wb") as log, self._errors.open("wb") as errors:
            words = command(
                *options,
                listen=listen,
                listen_tls=listen_tls,
                reactor=reactor,
                log_format=log_format,
                log_level=log_level,
                twist=twist,
            )
            self._process = self.start(words, directory, log, errors, descriptors)
        try:
            listeners = len(listen) + len(listen_tls)
            eventually(lambda: self._is_listening(listeners), f"it does not listen, see {self._log}")
        except BaseException:
            self.kill()
            raise

    def _is_listening(self, listeners: int) -> bool:
        assert self.runs, f"it has ended: {self._errors.read_text()}{self.log.decode()}"
        return len(self.addresses) == listeners

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    @property
    def log(self) -> bytes:
        """All that it has logged so far, octet for octet."""
        return self._log.read_bytes()

    @property
    def lines(self) -> list[str]:
        """Whole lines of its log, or records of JSON without their RS."""
        return _lines(self.log.decode())

    @property
    def addresses(self) -> list[Address]:
        """What it listens on, in the order of its --listen options; after them those of --listen-tls."""
        return listening(self.log.decode())

    @property
    def address(self) -> tuple[str, int]:
        """The host and the port of its first listener."""
        address = self.addresses[0]
        assert isinstance(address, tuple)
        return address

    @property
    def port(self) -> int:
        return self.address[1]

    def wait_for(self, pattern: str) -> str:
        """The first line of the log that has `pattern` in it, as soon as there is one."""
        found: list[str] = []

        def look() -> bool:
            found[:] = [line for line in self.lines if re.search(pattern, line)]
            return bool(found)

        eventually(look, f"{pattern!r} is not in {self._log}")
        return found[0]

    def terminate(self) -> None:
        """SIGTERM. It goes on with what it has begun, see `ended`."""
        self._process.terminate()

    def status(self) -> int:
        """Wait for its end, and tell how it was: minus the number of a signal, or its exit status."""
        return self._process.wait(PATIENCE_SECONDS)

    def ended(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Wait for its end after `terminate`, or another signal: by that signal, without a word about a fault."""
        assert self.status() == -number, self._errors.read_text()
        assert self._errors.read_text() == ""
        assert b"Traceback" not in self.log, self.log.decode()

    def stop(self) -> None:
        self.terminate()
        self.ended()

    def kill(self) -> None:
        """kill -9: from one instant to the next it is gone."""
        self._process.kill()
        self._process.wait(PATIENCE_SECONDS)

    def __enter__(self) -> GuardProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self.runs:
            return
        if kind is not None:
            self.kill()
            return
        try:
            self.stop()
        finally:
            self.kill()


class ExecutedGuard(GuardProcess):
    """One whose memory is its own: what it costs can be measured."""

    start = staticmethod(executed)


def listening(log: str) -> list[Address]:
    """What a guard listens on that has written `log`."""
    # JSON has the text more than once.
    found = [_LISTENING.search(line) for line in _lines(log)]
    # Each worker tells it.
    return [*dict.fromkeys(_address(match[1]) for match in found if match)]


def _lines(log: str) -> list[str]:
    return [line.lstrip("\x1e").rstrip("\n") for line in _LINE.findall(log)]


def _address(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    return (host.strip("[]"), int(port)) if colon else text
