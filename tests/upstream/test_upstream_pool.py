"""Connections to an upstream server: how many, how long, used by whom, and what is said on them."""

from __future__ import annotations

import asyncio
import gc
from ipaddress import ip_address
from pathlib import Path as FilePath
from typing import Any

import attrs
import pytest
import pytest_twisted
from certificates import AUTHORITY
from mailserver import Behind, Link, MailServer, hangs_up, silence
from twisted.internet.defer import Deferred, fail
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure

from twisted_smtpguard.delivery.domains import AcceptedDomains
from twisted_smtpguard.hooks.later import call_hook
from twisted_smtpguard.interfaces import Client, IMailTransaction, Path, Peer
from twisted_smtpguard.testing import check_delivery
from twisted_smtpguard.upstream.login import Credentials, dialogue, read_credentials

QUEUED = "250 2.0.0 Queued as 4711"
BUSY = "451 4.3.2 Too many connections to the upstream server, try again later"
GARBLED = "451 4.5.0 Upstream server sent an invalid reply, try again later"
UNAVAILABLE = "451 4.4.1 Upstream server unavailable, try again later"
UNSUITABLE = "451 4.3.5 Upstream server cannot be used as configured, try again later"


def begun(server: MailServer) -> list[str]:
    return [line.split()[0] for line in server.links[0].heard]


# The life of a connection.


def test_a_connection_is_tried_at_the_start_and_used_after_a_reset() -> None:
    server = MailServer()
    behind = Behind(server)
    assert begun(server) == ["EHLO"]
    for _ in range(2):
        assert behind.sends(behind.greeted()) == QUEUED
    assert len(server.links) == 1
    assert begun(server) == ["EHLO", *["RSET", "MAIL", "RCPT", "DATA"] * 2]
    assert server.links[0].heard[0] == "EHLO guard.example"
    behind.assert_nothing_is_left()
    assert begun(server)[-1] == "QUIT"


def test_what_was_begun_and_not_sent_is_forgotten_before_the_next() -> None:
    server = MailServer()
    behind = Behind(server)
    client = behind.greeted()
    client.say("MAIL FROM:<one@example.com>", "RCPT TO:<b@example.org>", "RSET")
    assert behind.sends(client) == QUEUED
    assert len(server.links) == 1
    assert server.taken[0].envelope == ["MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>"]


def test_an_idle_connection_is_closed_with_quit() -> None:
    server = MailServer()
    behind = Behind(server, idle=30)
    behind.clock.advance(29)
    assert behind.sends(behind.greeted()) == QUEUED
    behind.clock.advance(29)
    assert len(server.open_links) == 1
    behind.clock.advance(1)
    assert server.open_links == []
    assert begun(server)[-1] == "QUIT"
    assert behind.sends(behind.greeted()) == QUEUED
    behind.assert_nothing_is_left()


def test_a_connection_is_used_for_so_many_messages() -> None:
    server = MailServer()
    behind = Behind(server, messages=2)
    for _ in range(5):
        assert behind.sends(behind.greeted()) == QUEUED
    assert [len([line for line in link.heard if line[:4] == "MAIL"]) for link in server.links] == [2, 2, 1]
    behind.assert_nothing_is_left()


@pytest.mark.parametrize("spoils", ["closed", "spoke", "refuses RSET", "dies at RSET"])
def test_an_idle_connection_that_is_not_sound_costs_no_client_anything(spoils: str) -> None:
    server = MailServer()
    behind = Behind(server)
    (link,) = server.links
    if spoils == "closed":
        link.close()
    elif spoils == "spoke":
        link.says("421 4.4.2 Idle too long")
    else:
        said: list[Any] = [hangs_up if spoils == "dies at RSET" else "421 4.3.2 no"]
        server.answers["RSET"] = lambda link, line: (
            said.pop()(link, line) if callable(said[0]) else said.pop()
        )
    assert behind.sends(behind.greeted()) == QUEUED
    assert len(server.links) == 2
    assert server.open_links == [server.links[1]]
    behind.assert_nothing_is_left()


@pytest.mark.parametrize("offered", [True, False])
def test_mail_leaves_with_the_reset_before_it_only_where_the_server_has_pipelining(offered: bool) -> None:
    server = MailServer("8BITMIME", *(["PIPELINING"] if offered else []))
    behind = Behind(server)
    assert behind.sends(behind.greeted()) == QUEUED
    server.answers["RSET"] = silence
    assert behind.greeted().say("MAIL FROM:<c@example.com>") == ""
    reset = b"RSET\r\n" + (b"MAIL FROM:<c@example.com>\r\n" if offered else b"")
    assert server.links[0].octets.endswith(b"\r\n.\r\n" + reset)


def test_where_one_idle_connection_is_dead_so_are_the_others() -> None:
    server = MailServer()
    behind = Behind(server)
    clients = [behind.greeted() for _ in range(3)]
    for client in clients:
        client.say("MAIL FROM:<a@example.com>")
    for client in clients:
        client.say("RSET")
    assert len(server.open_links) == 3
    server.answers["RSET"] = silence
    client = behind.greeted()
    assert client.say("MAIL FROM:<a@example.com>") == ""
    behind.clock.advance(10)
    assert client.heard() == "250 2.1.0 Sender noted\r\n"
    assert len(server.open_links) == 1


def send_and_linger(behind: Behind) -> None:
    """A message over a connection that the server will not close."""
    client = behind.greeted()
    client.say("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>", "DATA")
    behind.server.links[-1].lingers = True
    assert client.say("x", ".") == f"{QUEUED}\r\n"
    client.disconnect()


def test_a_server_that_does_not_close_the_connection_after_quit_has_five_seconds() -> None:
    behind = Behind(MailServer(), messages=1)
    send_and_linger(behind)
    (link,) = behind.server.open_links
    assert link.heard[-1] == "QUIT"
    behind.clock.advance(4.9)
    assert not link.closed
    behind.clock.advance(0.2)
    assert link.closed
    behind.assert_nothing_is_left()


