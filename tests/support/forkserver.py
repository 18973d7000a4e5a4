"""A quick start of `twist`: a process that has imported the guard once forks for each start.

The imports are nine tenths of the processor time of a start. What is forked is a process of its own, in which the
program `twist` runs from its first line. A process that forks is started for each worker of pytest that needs one.

A test holds a `Started`; run as a program, this file is the process that forks.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, Any

TWIST = Path(sys.executable).with_name("twist")
"""The one beside the interpreter of the tests: `python -m twisted` also sees what is in the current directory."""

REACTOR = os.environ.get("TESTS_REACTOR", "default")
"""The reactor of the guards that tests start, unless they ask for another."""

_OF_THE_INTERPRETER = ("PYTHON", "LD_", "MALLOC_", "OPENSSL_")
_NUMBER_OCTETS = 4


def _read_once() -> dict[str, str]:
    """What an interpreter and its libraries read of the environment when they are loaded, and not later."""
    return {name: value for name, value in os.environ.items() if name.startswith(_OF_THE_INTERPRETER)}


_AT_FIRST = _read_once()


def starts_alike(program: str | Path) -> bool:
    """Whether a fork does what executing `program` would do in the environment as it is now."""
    return Path(program) == TWIST and _read_once() == _AT_FIRST


@cache
def _server() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """The process that forks, and the socket by which it is asked. It ends when this process does."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        words = [sys.executable, __file__, str(its.fileno())]
        return ours, subprocess.Popen(words, cwd="/", stdin=subprocess.DEVNULL, pass_fds=[its.fileno()])


class Started:
    """A process of `twist`, with those methods of `subprocess.Popen` that tests use: `words[0]` is its path, and its
    standard output and error go to the two files."""

    def __init__(self, words: Sequence[str], cwd: Path, output: IO[Any], errors: IO[Any]) -> None:
        self._words = words
        self._status: int | None = None
        self._told, telling = os.pipe()
        request = {"words": words, "cwd": str(cwd), "environment": dict(os.environ), "umask": _umask()}
        try:
            descriptors = [telling, output.fileno(), errors.fileno()]
            socket.send_fds(_server()[0], [json.dumps(request).encode()], descriptors)
        finally:
            os.close(telling)
        self.pid = self._number()

    def _number(self) -> int:
        octets = os.read(self._told, _NUMBER_OCTETS)
        assert octets, "the process that forks has ended"
        return int.from_bytes(octets, "little", signed=True)

    def poll(self) -> int | None:
        return self._ended_within(0)

    def wait(self, timeout: float) -> int:
        status = self._ended_within(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(self._words, timeout)
        return status

    def _ended_within(self, seconds: float) -> int | None:
        if self._status is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._told, selectors.EVENT_READ)
                if selector.select(seconds):
                    self._status = self._number()
                    os.close(self._told)
        return self._status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _import_all() -> None:
    """What a guard imports, but for what chooses a reactor, and for what looks for plugins: ours has the process that
    imports it ignore signals."""
    names = ["twisted_smtpguard.cli.options", "twisted.application.app", "twisted.plugins.twisted_core"]
    names += [
        "twisted.plugins.twisted_reactors",
        "twisted.internet.asyncioreactor",
        "twisted.internet.epollreactor",
    ]
    if REACTOR == "uvloop":
        names.append("twisted_smtpguard.reactors.uvloopreactor")
    for name in names:
        import_module(name)
    assert not {"twisted.internet.reactor", "twisted.plugins.twisted_smtpguard"} & sys.modules.keys()


def _serve(requests: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork for each request, and tell the number and the exit status of what is forked. Returns in a process that is
    forked, with its request and its descriptors."""
    with requests, selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not requests:
                    pid, telling = key.data
                    _tell(telling, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                    selector.unregister(key.fileobj)
                    os.close(key.fd)
                    os.close(telling)
                    continue
                text, descriptors, _, _ = socket.recv_fds(requests, 1 << 20, 3)
                if not text:
                    # The tests have ended.
                    raise SystemExit
                pid = os.fork()
                if not pid:
                    return json.loads(text), descriptors
                telling, output, errors = descriptors
                os.close(output)
                os.close(errors)
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, telling))
                _tell(telling, pid)


def _tell(telling: int, number: int) -> None:
    # A test that has failed does not listen.
    with suppress(BrokenPipeError):
        os.write(telling, number.to_bytes(_NUMBER_OCTETS, "little", signed=True))


def _become(request: Mapping[str, Any], descriptors: Sequence[int]) -> None:
    """Make of this process what an executed program begins as."""
    _, output, errors = descriptors
    os.dup2(output, 1)
    os.dup2(errors, 2)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    os.umask(request["umask"])
    os.chdir(request["cwd"])
    # Twisted has the list itself as the default of an argument.
    sys.argv[:] = request["words"]
    # In place of this file's folder.
    sys.path[0] = str(TWIST.parent)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for _number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        # A test may have a guard in its own process at this moment.
        signal.signal(_number, signal.SIG_DFL)
    _import_all()
    gc.collect()
    gc.freeze()
    _become(*_serve(socket.socket(fileno=int(sys.argv[1]))))
    runpy.run_path(sys.argv[0], run_name="__main__")
