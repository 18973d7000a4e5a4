"""Debian's policy servers, each with its own data: postgrey, and policyd-spf as systemd or Postfix's spawn runs it. A
resolver for the latter knows two domains."""

from __future__ import annotations

import os
import re
import shutil
import socket
import struct
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from threading import Thread
from types import TracebackType

from processes import PATIENCE_SECONDS, eventually
from programs import missing


def program(name: str) -> str:
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None or os.geteuid() != 0:
        missing(f"{name}, or root to start it")
    assert path is not None
    return path


class Postgrey:
    """It runs while the block runs, on `socket`, with a delay of a second."""

    def __init__(self) -> None:
        self._program = program("postgrey")
        self.root = Path(tempfile.mkdtemp(prefix="smtpguard-postgrey-"))
        self.root.chmod(0o777)
        self.socket = self.root / "socket"

    def start(self) -> None:
        (self.root / "db").mkdir(exist_ok=True)
        self._process = subprocess.Popen(
            [
                self._program,
                f"--unix={self.socket}",
                f"--dbdir={self.root}/db",
                "--delay=1",
                "--auto-whitelist-clients=0",
                "--whitelist-clients=/dev/null",
                "--whitelist-recipients=/dev/null",
                "--user=root",
                "--group=root",
            ],
            stdin=subprocess.DEVNULL,
            stdout=(self.root / "out").open("ab"),
            stderr=subprocess.STDOUT,
        )
        eventually(self._answers, f"it does not listen: {(self.root / 'out').read_text()}")

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(PATIENCE_SECONDS)

    def __enter__(self) -> Postgrey:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self.root, ignore_errors=True)


class Resolver:
    """A DNS server on an address of the loopback, which answers TXT questions about `records`, and no others."""

    def __init__(self, records: dict[str, str]) -> None:
        self._records = records
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        # resolv.conf has no place for a port.
        for last in range(2, 255):
            with suppress(OSError):
                self._socket.bind((f"127.53.{os.getpid() % 250}.{last}", 53))
                break
        self.address: str = self._socket.getsockname()[0]

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                octets, client = self._socket.recvfrom(4096)
                if not octets:
                    return
                self._socket.sendto(self._answer(octets), client)

    def _answer(self, octets: bytes) -> bytes:
        labels, at = [], 12
        while octets[at]:
            labels.append(octets[at + 1 : at + 1 + octets[at]].decode())
            at += 1 + octets[at]
        kind = struct.unpack("!H", octets[at + 1 : at + 3])[0]
        text = self._records.get(".".join(labels).lower(), "") if kind == 16 else ""
        data = bytes([len(text)]) + text.encode()
        answer = b"\xc0\x0c" + struct.pack("!HHIH", 16, 1, 60, len(data)) + data if text else b""
        return octets[:2] + struct.pack("!HHHHH", 0x8180, 1, bool(text), 0, 0) + octets[12 : at + 5] + answer

    def __enter__(self) -> Resolver:
        self._thread = Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()


class PolicydSpf:
    """Each connection to `socket` gets its own process, as from `Accept=yes` of a unit of systemd. It sees `resolver`
    in resolv.conf, and nothing else is changed for it."""

    def __init__(self, resolver: str) -> None:
        self._program = program("policyd-spf")
        if not program("unshare"):
            missing("unshare")
        self.root = Path(tempfile.mkdtemp(prefix="smtpguard-spf-"))
        self.socket = self.root / "socket"
        (self.root / "resolv.conf").write_text(f"nameserver {resolver}\n")
        text = Path("/etc/postfix-policyd-spf-python/policyd-spf.conf").read_text()
        text = re.sub(r"(?m)^skip_addresses.*$", "skip_addresses = 10.0.0.0/8", text)
        text = re.sub(r"(?m)^TestOnly.*$", "TestOnly = 1", text)
        (self.root / "policyd-spf.conf").write_text(text)
        self._processes: list[subprocess.Popen[bytes]] = []

    def _serve(self) -> None:
        root = self.root
        own = f"mount --bind {root}/resolv.conf /etc/resolv.conf && exec {self._program} {root}/policyd-spf.conf"
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                with connection:
                    process = subprocess.Popen(
                        ["unshare", "--mount", "sh", "-c", own],
                        stdin=connection.fileno(),
                        stdout=connection.fileno(),
                        stderr=(root / "errors").open("ab"),
                    )
                self._processes.append(process)

    def __enter__(self) -> PolicydSpf:
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(self.socket))
        self._server.listen()
        self._thread = Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()
        for process in self._processes:
            process.kill()
            process.wait(PATIENCE_SECONDS)
        shutil.rmtree(self.root, ignore_errors=True)