def test_it_has_one_second_where_somebody_waits_for_the_place() -> None:
    behind = Behind(MailServer(), messages=1, connections=2)
    for _ in range(2):
        send_and_linger(behind)
    client = behind.greeted()
    assert client.say(MAIL) == ""
    behind.clock.advance(0.9)
    assert len(behind.server.links) == len(behind.server.open_links) == 2
    behind.clock.advance(0.2)
    assert client.heard().startswith("250 ")
    client.disconnect()
    behind.assert_nothing_is_left()


@pytest.mark.parametrize(("before", "seconds"), [(True, 0.0), (False, 1.0)])
def test_a_stop_waits_for_a_server_that_does_not_close_a_second_at_most(before: bool, seconds: float) -> None:
    behind = Behind(MailServer(), messages=1 if before else 100)
    send_and_linger(behind)
    stopped: list[object] = []
    behind.proxy.stopService().addBoth(stopped.append)
    assert bool(stopped) == before
    behind.clock.advance(seconds)
    assert len(stopped) == 1
    assert behind.server.open_links == []
    assert not behind.proxy._pool.places.closing


# How many.


def test_there_are_no_more_connections_than_allowed_and_who_waits_gets_the_next_one() -> None:
    server = MailServer()
    behind = Behind(server, connections=2, wait=10)
    clients = [behind.greeted() for _ in range(4)]
    heard = [client.say("MAIL FROM:<a@example.com>") for client in clients]
    assert heard == ["250 2.1.0 Sender noted\r\n"] * 2 + ["", ""]
    assert len(server.open_links) == 2
    behind.clock.advance(9)
    clients[0].say("RSET")
    assert clients[2].heard() == "250 2.1.0 Sender noted\r\n"
    behind.clock.advance(1)
    assert clients[3].heard() == f"{BUSY}\r\n"
    for client in clients:
        client.disconnect()
    behind.assert_nothing_is_left()


def test_who_waits_and_leaves_takes_no_place() -> None:
    server = MailServer()
    behind = Behind(server, connections=1)
    first, second, third = (behind.greeted() for _ in range(3))
    for client in (first, second, third):
        client.say("MAIL FROM:<a@example.com>")
    second.disconnect()
    first.disconnect()
    assert third.heard() == "250 2.1.0 Sender noted\r\n"
    third.disconnect()
    behind.assert_nothing_is_left()


def a_server_for_two() -> MailServer:
    server = MailServer()
    server.answers["greeting"] = lambda link, line: (
        "220 mx.example ESMTP" if len(server.open_links) <= 2 else "421 4.7.0 Too many connections from you"
    )
    return server


def test_a_connection_too_many_for_the_server_is_waited_for_and_the_server_is_not_taken_for_down() -> None:
    server = a_server_for_two()
    behind = Behind(server, wait=10)
    clients = [behind.greeted() for _ in range(4)]
    with capturedLogs() as events:
        heard = [client.say("MAIL FROM:<a@example.com>") for client in clients]
    assert heard == ["250 2.1.0 Sender noted\r\n"] * 2 + ["", ""]
    # The fourth client was spared the attempt.
    assert len(server.links) == 3
    assert [formatEvent(event) for event in events if "upstream" in event] == [
        "upstream_full upstream=upstream connections=2 it greets with 421 4.7.0 Too many connections from you"
    ]
    clients[0].say("RSET")
    assert clients[2].heard() == "250 2.1.0 Sender noted\r\n"
    behind.clock.advance(10)
    assert clients[3].heard() == f"{BUSY}\r\n"
    server.links[0].close()
    assert behind.sends(clients[3]) == QUEUED
    for client in clients:
        client.disconnect()
    behind.assert_nothing_is_left()


def test_where_connections_are_clients_own_one_that_is_put_off_keeps_no_other_from_its_own() -> None:
    server = MailServer()
    behind = Behind(server, announce="proxy")
    assert behind.sends(behind.greeted()) == QUEUED
    server.answers["greeting"] = hangs_up
    assert behind.greeted().say("MAIL FROM:<a@example.com>").startswith("451 4.4.2 ")
    server.answers["greeting"] = "421 4.7.0 Too many"
    behind.clock.advance(0.5)
    del server.answers["greeting"]
    assert behind.sends(behind.greeted()) == QUEUED
    behind.assert_nothing_is_left()


def test_a_server_that_greets_so_while_there_is_no_other_connection_is_down() -> None:
    server = a_server_for_two()
    behind = Behind(server)
    server.answers["greeting"] = "421 4.3.2 Going down"
    server.links[0].close()
    # So long it may still count the one that has gone.
    behind.clock.advance(1)
    client = behind.greeted()
    assert client.say("MAIL FROM:<a@example.com>") == "451 4.3.2 Going down\r\n"
    links = len(server.links)
    assert client.say("MAIL FROM:<a@example.com>") == "451 4.3.2 Going down\r\n"
    assert len(server.links) == links
    behind.assert_nothing_is_left()


def test_what_is_tried_takes_no_place_that_there_is_not() -> None:
    server = MailServer()
    behind = Behind(server, connections=2)
    server.links[0].close()
    first, second = behind.greeted(), behind.greeted()
    first.say("MAIL FROM:<a@example.com>")
    server.answers["greeting"] = silence
    second.say("MAIL FROM:<a@example.com>")
    second.disconnect()
    del server.answers["greeting"]
    third = behind.greeted()
    third.say("MAIL FROM:<a@example.com>")
    behind.clock.advance(1)
    assert len(server.open_links) == 2
    first.disconnect()
    third.disconnect()
    behind.assert_nothing_is_left()


# What is offered.


def keywords(behind: Behind) -> set[str]:
    return {line[4:] for line in behind.connect().say("EHLO c").split("\r\n")[2:-1]}


OURS = {"PIPELINING", "SIZE 10485760", "ENHANCEDSTATUSCODES", "LIMITS RCPTMAX=100"}


