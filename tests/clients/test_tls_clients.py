"""TLS, AUTH and the PROXY protocol with programs that nobody here wrote: openssl, swaks, curl, HAProxy, nginx.

One that is not installed is skipped, or with TESTS_CLIENTS_REQUIRED=1 a failure.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
from base64 import b64encode
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from certificates import AUTHORITY, certificate
from processes import LOCAL, PATIENCE_SECONDS, GuardProcess, eventually
from programs import missing, proxied, run, s_client
from rawclient import RawClient
from stored import empty, stored

pytestmark = pytest.mark.clients

SENDER = "sender@example.com"
PASSWORD = "o-so-secret"
PLAIN = b"From: sender@example.com\nSubject: plain\n\nOne line.\n"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardProcess]:
    """A submission service. Its first listener begins in clear, its second with TLS."""
    directory = tmp_path_factory.mktemp("guard")
    (directory / "users").write_text(f"ann:{PASSWORD}\n")
    options = (
        f"--tls-certificate={certificate()}",
        f"--auth=file:{directory / 'users'}",
        "--require-auth",
        "--require-tls",
    )
    with GuardProcess(directory, *options, listen_tls=(LOCAL,)) as guard:
        yield guard
        for secret in (PASSWORD, b64encode(f"\0ann\0{PASSWORD}".encode()).decode()):
            assert secret not in guard.log.decode()


@pytest.fixture
def guard(running: GuardProcess) -> GuardProcess:
    empty(running.maildir)
    return running


def tls_port(guard: GuardProcess) -> int:
    address = guard.addresses[1]
    assert isinstance(address, tuple)
    return address[1]


# openssl.


@pytest.mark.parametrize("version", ["tls1_2", "tls1_3"])
def test_openssl_verifies_the_certificate_after_starttls(guard: GuardProcess, version: str) -> None:
    shown = s_client(
        guard.port, "-starttls", "smtp", f"-{version}", "-crlf", "-ign_eof", says="EHLO a\nQUIT\n"
    )
    assert "Verify return code: 0 (ok)" in shown
    assert "Compression: NONE" in shown
    assert "250-AUTH PLAIN LOGIN" in shown
    assert "STARTTLS" not in shown.partition("Verify return code")[2]
    assert "221 2.0.0 Closing connection" in shown


def test_openssl_speaks_to_the_listener_of_implicit_tls(guard: GuardProcess) -> None:
    shown = s_client(tls_port(guard), "-crlf", "-ign_eof", says="QUIT\n")
    assert "Verify return code: 0 (ok)" in shown
    assert " ESMTP" in shown
    assert "221 2.0.0 Closing connection" in shown


@pytest.mark.parametrize("version", ["tls1_2", "tls1_3"])
def test_openssl_resumes_its_session_after_starttls(
    guard: GuardProcess, version: str, tmp_path: Path
) -> None:
    session = str(tmp_path / "session.pem")
    how = ("-starttls", "smtp", f"-{version}", "-crlf", "-ign_eof")
    shown = s_client(guard.port, *how, "-sess_out", session, says="EHLO a\nQUIT\n")
    assert "\nNew, " in shown
    # Early data could be replayed: a message would come twice.
    assert "Max Early Data: 0\n" in shown or version == "tls1_2"
    for _ in range(2):
        shown = s_client(guard.port, *how, "-sess_in", session, "-sess_out", session, says="EHLO a\nQUIT\n")
        assert "\nReused, " in shown
        assert "Verify return code: 0 (ok)" in shown
        assert "221 2.0.0 Closing connection" in shown


def test_openssl_resumes_its_session_with_implicit_tls_as_often_as_it_reconnects(guard: GuardProcess) -> None:
    shown = s_client(tls_port(guard), "-tls1_2", "-crlf", "-ign_eof", "-reconnect", says="QUIT\n")
    assert shown.count("\nReused, ") == 5


def test_openssl_sends_no_early_data(guard: GuardProcess, tmp_path: Path) -> None:
    session, early = str(tmp_path / "session.pem"), tmp_path / "early"
    early.write_text("MAIL FROM:<replayed@example.org>\r\n")
    how = ("-tls1_3", "-crlf", "-ign_eof")
    s_client(tls_port(guard), *how, "-sess_out", session, says="EHLO a\nQUIT\n")
    shown = s_client(tls_port(guard), *how, "-sess_in", session, "-early_data", str(early), says="QUIT\n")
    assert "Early data was not sent\n" in shown
    assert "\nReused, " in shown


@pytest.mark.parametrize("version", ["tls1", "tls1_1"])
def test_openssl_is_refused_an_old_version(guard: GuardProcess, version: str) -> None:
    shown = s_client(tls_port(guard), f"-{version}", "-cipher", "ALL:@SECLEVEL=0", says="")
    assert "no peer certificate available" in shown


def test_openssl_cannot_renegotiate(guard: GuardProcess) -> None:
    shown = s_client(tls_port(guard), "-tls1_2", "-crlf", "-ign_eof", says="QUIT\n")
    assert "Secure Renegotiation IS supported" in shown
    shown = s_client(tls_port(guard), "-tls1_2", "-crlf", says="R\nQUIT\n")
    assert "RENEGOTIATING" in shown
    assert "no renegotiation" in shown


def test_a_tls_hello_at_a_plain_listener_is_told_that_it_is_no_smtp(guard: GuardProcess) -> None:
    shown = s_client(guard.port, says="")
    assert "wrong version number" in shown
    guard.wait_for("reason=not_smtp")


# swaks. Debian has its TLS in a separate package.


def swaks(port: int, *words: str, status: int = 0) -> str:
    if b"=== TLS supported" not in run("swaks", "--support").stdout:
        missing("libnet-ssleay-perl")
    result = run("swaks", f"--server=127.0.0.1:{port}", f"--from={SENDER}", "--to=a@example.org", *words)
    output = result.stdout.decode()
    assert result.returncode == status, output + result.stderr.decode()
    return output


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
@pytest.mark.parametrize("implicit", [False, True], ids=["STARTTLS", "implicit TLS"])
def test_swaks_logs_in_and_sends(guard: GuardProcess, mechanism: str, implicit: bool) -> None:
    port, tls = (tls_port(guard), "--tls-on-connect") if implicit else (guard.port, "--tls")
    said = swaks(port, tls, f"--auth={mechanism}", "--auth-user=ann", f"--auth-password={PASSWORD}")
    assert "<~  235 2.7.0 Authentication successful\n" in said
    [mail] = stored(guard.maildir)
    assert re.search(r" with ESMTPSA \(TLSv1\.3 TLS_\w+\) id ", mail.received)
    guard.wait_for(f"login .* user=ann mechanism={mechanism}")


def test_swaks_is_refused_with_a_wrong_password(guard: GuardProcess) -> None:
    said = swaks(guard.port, "--tls", "--auth=PLAIN", "--auth-user=ann", "--auth-password=wrong", status=28)
    assert "<~* 535 5.7.8 Authentication credentials invalid\n" in said
    guard.wait_for("reason=auth_failed .* user=ann")


def test_swaks_is_refused_in_clear(guard: GuardProcess) -> None:
    said = swaks(guard.port, status=23)
    assert "<** 530 5.7.0 Must issue a STARTTLS command first\n" in said


def test_swaks_is_refused_without_a_login(guard: GuardProcess) -> None:
    said = swaks(guard.port, "--tls", status=23)
    assert "<~* 530 5.7.0 Authentication required\n" in said


# curl.


@pytest.mark.parametrize("implicit", [False, True], ids=["STARTTLS", "smtps"])
def test_curl_sends_with_tls_and_a_login(guard: GuardProcess, tmp_path: Path, implicit: bool) -> None:
    (tmp_path / "message").write_bytes(PLAIN.replace(b"\n", b"\r\n"))
    url = f"smtps://127.0.0.1:{tls_port(guard)}" if implicit else f"smtp://127.0.0.1:{guard.port}"
    tls = ("--cacert", str(AUTHORITY), *(() if implicit else ("--ssl-reqd",)))
    envelope = (
        "--mail-from",
        SENDER,
        "--mail-rcpt",
        "a@example.org",
        "--upload-file",
        str(tmp_path / "message"),
    )
    result = run("curl", "--silent", "--show-error", url, *tls, "--user", f"ann:{PASSWORD}", *envelope)
    assert result.returncode == 0, result.stderr.decode()
    [mail] = stored(guard.maildir)
    assert mail.message == PLAIN


def test_curl_is_refused_with_a_wrong_password(guard: GuardProcess) -> None:
    url = f"smtps://127.0.0.1:{tls_port(guard)}"
    envelope = ("--mail-from", SENDER, "--mail-rcpt", "a@example.org", "--upload-file", os.devnull)
    result = run("curl", "--silent", url, "--cacert", str(AUTHORITY), "--user", "ann:wrong", *envelope)
    assert result.returncode == 67


# Certificates that are renewed.


def test_sighup_has_the_certificate_read_again_and_no_session_is_lost(tmp_path: Path) -> None:
    file = tmp_path / "guard.pem"
    shutil.copy(certificate(number=1), file)
    with GuardProcess(tmp_path, f"--tls-certificate={file}") as guard:
        before = s_client(guard.port, "-starttls", "smtp", says="")
        with RawClient(guard.address) as client:
            shutil.copy(certificate(number=2), file)
            os.kill(guard.pid, signal.SIGHUP)
            guard.wait_for("reloaded what=certificate")
            assert client.ask("NOOP") == "250 2.0.0 OK"
        after = s_client(guard.port, "-starttls", "smtp", says="")
        assert pem(before) != pem(after)
        file.write_text("no certificate")
        os.kill(guard.pid, signal.SIGHUP)
        guard.wait_for("reload_failed what=certificate")
        assert pem(s_client(guard.port, "-starttls", "smtp", says="")) == pem(after)


def pem(shown: str) -> str:
    return shown.partition("-----BEGIN CERTIFICATE-----")[2].partition("-----END")[0]


# Proxies.

HAPROXY = """\
global
    log stdout format raw local0
