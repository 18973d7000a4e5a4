"""The servers that are compared, each a process of its own on its own core."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "tests"))

from vitals import Vitals  # noqa: E402 - tests/ is no package

OURS = "guard, log at warn"
OURS_LOGGING = "guard, log at info"
SINK = "smtp-sink"
AIOSMTPD = "aiosmtpd"


def available() -> list[str]:
    """The names of the servers that can be started here."""
    sink = [SINK] if _sink() else []
    return [*sink, OURS, OURS_LOGGING, *([AIOSMTPD] if find_spec("aiosmtpd") else [])]


def tool(name: str) -> str | None:
    """Where a program of Postfix is."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")


def _sink() -> str | None:
    return tool("smtp-sink")


def _command(name: str, port: int, *, refusing: bool) -> list[str]:
    if name == SINK:
        sink = _sink()
        assert sink is not None
        # Started by root it wants to become somebody else.
        user = ["-u", pwd.getpwnam("nobody").pw_name] if os.geteuid() == 0 else []
        refusal = ["-Q", "connect"] if refusing else []
        return [sink, *user, *refusal, "-m", "10000", f"127.0.0.1:{port}", "1024"]
    if name == AIOSMTPD:
        return [sys.executable, str(HERE / "aiosmtpd_server.py"), str(port)]
    level = "info" if name == OURS_LOGGING else "warn"
    options = ["--deliver=discard", f"--listen=tcp:{port}:interface=127.0.0.1"]
    refusal = ["--max-connections=1"] if refusing else []
    twist = [sys.executable, "-m", "twisted", f"--log-level={level}", "--log-format=json"]
    return [*twist, "smtpguard", *options, *refusal]


class Server:
    """A running server."""

    def __init__(self, name: str, port: int, pid: int) -> None:
        self.name = name
        self.port = port
        self.vitals = Vitals(pid)


@contextmanager
def running(name: str, *, refusing: bool = False) -> Iterator[Server]:
    """The server `name` while the block runs. `refusing`: every client is refused with a 421."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with TemporaryDirectory() as directory, (Path(directory) / "log").open("wb") as log:
        process = subprocess.Popen(
            _command(name, port, refusing=refusing),
            cwd=directory,
            stdout=log,
            stderr=log,
            preexec_fn=lambda: pin(0),  # noqa: PLW1509 - there are no threads here
        )
        try:
            _wait_until_it_listens(process, port)
            if refusing and name in (OURS, OURS_LOGGING):
                with _connected(port):
                    yield Server(name, port, process.pid)
            else:
                yield Server(name, port, process.pid)
        finally:
            process.kill()
            process.wait()


@contextmanager
def _connected(port: int) -> Iterator[None]:
    """While the block runs the only slot is taken."""
    while True:
        with socket.create_connection(("127.0.0.1", port)) as holder:
            if holder.recv(512).startswith(b"220"):
                yield
                return


def pin(core: int) -> None:
    """Keep this process to one core, so that what is measured does not wander."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[core % len(cores)]})


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.recv(512)
                return
        except ConnectionRefusedError:
            assert process.poll() is None, f"{process.args} has ended"
            assert time.monotonic() < deadline, f"{process.args} does not listen"
            time.sleep(0.05)