@pytest.mark.parametrize(
    ("theirs", "offered"),
    [
        (("HELP",), OURS),
        (("SIZE 1000", "8BITMIME"), OURS - {"SIZE 10485760"} | {"SIZE 1000", "8BITMIME"}),
        (("SIZE 99999999", "SMTPUTF8", "DSN"), OURS | {"SMTPUTF8", "DSN"}),
        (("CHUNKING", "BINARYMIME", "8BITMIME"), OURS | {"CHUNKING", "BINARYMIME", "8BITMIME"}),
        (("BINARYMIME",), OURS),
    ],
)
def test_only_what_both_offer_is_offered(theirs: tuple[str, ...], offered: set[str]) -> None:
    assert keywords(Behind(MailServer(*theirs))) == offered


def test_nothing_is_offered_before_the_server_was_heard() -> None:
    server = MailServer()
    server.answers["greeting"] = silence
    behind = Behind(server)
    assert keywords(behind) == OURS
    server.links[0].says("220 hello")
    assert keywords(behind) > OURS - {"SIZE 10485760"} | {"SIZE 5000000", "CHUNKING"}


def test_a_server_that_knows_no_ehlo_gets_a_helo() -> None:
    server = MailServer()
    server.answers["EHLO"] = "502 5.5.1 What?"
    behind = Behind(server)
    client = behind.greeted()
    assert client.codes("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>", "BDAT 0 LAST") == [250] * 3
    assert "HELO guard.example" in server.commands
    assert server.taken[0].octets.startswith(b"Received: from client.example ([192.0.2.1])\r\n")


def test_what_the_server_offers_no_longer_is_put_off_and_the_connection_stays() -> None:
    server = MailServer()
    behind = Behind(server)
    client = behind.greeted()
    server.links[0].close()
    server.keywords = ("HELP",)
    assert client.say("MAIL FROM:<a@example.com> RET=FULL").startswith("451 4.5.1 ")
    assert client.codes("MAIL FROM:<a@example.com> SIZE=5") == [250]
    assert len(server.links) == 2


# Messages.


def test_bdat_is_passed_on_piece_by_piece_and_octet_for_octet() -> None:
    server = MailServer()
    behind = Behind(server)
    client = behind.greeted()
    body = b"Subject: x\r\n\r\n" + b".\r\n" * 40_000
    client.say("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>")
    client.send(b"BDAT %d\r\n" % len(body) + body)
    assert client.send(b"BDAT 0 LAST\r\n").endswith(f"{QUEUED}\r\n")
    assert server.taken[0].octets.partition(b"Subject")[2] == body.partition(b"Subject")[2]
    assert not any(line.startswith("DATA") for line in server.commands)


def test_a_chunk_that_the_server_refuses_refuses_the_message() -> None:
    server = MailServer()
    server.answers["BDAT"] = "552 5.3.4 Enough"
    behind = Behind(server)
    client = behind.greeted()
    client.say("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>")
    assert client.send(b"BDAT 70000\r\n" + b"x" * 70_000) == "552 5.3.4 Enough\r\n"
    assert server.taken == []
    client.say("RSET")
    assert behind.sends(client) == QUEUED
    behind.assert_nothing_is_left()


def test_a_reply_of_the_server_cannot_forge_one_of_ours() -> None:
    server = MailServer()
    server.answers["RCPT"] = "550-5.1.1 no\x07\r\n550 5.1.1 \u2028" + "x" * 900
    client = Behind(server).greeted()
    client.say("MAIL FROM:<a@example.com>")
    said = client.say("RCPT TO:<b@example.org>").splitlines()
    assert said[0] == "550-5.1.1 no\\x07"
    assert said[1].startswith("550 5.1.1 \\u2028xxx")
    assert len(said) == 2
    assert len(said[1]) == 510


# Who the client is.


def test_with_xclient_each_use_of_a_connection_is_announced_anew() -> None:
    server = MailServer("8BITMIME", "XCLIENT ADDR HELO")
    behind = Behind(server, announce="xclient")
    for host in ("192.0.2.1", "192.0.2.2"):
        assert behind.sends(behind.greeted(host)) == QUEUED
    assert len(server.links) == 1
    (link,) = server.links
    told = [line for line in link.heard if line.split()[0] in ("XCLIENT", "EHLO", "RSET")]
    assert told == [
        "EHLO guard.example",
        "RSET",
        "XCLIENT ADDR=192.0.2.1 HELO=client.example",
        "EHLO client.example",
        "RSET",
        "XCLIENT ADDR=192.0.2.2 HELO=client.example",
        "EHLO client.example",
    ]
    assert not any(b"Received:" in taken.octets for taken in server.taken)
    behind.assert_nothing_is_left()


def test_a_client_that_the_server_will_not_have_hears_so_and_the_others_are_served() -> None:
    server = MailServer("XCLIENT ADDR")
    server.answers["XCLIENT"] = lambda link, line: (
        "554 5.7.1 Client host rejected" if line.endswith(".66") else "220 hello"
    )
    behind = Behind(server, announce="xclient")
    assert (
        behind.greeted("192.0.2.66").say("MAIL FROM:<a@example.com>") == "451 4.7.1 Client host rejected\r\n"
    )
    assert behind.sends(behind.greeted()) == QUEUED
    behind.assert_nothing_is_left()


@pytest.mark.parametrize("kind", ["xclient", "xforward"])
def test_a_server_that_cannot_be_told_of_the_client_gets_no_mail(kind: str) -> None:
    server = MailServer("8BITMIME")
    behind = Behind(server, announce=kind)
    assert behind.greeted().say("MAIL FROM:<a@example.com>") == f"{UNSUITABLE}\r\n"
    assert not any(line.startswith("MAIL") for line in server.commands)
    behind.assert_nothing_is_left()


