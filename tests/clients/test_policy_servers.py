"""The policy servers that people run, behind `--policy`: postgrey, policyd-spf and Dovecot's quota-status."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from documents import ROOT, blocks
from dovecot import Dovecot
from policyservers import PolicydSpf, Postgrey, Resolver
from processes import GuardProcess, eventually
from rawclient import RawClient
from shell import free_port

pytestmark = pytest.mark.clients

BODY = "Subject: x\r\n\r\nHello\r\n."


def mail(guard: GuardProcess, *lines: str, source: str = "") -> list[str]:
    """The answers to these lines and a message, until one refuses."""
    said = []
    with RawClient(guard.address, source) as client:
        for line in ("EHLO client.example", *lines, "DATA", BODY):
            said.append(client.ask(line))
            if said[-1][0] in "45":
                break
        client.ask("QUIT")
    return said


def stored(guard: GuardProcess) -> list[bytes]:
    """The messages that it has accepted, with their trace fields."""
    return [path.read_bytes() for path in (guard.maildir / "new").iterdir()]


class TestPostgrey:
    LINES = ("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>")

    def test_a_stranger_is_told_to_come_back_and_is_taken_then(self, tmp_path: Path) -> None:
        with Postgrey() as postgrey, GuardProcess(tmp_path, f"--policy=rcpt=unix:{postgrey.socket}") as guard:
            first = mail(guard, *self.LINES)[-1]
            assert re.match(r"450 4\.[27]\.[01] .*[Gg]reylist", first), first
            eventually(lambda: mail(guard, *self.LINES)[-1].startswith("250"), "it never lets the client in")
            (message,) = stored(guard)
            header = message.partition(b"\n\n")[0]
            assert re.search(rb"(?m)^X-Greylist: delayed \d+ seconds by postgrey", header)
            assert header.index(b"X-Greylist:") < header.index(b"Received:")
            line = guard.wait_for(r"reject .*reason=policy ")
            assert f"policy=unix:{postgrey.socket}" in line and "rule=DEFER_IF_PERMIT" in line

    def test_one_that_is_killed_defers_and_is_found_again(self, tmp_path: Path) -> None:
        with (
            Postgrey() as postgrey,
            GuardProcess(tmp_path, f"--policy=rcpt=unix:{postgrey.socket},timeout=5,name=grey") as guard,
        ):
            mail(guard, *self.LINES)
            eventually(lambda: mail(guard, *self.LINES)[-1].startswith("250"), "it never lets the client in")
            postgrey.kill()
            assert mail(guard, *self.LINES)[-1] == "451 4.3.0 Policy check failed, try again later"
            guard.wait_for("policy_failed .*policy=grey stage=rcpt problem=unavailable outcome=refused")
            postgrey.start()
            assert mail(guard, *self.LINES)[-1].startswith("250")


RECORDS = {"good.example": "v=spf1 ip4:127.0.0.2 -all", "bad.example": "v=spf1 -all"}


class TestPolicydSpf:
    def test_it_refuses_a_forger_and_its_field_stands_above_received(self, tmp_path: Path) -> None:
        with (
            Resolver(RECORDS) as resolver,
            PolicydSpf(resolver.address) as spf,
            GuardProcess(tmp_path, f"--policy=rcpt=unix:{spf.socket},timeout=30") as guard,
        ):
            sender, recipient = "MAIL FROM:<a@{}>", "RCPT TO:<b@example.org>"
            told = mail(guard, sender.format("bad.example"), recipient, source="127.0.0.2")[-1]
            assert told.startswith("550 5.7.23 Message rejected due to: SPF fail"), told
            told = mail(guard, sender.format("good.example"), recipient, source="127.0.0.2")[-1]
            assert told.startswith("250"), told
            (message,) = stored(guard)
            header = message.partition(b"\n\n")[0]
            assert b"\nReceived-SPF: Pass (mailfrom) identity=mailfrom; client-ip=127.0.0.2;" in header
            assert header.index(b"Received-SPF:") < header.index(b"Received: ")
            assert mail(guard, sender.format("good.example"), recipient, source="127.0.0.3")[-1].startswith(
                "550 5.7.23"
            )

    def test_it_prepends_once_for_a_message_with_several_recipients(self, tmp_path: Path) -> None:
        """It knows by the instance that they belong together."""
        with (
            Resolver(RECORDS) as resolver,
            PolicydSpf(resolver.address) as spf,
            GuardProcess(tmp_path, f"--policy=rcpt=unix:{spf.socket},timeout=30") as guard,
        ):
            recipients = [f"RCPT TO:<{name}@example.org>" for name in "bcd"]
            told = mail(guard, "MAIL FROM:<a@good.example>", *recipients, source="127.0.0.2")[-1]
            assert told.startswith("250"), told
            (message,) = stored(guard)
            assert message.count(b"Received-SPF:") == 1


class TestQuotaStatus:
    def test_a_mail_that_does_not_fit_is_refused_before_its_data(self, tmp_path: Path) -> None:
        port = free_port()
        page = ROOT / "docs/how-to/use-policy-servers.md"
        (shown,) = (block for block in blocks(page, "text") if "quota-status" in block)
        with (
            Dovecot(shown.replace("12340", port)),
            GuardProcess(tmp_path, f"--policy=rcpt=inet:127.0.0.1:{port}") as guard,
        ):
            recipient = "RCPT TO:<one@example.org>"
            assert mail(guard, "MAIL FROM:<a@example.com> SIZE=1000", recipient)[-1].startswith("250")
            told = mail(guard, "MAIL FROM:<a@example.com> SIZE=2000000", recipient)[-1]
            assert told == "552 5.2.2 Mailbox is full"
            told = mail(guard, "MAIL FROM:<a@example.com> SIZE=2000000", "RCPT TO:<unknown@example.org>")[-1]
            assert told.startswith("250")
