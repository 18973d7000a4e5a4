"""The how-tos for AUTH, HAProxy and certificates, followed with the programs that they name."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from certificates import CERTIFICATE
from documents import ROOT, blocks
from excepted import to_be_run
from follow import Check, Reader, follow
from processes import LOCAL, GuardProcess
from programs import proxied
from rawclient import RawClient

pytestmark = pytest.mark.clients

SUBMISSION = ROOT / "docs/how-to/submission-with-auth.md"
HAPROXY = ROOT / "docs/how-to/haproxy-in-front.md"
RENEWAL = ROOT / "docs/how-to/renew-certificates.md"


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    """Has a certificate in /etc/smtpguard, and a clone whose .venv is that of the tests."""
    folder = tmp_path / "etc" / "smtpguard"
    folder.mkdir(parents=True)
    (folder / "guard.pem").write_bytes(CERTIFICATE.read_bytes())
    directory = tmp_path / "clone"
    directory.mkdir()
    (directory / ".venv").symlink_to(sys.prefix)
    return Reader(directory, tmp_path)


def test_what_the_how_to_for_submission_tells_to_type_works(reader: Reader) -> None:
    users, *_ = blocks(SUBMISSION, "text")
    (reader.root / "etc/smtpguard/users").write_text(users)

    def logs_in(reader: Reader, printed: str) -> None:
        assert "235 2.7.0 Authentication successful" in printed
        assert "250 2.0.0 Message accepted" in printed

    def both_are_logged(reader: Reader, printed: str) -> None:
        logs_in(reader, printed)
        for user, mechanism in (("ann", "PLAIN"), ("bob", "LOGIN")):
            assert f"user={user} mechanism={mechanism}\n" in reader.log
        assert "correct-horse" not in reader.log

    checks: dict[str, Check] = {"--auth PLAIN": logs_in, "--auth LOGIN": both_are_logged}
    follow(reader, to_be_run(ROOT / "docs/how-to/submission-with-auth.md"), checks)
    assert "open_relay" not in reader.log


def test_what_the_how_to_for_haproxy_tells_to_type_works(reader: Reader) -> None:
    configuration, *_ = blocks(HAPROXY, "text")
    folder = reader.root / "etc" / "haproxy"
    folder.mkdir()
    (folder / "haproxy.cfg").write_text(configuration)
    follow(reader, to_be_run(ROOT / "docs/how-to/haproxy-in-front.md"))


@pytest.mark.parametrize("shown", ["HAProxy", "HAProxy over a UNIX socket", "nginx"])
def test_the_configurations_that_are_shown_put_a_proxy_before_the_guard(tmp_path: Path, shown: str) -> None:
    haproxy, over_a_socket, nginx = blocks(HAPROXY, "text")
    # What a reader adds the second to.
    defaults, _, _ = haproxy.partition("\nlisten ")
    texts = {"HAProxy": haproxy, "HAProxy over a UNIX socket": f"{defaults}\n{over_a_socket}", "nginx": nginx}
    text = re.sub(
        r"(bind :|listen )25\b", r"\g<1>{front}", texts[shown].replace("{", "{{").replace("}", "}}")
    )
    listen, proxies = LOCAL, "127.0.0.1"
    if "socket" in shown:
        listen, proxies = f"unix:{tmp_path}/smtp.sock:mode=660", "unix"
        assert "@/run/smtpguard/smtp.sock" in text
        text = text.replace("/run/smtpguard", str(tmp_path))
    text = text.replace("127.0.0.1:2525", "127.0.0.1:{port}")
    program, *_ = shown.lower().split()
    with (
        GuardProcess(tmp_path, f"--proxy-protocol-from={proxies}", listen=[listen]) as guard,
        proxied(program, tmp_path, 0 if proxies == "unix" else guard.port, text) as front,
        RawClient(("127.0.0.1", front), source="127.0.0.33") as client,
    ):
        client.ask("QUIT")
        guard.wait_for("connect session=.* peer=127.0.0.33 ")


def test_what_the_how_to_for_certificates_tells_to_type_works(reader: Reader) -> None:
    dates: list[str] = []
    sessions: list[str] = []

    def reads(reader: Reader, printed: str) -> None:
        dates.extend(re.findall("notAfter=.*", printed))

    def resumes(reader: Reader, printed: str) -> None:
        sessions.extend(re.findall("(?m)^(New|Reused),", printed))

    checks: dict[str, Check] = {
        "openssl x509 -in": reads,
        "| openssl x509": reads,
        "-reconnect": resumes,
    }
    follow(reader, to_be_run(ROOT / "docs/how-to/renew-certificates.md"), checks)
    assert sessions == ["New", *["Reused"] * 5]
    assert len(dates) == 2
    assert dates[0] == dates[1]