@pytest.mark.parametrize("kind", ["proxy", "proxy-v1"])
def test_with_a_proxy_header_a_connection_is_one_session_s(kind: str) -> None:
    server = MailServer()
    server.answers["PROXY"] = silence
    behind = Behind(server, announce=kind)
    one, two = behind.greeted("192.0.2.1"), behind.greeted("192.0.2.2")
    for client in (one, two, one):
        assert behind.sends(client) == QUEUED
    # The first was tried at the start, and is nobody's.
    assert [link.closed for link in server.links] == [True, False, False]
    assert [len([line for line in link.heard if line[:4] == "MAIL"]) for link in server.links[1:]] == [2, 1]
    starts = [link.octets[:40] for link in server.links[1:]]
    assert starts[0] != starts[1]
    if kind == "proxy-v1":
        assert starts[0].startswith(b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 25\r\n"[:40])
    else:
        assert ip_address("192.0.2.2").packed in starts[1]
    one.say("QUIT")
    assert server.links[1].closed
    two.disconnect()
    assert server.links[2].closed
    behind.assert_nothing_is_left()


def test_with_a_proxy_header_the_server_hears_what_the_client_calls_itself_now() -> None:
    server = MailServer()
    behind = Behind(server, announce="proxy")
    client = behind.greeted()
    assert behind.sends(client) == QUEUED
    client.say("EHLO another.example")
    for _ in range(2):
        assert behind.sends(client) == QUEUED
    own = server.links[1].heard
    assert [line for line in own if line[:4] in ("EHLO", "RSET")] == [
        "EHLO client.example",
        "EHLO another.example",
        "RSET",
    ]
    behind.assert_nothing_is_left()


def test_what_a_client_said_in_clear_is_said_again_when_it_is_under_tls() -> None:
    server = MailServer()
    behind = Behind(server, announce="proxy")
    clear = Client(Peer(ip_address("192.0.2.1"), 1, None, None), "1", "c", "ESMTP", None, trusted=False)
    for client in (clear, clear, attrs.evolve(clear, tls="TLSv1.3 X", protocol="ESMTPS")):
        begun: list[Any] = []
        call_hook(behind.proxy.begin, client, Path("", {})).addBoth(begun.append)  # type: ignore[arg-type]
        begun[0].abort()
    assert server.links[1].heard == [
        "EHLO c",
        "MAIL FROM:<>",
        "RSET",
        "MAIL FROM:<>",
        "EHLO c",
        "MAIL FROM:<>",
    ]
    behind.proxy.session_ended("1")
    behind.assert_nothing_is_left()


@pytest.mark.parametrize("answer", ["550 5.7.1 Not you", "421 4.7.0 Not now", "354 What?", hangs_up])
def test_a_client_whose_new_name_is_refused_hears_so_on_a_new_connection(answer: Any) -> None:
    server = MailServer()
    behind = Behind(server, announce="proxy")
    client = behind.greeted()
    assert behind.sends(client) == QUEUED
    client.say("EHLO another.example")
    server.answers["EHLO"] = answer
    heard = client.say("MAIL FROM:<a@example.com>")
    if answer is not hangs_up and answer[0] in "45":
        assert heard == f"451 4{answer[5:]}\r\n"
    else:
        assert heard[:4] == "451 "
    assert len(server.links) == 3
    assert server.open_links == []
    del server.answers["EHLO"]
    assert behind.sends(client) == QUEUED
    behind.assert_nothing_is_left()


def test_a_greeting_for_one_client_is_no_word_about_the_server() -> None:
    server = MailServer()
    server.answers["PROXY"] = silence
    behind = Behind(server, announce="proxy-v1")
    server.answers["greeting"] = "554 5.7.1 You are on a list"
    assert behind.greeted().say("MAIL FROM:<a@example.com>") == "451 4.7.1 You are on a list\r\n"
    del server.answers["greeting"]
    assert behind.sends(behind.greeted("192.0.2.7")) == QUEUED


@pytest.mark.parametrize("verb", ["greeting", "EHLO"])
@pytest.mark.parametrize("answer", [hangs_up, "554 5.7.1 You are on a list", "no reply at all"])
def test_no_client_can_have_the_server_taken_for_down(verb: str, answer: Any) -> None:
    server = MailServer()
    server.answers["PROXY"] = silence
    behind = Behind(server, announce="proxy-v1")
    server.answers[verb] = answer
    refused = behind.greeted("192.0.2.66").say("MAIL FROM:<a@example.com>")
    assert refused.startswith("451 4.7.1 You" if answer is not hangs_up and answer[:3] == "554" else "451 4.")
    del server.answers[verb]
    assert behind.sends(behind.greeted()) == QUEUED
    behind.clock.advance(5)
    behind.assert_nothing_is_left()


def test_a_server_that_fails_everybody_is_down_soon_where_connections_are_clients_own() -> None:
    server = MailServer()
    server.answers["PROXY"] = silence
    behind = Behind(server, announce="proxy-v1")
    server.answers["greeting"] = hangs_up
    client = behind.greeted()
    assert client.say("MAIL FROM:<a@example.com>").startswith("451 4.4.2 ")
    behind.clock.advance(0.5)
    links = len(server.links)
    assert client.say("MAIL FROM:<a@example.com>").startswith("451 4.4.2 ")
    assert len(server.links) == links
    behind.assert_nothing_is_left()


def test_a_server_that_puts_us_off_at_the_start_is_down_where_connections_are_clients_own() -> None:
    server = MailServer()
    server.answers.update({"PROXY": silence, "greeting": "421 4.3.2 Going down"})
    behind = Behind(server, announce="proxy-v1")
    assert behind.greeted().say("MAIL FROM:<a@example.com>") == "451 4.3.2 Going down\r\n"
    assert len(server.links) == 1


# TLS. What a certificate is worth is shown with a real server.


@pytest.mark.parametrize("tls", ["opportunistic", "required"])
def test_what_was_said_in_clear_is_said_again_under_tls(tls: str) -> None:
    server = MailServer("8BITMIME", "STARTTLS")
    server.answers["STARTTLS"] = "220 2.0.0 Go ahead"
    behind = Behind(server, tls=tls, tls_name="mx.example.org")
    assert behind.sends(behind.greeted()) == QUEUED
    (link,) = server.links
    assert link.secure
    assert link.heard[:3] == ["EHLO guard.example", "STARTTLS", "EHLO guard.example"]


def test_a_handshake_that_fails_is_done_without_only_where_tls_is_opportunistic() -> None:
    server = MailServer("8BITMIME", "STARTTLS")
    server.answers["STARTTLS"] = "220 2.0.0 Go ahead"
    server.handshakes_fail = True
    with capturedLogs() as events:
        behind = Behind(server, tls="opportunistic")
    assert [formatEvent(event) for event in events if "upstream" in event] == [
        "upstream_in_clear upstream=upstream TLS failed: it closed the connection"
    ]
    assert behind.sends(behind.greeted()) == QUEUED
    assert not server.open_links[0].secure
    server.handshakes_fail = False
    server.links[-1].close()
    assert behind.sends(behind.greeted()) == QUEUED
    assert server.open_links[0].secure
    server.handshakes_fail = True
    behind = Behind(server, tls="required", tls_name="mx.example.org")
    assert behind.greeted().say("MAIL FROM:<a@example.com>") == f"{UNSUITABLE}\r\n"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("454 4.7.0 Not now", "451 4.7.0 Not now"),
        ("554 5.7.0 Never", UNSUITABLE),
        ("250 Ok", UNSUITABLE),
    ],
)
def test_a_server_that_does_not_begin_tls_gets_no_mail_where_it_is_required(answer: str, told: str) -> None:
    server = MailServer("8BITMIME", "STARTTLS")
    server.answers["STARTTLS"] = answer
    behind = Behind(server, tls="required", tls_name="mx.example.org")
    assert behind.greeted().say("MAIL FROM:<a@example.com>") == f"{told}\r\n"
    assert not any(line.startswith("MAIL") for line in server.commands)


