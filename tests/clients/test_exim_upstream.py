"""A real Exim as the upstream server of a real guard, set up as the how-to says."""

from __future__ import annotations

import re
from base64 import b64encode
from pathlib import Path

import pytest
from certificates import AUTHORITY, CERTIFICATE
from documents import DOCS, blocks
from exim import Exim
from processes import GuardProcess, eventually
from rawclient import RawClient
from test_postfix_upstream import NOT_LOCALHOST, RELAYED, hello, send

pytestmark = pytest.mark.clients

OWN = "hostlist relay_from_hosts = 127.0.0.1"
TLS = (
    "local_interfaces = 127.0.0.1",
    "hostlist relay_from_hosts =",
    "tls_advertise_hosts = *",
    f"tls_certificate = {{root}}/{CERTIFICATE.name}",
    "auth_advertise_hosts = ${if eq{$tls_in_cipher}{}{}{*}}",
)


def shown() -> list[str]:
    """The main section of the how-to, but for the port."""
    page = DOCS / "how-to" / "put-it-in-front-of-postfix.md"
    (section,) = (block for block in blocks(page, "text") if "hosts_proxy" in block)
    settings = section.splitlines()
    settings.remove("daemon_smtp_ports = 10025")
    return settings


def guard_behind(directory: Path, exim: Exim, keys: str, *options: str) -> GuardProcess:
    guard = GuardProcess(directory, f"--deliver=smtp:tcp:127.0.0.1:{exim.port}{keys}", *options)
    eventually(
        lambda: "CHUNKING" in hello(guard), f"it does not learn what Exim offers\n{guard.log.decode()}"
    )
    return guard


@pytest.mark.parametrize("announce", ["proxy", "proxy-v1"])
def test_exim_sees_the_real_client_and_applies_its_own_rules(tmp_path: Path, announce: str) -> None:
    with Exim(*shown(), OWN) as exim, guard_behind(tmp_path, exim, f",announce={announce}") as guard:
        with RawClient(guard.address, NOT_LOCALHOST) as client:
            client.ask("EHLO client.example")
            assert send(client, b"Subject: d\r\n\r\n.a dot\r\n").startswith("250 2.0.0 OK id=")
            client.send(
                b"MAIL FROM:<a@example.com>\r\nRCPT TO:<user@example.org>\r\n"
                b"BDAT 14\r\nSubject: b\r\n\r\nBDAT 3 LAST\r\n.\r\n"
            )
            assert [client.reply()[:3] for _ in range(4)] == ["250"] * 4
            assert send(client, b"", "nobody@example.org") == "550 5.0.0 Unrouteable address"
            assert send(client, b"", RELAYED) == "550 5.0.0 relay not permitted"
        with RawClient(guard.address, "127.0.0.1") as client:
            client.ask("EHLO own.example")
            # Of relay_from_hosts.
            assert send(client, b"Subject: r\r\n\r\n", RELAYED).startswith("250 2.0.0 OK id=")
        exim.logs(r" <= a@example\.com H=\(own\.example\) \[127\.0\.0\.1\] P=esmtp S=")
        taken = re.findall(
            r" <= a@example\.com H=\(client\.example\) \[127\.0\.0\.2\] P=esmtp (K )?S=", exim.log
        )
        assert taken == ["", "K "]
        assert sorted(exim.bodies) == [b"", b".\n", b".a dot\n"]


AUTHENTICATORS = {
    "PLAIN": """\
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${if and{{eq{$auth2}{ann}}{eq{$auth3}{correct-horse}}}}
  server_set_id = $auth2
""",
    "LOGIN": """\
login:
  driver = plaintext
  public_name = LOGIN
  server_prompts = Username:: : Password::
  server_condition = ${if and{{eq{$auth1}{ann}}{eq{$auth2}{correct-horse}}}}
  server_set_id = $auth1
""",
}


@pytest.mark.parametrize("mechanism", AUTHENTICATORS)
def test_the_guard_logs_in_to_exim_under_tls_or_has_no_mail_for_it(tmp_path: Path, mechanism: str) -> None:
    secret = tmp_path / "secret"
    with Exim(*TLS, authenticator=AUTHENTICATORS[mechanism], files=(CERTIFICATE,)) as exim:
        keys = f",tls=required,tls-name=localhost,tls-ca={AUTHORITY},auth={secret}"
        for password, heard in (("correct-horse", "250 2.0.0 OK id="), ("battery-staple", "451 4.3.5 ")):
            secret.write_text(f"ann:{password}\n")
            with (
                GuardProcess(tmp_path, f"--deliver=smtp:tcp:127.0.0.1:{exim.port}{keys}") as guard,
                RawClient(guard.address, NOT_LOCALHOST) as client,
            ):
                client.ask("EHLO c")
                assert send(client, b"Subject: x\r\n\r\n", RELAYED).startswith(heard)
            for secret_words in (password, *encoded(password)):
                assert secret_words not in guard.log.decode()
        # The guard's own address: it was not told of the client.
        exim.logs(
            rf" <= a@example\.com H=\S+ .*\[127\.0\.0\.1\] P=esmtpsa X=TLS1\.3:.* A={mechanism.lower()}:ann "
        )
        guard.wait_for("upstream_down .* it answers AUTH with 535")
        exim.logs(f"{mechanism.lower()} authenticator failed for ")
        assert len(exim.bodies) == 1


def encoded(password: str) -> list[str]:
    """A password as the dialogues have it."""
    return [b64encode(text.encode()).decode() for text in (password, f"\0ann\0{password}")]
