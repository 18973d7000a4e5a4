"""Debian's Exim with its own configuration, spool and log, on a port of the loopback.

Debian has it instead of Postfix, so it is not installed but unpacked: TESTS_EXIM is the folder with
exim4-daemon-heavy, and with those of its libraries that the machine has not. Exim looks up its user, whom nss_wrapper
(libnss-wrapper) has it find.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from processes import PATIENCE_SECONDS, eventually
from programs import missing
from shell import free_port

_CONFIGURATION = """\
primary_hostname = mx.exim.example
spool_directory = {root}/spool
log_file_path = {root}/log/%slog
pid_file_path = {root}/pid
keep_environment =
queue_only
domainlist local_domains = example.org
acl_smtp_rcpt = acl_check_rcpt
daemon_smtp_ports = {port}
{settings}
begin acl
acl_check_rcpt:
  accept authenticated = *
  accept hosts = +relay_from_hosts
  require message = relay not permitted
          domains = +local_domains
  require message = Unrouteable address
          local_parts = user
  accept
begin authenticators
{authenticator}
"""

_UID = 8
"""Of a user that Debian always has, mail."""


class Exim:
    """It runs while the block runs. Mail for user@example.org, and for all from `relay_from_hosts`, stays in the spool.

    `settings` are lines of its main section; `files` are copied to where it can read them, {root}.
    """

    def __init__(self, *settings: str, authenticator: str = "", files: tuple[Path, ...] = ()) -> None:
        self._unpacked = Path(os.environ.get("TESTS_EXIM", "/nonexistent"))
        if not (self._unpacked / "usr/sbin/exim4").exists() or os.geteuid() != 0:
            missing("Exim, where TESTS_EXIM says, or root to start it")
        self.root = Path(tempfile.mkdtemp(prefix="smtpguard-exim-"))
        self.root.chmod(0o755)
        self.port = int(free_port())
        for name in ("spool", "log"):
            (self.root / name).mkdir()
            os.chown(self.root / name, _UID, _UID)
        for file in files:
            shutil.copy(file, self.root)
            os.chown(self.root / file.name, _UID, _UID)
        text = _CONFIGURATION.format(
            root=self.root, port=self.port, settings="\n".join(settings), authenticator=authenticator
        )
        (self.root / "conf").write_text(text.replace("{root}", str(self.root)))
        (self.root / "passwd").write_text(f"root:x:0:0::/:/bin/sh\nDebian-exim:x:{_UID}:{_UID}::/:/bin/sh\n")
        (self.root / "group").write_text(f"root:x:0:\nDebian-exim:x:{_UID}:\n")

    @property
    def log(self) -> str:
        return "".join(path.read_text() for path in sorted((self.root / "log").iterdir()))

    def logs(self, pattern: str) -> str:
        """The first line of the log with `pattern`, as soon as there is one."""
        eventually(
            lambda: re.search(pattern, self.log), f"{pattern!r} is not in Exim's log:\n{self.log[-5000:]}"
        )
        return next(line for line in self.log.splitlines() if re.search(pattern, line))

    @property
    def bodies(self) -> list[bytes]:
        """Of the messages in the spool, in which each begins with a line that has its number."""
        return [path.read_bytes().partition(b"\n")[2] for path in (self.root / "spool").glob("input/**/*-D")]

    def __enter__(self) -> Exim:
        libraries = {str(path.parent) for path in self._unpacked.glob("usr/lib/**/*.so*")}
        own = {
            "LD_LIBRARY_PATH": ":".join(libraries),
            "LD_PRELOAD": "libnss_wrapper.so",
            "NSS_WRAPPER_PASSWD": str(self.root / "passwd"),
            "NSS_WRAPPER_GROUP": str(self.root / "group"),
        }
        self._process = subprocess.Popen(
            [str(self._unpacked / "usr/sbin/exim4"), "-C", str(self.root / "conf"), "-bdf"],
            env={**os.environ, **own},
            stdin=subprocess.DEVNULL,
            stdout=(self.root / "out").open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            eventually(self._listens, "it does not listen")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _listens(self) -> bool:
        assert self._process.poll() is None, (self.root / "out").read_text() + self.log
        return " daemon started: " in self.log

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(PATIENCE_SECONDS)
        finally:
            # Those who still have a client write into its log.
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            shutil.rmtree(self.root, ignore_errors=True)
