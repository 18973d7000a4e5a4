"""A verdict of an upstream server counts once its last line is there, whatever follows it and however it is cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs
import pytest
from mailserver import Answer, Behind, Link, MailServer, hangs_up, silence

MAIL, RCPT = "MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>"
QUEUED = "250 2.0.0 Queued as 4711"
STEPS = {"MAIL": MAIL, "RCPT": RCPT, "DATA": "DATA", ".": "Subject: x\r\n\r\ntext\r\n."}

FAREWELLS = {
    "421": "421 4.3.2 Shutting down",
    "a reply of two lines": "421-4.3.2 Shutting\r\n421 4.3.2 down",
    "another verdict": "550 5.7.1 No",
    "no reply": "\x00\xff what?",
    "part of a reply": "421-4.3.2 Shut",
}


Cut = Callable[[bytes], Iterable[bytes]]


def together(octets: bytes) -> Iterable[bytes]:
    yield octets


def octet_by_octet(octets: bytes) -> Iterable[bytes]:
    return (bytes([octet]) for octet in octets)


def in_two(at: int) -> Cut:
    return lambda octets: (octets[:at], octets[at:])


@attrs.define
class Says:
    """An answer of a server: `lines` in the segments that `cut` makes of them, then the connection is closed.

    Where it is `late` the guard has to wait for it, as it has on every network, until a test calls `now()`.
    """

    lines: list[str]
    cut: Cut
    late: bool
    link: Link | None = None

    def __call__(self, link: Link, line: str) -> None:
        if self.link is None:
            self.link = link
            if not self.late:
                self._say()

    def now(self) -> None:
        if self.late:
            self._say()

    def _say(self) -> None:
        assert self.link is not None
        for segment in self.cut("".join(f"{line}\r\n" for line in self.lines).encode()):
            if segment and not self.link.closed:
                self.link.protocol.dataReceived(segment)
        self.link.close()


def heard_at(verb: str, behind: Behind, answer: Says) -> str:
    """What a client hears where the server's answer to `verb` is this one."""
    behind.server.answers[verb] = answer
    client = behind.greeted()
    for step, line in STEPS.items():
        heard = client.say(line)
        if step == verb:
            break
    answer.now()
    assert not client.closed
    del behind.server.answers[verb]
    return heard + client.heard()


each_cut = pytest.mark.parametrize("cut", [together, octet_by_octet])
each_time = pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])


@pytest.mark.parametrize("farewell", FAREWELLS)
@each_cut
@each_time
@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "."])
@pytest.mark.parametrize("verdict", ["250 2.0.0 queued as 4711", "550 5.1.1 No", "451 4.3.0 Later"])
@pytest.mark.parametrize("lmtp", [False, True])
def test_a_verdict_counts_whatever_follows_it(
    farewell: str, cut: Cut, late: bool, verb: str, verdict: str, lmtp: bool
) -> None:
    server = MailServer()
    behind = Behind(server, lmtp=lmtp)
    assert heard_at(verb, behind, Says([verdict, FAREWELLS[farewell]], cut, late)) == f"{verdict}\r\n"
    # It is left, and the next mail has another one.
    assert server.links[0].closed
    taken = len(server.taken)
    assert behind.sends(behind.greeted()) == "250 2.0.0 Queued as 4711"
    assert len(server.taken) == taken + 1
    behind.assert_nothing_is_left()


def test_what_comes_after_a_connection_was_left_is_put_off_with_the_server_s_words() -> None:
    server = MailServer()
    behind = Behind(server)
    server.answers["MAIL"] = "250 2.1.0 Ok\r\n421 4.3.2 Shutting down"
    client = behind.greeted()
    assert client.say(MAIL) == "250 2.1.0 Ok\r\n"
    assert client.say(RCPT) == "451 4.3.2 Shutting down\r\n"
    del server.answers["MAIL"]
    client.say("RSET")
    assert behind.sends(client) == "250 2.0.0 Queued as 4711"
    behind.assert_nothing_is_left()


@each_time
def test_a_354_is_no_verdict_so_nothing_is_sent_to_a_server_that_is_closing(late: bool) -> None:
    server = MailServer()
    behind = Behind(server)
    answer = Says(["354 Go ahead", "421 4.3.2 Shutting down"], together, late)
    assert heard_at("DATA", behind, answer) == "451 4.3.2 Shutting down\r\n"
    assert server.links[0].heard[-1] == "DATA"
    assert behind.sends(behind.greeted()) == "250 2.0.0 Queued as 4711"
    behind.assert_nothing_is_left()


@each_cut
@each_time
def test_the_verdict_on_a_last_chunk_counts_too(cut: Cut, late: bool) -> None:
    server = MailServer()
    behind = Behind(server)
    answer = Says(["250 2.0.0 queued as 4711", "421 4.3.2 Shutting down"], cut, late)
    server.answers["."] = answer
    client = behind.greeted()
    client.say(MAIL, RCPT)
    heard = client.send(b"BDAT 3 LAST\r\nx\r\n")
    answer.now()
    assert heard + client.heard() == "250 2.0.0 queued as 4711\r\n"
    behind.assert_nothing_is_left()


