"""Objects for twisted.mail.smtp see of the guard what they see of twisted.mail's own protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fakes import codes
from twisted.cred.checkers import ANONYMOUS
from twisted.internet.defer import fail, succeed
from twisted.mail import smtp
from twistedmail import KINDS, Delivery, Late, Message, Notebook, Stock, auth, guarded, pieces

ENVELOPE = ["MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>"]
TWO = [*ENVELOPE, "RCPT TO:<e@f.example>"]
HELLO = "EHLO client.example"


def body(*lines: str) -> str:
    return "\r\n".join((*lines, "."))


CONVERSATIONS: dict[str, list[str]] = {
    "a message": [HELLO, *ENVELOPE, "DATA", body("Subject: x", "", "text"), "QUIT"],
    "HELO": ["HELO client.example", *ENVELOPE, "DATA", body("Subject: x"), "QUIT"],
    "an address literal as HELO": ["EHLO [192.0.2.1]", *ENVELOPE, "DATA", body("Subject: x"), "QUIT"],
    "another HELO": [HELLO, *ENVELOPE, "EHLO other", *ENVELOPE, "DATA", body("Subject: x"), "QUIT"],
    "the null sender": [HELLO, "MAIL FROM:<>", ENVELOPE[1], "DATA", body("Subject: x"), "QUIT"],
    "a recipient without a domain": [
        HELLO,
        ENVELOPE[0],
        "RCPT TO:<Postmaster>",
        "DATA",
        body("x: y"),
        "QUIT",
    ],
    "a quoted local part": [
        HELLO,
        'MAIL FROM:<"a b@c"@d>',
        'RCPT TO:<"e>f"@g>',
        "DATA",
        body("x: y"),
        "QUIT",
    ],
    "odd local parts": [HELLO, "MAIL FROM:<a.b+c=d@b>", "RCPT TO:<!#$%&'*/?^_`{|}~-@d>", "RSET", "QUIT"],
    "parameters": [HELLO, f"{ENVELOPE[0]} BODY=8BITMIME SIZE=9", ENVELOPE[1], "DATA", body("x: y"), "QUIT"],
    "two recipients": [HELLO, *TWO, "DATA", body("Subject: x", "", "text"), "QUIT"],
    "a recipient twice": [HELLO, *ENVELOPE, ENVELOPE[1], "DATA", body("Subject: x"), "QUIT"],
    "two messages": [HELLO, *ENVELOPE, "DATA", body("x: 1"), *TWO, "DATA", body("x: 2"), "QUIT"],
    "AUTH": [HELLO, auth("secret"), *ENVELOPE, "DATA", body("x: 1"), *TWO, "DATA", body("x: 2"), "QUIT"],
    "AUTH that is refused": [HELLO, auth("guess"), *ENVELOPE, "DATA", body("x: y"), "QUIT"],
    "AUTH that is refused once": [HELLO, auth("guess"), auth("secret"), *ENVELOPE, "QUIT"],
    "AUTH with a challenge": [HELLO, "AUTH PLAIN", auth("secret").split()[-1], *ENVELOPE, "QUIT"],
    "AUTH given up": [HELLO, "AUTH PLAIN", "*", *ENVELOPE, "QUIT"],
    "AUTH that is refused after a message": [HELLO, *ENVELOPE, "RSET", auth("guess"), *ENVELOPE, "QUIT"],
    "RSET": [HELLO, *TWO, "RSET", *ENVELOPE, "DATA", body("x: 2"), "QUIT"],
    "commands out of sequence": [
        HELLO,
        ENVELOPE[1],
        "DATA",
        *ENVELOPE,
        ENVELOPE[0],
        "DATA",
        body(""),
        "QUIT",
    ],
    "no message": [HELLO, "NOOP", "QUIT"],
    "no DATA": [HELLO, *TWO, "QUIT"],
    "nothing": [HELLO, *TWO, "DATA", ".", "QUIT"],
    "no header": [HELLO, *TWO, "DATA", body("text", "", "a: b"), "QUIT"],
    "a blank line first": [HELLO, *TWO, "DATA", body("", "text", "", "a: b"), "QUIT"],
    "blank lines only": [HELLO, *ENVELOPE, "DATA", body("", "", ""), "QUIT"],
    "a colon at once": [HELLO, *ENVELOPE, "DATA", body(":", "text", "", "x"), "QUIT"],
    "a header and then a line without a colon": [
        HELLO,
        *ENVELOPE,
        "DATA",
        body("a: b", "text", "", "x"),
        "QUIT",
    ],
    "a folded line first": [HELLO, *ENVELOPE, "DATA", body(" text", "a: b"), "QUIT"],
    "dots": [HELLO, *ENVELOPE, "DATA", body("..", "...", "..a: b", "a.", ". "), "QUIT"],
    "spaces, tabs and controls": [HELLO, *ENVELOPE, "DATA", body(" a: \t ", "\t", " ", "\0\x1b\x7f"), "QUIT"],
    "8-bit text": [HELLO, *ENVELOPE, "DATA", body("a: b", "", "jörg \x80\xff"), "QUIT"],
    "long lines": [HELLO, *ENVELOPE, "DATA", body("a: " + "x" * 998, "", "y" * 16000), "QUIT"],
    "a client that leaves in the data": [HELLO, *TWO, "DATA", "Subject: x\r\n\r\nhalf"],
    "a client that leaves after the data": [HELLO, *TWO, "DATA", body("Subject: x")],
    "a client that leaves at the data": [HELLO, *TWO, "DATA"],
    "a client that leaves before the data": [HELLO, *TWO],
}
each_conversation = pytest.mark.parametrize("lines", CONVERSATIONS.values(), ids=CONVERSATIONS)


def _raise(error: Exception) -> Any:
    raise error


def _refuse_text(number: int, line: bytes) -> None:
    if not line.startswith(b"Received"):
        raise smtp.SMTPServerError(550, b"x")


ANSWERS: dict[str, dict[str, Callable[..., Any]]] = {
    "no Received field": {"receivedHeader": lambda _: None},
    "an empty Received field": {"receivedHeader": lambda _: b""},
    "a Received field in text": {"receivedHeader": lambda _: "Received: x"},
    "another sender": {"validateFrom": lambda helo, origin: smtp.Address(b"other@sender.example")},
    "a sender in octets": {"validateFrom": lambda helo, origin: b"other@sender.example"},
    "no sender": {"validateFrom": lambda helo, origin: _raise(smtp.SMTPBadSender(origin))},
    "no sender for now": {"validateFrom": lambda helo, origin: _raise(smtp.SMTPServerError(451, "x"))},
    "no sender by mistake": {"validateFrom": lambda helo, origin: _raise(ValueError())},
    "no sender, later": {"validateFrom": lambda helo, origin: fail(smtp.SMTPBadSender(origin))},
    "no recipient": {"validateTo": lambda user: _raise(smtp.SMTPBadRcpt(user))},
    "no recipient, later": {"validateTo": lambda user: fail(smtp.SMTPBadRcpt(user))},
    "no recipient by mistake": {"validateTo": lambda user: _raise(ValueError())},
    "no message": {"make_message": lambda user: _raise(smtp.SMTPServerError(452, b"Full"))},
    "no message by mistake": {"make_message": lambda user: _raise(ValueError())},
    "no text": {"lineReceived": _refuse_text},
    "no end": {"eomReceived": lambda number: fail(smtp.SMTPServerError(550, b"x"))},
    "no end by mistake": {"eomReceived": lambda number: fail(ValueError())},
    "an end that is lost": {"connectionLost": lambda number: _raise(ValueError())},
}


SECOND_REFUSES: dict[str, Callable[..., Any]] = {
    "lineReceived": lambda number, line: _refuse_text(number, line) if number % 2 == 0 else None,
    "eomReceived": lambda number: fail(smtp.SMTPServerError(550, b"x")) if number % 2 == 0 else succeed(0),
}


def octets(line: str) -> bytes:
    return line.encode("latin-1" if "\x80" in line else "ascii") + b"\r\n"


def converse(client: Any, lines: list[str], settle: Callable[[], None], size: int | None = None) -> list[int]:
    """The codes of all replies. The client waits for the reply to each line, and leaves at the end."""
    heard = [0]
    for line in lines:
        if heard[-1] != 354 and line.endswith(("\r\n.", "half")):
            continue
        # Half a line is what a client leaves behind.
        data = octets(line) if not line.endswith("half") else line.encode()
        for piece in pieces(data, size or len(data)):
            heard += codes(client.send(piece))
            settle()
            heard += codes(client.heard()) if hasattr(client, "heard") else []
    client.disconnect()
    return heard[1:]


def compare(
    kind: str,
    lines: list[str],
    answers: dict[str, Callable[..., Any]] | None = None,
    make_notebook: Callable[..., Notebook] = Notebook,
    settle: Callable[[Notebook], Callable[[], None]] = lambda notebook: lambda: None,
    sizes: tuple[int | None, ...] = (None, 1),
) -> Notebook:
    """What is seen of twisted.mail, after the same was seen of the guard."""
    stock = make_notebook(**(answers or {}))
    converse(Stock(kind, stock), lines, settle(stock))
    for size in sizes:
        ours = make_notebook(**(answers or {}))
        converse(guarded(ours, kind), lines, settle(ours), size)
        assert ours.seen == stock.seen
        assert len(ours.protocols) <= 1
    return stock


@each_conversation
@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_looks_the_same_to_the_delivery(kind: str, lines: list[str]) -> None:
    compare(kind, lines)


NO_RECIPIENT = {"no recipient", "no recipient, later", "no recipient by mistake"}
MISTAKES = {"no message by mistake", "no end by mistake"}


@pytest.mark.parametrize("answers", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize("name", ["a message", "two messages", "a client that leaves after the data"])
def test_what_follows_from_an_answer_looks_the_same_to_the_delivery(
    name: str, answers: dict[str, Callable[..., Any]]
) -> None:
    for kind in ("delivery", "portal of factories"):
        compare(kind, CONVERSATIONS[name], answers)


@pytest.mark.parametrize("hook", ["lineReceived", "eomReceived"])
@pytest.mark.parametrize("name", ["two recipients", "no header", "two messages"])
def test_one_of_two_messages_that_refuses_looks_the_same_to_the_delivery(name: str, hook: str) -> None:
    stock = compare("factory", CONVERSATIONS[name], {hook: SECOND_REFUSES[hook]})
    assert ("lost" in stock.calls()) is (hook == "lineReceived")


@each_conversation
def test_late_answers_look_the_same_to_the_delivery(lines: list[str]) -> None:
    late: dict[int, Late] = {}

    def make_notebook() -> Notebook:
        notebook = Notebook()
        answer = late[id(notebook)] = Late()
        notebook.answers = {
            "validateFrom": lambda helo, origin: answer(origin),
            "validateTo": lambda user: answer(lambda: Message(notebook)),
            "eomReceived": lambda number: answer(b"saved"),
            "login": lambda: answer((smtp.IMessageDelivery, Delivery(notebook), lambda: None)),
        }
        return notebook

    compare(
        "portal of deliveries",
        lines,
        make_notebook=make_notebook,
        settle=lambda notebook: late[id(notebook)].fire,
    )


@pytest.mark.parametrize("kind", ["portal of deliveries", "portal of factories"])
def test_auth_after_a_message_looks_the_same_to_the_delivery_except_that_no_login_is_left_open(
    kind: str,
) -> None:
    message = [*ENVELOPE, "DATA", body("Subject: x")]
    stock, ours = Notebook(), Notebook()
    converse(Stock(kind, stock), [HELLO, *message, auth("secret"), *message, *message, "QUIT"], lambda: None)
    converse(guarded(ours, kind), [HELLO, *message, auth("secret"), *message, *message, "QUIT"], lambda: None)
    assert [entry[1] for entry in ours.seen if entry[0] == "login"] == [ANONYMOUS, b"bob"]
    # Twisted's own protocol forgets the first logout.
    assert [call for call in ours.calls() if call.startswith("log")] == ["login", "logout"] * 2
    ours.seen.remove(("logout",))
    assert ours.seen == stock.seen


def test_a_source_route_is_dropped_as_with_twisted_mail() -> None:
    lines = [HELLO, "MAIL FROM:<@a,@b:c@d>", "RCPT TO:<@e:f@g>", "QUIT"]
    stock, ours = Notebook(), Notebook()
    converse(Stock("delivery", stock), lines, lambda: None)
    converse(guarded(ours, "delivery"), lines, lambda: None)
    for notebook in (stock, ours):
        (_, _, sender), (_, recipient, *_) = notebook.seen
        assert (sender[0], recipient[0]) == (b"c@d", b"f@g")


def test_a_message_that_refuses_its_first_line_is_told_its_end_too() -> None:
    # Twisted's own protocol forgets it, and what it has opened stays open.
    refuse = {"lineReceived": lambda number, line: _raise(smtp.SMTPServerError(452, b"Full"))}
    stock, ours = Notebook(**refuse), Notebook(**refuse)
    lines = CONVERSATIONS["a message"]
    assert converse(Stock("delivery", stock), lines, lambda: None) == [250, 250, 250, 452, 221]
    assert converse(guarded(ours, "delivery"), lines, lambda: None) == [250, 250, 250, 452, 221]
    assert ours.seen == [*stock.seen, ("lost", 1)]


def test_a_message_that_refused_is_not_told_its_end_again_when_the_client_leaves() -> None:
    # Twisted's own protocol calls connectionLost() twice.
    refuse = {"lineReceived": _refuse_text}
    stock, ours = Notebook(**refuse), Notebook(**refuse)
    lines = CONVERSATIONS["a client that leaves in the data"]
    converse(Stock("delivery", stock), lines, lambda: None)
    converse(guarded(ours, "delivery"), lines, lambda: None)
    assert [*ours.seen, *[("lost", 1), ("lost", 2)]] == stock.seen


@pytest.mark.parametrize("name", ANSWERS)
def test_the_client_hears_the_same_codes(name: str) -> None:
    stock, ours = (
        converse(guard("delivery"), CONVERSATIONS["a message"], lambda: None)
        for guard in (
            lambda kind: Stock(kind, Notebook(**ANSWERS[name])),
            lambda kind: guarded(Notebook(**ANSWERS[name]), kind),
        )
    )
    if name in NO_RECIPIENT:
        assert (stock[3], ours[3]) == (503, 554)
    elif name in MISTAKES:
        # What broke may be mended.
        assert (stock[-2], ours[-2]) == (550, 451)
        assert stock[:-2] == ours[:-2]
    else:
        assert ours == stock
