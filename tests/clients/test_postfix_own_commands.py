"""A real Postfix that refuses what the guard tells it of a client: nobody's mail is returned for that."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from documents import DOCS
from postfix import Postfix
from processes import LOCAL, GuardProcess, eventually
from rawclient import RawClient
from test_postfix_upstream import SETTINGS, behind, send

pytestmark = pytest.mark.clients

LOCAL6 = r"tcp6:0:interface=\:\:1"
MAIL = "MAIL FROM:<a@example.com>"


def addresses(guard: GuardProcess) -> tuple[tuple[str, int], tuple[str, int]]:
    """Of the listener for IPv4, and of the one for IPv6."""
    four, six = sorted((str(host), int(port)) for host, port in guard.addresses)
    return four, six


@pytest.mark.parametrize(
    ("announce", "answer", "heard"),
    [
        (
            "xclient",
            "it answers XCLIENT with 501 5.5.4 Bad ADDR syntax: IPV6:::1",
            "451 4.5.4 Bad ADDR syntax: IPV6:::1",
        ),
        (
            "proxy",
            "it answers the PROXY header with 421 4.3.0 mx.postfix.example Server local error",
            "451 4.3.0 mx.postfix.example Server local error",
        ),
        (
            "proxy-v1",
            "it answers the PROXY header with 421 4.3.0 mx.postfix.example Server local error",
            "451 4.3.0 mx.postfix.example Server local error",
        ),
    ],
)
def test_a_postfix_without_ipv6_has_mail_of_ipv6_clients_put_off_and_says_why_once(
    tmp_path: Path, announce: str, answer: str, heard: str
) -> None:
    with (
        Postfix("mynetworks = 127.0.0.1/32", SETTINGS[announce]) as postfix,
        GuardProcess(
            tmp_path, f"--deliver=smtp:{postfix.endpoint},announce={announce}", listen=(LOCAL, LOCAL6)
        ) as guard,
    ):
        four, six = addresses(guard)
        for _ in range(2):
            with RawClient(six) as client:
                client.ask("EHLO six.example")
                assert client.ask(MAIL) == heard
            with RawClient(four, "127.0.0.2") as client:
                client.ask("EHLO four.example")
                assert send(client, b"Subject: x\r\n\r\n").startswith("250 ")
        guard.stop()
        log = guard.log.decode()
        assert len(re.findall(rf" command_refused .* {re.escape(answer)}$", log, re.MULTILINE)) == 1
        assert len(re.findall(r"reject peer=::1 reason=upstream_refused .* code=451 reply=", log)) == 2
        assert "upstream_down" not in log


def test_with_what_the_how_to_says_it_takes_them(tmp_path: Path) -> None:
    page = (DOCS / "how-to" / "put-it-in-front-of-postfix.md").read_text()
    (setting,) = set(re.findall(r"`(inet_protocols = \w+)`", page)) - {"inet_protocols = ipv4"}
    with (
        Postfix("mynetworks = 127.0.0.1/32", SETTINGS["xclient"], setting) as postfix,
        GuardProcess(
            tmp_path, f"--deliver=smtp:{postfix.endpoint},announce=xclient", listen=(LOCAL6,)
        ) as guard,
        RawClient(tuple(guard.addresses[0])) as client,  # type: ignore[arg-type]
    ):
        client.ask("EHLO six.example")
        assert send(client, b"Subject: x\r\n\r\n").startswith("250 ")
        postfix.logs(r"client=\S+\[::1\]")


@pytest.mark.parametrize("announce", ["proxy", "proxy-v1"])
def test_a_postfix_that_expects_no_proxy_header_is_down_and_the_log_asks_whether_it_does(
    tmp_path: Path, announce: str
) -> None:
    with (
        Postfix() as postfix,
        GuardProcess(tmp_path, f"--deliver=smtp:{postfix.endpoint},announce={announce}") as guard,
    ):
        guard.wait_for(r"upstream_down .* does it expect a PROXY header\?")
        with RawClient(guard.address) as client:
            client.ask("EHLO c")
            assert client.ask(MAIL).startswith("451 4.3.5 ")
        guard.wait_for("reject peer=127.0.0.1 reason=upstream_unsuitable ")


@pytest.mark.parametrize("announce", ["xclient", "proxy"])
def test_a_client_that_postfix_will_not_have_at_once_is_put_off(tmp_path: Path, announce: str) -> None:
    settings = (
        SETTINGS[announce],
        "smtpd_delay_reject = no",
        "smtpd_client_restrictions = check_client_access inline:{ { 127.0.0.66 = REJECT } }",
    )
    with behind(tmp_path, keys=f",announce={announce}", settings=settings) as (guard, _):
        for _ in range(3):
            with RawClient(guard.address, "127.0.0.66") as client:
                client.ask("EHLO c")
                assert re.match(r"451 4\.7\.1 .*Client host rejected: Access denied", client.ask(MAIL))
        with RawClient(guard.address, "127.0.0.2") as client:
            client.ask("EHLO c")
            assert send(client, b"Subject: x\r\n\r\n").startswith("250 ")
        guard.stop()
        assert len(re.findall(rb" command_refused ", guard.log)) <= 2
        assert b"upstream_down" not in guard.log


def test_the_queue_id_of_postfix_stands_in_the_line_of_the_message(tmp_path: Path) -> None:
    with behind(tmp_path) as (guard, postfix):
        with RawClient(guard.address) as client:
            client.ask("EHLO c")
            reply = send(client, b"Subject: x\r\n\r\n")
            client.ask("MAIL FROM:<a@example.com>")
            client.ask("RCPT TO:<nobody@example.org>")
        queue_id = reply.rpartition(" ")[2]
        eventually(
            lambda: f"as\\x20{queue_id} helo=c\n".encode() in guard.log, "it does not log the queue id"
        )
        postfix.logs(f" {queue_id}: ")
        guard.wait_for(r"reason=upstream_refused .* reply=550\\x205\.1\.1\\x20<nobody@example\.org>:")
