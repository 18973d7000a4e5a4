"""What stands between clients and an upstream server, passing mail on: how each is started, and why one cannot be had
here."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import attrs

from .peers import AIOSMTPD, HERE, tool
from .servers import Kind

HAPROXY = "HAProxy"
NGINX = "nginx"
AIOSMTPD_PROXY = "aiosmtpd's Proxy"

NGINX_MAIL = Path("/usr/lib/nginx/modules/ngx_mail_module.so")
"""Where Debian has it, which builds it as a module."""


@attrs.frozen
class Proxy:
    """One of them. `command` gives its words, from the port where it listens and that of the upstream server."""

    command: Callable[[int, int], list[str]]
    missing: Callable[[], str]
    """Why it cannot be had, or an empty string."""
    slow: str = ""
    """As of a server: what it keeps its clients waiting for."""

    def kind(self, name: str, upstream: int) -> Kind:
        """As a server that can be started. It does not tell counts: the upstream server does."""

        def command(port: int, refusing: bool) -> Sequence[str]:
            return self.command(port, upstream)

        return Kind(name, command, slow=self.slow)


def _haproxy(port: int, upstream: int) -> list[str]:
    own = [tool("haproxy") or "", "-db", "-f", str(HERE / "haproxy.cfg")]
    return ["/usr/bin/env", f"FRONT={port}", f"UPSTREAM={upstream}", *own]


def _nginx(port: int, upstream: int) -> list[str]:
    """Its configuration knows no variables here: it is written out into the folder in which the server is started."""
    edit = f"s|@FRONT@|{port}|; s|@UPSTREAM@|{upstream}|; s|@MODULE@|{NGINX_MAIL}|"
    own = shlex.join(["sed", edit, str(HERE / "nginx.conf")])
    start = shlex.join([tool("nginx") or "", "-c", "nginx.conf"])
    return ["/bin/sh", "-c", f'{own} >nginx.conf && exec {start} -p "$PWD"']


def _nginx_missing() -> str:
    if tool("nginx") is None:
        return "it is not installed"
    return "" if NGINX_MAIL.exists() else "its mail module is not installed"


def _aiosmtpd(port: int, upstream: int) -> list[str]:
    return [sys.executable, str(HERE / "aiosmtpd_server.py"), str(port), str(upstream)]


PROXIES: dict[str, Proxy] = {
    HAPROXY: Proxy(_haproxy, lambda: "" if tool("haproxy") else "it is not installed"),
    NGINX: Proxy(_nginx, _nginx_missing),
    # While it waits for the upstream server it serves nobody else.
    AIOSMTPD_PROXY: Proxy(
        _aiosmtpd, lambda: "" if find_spec(AIOSMTPD) else "it is not installed", slow="upstream"
    ),
}
