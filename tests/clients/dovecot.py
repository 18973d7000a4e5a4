"""Debian's Dovecot as an LMTP server, or for logins, with its own configuration and mailboxes. Nothing of the machine's
own is touched."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

from processes import PATIENCE_SECONDS, eventually
from programs import missing
from shell import free_port

_CONFIGURATION = """\
base_dir = {root}/run
state_dir = {root}/state
log_path = {root}/log
protocols = lmtp
ssl = no
listen = 127.0.0.1
first_valid_uid = 1
mail_location = maildir:{root}/mail/%n
mail_plugins = quota
lda_mailbox_autocreate = yes
postmaster_address = postmaster@example.org
hostname = dovecot.example
plugin {{
  quota = maildir:User quota
  quota_rule = *:storage=1M
}}
passdb {{
  driver = passwd-file
  args = {root}/users
}}
userdb {{
  driver = passwd-file
  args = {root}/users
}}
service lmtp {{
  inet_listener lmtp {{
    address = 127.0.0.1
    port = {port}
  }}
  unix_listener {root}/lmtp.sock {{
    mode = 0666
  }}
}}
protocol lmtp {{
  mail_plugins = $mail_plugins
}}
"""


_LOGINS = """\
base_dir = {root}/run
state_dir = {root}/state
log_path = {root}/log
protocols =
ssl = no
auth_mechanisms = plain login scram-sha-256 external anonymous xoauth2 oauthbearer
auth_ssl_username_from_cert = yes
auth_failure_delay = 0
passdb {{
  driver = checkpassword
  args = {root}/down
  username_filter = down
}}
passdb {{
  driver = passwd-file
  args = {root}/certified
  mechanisms = external
}}
passdb {{
  driver = oauth2
  args = {root}/oauth2
  mechanisms = xoauth2 oauthbearer
}}
passdb {{
  driver = passwd-file
  args = scheme=PLAIN {root}/users
  mechanisms = plain login scram-sha-256
}}
userdb {{
  driver = passwd-file
  args = {root}/users
}}
service auth {{
  unix_listener {root}/auth.sock {{
    mode = 0666
  }}
}}
service anvil {{
  # It would hold back answers to an address with wrong passwords.
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
"""
_TOKENS = """\
introspection_mode = get
introspection_url = {tokens}
username_attribute = user
active_attribute = active
active_value = true
"""
_NO_TOKENS = "http://127.0.0.1:1/?token="
"""Nothing answers there."""
_DOWN = """\
#!/bin/sh
exit 111
"""
"""As programs of this interface say that they cannot tell now."""


class Dovecot:
    """It runs while the block runs, with mailboxes for one@example.org and two@example.org of 1 MB each. With `logins`
    it is asked by others who may log in: `ann` with `correct-horse`, with a certificate, or with a token that a server
    knows which is asked at the URL `tokens`; but it can never tell of `down`."""

    def __init__(self, extra: str = "", *, logins: bool = False, tokens: str = _NO_TOKENS) -> None:
        path = f"{os.environ['PATH']}:/usr/sbin"
        self._program = shutil.which("dovecot", path=path)
        if self._program is None or not Path("/usr/lib/dovecot/lmtp").exists() or os.geteuid() != 0:
            missing("dovecot-lmtpd, or root to start it")
        self.root = Path(tempfile.mkdtemp(prefix="smtpguard-dovecot-"))
        self.root.chmod(0o755)
        self.port = free_port()
        self.socket = self.root / ("auth.sock" if logins else "lmtp.sock")
        (self.root / "mail").mkdir()
        (self.root / "mail").chmod(0o777)
        users = [f"{name}@example.org:{{PLAIN}}x:8:8::{self.root}/home/{name}::" for name in ("one", "two")]
        users.append(f"ann:{{PLAIN}}correct-horse:8:8::{self.root}/home/ann::")
        (self.root / "users").write_text("\n".join(users) + "\n")
        (self.root / "certified").write_text("ann:::::::nopassword\n")
        (self.root / "oauth2").write_text(_TOKENS.format(tokens=tokens))
        (self.root / "down").write_text(_DOWN)
        (self.root / "down").chmod(0o755)
        configuration = _LOGINS if logins else _CONFIGURATION
        (self.root / "conf").write_text(configuration.format(root=self.root, port=self.port) + extra)

    @property
    def log(self) -> str:
        path = self.root / "log"
        return path.read_text() if path.exists() else ""

    def mails(self, user: str) -> list[bytes]:
        folder = self.root / "mail" / user / "new"
        return [path.read_bytes() for path in sorted(folder.glob("*"))] if folder.exists() else []

    def __enter__(self) -> Dovecot:
        self.start()
        return self

    def start(self) -> None:
        """Start it, for the first time or again."""
        assert self._program is not None
        self._process = subprocess.Popen(
            [self._program, "-F", "-c", str(self.root / "conf")],
            stdin=subprocess.DEVNULL,
            stdout=(self.root / "out").open("wb"),
            stderr=subprocess.STDOUT,
        )
        try:
            eventually(self._listens, "it does not listen")
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def stop(self) -> None:
        """Stop it, with its connections."""
        self._process.terminate()
        self._process.wait(PATIENCE_SECONDS)
        self.socket.unlink(missing_ok=True)

    def _listens(self) -> bool:
        assert self._process.poll() is None, (self.root / "out").read_text() + self.log
        return self.socket.exists()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(PATIENCE_SECONDS)
        finally:
            self._process.kill()
            shutil.rmtree(self.root, ignore_errors=True)