@pytest.mark.parametrize("behind_it", ["250-mx\r\n250 AUTH PLAIN", "250-mx"])
def test_input_after_the_answer_to_starttls_is_no_answer_under_tls(behind_it: str) -> None:
    server = MailServer("8BITMIME", "STARTTLS")
    server.answers["STARTTLS"] = f"220 2.0.0 Go ahead\r\n{behind_it}"
    behind = Behind(server, tls="required", tls_name="mx.example.org")
    assert behind.greeted().say("MAIL FROM:<a@example.com>").startswith("451 4.5.0 ")
    assert not any(link.secure for link in server.links)


def test_the_certificates_to_trust_are_read_once(tmp_path: FilePath) -> None:
    server = MailServer("8BITMIME", "STARTTLS")
    server.answers["STARTTLS"] = "220 2.0.0 Go ahead"
    trusted = tmp_path / "authorities.pem"
    trusted.write_bytes(AUTHORITY.read_bytes())
    behind = Behind(server, tls="required", tls_name="mx.example.org", tls_ca=str(trusted), messages=1)
    trusted.unlink()
    for _ in range(2):
        assert behind.sends(behind.greeted()) == QUEUED
    assert len(server.tls_options) == 2


def test_a_fault_of_ours_while_a_connection_is_tried_is_logged() -> None:
    server = MailServer()
    server.connect = lambda factory: 1 / 0  # type: ignore[method-assign,return-value,assignment]
    with capturedLogs() as events:
        behind = Behind(server)
    (logged,) = [event for event in events if "log_failure" in event]
    assert logged["log_failure"].check(ZeroDivisionError)
    assert logged["upstream"] == "upstream"
    behind.assert_nothing_is_left()


# Logging in.


@pytest.mark.parametrize("mechanisms", ["PLAIN LOGIN", "LOGIN"])
def test_the_guard_logs_in_once_a_connection(mechanisms: str) -> None:
    server = MailServer("8BITMIME", f"AUTH {mechanisms}")
    replies = ["235 2.7.0 Welcome"] if "PLAIN" in mechanisms else ["235 2.7.0 Welcome", "334 UGFzc3dvcmQ6"]
    server.answers.update({"AUTH": replies[-1] if len(replies) == 1 else "334 VXNlcm5hbWU6"})
    server.answers["DXNLCG=="] = server.answers["DQ=="] = "334 UGFzc3dvcmQ6"
    server.answers["CHC="] = "235 2.7.0 Welcome"
    behind = Behind(server, auth=Credentials("u", "pw"))
    for _ in range(2):
        assert behind.sends(behind.greeted()) == QUEUED
    assert sum(line.startswith("AUTH ") for line in server.commands) == 1


@pytest.mark.parametrize(
    ("offered", "answer"), [("AUTH PLAIN", "535 5.7.8 No"), ("AUTH CRAM-MD5", ""), ("HELP", "")]
)
def test_a_server_that_does_not_know_us_gets_no_mail(offered: str, answer: str) -> None:
    server = MailServer("8BITMIME", offered)
    server.answers["AUTH"] = answer
    behind = Behind(server, auth=Credentials("u", "pw"))
    assert behind.greeted().say("MAIL FROM:<a@example.com>") == f"{UNSUITABLE}\r\n"
    assert not any(line.startswith("MAIL") for line in server.commands)


def test_a_wrong_password_is_tried_ever_more_seldom_and_the_right_one_is_used_soon_after() -> None:
    server = MailServer("8BITMIME", "AUTH PLAIN")
    server.answers["AUTH"] = "535 5.7.8 No"
    behind = Behind(server, auth=Credentials("u", "pw"))
    tried: list[float] = []
    for second in range(3600):
        if len(server.links) > len(tried):
            tried.append(second)
        behind.clock.advance(1)
    assert tried == [0, 30, 90, 210, 450, 930, 1530, 2130, 2730, 3330]
    server.answers["AUTH"] = "235 2.7.0 Welcome"
    behind.clock.advance(600)
    assert behind.sends(behind.greeted()) == QUEUED
    server.answers["greeting"] = hangs_up
    server.links[-1].close()
    behind.greeted().say("MAIL FROM:<a@example.com>")
    del server.answers["greeting"]
    behind.clock.advance(0.5)
    assert behind.sends(behind.greeted()) == QUEUED
    behind.assert_nothing_is_left()