TEXTS = ["250 2.0.0 <b@example.org> saved", "550 5.1.1 <c@example.org> gone", "421 4.3.2 Shutting down"]


def heard_of(recipients: str, texts: list[str], cut: Cut, late: bool) -> list[str]:
    """The lines that a client hears of a message to `recipients`, where an LMTP server says `texts` of it."""
    server = MailServer()
    behind = Behind(server, lmtp=True)
    answer = server.answers["."] = Says(texts, cut, late)
    client = behind.greeted()
    client.say(MAIL, *(f"RCPT TO:<{name}@example.org>" for name in recipients), "DATA")
    heard = client.say("x", ".")
    answer.now()
    heard += client.heard()
    behind.assert_nothing_is_left()
    return heard.splitlines()


@each_time
@pytest.mark.parametrize("at", range(len("".join(TEXTS)) + 2 * len(TEXTS)))
def test_each_recipient_has_its_own_verdict_of_lmtp_with_a_421_after_the_last(at: int, late: bool) -> None:
    assert heard_of("bc", TEXTS, in_two(at), late) == [
        "554-5.3.0 <c@example.org> 550 5.1.1 <c@example.org> gone",
        "554 5.3.0 <b@example.org> has the message",
    ]


@each_cut
@each_time
def test_with_a_421_before_the_last_of_lmtp_those_without_a_verdict_are_tried_again(
    cut: Cut, late: bool
) -> None:
    put_off, lost, taken = heard_of("bcd", [TEXTS[0], TEXTS[2]], cut, late)
    assert put_off == "451-4.3.0 <c@example.org> 451 4.3.2 Shutting down"
    assert lost.startswith("451-4.3.0 <d@example.org> 451 4.4.2 ")
    assert taken == "451 4.3.0 <b@example.org> has the message"


@pytest.mark.parametrize("verb", ["greeting", "EHLO", "RSET", "XCLIENT"])
def test_a_421_after_the_answer_to_a_command_of_ours_is_noticed_before_a_mail_goes_out(verb: str) -> None:
    server = MailServer("XCLIENT NAME ADDR", "PIPELINING")
    behind = Behind(server, announce="xclient")
    client = behind.greeted()
    assert behind.sends(client) == "250 2.0.0 Queued as 4711"
    hello = "250-mx.example\r\n250 XCLIENT NAME ADDR"
    polite = {"greeting": "220 mx.example ESMTP", "EHLO": hello, "RSET": "250 Ok", "XCLIENT": "220 mx"}[verb]
    first = [True]

    def says(link: Link, line: str) -> str:
        return f"{polite}\r\n421 4.3.2 Shutting down" if first.pop() else polite

    def says_once(link: Link, line: str) -> str:
        return says(link, line) if first else polite

    server.answers[verb] = says_once
    if verb in ("greeting", "EHLO"):
        server.links[0].close()
    mails = sum(line.startswith("MAIL") for line in server.commands)
    said = client.say(MAIL)
    # Another connection is tried where that one was used before.
    assert said == (
        "250 2.1.0 Sender noted\r\n" if verb in ("RSET", "XCLIENT") else "451 4.3.2 Shutting down\r\n"
    )
    assert sum(line.startswith("MAIL") for line in server.commands) == mails + said.startswith("250")


@pytest.mark.parametrize(
    ("verb", "answer"),
    [
        ("RSET", "250 Ok\r\n421 4.3.2 Shutting down"),
        ("MAIL", "421 4.3.2 Shutting down"),
        ("MAIL", "221 2.0.0 Bye"),
        ("MAIL", hangs_up),
    ],
)
def test_a_server_that_leaves_while_reset_and_mail_are_on_their_way_costs_no_client_anything(
    verb: str, answer: Answer
) -> None:
    server = MailServer()
    behind = Behind(server)
    client = behind.greeted()
    assert behind.sends(client) == QUEUED
    server.links[0].server = leaving = MailServer()
    leaving.answers[verb] = answer
    assert behind.sends(client) == QUEUED
    assert len(server.links) == 2
    behind.assert_nothing_is_left()


def test_a_server_that_is_silent_to_the_mail_after_a_reset_is_not_given_its_time_twice() -> None:
    server = MailServer()
    behind = Behind(server)
    client = behind.greeted()
    assert behind.sends(client) == QUEUED
    server.answers["MAIL"] = silence
    assert client.say(MAIL) == ""
    behind.clock.advance(60)
    assert client.heard().startswith("451 4.4.2 Upstream server did not answer in time")
    behind.assert_nothing_is_left()


@pytest.mark.parametrize("verdict", ["421 4.3.2 Going down", "221 2.0.0 Bye"])
@pytest.mark.parametrize("lmtp", [False, True])
def test_a_connection_whose_server_says_in_a_verdict_that_it_closes_it_is_left_at_once(
    verdict: str, lmtp: bool
) -> None:
    server = MailServer()
    behind = Behind(server, lmtp=lmtp)
    server.answers["."] = verdict
    assert behind.sends(behind.greeted()).startswith("451 4.")
    assert server.links[0].closed
    assert server.links[0].heard[-1] == "DATA"
    behind.assert_nothing_is_left()
