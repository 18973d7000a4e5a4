"""Places in the pool of connections to an upstream server: who gets the next one, and what a server is taken for that
does not give one."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import Conversation, Guard
from mailserver import Behind, Link, MailServer, hangs_up, silence
from manual_threads import ManualThreads
from twisted.logger import capturedLogs, formatEvent

from twisted_smtpguard.delivery.smtp import SmtpDelivery
from twisted_smtpguard.upstream.login import Credentials

MAIL = "MAIL FROM:<a@example.com>"
QUEUED = "250 2.0.0 Queued as 4711"


def like_postfix() -> MailServer:
    """Behind an XCLIENT it offers XCLIENT no more, as Postfix does to clients that are not authorized."""
    server = MailServer("8BITMIME", "XCLIENT ADDR")
    told: set[Link] = set()

    def xclient(link: Link, line: str) -> str:
        told.add(link)
        return "220 mx"

    server.answers["XCLIENT"] = xclient
    server.answers["EHLO"] = lambda link, line: (
        "250-mx\r\n250 8BITMIME" if link in told else "250-mx\r\n250 XCLIENT ADDR"
    )
    return server


def takes(most: int, beyond: Any = "421 4.7.0 Too many connections") -> MailServer:
    """Of more connections than `most` it says `beyond` instead of a greeting."""
    server = MailServer()

    def greeting(link: Link, line: str) -> object:
        if len(server.open_links) <= most:
            return "220 mx"
        return beyond if isinstance(beyond, str) else beyond(link, line)

    server.answers["greeting"] = greeting
    return server


@pytest.mark.parametrize("kind", ["xclient", "dies at RSET"])
def test_who_waits_first_is_not_passed_over_by_who_comes_later(kind: str) -> None:
    if kind == "xclient":
        behind = Behind(like_postfix(), connections=1, wait=10, announce="xclient")
    else:
        server = MailServer()
        server.answers["RSET"] = hangs_up  # one message a connection
        behind = Behind(server, connections=1, wait=10)
    busy, first = behind.greeted(), behind.greeted()
    busy.say(MAIL)
    first.say(MAIL)
    later, said = 0, ""
    while not said:
        client = behind.greeted()
        client.say(MAIL)
        behind.clock.advance(1)
        busy.say("RSET")
        if client.heard().startswith("250 "):
            later += 1
            busy = client
        said = first.heard()
    assert said.startswith("250 "), f"{said} while {later} that came later were served"


def test_who_waits_for_a_full_server_keeps_the_order() -> None:
    behind = Behind(takes(1), wait=30)
    clients = [behind.greeted() for _ in range(4)]
    for client in clients:
        client.say(MAIL)
    behind.clock.pump([1] * 6)
    order: list[int] = []
    current = 0
    for _ in range(3):
        clients[current].say("RSET")
        (served,) = [n for n in range(4) if n != current and clients[n].heard().startswith("250 2.1.0")]
        order.append(served)
        current = served
    assert order == [1, 2, 3]


@pytest.mark.parametrize("beyond", [silence, hangs_up])
def test_a_server_that_serves_others_is_not_down_because_one_more_is_not_greeted(beyond: Any) -> None:
    behind = Behind(takes(2, beyond), wait=30)
    clients = [behind.greeted() for _ in range(4)]
    with capturedLogs() as events:
        for client in clients:
            client.say(MAIL)
        behind.clock.pump([1] * 11)
        late = behind.greeted()
        late.say(MAIL)
        for client in clients[:2]:
            client.say("RSET")
    assert not [event for event in events if "upstream_down" in formatEvent(event)]
    # There were places within `wait`.
    assert [client.heard()[:3] for client in (*clients[2:], late)].count("250") == 2


def test_who_waits_is_served_when_a_connection_that_was_leaving_is_gone() -> None:
    server = takes(1)
    behind = Behind(server, wait=4, messages=1, connections=1)
    server.links[0].lingers = True
    client, other = behind.greeted(), behind.greeted()
    client.say(MAIL)
    other.say(MAIL)
    client.say("RSET")
    behind.clock.advance(0.1)
    server.links[0].close()  # it has answered QUIT
    behind.clock.advance(0.1)
    assert other.heard().startswith("250 ")


def with_idle(server: MailServer, announce: str) -> Behind:
    behind = Behind(server, announce=announce, idle=1000)
    clients = [behind.greeted() for _ in range(3)]
    for client in clients:
        client.say(MAIL)
    for client in clients:
        client.say("RSET")
    assert len(server.open_links) == 3
    return behind


def test_a_client_whose_xforward_is_refused_costs_one_connection() -> None:
    server = MailServer("XFORWARD ADDR HELO")
    server.answers["XFORWARD"] = lambda link, line: "501 5.5.4 Bad HELO" if "evil" in line else "250 Ok"
    behind = with_idle(server, "xforward")
    evil = behind.connect()
    evil.say("EHLO evil.example", MAIL)
    assert len(server.open_links) >= 2


def test_a_client_whose_xclient_is_never_answered_costs_one_connection() -> None:
    server = MailServer("XCLIENT ADDR HELO")
    server.answers["XCLIENT"] = lambda link, line: silence(link, line) if ".66 " in line else "220 Ok"
    behind = with_idle(server, "xclient")
    behind.greeted("192.0.2.66").say(MAIL)
    behind.clock.pump([1] * 61)
    assert len(server.open_links) >= 2


def test_a_connection_that_is_over_when_it_is_ready_takes_no_place() -> None:
    """Only where a transport answers within write(): no socket does."""
    server = MailServer()
    server.answers["EHLO"] = "250 mx\r\n250 again"
    behind = Behind(server, connections=1)
    behind.clock.advance(100)
    assert behind.proxy._pool.places.in_use == len(server.open_links)
    del server.answers["EHLO"]
    behind = Behind(server, connections=1)
    server.links[-1].close()
    server.answers["EHLO"] = "250 mx\r\n250 again"
    assert behind.greeted().say(MAIL).startswith("451 4.5.0 ")
    assert behind.proxy._pool.places.in_use == len(server.open_links) == 0


def test_a_full_server_that_takes_a_probe_is_full_no_more() -> None:
    server = MailServer()
    behind = Behind(server, wait=3)
    server.links[0].close()
    server.answers["greeting"] = silence
    for _ in range(2):
        behind.greeted().say(MAIL)
    for link in list(server.open_links):
        link.says("421 4.7.0 Too many connections")
    server.answers.clear()
    behind.clock.advance(0.5)
    clients = [behind.greeted() for _ in range(2)]
    for client in clients:
        client.say(MAIL)
    behind.clock.advance(3)
    assert [client.heard()[:3] for client in clients] == ["250", "250"]


def test_clients_that_have_become_idle_do_not_keep_others_out_indefinitely() -> None:
    behind = Behind(MailServer(), connections=2, announce="proxy", wait=10, idle=5)
    for client in [behind.greeted() for _ in range(2)]:
        assert behind.sends(client) == QUEUED
    behind.clock.pump([1] * 20)
    late = behind.greeted()
    said = late.say(MAIL)
    behind.clock.pump([1] * 11)
    assert (said or late.heard()).startswith("250 ")


def test_who_waits_for_a_full_server_hears_at_once_that_it_is_down() -> None:
    server = MailServer()
    behind = Behind(server, wait=60)
    server.links[0].close()
    behind.clock.advance(1)
    server.answers["greeting"] = silence
    clients = [behind.greeted() for _ in range(2)]
    for client in clients:
        client.say(MAIL)
    for link in list(server.open_links):
        link.says("421 4.7.0 Too many connections")
    assert [client.heard()[:3] for client in clients] == ["451", "451"]


# Whose fault it is.


def complain(behind: Behind, times: int, recipient: str = "nobody@example.org") -> None:
    """A client of whose recipients so many are refused."""
    client = behind.greeted()
    client.say(MAIL, *[f"RCPT TO:<{recipient}>"] * times)
    client.disconnect()


def knows_one_user() -> MailServer:
    server = MailServer()
    server.answers["RCPT"] = lambda link, line: (
        "250 2.1.5 Ok" if "<b@example.org>" in line else "550 5.1.1 User unknown"
    )
    return server


def test_a_connection_on_which_much_was_refused_is_left_politely() -> None:
    server = knows_one_user()
    behind = Behind(server)
    complain(behind, 4)
    assert len(server.open_links) == 1
    complain(behind, 1)
    assert server.open_links == []
    assert server.links[0].heard[-1] == "QUIT"
    behind.assert_nothing_is_left()


def test_a_message_that_is_taken_makes_up_for_what_was_refused_before() -> None:
    server = knows_one_user()
    behind = Behind(server)
    for _ in range(3):
        complain(behind, 4)
        assert behind.sends(behind.greeted()) == QUEUED
    assert len(server.links) == 1


def test_messages_that_are_refused_count_too() -> None:
    server = MailServer()
    behind = Behind(server)
    server.answers["."] = "554 5.7.1 Spam"
    for _ in range(5):
        behind.sends(behind.greeted())
    assert server.open_links == []


def test_after_the_last_xclient_that_a_connection_takes_it_ends_with_quit() -> None:
    server = like_postfix()
    behind = Behind(server, announce="xclient")
    assert behind.sends(behind.greeted()) == QUEUED
    assert server.open_links == []
    assert [line.split()[0] for line in server.links[0].heard[-2:]] == ["DATA", "QUIT"]
    behind.assert_nothing_is_left()


def test_half_a_reply_that_was_not_asked_for_is_not_the_beginning_of_the_next() -> None:
    server = MailServer()
    behind = Behind(server)
    client = behind.greeted()
    client.say(MAIL)
    server.links[0].protocol.dataReceived(b"250-")
    assert client.say("RCPT TO:<b@example.org>").startswith("451 4.5.0 ")
    assert server.open_links == []
    client.disconnect()
    behind.assert_nothing_is_left()


# Down, or only full.


def test_a_server_that_refuses_one_more_is_full_and_down_when_there_is_no_other() -> None:
    server = MailServer()
    behind = Behind(server, wait=60)
    first, second = behind.greeted(), behind.greeted()
    first.say(MAIL)
    server.reachable = False
    with capturedLogs() as events:
        assert second.say(MAIL) == ""
        server.links[0].close()
        assert second.heard().startswith("451 4.4.1 ")
    assert [formatEvent(each).split()[0] for each in events if "upstream=" in formatEvent(each)] == [
        "upstream_full",
        "upstream_down",
    ]


def test_a_server_that_cannot_be_reached_beside_a_connection_that_is_leaving_is_full() -> None:
    server = MailServer()
    behind = Behind(server, messages=1)
    client = behind.greeted()
    client.say(MAIL)
    server.links[0].lingers = True
    client.say("RSET")
    server.reachable = False
    assert client.say(MAIL) == ""
    server.reachable = True
    behind.clock.advance(1)
    assert client.heard().startswith("250 ")


def test_a_server_that_still_counts_an_attempt_that_was_given_up_is_full() -> None:
    server = MailServer()
    server.answers["greeting"] = silence
    behind = Behind(server)
    behind.proxy.stopService()
    server.answers["greeting"] = "421 4.7.0 Too many connections"
    behind.proxy.startService()
    client = behind.greeted()
    assert client.say(MAIL) == ""
    server.answers.clear()
    behind.clock.advance(1)
    assert client.heard().startswith("250 ")


@pytest.mark.parametrize(("waits", "links"), [(29.0, 0), (30.0, 1)])
def test_a_handshake_that_fails_is_tried_again_as_seldom_as_a_wrong_password(
    waits: float, links: int
) -> None:
    server = MailServer("8BITMIME", "STARTTLS")
    server.answers["STARTTLS"] = "220 2.0.0 Go ahead"
    server.handshakes_fail = True
    behind = Behind(server, tls="required", tls_name="mx.example.org")
    before = len(server.links)
    behind.clock.pump([0.5] * int(2 * waits))
    assert len(server.links) - before == links


def test_where_each_has_its_own_the_longest_idle_one_gives_its_place_to_who_waits() -> None:
    server = MailServer()
    behind = Behind(server, announce="proxy", connections=2, wait=10)
    first, second, third = (behind.greeted() for _ in range(3))
    assert behind.sends(second) == QUEUED
    assert behind.sends(first) == QUEUED
    assert third.say(MAIL).startswith("250 ")
    assert [link.closed for link in server.links[-3:]] == [True, False, False]
    # It has another one when it needs it.
    third.disconnect()
    assert behind.sends(second) == QUEUED
    for client in (first, second):
        client.disconnect()
    behind.assert_nothing_is_left()


@pytest.mark.parametrize("announce", ["received", "proxy"])
def test_a_server_is_not_down_because_a_client_left_while_it_was_connected_to(announce: str) -> None:
    server = MailServer()
    behind = Behind(server, announce=announce)
    behind.clock.advance(30)
    server.answers_connects = False
    client = behind.greeted()
    client.say(MAIL)
    client.disconnect()
    assert server.cancelled_connects == 1
    server.answers_connects = True
    assert behind.greeted().say(MAIL).startswith("250 ")


# Who waits already.


def test_who_keeps_a_connection_between_two_messages_gives_it_to_who_waits_already() -> None:
    behind = Behind(MailServer(), announce="proxy", connections=1, wait=10)
    first, second = behind.greeted(), behind.greeted()
    first.say(MAIL)
    assert second.say(MAIL) == ""
    first.say("RSET")
    assert second.heard().startswith("250 ")


def test_no_more_give_up_theirs_than_there_are_who_wait() -> None:
    server = MailServer()
    behind = Behind(server, announce="proxy", connections=3, wait=10)
    clients = [behind.greeted() for _ in range(3)]
    for client in clients:
        behind.sends(client)
    for link in server.open_links:
        link.lingers = True
    # One after the other: those before have left.
    for _ in range(3):
        client = behind.greeted()
        client.say(MAIL)
        client.disconnect()
    assert [link.heard[-1] for link in server.open_links].count("QUIT") == 1
    for client in [behind.greeted() for _ in range(2)]:
        client.say(MAIL)
    assert [link.heard[-1] for link in server.open_links].count("QUIT") == 2


def left_while_somebody_waits() -> tuple[Behind, Conversation]:
    """The only connection, which the server does not close, and who waits for its place."""
    server = MailServer()
    behind = Behind(server, connections=1, messages=1)
    client, other = behind.greeted(), behind.greeted()
    client.say(MAIL)
    server.links[0].lingers = True
    other.say(MAIL)
    client.say("RSET")
    return behind, other


def test_a_connection_that_is_left_while_somebody_waits_has_one_second() -> None:
    behind, other = left_while_somebody_waits()
    behind.clock.advance(0.9)
    assert other.heard() == ""
    behind.clock.advance(0.2)
    assert other.heard().startswith("250 ")


def test_others_who_come_do_not_give_a_connection_that_is_leaving_more_time() -> None:
    behind, other = left_while_somebody_waits()
    behind.clock.advance(0.5)
    behind.greeted().say(MAIL)
    behind.clock.advance(0.5)
    assert other.heard().startswith("250 ")


def test_who_was_refused_a_connection_keeps_its_turn() -> None:
    server = MailServer()
    behind = Behind(server, wait=60)
    busy = behind.greeted()
    busy.say(MAIL)
    server.answers["greeting"] = silence
    clients = [behind.greeted() for _ in range(3)]
    for client in clients:
        client.say(MAIL)
    for link in server.open_links[1:]:
        link.says("421 4.7.0 Too many connections")
    for client in clients:
        busy.say("RSET")
        assert client.heard().startswith("250 ")
        busy = client


def test_who_was_refused_comes_after_who_waits() -> None:
    server = MailServer()
    server.answers["PROXY"] = silence
    behind = Behind(server, announce="proxy-v1", connections=1)
    busy, first, second = (behind.greeted() for _ in range(3))
    busy.say(MAIL)
    first.say(MAIL, MAIL)
    second.say(MAIL)
    greetings = iter(["554 5.7.1 No"])
    server.answers["greeting"] = lambda link, line: next(greetings, "220 mx")
    busy.disconnect()
    assert first.heard() == "451 4.7.1 No\r\n"
    assert second.heard().startswith("250 ")


def test_however_many_wait_and_are_refused_each_hears_so() -> None:
    server = MailServer()
    server.answers["PROXY"] = silence
    behind = Behind(server, announce="proxy-v1", connections=1)
    busy, *clients = [behind.greeted() for _ in range(200)]
    for client in (busy, *clients):
        client.say(MAIL)
    server.answers["greeting"] = "554 5.7.1 No"
    busy.disconnect()
    assert {client.heard() for client in clients} == {"451 4.7.1 No\r\n"}


def test_a_client_that_the_server_is_slow_to_be_told_of_does_not_keep_others_out() -> None:
    server = MailServer("XCLIENT ADDR")
    behind = Behind(server, announce="xclient", wait=10)
    busy, second = behind.greeted(), behind.greeted()
    busy.say(MAIL)
    server.answers["greeting"] = "421 4.7.0 Too many connections"
    second.say(MAIL)
    second.disconnect()
    behind.clock.advance(5)
    # It takes more now, which is tried with one.
    server.answers["greeting"] = silence
    server.answers["XCLIENT"] = lambda link, line: None if line.endswith(".66") else "220 mx"
    slow, other = behind.greeted("192.0.2.66"), behind.greeted()
    slow.say(MAIL)
    other.say(MAIL)
    del server.answers["greeting"]
    server.open_links[-1].says("220 mx")
    assert other.heard().startswith("250 ")


def test_a_client_that_a_full_server_will_not_have_hears_so_and_costs_one_connection() -> None:
    server = takes(3)
    server.keywords = ("XCLIENT ADDR",)
    server.answers["XCLIENT"] = lambda link, line: "550 5.7.1 No" if line.endswith(".66") else "220 mx"
    behind = Behind(server, announce="xclient")
    clients = [behind.greeted() for _ in range(4)]
    for client in clients:
        client.say(MAIL)
    for client in clients:
        client.say("RSET")
    assert len(server.open_links) == 3
    assert behind.greeted("192.0.2.66").say(MAIL) == "451 4.7.1 No\r\n"
    assert len(server.open_links) == 2


# A connection that ends while it is used again, or announced.


@pytest.mark.parametrize("after", [0.0, 0.9])
def test_a_connection_that_ends_at_its_reset_may_still_be_counted_by_the_server(after: float) -> None:
    server = MailServer()
    behind = Behind(server, wait=10)
    behind.clock.advance(20)
    server.answers["RSET"] = silence
    server.answers["greeting"] = "421 4.7.0 Too many connections"
    client = behind.greeted()
    client.say(MAIL)
    behind.clock.advance(after)
    server.links[0].close()
    assert client.heard() == ""
    server.answers.clear()
    behind.clock.advance(1)
    assert client.heard().startswith("250 ")


def test_a_full_server_is_tried_again_when_a_connection_ends_that_was_being_announced() -> None:
    server = MailServer("XCLIENT ADDR")
    behind = Behind(server, announce="xclient", wait=10)
    server.links[0].close()
    server.answers["XCLIENT"] = silence
    first, second = behind.greeted(), behind.greeted()
    first.say(MAIL)
    server.answers["greeting"] = "421 4.7.0 Too many connections"
    assert second.say(MAIL) == ""
    server.answers.clear()
    server.links[1].close()
    assert first.heard().startswith("451 4.4.2 ")
    assert second.heard().startswith("250 ")


@pytest.mark.parametrize("beyond", [silence, hangs_up])
def test_a_server_is_not_down_while_a_client_is_announced_to_it(beyond: Any) -> None:
    server = MailServer("XCLIENT ADDR")
    behind = Behind(server, announce="xclient", wait=20)
    server.answers["XCLIENT"] = lambda link, line: None if line.endswith(".66") else "220 mx"
    server.answers["greeting"] = beyond
    slow, other = behind.greeted("192.0.2.66"), behind.greeted()
    slow.say(MAIL)
    with capturedLogs() as events:
        other.say(MAIL)
        behind.clock.advance(10)
    assert [formatEvent(event).split()[:3] for event in events if "upstream" in event] == [
        ["upstream_full", "upstream=upstream", "connections=1"]
    ]
    assert other.heard() == ""


# A stop.


@pytest.mark.parametrize("verb", ["RSET", "greeting", "connect"])
def test_a_stop_ends_what_is_tried_and_begins_nothing(verb: str) -> None:
    server = MailServer()
    behind = Behind(server)
    if verb != "RSET":
        server.links[0].close()
    server.answers_connects = verb != "connect"
    server.answers[verb] = silence
    client = behind.greeted()
    client.say(MAIL)
    links = len(server.links)
    stopped: list[object] = []
    behind.proxy.stopService().addBoth(stopped.append)
    assert len(stopped) == 1
    assert client.heard().startswith("451 4.4.1 ")
    assert server.open_links == []
    assert len(server.links) == links
    assert behind.proxy._pool.places.in_use == 0
    timers = [repr(call.func) for call in behind.clock.getDelayedCalls()]
    assert [each for each in timers if "within" in each or "Connection" in each] == []
    behind.proxy.startService()


def test_a_connection_that_is_dead_is_not_replaced_while_the_server_is_down() -> None:
    server = MailServer("8BITMIME", "AUTH PLAIN")
    server.answers["AUTH"] = "235 2.7.0 Welcome"
    behind = Behind(server, auth=Credentials("u", "pw"))
    busy = behind.greeted()
    busy.say(MAIL)
    server.answers["AUTH"] = "535 5.7.8 No"
    assert behind.greeted().say(MAIL).startswith("451 4.3.5 ")
    busy.say("RSET")
    server.answers["RSET"] = hangs_up
    links = len(server.links)
    # A wrong password that clients have tried locks the account out.
    assert behind.greeted().say(MAIL).startswith("451 4.3.5 ")
    assert len(server.links) == links


def test_a_delivery_that_was_not_started_takes_mail_and_keeps_no_connection() -> None:
    server, clock = MailServer(), ManualThreads()
    client = Guard(SmtpDelivery(server, clock, hostname="guard.example"), clock).greeted()
    client.guard.delivery.reload()
    clock.work()
    assert server.links == []
    client.say(MAIL, "RCPT TO:<b@example.org>", "DATA")
    assert client.say("x", ".") == f"{QUEUED}\r\n"
    assert [link.closed for link in server.links] == [True]


@pytest.mark.parametrize("state", ["full", "down"])
def test_a_stop_leaves_no_timer_of_a_server_that_is_full_or_down(state: str) -> None:
    server = MailServer()
    behind = Behind(server)
    first, second = behind.greeted(), behind.greeted()
    if state == "full":
        first.say(MAIL)
    else:
        server.links[0].close()
    server.reachable = False
    second.say(MAIL)
    behind.proxy.stopService()
    timers = [repr(call.func) for call in behind.clock.getDelayedCalls()]
    assert [each for each in timers if "Health" in each or "Waiting" in each] == []


def test_the_log_tells_once_that_a_server_is_up_again() -> None:
    server = MailServer()
    server.reachable = False
    behind = Behind(server)
    server.reachable = True
    with capturedLogs() as events:
        behind.clock.advance(1)
        assert behind.sends(behind.greeted()) == QUEUED
    assert [formatEvent(each).split()[0] for each in events if "upstream" in each] == ["upstream_up"]


def test_a_server_that_a_client_has_just_used_is_not_probed() -> None:
    server = MailServer()
    behind = Behind(server)
    server.links[0].close()
    server.answers["greeting"] = silence
    client = behind.greeted()
    client.say(MAIL)
    client.disconnect()
    server.answers.clear()
    assert behind.greeted().say(MAIL).startswith("250 ")
    links = len(server.links)
    behind.clock.advance(10)
    assert len(server.links) == links


# How long.


def test_a_full_server_is_tried_every_five_seconds() -> None:
    server = takes(1)
    behind = Behind(server, wait=60)
    for client in [behind.greeted() for _ in range(2)]:
        client.say(MAIL)
    assert len(server.links) == 2
    for links in (3, 4):
        behind.clock.advance(4.9)
        assert len(server.links) == links - 1
        behind.clock.advance(0.1)
        assert len(server.links) == links


def test_a_server_that_is_down_is_tried_ever_more_seldom_and_every_five_seconds_in_the_end() -> None:
    server = MailServer()
    server.answers["greeting"] = "554 5.3.0 Out of order"
    behind = Behind(server)
    for links, seconds in enumerate([0.5, 1, 2, 4, 5, 5], 1):
        behind.clock.advance(seconds - 0.1)
        assert len(server.links) == links
        behind.clock.advance(0.1)
        assert len(server.links) == links + 1


def test_a_connection_that_is_used_again_has_ten_seconds_to_answer() -> None:
    server = MailServer()
    behind = Behind(server)
    server.answers["RSET"] = silence
    client = behind.greeted()
    client.say(MAIL)
    behind.clock.advance(9.9)
    assert client.heard() == ""
    behind.clock.advance(0.1)
    assert client.heard().startswith("250 ")


def test_a_connection_may_be_used_for_any_number_of_messages() -> None:
    server = MailServer()
    behind = Behind(server, messages=0)
    for _ in range(2):
        assert behind.sends(behind.greeted()) == QUEUED
    assert len(server.links) == 1


# What nobody asked for.


def test_no_mail_is_returned_to_its_sender_when_a_server_gives_up_after_its_greeting() -> None:
    server = MailServer()
    server.answers["greeting"] = "220 mx.example ESMTP\r\n554 5.3.2 Going down"
    behind = Behind(server)
    for _ in range(2):
        assert behind.greeted().say(MAIL) == "451 4.3.2 Going down\r\n"
        behind.clock.advance(5)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("554 5.3.2 Going down", "451 4.3.2 Going down"),
        ("421 4.3.2 Going down", "451 4.3.2 Going down"),
        ("250 2.0.0 Hello", "451 4.5.0 Upstream server sent an invalid reply, try again later"),
    ],
)
def test_what_a_server_says_out_of_turn_is_not_said_of_a_recipient(said: str, told: str) -> None:
    server = MailServer()
    behind = Behind(server)
    client = behind.greeted()
    client.say(MAIL)
    server.links[0].says(said)
    assert client.say("RCPT TO:<b@example.org>") == f"{told}\r\n"


# Beside a server that has no process for one more.


def test_who_has_tried_in_vain_still_waits_as_long_as_anybody() -> None:
    server = takes(1, silence)
    behind = Behind(server, wait=10, connect=10)
    first, second = behind.greeted(), behind.greeted()
    first.say(MAIL)
    assert second.say(MAIL) == ""
    behind.clock.pump([1] * 19)
    assert second.heard() == ""
    first.say("RSET")
    assert second.heard().startswith("250 ")


def test_who_comes_while_it_is_full_has_the_next_connection_and_does_not_try_one() -> None:
    server = takes(1, silence)
    behind = Behind(server, wait=30, connect=10)
    first, second, third = (behind.greeted() for _ in range(3))
    first.say(MAIL)
    second.say(MAIL)
    # Nobody greets it, and five seconds later one more is tried, by us.
    behind.clock.pump([1] * 16)
    assert len(server.open_links) == 2
    first.say("RSET")
    assert second.heard().startswith("250 ")
    third.say(MAIL)
    second.say("RSET")
    assert third.heard().startswith("250 ")
    third.disconnect()
    behind.clock.pump([1] * 20)
    behind.assert_nothing_is_left()


def test_an_endpoint_that_raises_while_a_transaction_waits_for_a_full_server_is_not_asked_again_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = MailServer()
    behind = Behind(server)
    assert behind.greeted().say(MAIL).startswith("250 ")
    server.reachable = False
    waiting = behind.greeted()
    assert waiting.say(MAIL) == ""
    asked: list[object] = []

    def connect(factory: object) -> None:
        asked.append(factory)
        raise TypeError("a mistake in an endpoint")

    monkeypatch.setattr(server, "connect", connect)
    with capturedLogs() as events:
        behind.clock.pump([1] * 10)
    assert waiting.heard().startswith("451 4.3.2 ")
    assert len(asked) == 1
    assert [event["event"] for event in events if "upstream" in event] == ["upstream_failed"]


def test_after_a_clock_is_set_back_a_server_that_greets_with_421_is_down_and_not_full() -> None:
    server = MailServer()
    behind = Behind(server, idle=30)
    behind.clock.advance(30)
    assert server.open_links == []
    behind.clock.rightNow = 5
    server.answers["greeting"] = "421 4.3.2 Busy now"
    assert behind.greeted().say(MAIL) == "451 4.3.2 Busy now\r\n"


@pytest.mark.parametrize("announce", ["received", "proxy"])
@pytest.mark.parametrize("done", range(4))
def test_a_transport_that_raises_ends_the_connection_and_costs_no_place(
    monkeypatch: pytest.MonkeyPatch, announce: str, done: int
) -> None:
    server = MailServer()
    behind = Behind(server, connections=1, announce=announce)
    client = behind.greeted()
    assert behind.sends(client) == QUEUED
    commands = [MAIL, "RCPT TO:<b@example.org>", "DATA", "x\r\n."]
    for command in commands[:done]:
        client.say(command)
    (link,) = server.open_links

    def write(octets: bytes) -> None:
        raise OSError("a mistake in a transport")

    monkeypatch.setattr(link, "write", write)
    assert client.say(commands[done]).startswith("451 4.3.0 ")
    client.say("RSET")
    assert link.closed
    assert behind.sends(client) == QUEUED
    behind.assert_nothing_is_left()