def test_a_log_in_that_is_put_off_is_tried_again_soon() -> None:
    server = MailServer("8BITMIME", "AUTH PLAIN")
    server.answers["AUTH"] = "454 4.7.0 Temporary authentication failure"
    behind = Behind(server, auth=Credentials("u", "pw"))
    said = behind.greeted().say("MAIL FROM:<a@example.com>")
    assert said == f"{UNAVAILABLE}\r\n"
    server.answers["AUTH"] = "235 2.7.0 Welcome"
    behind.clock.advance(0.5)
    assert behind.sends(behind.greeted()) == QUEUED
    behind.assert_nothing_is_left()


# Reading again.


def reloaded(behind: Behind) -> object:
    """What a reload ends with."""
    outcome: list[Any] = []
    behind.proxy.reload().addBoth(outcome.append)
    assert not outcome
    behind.threads.work()
    return outcome[0]


def test_a_password_is_read_again_and_the_server_that_refused_the_old_one_is_tried_at_once(
    tmp_path: FilePath,
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("u:old\n")
    server = MailServer("8BITMIME", "AUTH PLAIN")
    right = dialogue(Credentials("u", "new"), ["PLAIN"])
    server.answers["AUTH"] = lambda link, line: "235 2.7.0 Welcome" if [line] == right else "535 5.7.8 No"
    behind = Behind(server, auth=read_credentials(str(secret)))
    secret.write_text("nothing\n")
    failure = reloaded(behind)
    assert isinstance(failure, Failure)
    assert failure.getErrorMessage() == f"{secret} has no line user:password"
    assert behind.greeted().say("MAIL FROM:<a@example.com>") == f"{UNSUITABLE}\r\n"
    secret.write_text("u:new\n")
    assert reloaded(behind) is None
    assert len(server.links) == 2
    assert behind.sends(behind.greeted()) == QUEUED
    behind.assert_nothing_is_left()


def test_the_certificates_to_trust_are_read_again_and_what_is_open_stays(tmp_path: FilePath) -> None:
    server = MailServer("8BITMIME", "STARTTLS")
    server.answers["STARTTLS"] = "220 2.0.0 Go ahead"
    trusted = tmp_path / "authorities.pem"
    trusted.write_bytes(AUTHORITY.read_bytes())
    behind = Behind(server, tls="required", tls_name="mx.example.org", tls_ca=str(trusted))
    assert reloaded(behind) is None
    trusted.write_text("nothing\n")
    assert isinstance(reloaded(behind), Failure)
    assert len(server.open_links) == 1
    server.links[0].close()
    assert behind.sends(behind.greeted()) == QUEUED
    first, second = server.tls_options
    assert first is not second
    behind.assert_nothing_is_left()


def test_accepted_domains_pass_a_reload_on() -> None:
    behind = Behind(MailServer())
    done: list[object] = []
    Deferred.fromCoroutine(AcceptedDomains(behind.proxy, ["example.org"]).reload()).addBoth(done.append)
    behind.threads.work()
    assert done == [None]


# LMTP.


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("verdicts", "heard"),
    [
        (["250 2.0.0 one", "250 2.0.0 two"], "250 2.0.0 Delivered to 2 recipients"),
        (["250 2.0.0 one", "452 4.2.2 full"], "451 4.3.0 <1@example.org> has the message"),
        (["550 5.1.1 no", "552 5.2.2 full"], "550 5.1.1 <2@example.org> 552 5.2.2 full"),
        (["250 2.0.0 one", "552 5.2.2 full"], "554 5.3.0 <1@example.org> has the message"),
        (["250 2.0.0 one", "close"], "451 4.3.0 <1@example.org> has the message"),
        (["250 2.0.0 one", "221 2.0.0 Bye"], "451 4.3.0 <1@example.org> has the message"),
        (["221 2.0.0 Bye", "221 2.0.0 Bye"], GARBLED),
    ],
)
def test_each_recipient_has_a_verdict_and_the_client_gets_one(
    verdicts: list[str], heard: str, chunked: bool
) -> None:
    server = MailServer()
    server.verdicts = verdicts
    behind = Behind(server, lmtp=True)
    client = behind.greeted()
    client.say("MAIL FROM:<a@example.com>", "RCPT TO:<1@example.org>", "RCPT TO:<2@example.org>")
    if chunked:
        said = client.send(b"BDAT 3 LAST\r\nx\r\n")
    else:
        client.say("DATA")
        said = client.say("x", ".")
    assert said.splitlines()[-1] == heard
    assert server.commands[0] == "LHLO guard.example"
    client.say("RSET")
    server.verdicts = ["250 2.0.0 Ok"]
    assert behind.sends(client).startswith("250 ")
    behind.assert_nothing_is_left()


def test_a_transaction_may_be_for_one_recipient_only() -> None:
    client = Behind(MailServer(), lmtp=True, recipients=1).greeted()
    said = client.say("MAIL FROM:<a@example.com>", "RCPT TO:<1@example.org>", "RCPT TO:<2@example.org>")
    assert said.splitlines()[-1] == "452 4.5.3 Too many recipients for one message, send the rest separately"


@pytest.mark.parametrize(
    ("verdicts", "twice", "stays"),
    [
        (["250 2.0.0 one", "close"], True, False),
        (["close", "close"], True, False),
        (["552 5.2.2 full", "close"], True, False),
        (["250 2.0.0 one", "what?"], True, False),
        (["250 2.0.0 one", "221 2.0.0 Bye"], True, False),
        (["250 2.0.0 one", "421 4.3.2 Going down"], False, False),
        (["250 2.0.0 one", "452 4.2.2 full"], False, True),
        (["451 4.3.0 a", "451 4.3.0 b"], False, True),
        (["250 2.0.0 one", "250 2.0.0 two"], False, True),
    ],
)
def test_the_log_tells_of_a_message_for_some_of_whom_there_was_no_verdict(
    verdicts: list[str], twice: bool, stays: bool
) -> None:
    server = MailServer()
    server.verdicts = verdicts
    behind = Behind(server, lmtp=True)
    client = behind.greeted()
    client.say("MAIL FROM:<a@example.com>", "RCPT TO:<1@example.org>", "RCPT TO:<2@example.org>", "DATA")
    with capturedLogs() as events:
        client.say("x", ".")
    assert sum(event.get("event") == "may_come_twice" for event in events) == twice
    # No connection is used on whose server hangs up.
    assert len(server.open_links) == stays
    server.verdicts = []
    assert behind.sends(client).startswith("250 ")
    behind.assert_nothing_is_left()


