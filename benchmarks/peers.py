"""The servers of others, stock and discarding: how each is started, counted, and why one cannot be had here."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection
from importlib.util import find_spec
from pathlib import Path

import attrs

HERE = Path(__file__).parent
CACHE = HERE / ".cache"
"""What npm installs."""

SINK = "smtp-sink"
AIOSMTPD = "aiosmtpd"
TWISTED_MAIL = "twisted.mail"
SMTP_SERVER = "smtp-server"
POSTFIX = "Postfix smtpd"
FLOOR = "floor"
"""No server that anybody would use: what Twisted's reactor takes of a mail."""


@attrs.frozen
class Peer:
    """One of them. `command` gives its words, from a port and whether it is to refuse every connection."""

    command: Callable[[int, bool], list[str]]
    missing: Callable[[], str]
    """Makes it ready if that can be done; why it cannot be had, or an empty string."""
    counts: Callable[[str], dict[str, int]] | None = None
    counting: Callable[[int, bool], list[str]] | None = None
    """As `command`, where to tell its counts costs it something."""
    counts_of_counting: Callable[[str], dict[str, int]] | None = None
    not_in: Collection[str] = ()
    needs_holder: bool = False
    slow: str = ""
    """What it keeps each client waiting for, however little it has to do."""


def tool(name: str) -> str | None:
    """Where a program is that Debian keeps for root."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")


def _sink(port: int, refusing: bool, *options: str) -> list[str]:
    sink = tool(SINK)
    assert sink is not None
    # Started by root it wants to become somebody else.
    user = ["-u", pwd.getpwnam("nobody").pw_name] if os.geteuid() == 0 else []
    refusal = ["-Q", "connect"] if refusing else []
    return [sink, *user, *refusal, *options, "-m", "30000", f"127.0.0.1:{port}", "1024"]


def _sink_counts(printed: str) -> dict[str, int]:
    """It overwrites one line whenever a count changes."""
    found = re.findall(r"mesg=(\d+)", printed)
    return {"messages": int(found[-1]) if found else 0}


def _postfix_missing() -> str:
    if tool("postfix") is None or not POSTFIX_DAEMONS.exists():
        return "Postfix is not installed as Debian has it"
    return "" if os.geteuid() == 0 else "only root can start Postfix"


def _postfix_counts(printed: str) -> dict[str, int]:
    return {"messages": printed.count(": discard: END-OF-MESSAGE from ")}


def _own_counts(printed: str) -> dict[str, int]:
    """Our scripts print one line of JSON at their end."""
    counts: dict[str, int] = json.loads(printed.splitlines()[-1])
    return counts


def _script(name: str) -> Callable[[int, bool], list[str]]:
    def command(port: int, refusing: bool) -> list[str]:
        return [sys.executable, str(HERE / name), str(port), *(["refusing"] if refusing else [])]

    return command


def _smtp_server(port: int, refusing: bool) -> list[str]:
    return ["node", str(CACHE / "smtp_server" / "server.js"), str(port), *(["refusing"] if refusing else [])]


def _install_smtp_server() -> str:
    home = CACHE / "smtp_server"
    if shutil.which("node") is None or shutil.which("npm") is None:
        return "node and npm are not installed"
    home.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "server.js"):
        shutil.copy(HERE / "smtp_server" / name, home / name)
    if not (home / "node_modules" / "smtp-server").exists():
        npm = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
        try:
            done = subprocess.run(npm, cwd=home, capture_output=True, text=True, timeout=120, check=False)
        except subprocess.TimeoutExpired:
            return "npm install takes too long"
        if done.returncode:
            return f"npm install failed: {done.stderr.strip().splitlines()[-1:]}"
    return ""


POSTFIX_DAEMONS = Path("/usr/lib/postfix/sbin")

PICKED = (POSTFIX, AIOSMTPD, SMTP_SERVER)
"""What most would take instead of the guard: the picture has no others."""

PROCESS_EACH = ("W5", "W6", "W8", "MEMORY")
"""Rows of many connections, which no server can bear that has a process for each."""

PEERS: dict[str, Peer] = {
    SINK: Peer(
        _sink,
        lambda: "" if tool(SINK) else "Postfix is not installed",
        counting=lambda port, refusing: _sink(port, refusing, "-c"),
        counts_of_counting=_sink_counts,
    ),
    POSTFIX: Peer(
        _script("postfix_server.py"), _postfix_missing, _postfix_counts, not_in=PROCESS_EACH, slow="processes"
    ),
    AIOSMTPD: Peer(
        _script("aiosmtpd_server.py"),
        lambda: "" if find_spec(AIOSMTPD) else "aiosmtpd is not installed",
        _own_counts,
        not_in=("W5",),
    ),
    FLOOR: Peer(_script("floor_server.py"), lambda: "", _own_counts, not_in=("W5",)),
    TWISTED_MAIL: Peer(_script("twistedmail_server.py"), lambda: "", _own_counts),
    SMTP_SERVER: Peer(_smtp_server, _install_smtp_server, _own_counts, needs_holder=True, slow="greeting"),
}
