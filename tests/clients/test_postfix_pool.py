"""Connections to a real Postfix: used for many clients, none of which pays for another."""

from __future__ import annotations

import re
import time
from pathlib import Path
from threading import Thread

import pytest
from postfix import Postfix
from processes import GuardProcess, eventually
from rawclient import RawClient
from test_postfix_upstream import NOT_LOCALHOST, behind, hello, send

pytestmark = pytest.mark.clients

MAIL = "MAIL FROM:<a@example.com>"
MESSAGE = b"Subject: x\r\n\r\n"
XCLIENT = "smtpd_authorized_xclient_hosts = 127.0.0.1"
XFORWARD = "smtpd_authorized_xforward_hosts = 127.0.0.1"


def guess(guard: GuardProcess, recipients: int) -> None:
    """A client that looks for users."""
    with RawClient(guard.address, NOT_LOCALHOST) as client:
        client.ask("EHLO evil")
        client.ask(MAIL)
        for number in range(recipients):
            client.ask(f"RCPT TO:<no{number}@example.org>")


@pytest.mark.parametrize("announce", ["received", "xforward"])
def test_the_errors_of_one_client_are_not_held_against_the_next(tmp_path: Path, announce: str) -> None:
    # Postfix's defaults are 20 and 1s; these make it quick.
    settings = (
        XFORWARD,
        "smtpd_hard_error_limit = 6",
        "smtpd_soft_error_limit = 6",
        "smtpd_error_sleep_time = 0",
    )
    with behind(tmp_path, keys=f",announce={announce}", settings=settings) as (guard, _):
        guess(guard, 5)
        with RawClient(guard.address) as client:
            client.ask("EHLO c")
            client.ask(MAIL)
            assert client.ask("RCPT TO:<nobody@example.org>").startswith("550 ")
            assert client.ask("RCPT TO:<user@example.org>") == "250 2.1.5 Ok"


def test_no_client_is_slowed_down_for_what_another_did(tmp_path: Path) -> None:
    with behind(tmp_path) as (guard, _):
        guess(guard, 12)
        with RawClient(guard.address) as client:
            client.ask("EHLO c")
            began = time.monotonic()
            assert send(client, MESSAGE).startswith("250 ")
            # By its own defaults Postfix would sleep for a second a reply.
            assert time.monotonic() - began < 3


def test_a_postfix_at_its_process_limit_is_waited_for(tmp_path: Path) -> None:
    with (
        Postfix("mynetworks = 127.0.0.1/32", smtpd_processes=2) as postfix,
        GuardProcess(tmp_path, f"--deliver=smtp:{postfix.endpoint},wait=20,connect=2") as guard,
    ):
        eventually(lambda: "8BITMIME" in hello(guard), "it does not learn what Postfix offers")
        clients = [RawClient(guard.address) for _ in range(3)]
        for client in clients:
            client.ask("EHLO c")
        for client in clients[:2]:
            assert client.ask(MAIL).startswith("250 ")
        said: list[str] = []
        waits = Thread(target=lambda: said.append(clients[2].ask(MAIL)))
        waits.start()
        guard.wait_for("upstream_full ")
        clients[0].ask("RSET")
        waits.join()
        for client in clients:
            client.close()
        assert said[0].startswith("250 ")
        assert b"upstream_down" not in guard.log


def test_as_many_connections_as_postfix_allows_are_enough(tmp_path: Path) -> None:
    settings = ("smtpd_client_connection_count_limit = 1", "smtpd_client_event_limit_exceptions =")
    with behind(tmp_path, keys=",connections=1,messages=5", settings=settings) as (guard, _):
        said: list[str] = []

        def work() -> None:
            for _ in range(20):
                with RawClient(guard.address) as client:
                    client.ask("EHLO c")
                    said.append(send(client, MESSAGE))

        workers = [Thread(target=work) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [reply for reply in said if reply[:3] != "250"] == []
        assert len(said) == 60


def test_a_name_that_postfix_would_not_hear_is_not_told(tmp_path: Path) -> None:
    with (
        behind(tmp_path, keys=",announce=xforward", settings=(XFORWARD,)) as (guard, _),
        RawClient(guard.address) as client,
    ):
        client.ask(f"EHLO {'=+' * 120}")
        assert send(client, MESSAGE).startswith("250 ")


# What Postfix offers to us, and not to strangers.

HIDES_DSN = (
    "smtpd_discard_ehlo_keyword_address_maps = "
    "cidr:{{127.0.0.1/32 silent-discard},{0.0.0.0/0 silent-discard, dsn}}"
)


@pytest.mark.parametrize(
    ("announce", "settings"),
    [("xclient", (XCLIENT,)), ("proxy", ("smtpd_upstream_proxy_protocol = haproxy",))],
)
def test_an_extension_that_strangers_are_not_offered_is_no_longer_offered_to_any_client(
    tmp_path: Path, announce: str, settings: tuple[str, ...]
) -> None:
    with behind(tmp_path, keys=f",announce={announce}", settings=(HIDES_DSN, *settings)) as (guard, _):
        with RawClient(guard.address, NOT_LOCALHOST) as client:
            client.ask("EHLO c")
            assert send(client, MESSAGE).startswith("250 ")
        offered = hello(guard)
        assert "DSN" not in offered
        assert {"8BITMIME", "SMTPUTF8", "CHUNKING"} <= set(offered)


def test_a_connection_that_took_an_xclient_ends_with_quit(tmp_path: Path) -> None:
    with behind(tmp_path, keys=",announce=xclient", settings=(XCLIENT,)) as (guard, postfix):
        for _ in range(3):
            with RawClient(guard.address, NOT_LOCALHOST) as client:
                client.ask("EHLO c")
                assert send(client, MESSAGE).startswith("250 ")
        eventually(
            lambda: (
                len(re.findall(rf" disconnect from unknown\[{NOT_LOCALHOST}\] .*quit=1", postfix.log)) == 3
            ),
            "Postfix has not heard three goodbyes",
        )
        assert "lost connection" not in postfix.log


def test_no_mail_is_returned_to_its_sender_by_a_postfix_that_does_not_know_proxy(tmp_path: Path) -> None:
    with (
        Postfix() as postfix,
        GuardProcess(tmp_path, f"--deliver=smtp:{postfix.endpoint},announce=proxy") as guard,
    ):
        guard.wait_for("upstream_down ")
        for _ in range(2):
            with RawClient(guard.address) as client:
                client.ask("EHLO c")
                assert client.ask(MAIL).startswith("451 ")