# The contract.


@pytest.mark.parametrize("lmtp", [False, True])
@pytest.mark.parametrize("keywords", [(), ("8BITMIME", "CHUNKING", "BINARYMIME", "SMTPUTF8", "DSN")])
@pytest_twisted.ensureDeferred
async def test_the_contract_is_kept(lmtp: bool, keywords: tuple[str, ...]) -> None:
    behind = Behind(MailServer(*keywords), lmtp=lmtp)
    assert await check_delivery(behind.proxy) > 10
    behind.assert_nothing_is_left()


def test_the_verdict_of_a_message_may_be_cancelled_and_it_is_not_taken_for_another_s() -> None:
    server = MailServer()
    server.answers["."] = silence
    behind = Behind(server, limits={"delivery_timeout": 100})
    client = behind.greeted()
    client.say("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>")
    client.say("DATA")
    client.say("x", ".")
    behind.clock.advance(100)
    assert client.heard() == "451 4.3.0 Delivery timed out, try again later\r\n"
    assert server.open_links == []


@pytest.mark.parametrize("stage", ["idle", "busy", "dialling"])
def test_a_stop_leaves_no_connection_and_no_timer(stage: str) -> None:
    server = MailServer()
    behind = Behind(server)
    if stage == "busy":
        peer = Peer(ip_address("192.0.2.1"), 1, None, None)
        client = Client(peer, "1", "c", "ESMTP", None, trusted=False)
        begun: list[Any] = []
        call_hook(behind.proxy.begin, client, Path("", {})).addBoth(begun.append)  # type: ignore[arg-type]
        assert IMailTransaction.providedBy(begun[0])
        assert attrs.evolve(client) == client
    elif stage == "dialling":
        server.links[0].close()
        server.answers["greeting"] = silence
        behind.greeted().say("MAIL FROM:<a@example.com>")
    stopped: list[object] = []
    behind.proxy.stopService().addBoth(stopped.append)
    if stage == "dialling":
        behind.clock.advance(10)
    assert stopped == [[]] or len(stopped) == 1
    assert server.open_links == []
    assert [call for call in behind.clock.getDelayedCalls() if "Pool" in repr(call.func)] == []
    behind.proxy.startService()
    server.answers.clear()
    assert behind.sends(behind.greeted()) == QUEUED


# What a server that is full, silent or reloaded does to those who wait.

MAIL = "MAIL FROM:<a@example.com>"


def test_who_waits_for_a_place_at_a_full_server_is_served_when_it_takes_one_more() -> None:
    server = a_server_for_two()
    behind = Behind(server, wait=60)
    clients = [behind.greeted() for _ in range(3)]
    for client in clients:
        client.say(MAIL)
    server.answers.clear()
    behind.clock.pump([1] * 10)
    assert clients[2].heard().startswith("250 ")


def test_two_that_are_dialled_at_once_do_not_have_a_server_for_two_taken_for_down() -> None:
    server = a_server_for_two()
    behind = Behind(server, wait=60)
    server.links[0].close()
    server.answers["EHLO"] = silence
    clients = [behind.greeted() for _ in range(4)]
    with capturedLogs() as events:
        assert [client.say(MAIL) for client in clients] == ["", "", "", ""]
        for link in list(server.open_links):
            link.says("250 mx.example")
    told = [formatEvent(event).split()[0] for event in events if "upstream" in event]
    assert told == ["upstream_full"]
    assert [client.heard()[:4] for client in clients] == ["250 ", "250 ", "", ""]


def test_a_full_server_is_told_of_again_when_it_was_not_full_meanwhile() -> None:
    server = a_server_for_two()
    behind = Behind(server, wait=10, idle=30)
    clients = [behind.greeted() for _ in range(3)]
    with capturedLogs() as events:
        for _ in range(2):
            for client in clients:
                client.say(MAIL)
            behind.clock.pump([1] * 11)
            for client in clients:
                client.say("RSET")
            behind.clock.pump([1] * 60)
    assert [formatEvent(each).split()[0] for each in events if "upstream" in each] == ["upstream_full"] * 2


def test_no_waiting_client_is_connected_by_a_stop_or_after_it() -> None:
    server = MailServer()
    behind = Behind(server, connections=1)
    first, second = behind.greeted(), behind.greeted()
    first.say(MAIL)
    second.say(MAIL)
    behind.proxy.stopService()
    assert second.heard().startswith("451 ")
    assert len(server.links) == 1
    assert behind.greeted().say(MAIL).startswith("451 ")
    behind.clock.advance(60)
    assert server.open_links == []
    assert behind.proxy._pool.places.in_use == 0


