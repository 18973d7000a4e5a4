"""An upstream server that fails in every way: what the client hears, and that the next mail works."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from mailserver import Behind, Link, MailServer, hangs_up, silence
from twisted.logger import capturedLogs

CONNECT, TIMEOUT, VERDICT, RETRY = 10.0, 60.0, 280.0, 5.0
"""Time limits in seconds, as they are by default."""

UNAVAILABLE = "451 4.4.1 Upstream server unavailable, try again later"
LOST = "451 4.4.2 Upstream server closed the connection, try again later"
TIMED_OUT = "451 4.4.2 Upstream server did not answer in time, try again later"
GARBLED = "451 4.5.0 Upstream server sent an invalid reply, try again later"


def endless(link: Link, line: str) -> None:
    for _ in range(200):
        link.says("250-and so on")


def endless_line(link: Link, line: str) -> None:
    for _ in range(10):
        if not link.closed:
            link.protocol.dataReceived(b"2" * 1000)


def garbage(link: Link, line: str) -> str:
    return "\x00\xff what?"


FAILURES: dict[str, tuple[str, object, float, str]] = {
    "says nothing at all": ("greeting", silence, CONNECT, TIMED_OUT),
    "greets with 421": ("greeting", "421 4.3.2 Busy now", 0, "451 4.3.2 Busy now"),
    "greets with 554": ("greeting", "554 No mail here", 0, "451 4.3.0 No mail here"),
    "greets with garbage": ("greeting", garbage, 0, GARBLED),
    "hangs up instead of a greeting": ("greeting", hangs_up, 0, LOST),
    "never answers EHLO": ("EHLO", silence, TIMEOUT, TIMED_OUT),
    "answers EHLO with 221": ("EHLO", "221 2.0.0 Bye", 0, GARBLED),
    "dies at MAIL": ("MAIL", hangs_up, 0, LOST),
    "never answers MAIL": ("MAIL", silence, TIMEOUT, TIMED_OUT),
    "refuses MAIL": ("MAIL", "550 5.7.1 <a@example.com>: not you", 0, "550 5.7.1 <a@example.com>: not you"),
    "answers MAIL with 421": ("MAIL", "421 4.7.0 Too much", 0, "451 4.7.0 Too much"),
    "answers MAIL with 521": ("MAIL", "521 5.3.2 No mail", 0, "554 5.3.2 No mail"),
    "answers MAIL with 354": ("MAIL", "354 go on", 0, GARBLED),
    "answers MAIL with 221": ("MAIL", "221 2.0.0 Bye", 0, GARBLED),
    "answers MAIL with garbage": ("MAIL", garbage, 0, GARBLED),
    "answers MAIL without end": ("MAIL", endless, 0, GARBLED),
    "answers MAIL with a line without end": ("MAIL", endless_line, 0, GARBLED),
    "dies at RCPT": ("RCPT", hangs_up, 0, LOST),
    "never answers RCPT": ("RCPT", silence, TIMEOUT, TIMED_OUT),
    "refuses RCPT": ("RCPT", "550 5.1.1 <b@example.org>: unknown", 0, "550 5.1.1 <b@example.org>: unknown"),
    "answers RCPT with 221": ("RCPT", "221 2.0.0 Bye", 0, GARBLED),
    "dies at DATA": ("DATA", hangs_up, 0, LOST),
    "never answers DATA": ("DATA", silence, TIMEOUT, TIMED_OUT),
    "refuses DATA": ("DATA", "451 4.3.1 Disk full", 0, "451 4.3.1 Disk full"),
    "answers DATA with 250": ("DATA", "250 Ok", 0, GARBLED),
    "answers DATA with 221": ("DATA", "221 2.0.0 Bye", 0, GARBLED),
    "dies after the dot": (".", hangs_up, 0, LOST),
    "gives no verdict": (".", silence, VERDICT, TIMED_OUT),
    "refuses the message": (".", "554 5.7.1 Spam", 0, "554 5.7.1 Spam"),
    "puts the message off": (".", "452 4.3.1 Later", 0, "452 4.3.1 Later"),
    "hangs up with a 421 for a verdict": (".", "421 4.3.2 Going down", 0, "451 4.3.2 Going down"),
    "answers the dot with garbage": (".", garbage, 0, GARBLED),
    "answers the dot with 354": (".", "354 more?", 0, GARBLED),
    "answers the dot with 221": (".", "221 2.0.0 Bye", 0, GARBLED),
    "answers the dot without end": (".", endless, 0, GARBLED),
}


def last_line(behind: Behind, seconds: float) -> str:
    """What a client hears last of a message, within `seconds`."""
    client = behind.greeted()
    said: list[str] = []
    commands = ["MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>", "DATA", "Subject: x\r\n\r\ntext\r\n."]
    for command in commands:
        heard = client.say(command)
        if not heard:
            behind.clock.advance(seconds)
            heard = client.heard()
        said.append(heard)
        if heard[:1] not in "23":
            break
    assert not client.closed
    said.append(client.say("RSET"))
    assert said.pop() == "250 2.0.0 OK\r\n"
    return said[-1].splitlines()[-1]


@pytest.mark.parametrize("failure", FAILURES)
def test_each_failure_is_a_refusal_and_the_next_mail_works(failure: str) -> None:
    verb, answer, seconds, heard = FAILURES[failure]
    server = MailServer()
    server.answers[verb] = answer  # type: ignore[assignment]
    behind = Behind(server)
    assert last_line(behind, seconds) == heard
    assert not [link for link in server.open_links if link._data]
    del server.answers[verb]
    behind.clock.advance(RETRY)
    taken = len(server.taken)
    assert behind.sends(behind.greeted()) == "250 2.0.0 Queued as 4711"
    assert len(server.taken) == taken + 1
    behind.assert_nothing_is_left()


@pytest.mark.parametrize(
    "failure", [name for name in FAILURES if FAILURES[name][0] not in ("greeting", "EHLO")]
)
def test_one_session_may_fail_and_then_succeed(failure: str) -> None:
    verb, answer, seconds, _ = FAILURES[failure]
    server = MailServer()
    behind = Behind(server)
    client = behind.greeted()
    assert behind.sends(client) == "250 2.0.0 Queued as 4711"
    server.answers[verb] = answer  # type: ignore[assignment]
    for command in ("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>", "DATA", "x\r\n."):
        if not client.say(command):
            behind.clock.advance(seconds)
    client.say("RSET")
    client.heard()
    del server.answers[verb]
    behind.clock.advance(RETRY)
    assert behind.sends(client) == "250 2.0.0 Queued as 4711"
    behind.assert_nothing_is_left()


def test_a_server_that_refuses_connections_costs_each_client_an_immediate_451() -> None:
    server = MailServer()
    server.reachable = False
    behind = Behind(server)
    for _ in range(3):
        assert behind.sends(behind.greeted()).startswith("503")  # behind a refused MAIL
        assert behind.greeted().say("MAIL FROM:<a@example.com>") == f"{UNAVAILABLE}\r\n"
    server.reachable = True
    behind.clock.advance(RETRY)
    assert behind.sends(behind.greeted()) == "250 2.0.0 Queued as 4711"
    behind.assert_nothing_is_left()


def test_a_server_that_never_answers_a_connect_costs_no_client_its_time_once_that_is_known() -> None:
    server = MailServer()
    server.answers_connects = False
    behind = Behind(server)
    client = behind.greeted()
    assert client.say("MAIL FROM:<a@example.com>") == ""
    behind.clock.advance(CONNECT)
    assert client.heard() == f"{UNAVAILABLE}\r\n"
    assert server.cancelled_connects == 2  # the probe's, and the client's
    assert client.say("MAIL FROM:<a@example.com>") == f"{UNAVAILABLE}\r\n"
    behind.clock.advance(RETRY)
    # While it is tried again.
    assert client.say("MAIL FROM:<a@example.com>") == f"{UNAVAILABLE}\r\n"
    server.answers_connects = True
    behind.clock.pump([1] * 20)
    assert behind.sends(client) == "250 2.0.0 Queued as 4711"
    behind.assert_nothing_is_left()


def test_all_steps_of_a_connection_together_have_three_times_as_long_as_the_first() -> None:
    server = MailServer()
    server.answers["greeting"] = server.answers["EHLO"] = server.answers["HELO"] = silence
    behind = Behind(server, connect=1, timeout=2)
    client = behind.greeted()
    assert client.say("MAIL FROM:<a@example.com>") == ""
    (_, link) = server.links
    for seconds, answer in ((0.9, "220 mx"), (1.8, "500 5.5.1 What?")):
        behind.clock.advance(seconds)
        link.says(answer)
    assert link.heard == ["EHLO guard.example", "HELO guard.example"]
    assert client.heard() == ""
    behind.clock.advance(0.3)
    assert client.heard() == f"{TIMED_OUT}\r\n"
    assert link.closed
    behind.assert_nothing_is_left()


def test_a_server_that_hangs_is_known_to_be_down_where_clients_are_answered_before_its_time_is_up() -> None:
    server = MailServer()
    behind = Behind(server, limits={"delivery_timeout": 3})
    server.links[0].close()
    server.answers["EHLO"] = silence
    client = behind.greeted()
    for _ in range(2):
        assert client.say("MAIL FROM:<a@example.com>") == ""
        behind.clock.advance(3)
        assert client.heard() == "451 4.3.0 Delivery timed out, try again later\r\n"
    behind.clock.advance(3 * CONNECT)
    assert client.say("MAIL FROM:<a@example.com>") == f"{TIMED_OUT}\r\n"
    behind.assert_nothing_is_left()


@pytest.mark.parametrize("lmtp", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
def test_the_log_tells_of_a_message_whose_verdict_came_not_within_our_own_time(
    lmtp: bool, chunked: bool
) -> None:
    server = MailServer()
    server.answers["."] = silence
    behind = Behind(server, lmtp=lmtp, limits={"delivery_timeout": 100})
    client = behind.greeted()
    client.say("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>")
    with capturedLogs() as events:
        if chunked:
            client.send(b"BDAT 3 LAST\r\nx\r\n")
        else:
            client.say("DATA")
            client.say("x", ".")
        client.heard()
        behind.clock.advance(100)
    assert client.heard() == "451 4.3.0 Delivery timed out, try again later\r\n"
    assert sum(event.get("event") == "may_come_twice" for event in events) == 1
    assert len(server.taken) == 1
    assert server.open_links == []
    behind.assert_nothing_is_left()


@pytest.mark.parametrize("lmtp", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
def test_the_log_tells_of_a_message_whose_verdict_had_not_come_at_the_stop(lmtp: bool, chunked: bool) -> None:
    server = MailServer()
    server.answers["."] = silence
    behind = Behind(server, lmtp=lmtp)
    client = behind.greeted()
    client.say("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>")
    with capturedLogs() as events:
        if chunked:
            client.send(b"BDAT 3 LAST\r\nx\r\n")
        else:
            client.say("DATA")
            client.say("x", ".")
        client.heard()
        behind.proxy.stopService()
        client.heard()
    assert sum(event.get("event") == "may_come_twice" for event in events) == 1
    assert len(server.taken) == 1


@pytest.mark.parametrize("chunked", [False, True])
def test_a_message_whose_end_was_not_sent_at_the_stop_cannot_come_twice(chunked: bool) -> None:
    server = MailServer()
    behind = Behind(server)
    client = behind.greeted()
    client.say("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>")
    if chunked:
        client.send(b"BDAT 3\r\nx\r\n")
    else:
        client.say("DATA", "x")
    with capturedLogs() as events:
        behind.proxy.stopService()
        said = client.send(b"BDAT 0 LAST\r\n" if chunked else b".\r\n")
    assert said.startswith("421 4.3.2 ")
    assert [event for event in events if event.get("event") == "may_come_twice"] == []


def amid_body(server: MailServer) -> tuple[Behind, object]:
    behind = Behind(server)
    client = behind.greeted()
    assert client.codes("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>", "DATA") == [250, 250, 354]
    client.send(b"Subject: x\r\n\r\n" + b"y" * 70_000 + b"\r\n")
    return behind, client


BODY_FAILURES: dict[str, tuple[Callable[[Link], None], str]] = {
    "dies": (lambda link: link.close(), LOST),
    "gives up with a 421": (lambda link: link.says("421 4.4.2 Timeout"), "451 4.4.2 Timeout"),
    "refuses early": (lambda link: link.says("552 5.3.4 Too big"), "552 5.3.4 Too big"),
    "accepts early": (lambda link: link.says("250 2.0.0 Ok"), GARBLED),
    "talks garbage": (lambda link: link.says("\x16\x03\x01"), GARBLED),
}


@pytest.mark.parametrize("failure", BODY_FAILURES)
@pytest.mark.parametrize("more", [0, 200_000])
def test_a_server_that_fails_in_the_middle_of_a_body_gets_no_end_of_it(failure: str, more: int) -> None:
    fails, _ = BODY_FAILURES[failure]
    server = MailServer()
    behind, client = amid_body(server)
    fails(server.links[-1])
    client.send(b"z" * more + b"\r\n.\r\n")  # type: ignore[attr-defined]
    if not more:
        client.send(b"")  # type: ignore[attr-defined]
    assert server.taken == []
    assert not server.links[-1].octets.endswith(b"\r\n.\r\n")
    client.say("RSET")  # type: ignore[attr-defined]
    assert behind.sends(client) == "250 2.0.0 Queued as 4711"  # type: ignore[arg-type]
    behind.assert_nothing_is_left()


@pytest.mark.parametrize("failure", BODY_FAILURES)
def test_what_the_client_hears_of_a_server_that_fails_in_the_middle_of_a_body(failure: str) -> None:
    fails, heard = BODY_FAILURES[failure]
    behind, client = amid_body(MailServer())
    fails(behind.server.links[-1])
    assert client.send(b"z" * 200_000 + b"\r\n.\r\n") == f"{heard}\r\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize("lmtp", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("said_before", "heard"), [(b"", LOST), (b"421 4.3.2 Shut", GARBLED)])
def test_a_message_whose_end_was_not_sent_cannot_come_twice(
    lmtp: bool, chunked: bool, said_before: bytes, heard: str
) -> None:
    server = MailServer()
    behind = Behind(server, lmtp=lmtp)
    client = behind.greeted()
    client.say("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>")
    if chunked:
        client.send(b"BDAT 3\r\nx\r\n")
    else:
        client.say("DATA", "x")
    if said_before:
        server.links[-1].protocol.dataReceived(said_before)
    else:
        server.links[-1].close()
    with capturedLogs() as events:
        said = client.send(b"BDAT 0 LAST\r\n" if chunked else b".\r\n")
    assert said == f"{heard}\r\n"
    assert [event for event in events if event.get("event") == "may_come_twice"] == []
    behind.assert_nothing_is_left()


def test_a_server_that_never_reads_holds_the_client_back_until_its_time_is_up() -> None:
    server = MailServer()
    behind, client = amid_body(server)
    link = server.links[-1]
    link.reads = False
    for _ in range(4):
        client.send(b"y" * 50_000)  # type: ignore[attr-defined]
    assert client.transport.producerState == "paused"  # type: ignore[attr-defined]
    behind.clock.advance(TIMEOUT)
    assert link.closed
    assert client.transport.producerState == "producing"  # type: ignore[attr-defined]
    assert client.send(b"\r\n.\r\n") == f"{TIMED_OUT}\r\n"  # type: ignore[attr-defined]
    assert behind.sends(client) == "250 2.0.0 Queued as 4711"  # type: ignore[arg-type]
    behind.assert_nothing_is_left()


def test_a_server_that_reads_again_lets_the_client_go_on() -> None:
    server = MailServer()
    behind, client = amid_body(server)
    link = server.links[-1]
    link.reads = False
    client.send(b"y" * 100_000)  # type: ignore[attr-defined]
    link.reads_on()
    assert client.send(b"\r\n.\r\n") == "250 2.0.0 Queued as 4711\r\n"  # type: ignore[attr-defined]
    assert server.taken[0].octets.endswith(b"y" * 100_000 + b"\r\n")
    behind.assert_nothing_is_left()


@pytest.mark.parametrize("stage", range(4))
def test_a_client_that_leaves_leaves_no_state(stage: int) -> None:
    server = MailServer()
    behind = Behind(server)
    client = behind.greeted()
    for command in ("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>", "DATA", "Subject: x")[
        : stage + 1
    ]:
        client.say(command)
    client.disconnect()
    assert server.taken == []
    assert not any(link.octets.endswith(b".\r\n") for link in server.links)
    assert behind.sends(behind.greeted()) == "250 2.0.0 Queued as 4711"
    assert len(server.taken) == 1
    behind.assert_nothing_is_left()


@pytest.mark.parametrize("verb", ["greeting", "EHLO", "RSET", "MAIL", "RCPT", "DATA"])
def test_a_client_that_leaves_while_the_server_thinks_leaves_no_state(verb: str) -> None:
    server = MailServer()
    behind = Behind(server)
    server.answers[verb] = silence
    if verb in ("greeting", "EHLO"):
        server.links[0].close()
    client = behind.greeted()
    for command in ("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>", "DATA"):
        if not client.say(command):
            break
    else:
        raise AssertionError(verb)
    client.disconnect()
    assert server.open_links == []
    del server.answers[verb]
    assert behind.sends(behind.greeted()) == "250 2.0.0 Queued as 4711"
    behind.assert_nothing_is_left()
