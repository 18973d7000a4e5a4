"""Debian's redis-server, on a UNIX socket unless more is asked for, with a database that is only in memory."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from processes import PATIENCE_SECONDS, eventually
from programs import missing


class RealRedis:
    """It runs while the block runs. `words` are further words of its command line; `within` is the network namespace in
    which it runs."""

    def __init__(
        self, *words: str, command: str = "redis-server", sentinel: str = "", within: str = ""
    ) -> None:
        program, self._cli = shutil.which(command), shutil.which("redis-cli")
        if program is None or self._cli is None:
            missing("redis-server")
        # A path of a socket must be short.
        self.root = Path(tempfile.mkdtemp(prefix="redis-"))
        self.socket = self.root / "s"
        config = []
        if sentinel:
            (self.root / "sentinel.conf").write_text(sentinel)
            config = [str(self.root / "sentinel.conf"), "--sentinel"]
        own = ("--port", "0") if "--port" not in words and not sentinel else ()
        if not sentinel:
            own += ("--save", "", "--enable-debug-command", "yes")
        inside = ["ip", "netns", "exec", within] if within else []
        self._command = [*inside, str(program), *config, "--unixsocket", str(self.socket), *own, *words]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis+unix://{self.socket}"

    def ask(self, *words: object) -> str:
        """What redis-cli shows."""
        command = [str(self._cli), "-s", str(self.socket), "--raw", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
        return (done.stdout + done.stderr).strip()

    def lives(self) -> dict[str, int]:
        """Each key in database 0, with the milliseconds that it still lives; -1: it lives indefinitely."""
        return {key: lives for key, (lives, _) in self.content().items()}

    def content(self) -> dict[str, tuple[int, dict[str, int]]]:
        """As `lives()`, each with its value too: that of a number is under "", a hash has several, and one of
        records has none here. They are of one instant."""
        script = """
            local all = {}
            for _, key in ipairs(redis.call('KEYS', '*')) do
                local kind, value = redis.call('TYPE', key).ok, {}
                if kind == 'string' then
                    value = {'', redis.call('GET', key)}
                elseif kind == 'hash' and not string.find(key, ':r:') then
                    value = redis.call('HGETALL', key)
                end
                all[#all + 1] = key .. '|' .. redis.call('PTTL', key) .. '|' .. table.concat(value, '|')
            end
            return all
        """
        found = {}
        for line in filter(None, self.ask("EVAL", script, 0).split("\n")):
            key, lives, *value = line.split("|")
            found[key] = int(lives), dict(zip(value[::2], map(int, value[1::2]), strict=False))
        return found

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        with (self.root / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self.root, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        # On its own host the load of the tests would not slow it.
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, self._process.pid, -10)
        eventually(self._answers, f"it does not start: {(self.root / 'log').read_text()}")

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, (self.root / "log").read_text()
        if not self.socket.exists():
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """From one instant to the next it is gone, with its data."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_SECONDS)
            self._process = None

    def __enter__(self) -> RealRedis:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self.root)


class Monitor:
    """What clients ask of a server while the block runs, by MONITOR."""

    def __init__(self, server: RealRedis) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE_SECONDS)
        self._socket.connect(str(server.socket))
        self._lines = self._socket.makefile("r")

    def __enter__(self) -> Monitor:
        self._socket.sendall(b"MONITOR\r\n")
        assert self._lines.readline() == "+OK\n"
        return self

    def until(self, word: str) -> Sequence[str]:
        """The commands of clients, not those of scripts, up to the one that has `word` in it."""
        found: list[str] = []
        for line in self._lines:
            if word in line:
                return found
            if " lua]" not in line:
                found.append(line.split('"')[1].upper())
        raise AssertionError(f"{word} was not seen")

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()
