"""Two real guards on one real Redis know the same clients, keep the same seats for them, and are in stress together."""

from __future__ import annotations

import smtplib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from processes import GuardProcess, eventually
from rawclient import RawClient
from redisserver import RealRedis

from twisted_smtpguard.control.command import ask
from twisted_smtpguard.operations.verbs import VERBS

pytestmark = [pytest.mark.clients, pytest.mark.timeout(240)]

CAP, RESERVED = 20, 5
KNOWN = "127.0.0.2"
FULL = "421 4.7.0 Too many connections, try again later"


@pytest.fixture
def server() -> Iterator[RealRedis]:
    with RealRedis() as server:
        yield server


class Guarded(GuardProcess):
    """A guard that counts in Redis."""

    def __init__(self, directory: Path, url: str) -> None:
        directory.mkdir(exist_ok=True)
        self.socket = directory / "control"
        super().__init__(
            directory,
            f"--counters={url}",
            f"--control={self.socket}",
            "--deliver=discard:",
            f"--max-connections={CAP}",
            f"--reserved-connections={RESERVED}",
            "--stress-read-timeout=0",
        )

    def told(self, verb: str, **arguments: str) -> list[dict[str, Any]]:
        answers = list(ask(str(self.socket), VERBS[verb], arguments))
        found = [row for answer in answers for row in answer.get("rows", ())]
        return found or [answer["done"] for answer in answers if answer.get("done")]

    @property
    def known(self) -> set[str]:
        return {row["client"] for row in self.told("known")}

    def mail(self, source: str) -> None:
        with smtplib.SMTP(*self.address, source_address=(source, 0), timeout=30) as client:
            assert client.sendmail("a@b.example", ["c@d.example"], b"Subject: x\r\n\r\nx\r\n") == {}


def test_a_mail_to_one_makes_its_client_known_to_all_and_after_kill_9(
    server: RealRedis, tmp_path: Path
) -> None:
    one, other = (Guarded(tmp_path / name, server.url) for name in ("one", "other"))
    one.mail(KNOWN)
    eventually(lambda: one.known == other.known == {KNOWN}, "the other does not know it")
    one.kill()
    other.kill()
    with Guarded(tmp_path / "one", server.url) as one, Guarded(tmp_path / "other", server.url) as other:
        eventually(lambda: one.known == other.known == {KNOWN}, "it is forgotten")
        other.told("forget", address=KNOWN)
        eventually(lambda: one.known == other.known == set(), "it is still known")


def test_the_reserve_is_one_and_stress_too(server: RealRedis, tmp_path: Path) -> None:
    with (
        Guarded(tmp_path / "one", server.url) as one,
        Guarded(tmp_path / "other", server.url) as other,
        ExitStack() as crowd,
    ):
        one.mail(KNOWN)
        eventually(lambda: other.known == {KNOWN}, "the other does not know it")

        def comes(guard: GuardProcess, source: str) -> str:
            client = crowd.enter_context(RawClient(guard.address, source))
            greeting = client.greeting
            if greeting.startswith("220 "):
                # In a mail transaction nobody makes room, however long this takes.
                client.ask("EHLO x")
                client.ask("MAIL FROM:<a@b.example>")
            return greeting

        greetings = [comes((one, other)[n % 2], f"127.{10 + n}.0.1") for n in range(CAP)]
        assert [each[:3] for each in greetings] == ["220"] * (CAP - RESERVED) + ["421"] * RESERVED
        assert {*greetings[CAP - RESERVED :]} == {FULL}
        for n in range(RESERVED):
            assert comes((one, other)[n % 2], KNOWN).startswith("220 ")
        assert comes(one, KNOWN) == comes(other, KNOWN) == FULL
        for guard in (one, other):
            eventually(lambda guard=guard: guard.told("status")[0]["stress"], "it is no stress")
        crowd.close()
        for guard in (one, other):
            eventually(lambda guard=guard: not guard.told("status")[0]["stress"], "stress does not end")
            guard.wait_for("stress state=ends ")
