"""A reader who follows a page: types its commands, one after the other, as they stand.

A guard that a page starts runs on while the commands after it are typed, until the page starts another or ends.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from documents import Command
from processes import Address, eventually, listening
from programs import missing
from shell import Shell, free_port

QUESTIONS = "help|version|check|show"
"""How the options begin that are answered at once."""

SUBSTITUTIONS = [
    (r"(?<=[\s:=])/(?=(etc|var|opt|run)/)|^/(?=opt/)", "{root}/"),  # the machine's own directories
    (r"(?<=tcp6:)25\b", "{port_25}"),
    (r"(?<=tcp6:)2587\b|(?<=localhost:)2587\b", "{port_2587}"),
    (r"(?<=tcp6:)2465\b|(?<=localhost:)2465\b", "{port_2465}"),
    (r"(?<=tcp:)2525\b|(?<=tcp6:)2525\b|(?<='127\.0\.0\.1', )2525\b", "{port_2525}"),
    (r"(?<=tcp:)9525\b|(?<=127\.0\.0\.1:)9525\b", "{port_9525}"),
    # Without the option it is port 2525.
    (rf"(?<= )smtpguard(?!\S)(?!.*--(listen|{QUESTIONS}))", r"\g<0> --listen tcp:{port_2525}:interface=127.0.0.1"),
    (r"(?<=kill -TERM )4711\b|(?<=kill -HUP )4711\b", "{pid}"),
    (r"\$HOME/", "{root}/"),
    (r" …", ""),  # options of the reader's choice
    (r"^fail2ban-regex ", "fail2ban-regex -c {root}/etc/fail2ban "),
    (r"^fail2ban-client ", "fail2ban-client -c {root}/etc/fail2ban -s {root}/fail2ban.sock -p {root}/fail2ban.pid "),
]  # fmt: skip
"""All that a test may change in a command: what it may not touch, or what is not the same on two machines. {pid} is the
guard that runs; one is started where there is none."""

GUARD = re.compile(
    rf"\btwist .*\b(smtpguard|mailroom)\b(?!.*--({QUESTIONS}))|(twisted_mail|embedded|asyncio_program)\.py"
)
"""Commands that go on until they are ended."""

HARMLESS = {"cp", "export", "grep", "kill", "pip", "python", "python3", "source", "touch", "twist", "ulimit"}
"""Programs that a command may begin with. What another one would do to the machine of a test, nobody knows."""
OTHER_PROGRAMS = {
    "sqlite3",
    "fail2ban-regex",
    "fail2ban-client",
    "haproxy",
    "logrotate",
    "openssl",
    "swaks",
} | {"curl", "promtool"}
"""Such programs too, but a test cannot install them."""

Check = Callable[["Reader", str], None]
"""Called after a command: with the reader, and what the command printed."""


def program(words: str) -> str:
    """What a command begins with."""
    return Path(words.split(maxsplit=1)[0]).name


class Reader:
    """Has a shell in `directory`, and instead of the machine's /etc, /var, /opt and /run those in `root`. No
    environment is active before the page says so."""

    def __init__(self, directory: Path, root: Path) -> None:
        self.directory = directory
        self.root = root
        for name in ("etc", "var/log", "opt", "run/smtpguard", "logs"):
            (root / name).mkdir(parents=True, exist_ok=True)
        self._stands_for: dict[str, object] = {
            f"port_{port}": free_port() for port in (25, 2465, 2525, 2587, 9525)
        }
        self._guard: int | None = None
        self._logs: list[Path] = []
        self._begun_at = 0
        # It may be that of the tests.
        found = [each for each in os.get_exec_path() if Path(each) != Path(sys.executable).parent]
        self._shell = Shell(directory, PIP_ROOT_USER_ACTION="ignore", PATH=os.pathsep.join(found))

    def substituted(self, words: str) -> str:
        for pattern, stands_for in SUBSTITUTIONS:
            words = re.sub(pattern, stands_for, words)
        words = re.sub(r"\{(root|pid|port_\d+)\}", lambda found: str(self._value(found[1])), words)
        return re.sub(r"\s+#.*$", "", words)

    def _value(self, name: str) -> object:
        if name == "root":
            return self.root
        if name != "pid":
            return self._stands_for[name]
        if self._guard is None:
            self._begin(self.substituted("twist smtpguard"))
        return self._guard

    def types(self, words: str) -> str:
        """What a command prints. It succeeds, or goes on and says that it listens."""
        assert program(words) in HARMLESS | OTHER_PROGRAMS, f"is not to be run: {words}"
        if GUARD.search(words):
            self.ends_the_guard()
            installation, _, guard = self.substituted(words).rpartition(" && ")
            printed = self._shell.succeeds(installation) if installation else ""
            self._begin(guard)
            return printed
        path = f"{os.environ['PATH']}:/usr/sbin"
        if program(words) in OTHER_PROGRAMS and shutil.which(program(words), path=path) is None:
            missing(program(words))
        return self._shell.succeeds(self.substituted(words))

    def _begin(self, words: str) -> None:
        output = self.root / "logs" / f"{len(list((self.root / 'logs').iterdir()))}.log"
        file = re.search(r"--log-file=(\S+)", words)
        self._logs = [output, self.directory / file[1]] if file else [output]
        self._begun_at = 0
        self._begun_at = len(self.log)
        self._guard = self._shell.begin(words, output)
        listeners = len(re.findall(r"--listen(?:-tls)? ", words)) or 1

        def listens() -> bool:
            self._shell.run(f"kill -0 {self._guard}")
            assert self._shell.status == 0, f"$ {words}\n{self.log}"
            return len(self.addresses) == listeners

        eventually(listens, f"it does not listen: {words}\n{self.log}")

    @property
    def log(self) -> str:
        """What the guard has written since it was started."""
        return "".join(log.read_text() for log in self._logs if log.exists())[self._begun_at :]

    @property
    def addresses(self) -> list[Address]:
        """What the guard listens on."""
        ports = re.findall(r"^listening on port (\d+)$", self.log, re.MULTILINE)
        return listening(self.log) or [("127.0.0.1", int(port)) for port in ports]

    @property
    def port(self) -> int:
        """The port of its first listener."""
        address = self.addresses[0]
        assert isinstance(address, tuple)
        return address[1]

    def ends_the_guard(self) -> None:
        """As Ctrl-C and SIGTERM do it. It has nothing to complain of."""
        if self._guard is None:
            return
        # It may have been ended by the page.
        self._shell.run(f"kill -TERM {self._guard}")
        self._shell.run(f"wait {self._guard}")
        # A signal, or what reactor.run() makes of it.
        assert self._shell.status in (128 + 15, 0), self.log
        assert "Traceback" not in self.log, self.log
        self._guard = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._shell:
            if kind is None:
                self.ends_the_guard()


def follow(reader: Reader, commands: list[Command], checks: Mapping[str, Check] | None = None) -> None:
    """Type all `commands`. What `checks` has is called after the one command that has its key in it."""
    checks = checks or {}
    for part in checks:
        assert len([each for each in commands if part in each.words]) == 1, part
    with reader:
        for command in commands:
            printed = reader.types(command.words)
            for part, check in checks.items():
                if part in command.words:
                    check(reader, printed)
