"""Debian's Postfix with its own configuration, queue and log, on a port of the loopback. Nothing of the machine's
own Postfix is touched."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

from processes import eventually
from programs import missing
from shell import free_port

_MASTER = """\
{servers}
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
"""

_SMTPD = "127.0.0.1:{port} inet n - n - {smtpd} smtpd"
_POSTSCREEN = """\
127.0.0.1:{port} inet n - n - 1 postscreen
smtpd pass - - n - {smtpd} smtpd"""

_MAIN = """\
compatibility_level = 3.6
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
queue_directory = {root}/queue
data_directory = {root}/data
mail_owner = postfix
setgid_group = {setgid}
maillog_file = {root}/maillog
maillog_file_prefixes = {root}
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = mx.postfix.example
mydestination =
mynetworks = 127.0.0.0/8
alias_maps =
alias_database =
smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination
virtual_mailbox_domains = example.org
virtual_mailbox_maps = inline:{{ {{ user@example.org = box/ }}, {{ other@example.org = other/ }} }}
virtual_mailbox_base = {root}/mail
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
virtual_minimum_uid = 1
mailbox_size_limit = 0
virtual_mailbox_limit = 0
message_size_limit = 5000000
default_process_limit = 30
"""


def postfix_missing() -> bool:
    """Whether Postfix, or the right to start one, is missing; the test is then skipped or failed."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    if shutil.which("postfix", path=path) is None or os.geteuid() != 0:
        missing("postfix, or root to start it")
    return False


class Postfix:
    """It runs while the block runs. Mail for user@example.org goes into `box`; what `settings` add wins.
    `smtpd_processes`: as many clients as it serves at once, if not thirty. `postscreen` comes before them."""

    def __init__(self, *settings: str, smtpd_processes: int | None = None, postscreen: bool = False) -> None:
        postfix_missing()
        # pytest's own directories are for their owner only, and Postfix is several users.
        self.root = Path(tempfile.mkdtemp(prefix="smtpguard-postfix-"))
        self.root.chmod(0o755)
        self.port = free_port()
        self.box = self.root / "mail" / "box"
        user = pwd.getpwnam("postfix")
        (self.root / "etc").mkdir()
        for name in ("queue", "data", "mail"):
            (self.root / name).mkdir()
        for name in ("data", "mail"):
            os.chown(self.root / name, user.pw_uid, user.pw_gid)
        main = _MAIN.format(root=self.root, uid=user.pw_uid, gid=user.pw_gid, setgid="postdrop")
        (self.root / "etc" / "main.cf").write_text(main + "".join(f"{setting}\n" for setting in settings))
        (self.root / "etc" / "master.cf").write_text(
            _MASTER.format(
                servers=(_POSTSCREEN if postscreen else _SMTPD).format(
                    port=self.port, smtpd=smtpd_processes or "-"
                )
            )
        )

    @property
    def endpoint(self) -> str:
        """As a client endpoint string."""
        return f"tcp:127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        path = self.root / "maillog"
        return path.read_text() if path.exists() else ""

    def logs(self, pattern: str) -> str:
        """The first line of the log with `pattern`, as soon as there is one."""
        found: list[str] = []

        def look() -> bool:
            found[:] = [line for line in self.log.splitlines() if re.search(pattern, line)]
            return bool(found)

        eventually(look, f"{pattern!r} is not in Postfix's log:\n{self.log[-5000:]}")
        return found[0]

    def stored(self, messages: int) -> list[bytes]:
        """What is in `box`, once there are so many."""
        eventually(
            lambda: len(self._files()) >= messages,
            f"not {messages}: {len(self._files())}\n{self.log[-3000:]}",
        )
        return [path.read_bytes() for path in self._files()]

    def stored_with(self, words: bytes) -> bytes:
        """The message in `box` that contains `words`, once it is there. Names of files do not tell which came last."""
        found: list[bytes] = []

        def look() -> bool:
            found[:] = [text for text in (path.read_bytes() for path in self._files()) if words in text]
            return bool(found)

        eventually(look, f"no message with {words!r}\n{self.log[-3000:]}")
        return found[0]

    def _files(self) -> list[Path]:
        return sorted((self.box / "new").glob("*")) if (self.box / "new").exists() else []

    @property
    def queued(self) -> int:
        """Messages that it has taken and not delivered."""
        folders = ("incoming", "active", "deferred", "maildrop", "hold")
        return sum(path.is_file() for name in folders for path in (self.root / "queue" / name).rglob("*"))

    def run(self, *words: str) -> None:
        done = subprocess.run(
            ["/usr/sbin/postfix", "-c", str(self.root / "etc"), *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr + done.stdout + self.log

    def start(self) -> None:
        self.run("start")
        self.logs("daemon started")

    def __enter__(self) -> Postfix:
        try:
            self.start()
        except BaseException:
            shutil.rmtree(self.root)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.run("stop")
        finally:
            shutil.rmtree(self.root, ignore_errors=True)