def test_a_password_that_is_new_is_tried_at_once_though_the_old_one_was_just_being_tried(
    tmp_path: Path,
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("u:old\n")
    server = MailServer("8BITMIME", "AUTH PLAIN")
    server.answers["AUTH"] = silence
    behind = Behind(server, auth=read_credentials(str(secret)))
    secret.write_text("u:new\n")
    reloaded(behind)
    (link,) = server.open_links
    link.says("535 5.7.8 No")
    assert len(server.links) == 2


def test_a_probe_takes_no_place_that_there_is_not() -> None:
    server = MailServer()
    behind = Behind(server, connections=1)
    server.links[0].close()
    server.answers["greeting"] = silence
    first, second = behind.greeted(), behind.greeted()
    first.say(MAIL)
    first.disconnect()
    second.say(MAIL)
    behind.clock.advance(0.6)
    assert len(server.open_links) == 1
    second.disconnect()
    behind.proxy.stopService()


def test_a_handshake_that_is_never_answered_leaves_time_to_go_on_in_clear(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = MailServer("8BITMIME", "STARTTLS")
    server.answers["STARTTLS"] = "220 2.0.0 Go ahead"
    monkeypatch.setattr(Link, "startTLS", lambda *_: None)
    behind = Behind(server, tls="opportunistic")
    behind.clock.pump([1] * 30)
    assert behind.greeted().say(MAIL).startswith("250 ")


@pytest.mark.parametrize("ends", ["the client leaves", "a stop"])
def test_a_handshake_that_is_given_up_is_followed_by_no_attempt_in_clear(
    ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = MailServer("8BITMIME", "STARTTLS")
    server.answers["STARTTLS"] = "220 2.0.0 Go ahead"
    behind = Behind(server, tls="opportunistic")
    server.links[0].close()
    monkeypatch.setattr(Link, "startTLS", lambda *_: None)
    client = behind.greeted()
    assert client.say(MAIL) == ""
    assert len(server.links) == 2
    if ends == "a stop":
        behind.proxy.stopService()
    else:
        client.disconnect()
    assert len(server.links) == 2
    assert server.open_links == []
    assert behind.proxy._pool.places.in_use == 0


def test_an_attempt_and_the_one_in_clear_after_it_have_three_times_connect_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = MailServer("8BITMIME", "STARTTLS")
    server.answers["STARTTLS"] = "220 2.0.0 Go ahead"
    monkeypatch.setattr(Link, "startTLS", lambda *_: None)
    server.answers["EHLO"] = silence
    behind = Behind(server, tls="opportunistic", connect=10)
    behind.clock.advance(15)
    server.links[0].says("250-mx.example\r\n250 STARTTLS")
    behind.clock.advance(10)
    assert server.open_links == server.links[1:]
    behind.clock.advance(4.9)
    assert len(server.open_links) == 1
    behind.clock.advance(0.1)
    assert server.open_links == []
    said = behind.greeted().say(MAIL)
    assert said == "451 4.4.2 Upstream server did not answer in time, try again later\r\n"
    behind.assert_nothing_is_left()


@pytest.mark.parametrize("waits_for", ["the greeting", "EHLO", "MAIL", "the verdict"])
def test_a_proxy_that_is_no_longer_referenced_is_collected_without_a_log_line(waits_for: str) -> None:
    """A coroutine that is collected must not be run again by what it closes, in the middle of something else."""
    gc.collect()
    server = MailServer()
    server.answers[{"the greeting": "greeting", "the verdict": "."}.get(waits_for, waits_for)] = silence
    behind = Behind(server)
    client = behind.greeted()
    client.say(MAIL, "RCPT TO:<b@example.org>", "DATA", "x", ".")
    with capturedLogs() as events:
        del server, behind, client
        gc.collect()
    assert [formatEvent(each) for each in events] == []


def test_an_endpoint_of_asyncio_that_is_cancelled_is_an_unreachable_server(monkeypatch: Any) -> None:
    server = MailServer()
    behind = Behind(server, connections=1)
    server.links[0].close()
    monkeypatch.setattr(server, "connect", lambda factory: fail(asyncio.CancelledError()))
    for _ in range(2):
        assert behind.greeted().say(MAIL).startswith("451 4.4.1 ")
    assert behind.proxy._pool.places.in_use == 0
    monkeypatch.undo()
    behind.clock.advance(5)
    assert behind.sends(behind.greeted()) == QUEUED


def test_a_server_without_tls_for_a_moment_is_tried_again_soon() -> None:
    server = MailServer("8BITMIME", "STARTTLS")
    server.answers["STARTTLS"] = "454 4.7.0 TLS not available due to local problem"
    behind = Behind(server, tls="required", tls_name="mx.example.org")
    server.answers["STARTTLS"] = "220 2.0.0 Go ahead"
    behind.clock.pump([1] * 10)
    assert behind.greeted().say(MAIL).startswith("250 ")


def test_a_new_password_is_tried_though_a_client_was_just_trying_the_old_one(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("u:old\n")
    server = MailServer("8BITMIME", "AUTH PLAIN")
    server.answers["AUTH"] = "235 2.7.0 Welcome"
    behind = Behind(server, auth=read_credentials(str(secret)))
    server.links[0].close()
    server.answers["AUTH"] = silence
    assert behind.greeted().say(MAIL) == ""
    secret.write_text("u:new\n")
    reloaded(behind)
    (link,) = server.open_links
    server.answers["AUTH"] = "235 2.7.0 Welcome"
    link.says("535 5.7.8 No")
    behind.clock.pump([1] * 10)
    assert behind.greeted().say(MAIL).startswith("250 ")


def test_an_idle_connection_that_ends_at_xclient_costs_no_client_anything() -> None:
    server = MailServer("XCLIENT ADDR HELO")
    behind = Behind(server, announce="xclient")
    server.answers["XCLIENT"] = lambda link, line: (
        "421 4.4.2 Idle too long" if link is server.links[0] else "220 Ok"
    )
    assert behind.sends(behind.greeted()) == QUEUED


def test_what_a_server_says_to_our_password_is_not_told_to_strangers() -> None:
    server = MailServer("8BITMIME", "AUTH PLAIN")
    server.answers["AUTH"] = lambda link, line: f"454 4.7.0 Cannot check {line}"
    with capturedLogs() as events:
        behind = Behind(server, auth=Credentials("u", "pw"))
    said = behind.greeted().say(MAIL)
    assert "AHUAcHc=" not in said
    assert not [event for event in events if "AHUAcHc=" in formatEvent(event)]


def test_clients_do_not_decide_how_often_it_is_logged_that_mail_goes_in_clear() -> None:
    server = MailServer("8BITMIME", "STARTTLS")
    server.answers["STARTTLS"] = "220 2.0.0 Go ahead"
    server.handshakes_fail = True
    behind = Behind(server, tls="opportunistic", announce="proxy")
    with capturedLogs() as events:
        for _ in range(50):
            client = behind.greeted()
            client.say(MAIL)
            client.disconnect()
    assert sum("upstream_in_clear" in formatEvent(event) for event in events) <= 10
