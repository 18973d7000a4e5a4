"""The page about load balancers: its nginx before a guard, and what it says of health checks."""

from __future__ import annotations

import csv
import json
import re
import smtplib
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from documents import DOCS, blocks
from processes import PATIENCE_SECONDS, GuardProcess, eventually
from programs import NGINX_MAIL, missing, proxied
from rawclient import RawClient
from shell import free_port

PAGE = (DOCS / "how-to" / "behind-a-load-balancer.md").read_text()
MAIL = DOCS / "examples" / "nginx" / "mail.conf"
USERS = ("--auth=memory:ann:secret", "--auth-without-tls", "--require-auth")


def test_the_configuration_that_is_shown_is_the_example() -> None:
    assert f"```text\n{MAIL.read_text()}```" in PAGE


def test_the_probe_by_a_command_needs_nothing_but_a_shell(tmp_path: Path) -> None:
    shown = re.search(r"`exec: \{command: (\[.*?\])\}`", PAGE)
    assert shown is not None
    (tmp_path / "sh").symlink_to("/bin/sh")
    for pid, alive in (("$PPID", True), (str(2**22 + 1), False)):
        command = [word.replace("kill -0 1", f"kill -0 {pid}") for word in json.loads(shown[1])]
        assert pid in command[-1]
        done = subprocess.run(command, env={"PATH": str(tmp_path)}, stderr=subprocess.DEVNULL, check=False)
        assert (done.returncode == 0) is alive


@pytest.fixture
def authority() -> Iterator[tuple[int, list[int]]]:
    """What nginx asks over HTTP who may log in, and where to: everybody, to the port that the test puts into the
    list."""
    backend: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Auth-Status", "OK")
            self.send_header("Auth-Server", "127.0.0.1")
            self.send_header("Auth-Port", str(backend[0]))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, backend
    server.shutdown()
    server.server_close()


def configuration(port: int, **changed: str) -> str:
    """That of the page, with ports of the test, for `proxied`."""
    text = MAIL.read_text().replace("{", "{{").replace("}", "}}")
    text = text.replace("listen 587;", "listen 127.0.0.1:{front};").replace(":9000/", f":{port}/")
    for old, new in changed.items():
        text = text.replace(f"{old} off;", f"{old} {new};")
    return text


@pytest.mark.clients
def test_behind_nginxs_mail_proxy_the_guard_sees_the_client_and_its_user(
    tmp_path: Path, authority: tuple[int, list[int]]
) -> None:
    if not NGINX_MAIL.exists():
        missing("nginx with its mail module")
    port, backend = authority
    with GuardProcess(tmp_path, "--proxy-protocol-from=127.0.0.1", "--deliver=discard", *USERS) as guard:
        backend.append(guard.port)
        with (
            proxied("nginx", tmp_path, guard.port, configuration(port)) as front,
            smtplib.SMTP(
                "127.0.0.1", front, timeout=PATIENCE_SECONDS, source_address=("127.0.0.33", 0)
            ) as client,
        ):
            client.login("ann", "secret")
            client.sendmail("a@example.com", ["b@example.org"], "Subject: x\r\n\r\n")
        guard.wait_for(r"\] accept session=\S+ peer=127\.0\.0\.33 .* user=ann ")


@pytest.mark.clients
def test_with_xclient_on_nginx_gets_nowhere(tmp_path: Path, authority: tuple[int, list[int]]) -> None:
    if not NGINX_MAIL.exists():
        missing("nginx with its mail module")
    port, backend = authority
    with GuardProcess(tmp_path, "--proxy-protocol-from=127.0.0.1", *USERS) as guard:
        backend.append(guard.port)
        with (
            proxied("nginx", tmp_path, guard.port, configuration(port, xclient="on")) as front,
            smtplib.SMTP("127.0.0.1", front, timeout=PATIENCE_SECONDS) as client,
            pytest.raises((smtplib.SMTPException, ConnectionError)),
        ):
            client.login("ann", "secret")
        guard.wait_for(r"reason=unrecognized_command .* command=XCLIENT ")


def test_a_check_that_only_connects_is_a_session_in_the_log(tmp_path: Path) -> None:
    with GuardProcess(tmp_path) as guard:
        socket.create_connection(guard.address).close()
        guard.wait_for(r"\] connect ")
        guard.wait_for(r"\] disconnect ")
    with GuardProcess(tmp_path, "--greet-delay=20") as guard:
        socket.create_connection(guard.address).close()
        guard.wait_for(r"\] hangup ")


def test_a_header_that_comes_with_the_first_octets_is_waited_for_in_vain_but_under_tls(
    tmp_path: Path,
) -> None:
    options = ("--proxy-protocol-from=127.0.0.1", "--proxy-header-timeout=1")
    with GuardProcess(tmp_path, *options) as guard, socket.create_connection(guard.address) as client:
        client.settimeout(PATIENCE_SECONDS)
        # As the balancer's client, it waits for a greeting before it says anything.
        try:
            assert client.recv(100) == b""
        except ConnectionResetError:
            pass
        guard.wait_for("reason=proxy_header_timeout")


@pytest.mark.clients
def test_haproxy_asks_by_http_whether_a_guard_is_well_and_sends_its_header_to_the_guard_alone(
    tmp_path: Path,
) -> None:
    shown = next(
        block for block in blocks(DOCS / "how-to" / "behind-a-load-balancer.md", "text") if "httpchk" in block
    )
    metrics, statistics = free_port(), tmp_path / "statistics"
    text = shown.replace("bind :25", "bind 127.0.0.1:{front}").replace("192.0.2.10:2525", "127.0.0.1:{port}")
    text = text.replace("check port 9525", f"check port {metrics} inter 100ms")
    timeouts = "timeout connect 5s\n timeout client 60s\n timeout server 60s"
    text = f"global\n stats socket {statistics}\ndefaults\n mode tcp\n {timeouts}\n{text}"
    options = ("--proxy-protocol-from=127.0.0.1", f"--metrics=tcp:{metrics}:interface=127.0.0.1")

    def found() -> str:
        """What the last check came to."""
        with socket.socket(socket.AF_UNIX) as asking:
            asking.connect(str(statistics))
            asking.sendall(b"show stat\n")
            rows = list(csv.DictReader(asking.makefile().read().removeprefix("# ").splitlines()))
        return next(f"{row['status']} {row['check_status']}" for row in rows if row["svname"] == "guard")

    with GuardProcess(tmp_path, *options) as guard, proxied("haproxy", tmp_path, guard.port, text) as front:
        eventually(lambda: found() == "UP L7OK", "it is not asked")
        with RawClient(("127.0.0.1", front), "127.0.0.2") as client:
            assert client.greeting.startswith("220 ")
        guard.wait_for(r"\] disconnect .* peer=127\.0\.0\.2 ")
        # That of the client, and that which found out that HAProxy listens. The checks are none.
        assert sum("] connect " in line for line in guard.lines) == 2
        guard.stop()
        eventually(lambda: found().startswith("DOWN "), "it is still asked")