defaults
    mode tcp
    log global
    timeout connect 5s
    timeout client 30s
    timeout server 30s
listen smtp
    bind 127.0.0.1:{front}
    server guard 127.0.0.1:{port} {options}
"""
STREAM = """\
stream {{
    server {{
        listen 127.0.0.1:{front};
        proxy_pass 127.0.0.1:{port};
        proxy_protocol on;
    }}
}}
"""


def proxy(kind: str, directory: Path, port: int, options: str = "") -> AbstractContextManager[int]:
    """HAProxy with `options` of its server line, or nginx."""
    text = HAPROXY.replace("{options}", options) if kind == "haproxy" else STREAM
    return proxied(kind, directory, port, text)


SENDERS = {
    "HAProxy, version 1": ("haproxy", "send-proxy"),
    "HAProxy, version 2": ("haproxy", "send-proxy-v2"),
    "HAProxy, version 2 with more": ("haproxy", "send-proxy-v2 proxy-v2-options unique-id,crc32c"),
    "nginx, version 1": ("nginx", ""),
}


@pytest.mark.parametrize(("kind", "options"), SENDERS.values(), ids=SENDERS)
def test_behind_a_proxy_the_guard_sees_the_client(tmp_path: Path, kind: str, options: str) -> None:
    with (
        GuardProcess(tmp_path, "--proxy-protocol-from=127.0.0.1", "--deny=127.0.0.66") as guard,
        proxy(kind, tmp_path, guard.port, options) as front,
    ):
        with RawClient(("127.0.0.1", front), source="127.0.0.33") as client:
            client.ask("EHLO client.example")
            for line in (
                f"MAIL FROM:<{SENDER}>",
                "RCPT TO:<a@example.org>",
                "DATA",
                "Subject: x\r\n\r\ntext\r\n.",
            ):
                client.ask(line)
            client.ask("QUIT")
        guard.wait_for("connect session=.* peer=127.0.0.33 ")
        [mail] = stored(guard.maildir)
        assert "([127.0.0.33])" in mail.received
        with RawClient(("127.0.0.1", front), source="127.0.0.66") as refused:
            assert refused.greeting == "421 4.7.0 Connection refused"
        guard.wait_for("reject peer=127.0.0.66 reason=ip_filter")


@pytest.mark.parametrize("version", ["send-proxy", "send-proxy-v2"])
def test_a_health_check_of_haproxy_is_one_of_haproxy_itself_and_logged_at_debug_only(
    tmp_path: Path, version: str
) -> None:
    guard = GuardProcess(tmp_path, "--proxy-protocol-from=127.0.0.1", log_level="debug")
    with guard, proxy("haproxy", tmp_path, guard.port, f"{version} check check-send-proxy inter 100ms"):

        def ends(level: str) -> int:
            return len(
                re.findall(rf"#{level}\] (?:disconnect|hangup) .*peer=127\.0\.0\.1", guard.log.decode())
            )

        eventually(lambda: ends("debug") >= 3, "checks are not logged at debug")
        # HAProxy passes on the probe that found it listening.
        assert ends("info") <= 1


def test_tls_that_haproxy_has_ended_counts_as_tls_over_a_unix_socket(tmp_path: Path) -> None:
    (tmp_path / "users").write_text(f"ann:{PASSWORD}\n")
    options = (
        "--proxy-protocol-from=unix",
        "--proxy-protocol-tls",
        "--require-tls",
        "--require-auth",
        f"--auth=file:{tmp_path / 'users'}",
    )
    path = tmp_path / "smtp.sock"
    text = HAPROXY.replace("bind 127.0.0.1:{front}", f"bind 127.0.0.1:{{front}} ssl crt {certificate()}")
    text = text.replace(
        "127.0.0.1:{port} {options}", f"unix@{path} send-proxy-v2-ssl proxy-v2-options ssl,ssl-cipher"
    )
    guard = GuardProcess(tmp_path, *options, listen=(f"unix:{path}",))
    with guard, proxied("haproxy", tmp_path, 0, text) as front:
        credentials = b64encode(f"\0ann\0{PASSWORD}".encode()).decode()
        lines = [
            "EHLO client.example",
            f"AUTH PLAIN {credentials}",
            f"MAIL FROM:<{SENDER}>",
            "RCPT TO:<a@example.org>",
            "DATA",
            "Subject: x\n\ntext\n.",
            "QUIT\n",
        ]
        shown = s_client(front, "-crlf", "-ign_eof", "-quiet", says="\n".join(lines))
        assert "STARTTLS" not in shown
        [mail] = stored(guard.maildir)
        assert "([127.0.0.1])" in mail.received
        assert " with ESMTPSA (TLSv1." in " ".join(mail.received.split())


def test_tls_goes_through_haproxy_to_the_guard(tmp_path: Path) -> None:
    options = (f"--tls-certificate={certificate()}", "--proxy-protocol-from=127.0.0.1")
    with GuardProcess(tmp_path, *options, listen_tls=(LOCAL,)) as guard:
        with proxy("haproxy", tmp_path, tls_port(guard), "send-proxy-v2") as front:
            shown = s_client(front, "-crlf", "-ign_eof", says="QUIT\n")
        assert "Verify return code: 0 (ok)" in shown
        assert "221 2.0.0 Closing connection" in shown


def test_a_proxy_that_sends_no_header_is_not_let_in(tmp_path: Path) -> None:
    with GuardProcess(tmp_path, "--proxy-protocol-from=127.0.0.1", "--proxy-header-timeout=1") as guard:
        with (
            proxy("haproxy", tmp_path, guard.port) as front,
            socket.create_connection(("127.0.0.1", front)) as client,
        ):
            client.settimeout(PATIENCE_SECONDS)
            assert client.recv(100) == b""
        guard.wait_for("reject peer=127.0.0.1 reason=proxy_header_timeout limit=1")
