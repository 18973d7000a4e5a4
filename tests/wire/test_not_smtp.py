"""Clients that speak something else, and clients that only look like it."""

from __future__ import annotations

import pytest
from fakes import Guard, codes

from twisted_smtpguard.testing import dialogue

NOT_SMTP = "421 4.7.0 Not an SMTP client, closing connection"
OTHERS = [
    b"GET / HTTP/1.1\r\n",
    b"POST /x HTTP/1.0\r\n",
    b"get /caf\xc3\xa9 http/2.0\r\n",
    b"GET / HTTP/1.1\n",
    b"CONNECT mail.example:25 HTTP/1.1\r\n",
    b"OPTIONS * HTTP/1.1\r\n",
    b"PRI * HTTP/2.0\r\n",
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"SSH-2.0-x\n",
    b"\x16\x03",
    b"\x16\x03\x01\x02\x00\x01\x00",
    b"Host: mail.example\r\n",
    b"Subject: hello\r\n",
    b"X-Header:\r\n",
]


@pytest.mark.parametrize("start", OTHERS)
def test_another_protocol_is_told_so_and_nothing_after_it_is_parsed(start: bytes) -> None:
    turns = (start, NOT_SMTP), (b"EHLO x\r\nMAIL FROM:<a@b.example>\r\nQUIT\r\n", "")
    client = dialogue(*turns, hello="", closed=True)
    assert client.guard.delivery.calls == []


@pytest.mark.parametrize(
    "line",
    [
        "EHLO SSH-2.0",
        "EHLO [IPv6:2001:db8::1]",
        "HELO host:25",
        "NOOP / HTTP/1.1",
        "NOOP Host: x",
        "HELP / HTTP/1.1",
        "VRFY Host: x",
        "EXPN / HTTP/1.1",
        "MAIL FROM:<a@b.example>",
        "RCPT TO:<c@d.example>",
        "QUIT",
        "RSET",
        "BDAT 0",
        "\x16",
        "\x15\x03",
        "GET /",
        "",
    ],
)
@pytest.mark.parametrize("bytewise", [False, True])
def test_a_first_line_that_may_be_smtp_is_taken_for_it(line: str, bytewise: bool) -> None:
    client = Guard().connect()
    client.heard()
    assert codes(client.say(line, bytewise=bytewise))[0] != 421


@pytest.mark.parametrize("start", OTHERS)
def test_only_the_first_line_may_be_another_protocols(start: bytes) -> None:
    client = Guard().connect()
    client.say("NOOP")
    client.heard()
    assert 421 not in codes(client.send(start))
    assert not client.closed


def test_a_request_line_that_is_too_long_does_not_hide_the_header_after_it() -> None:
    request = b"POST /" + b"x" * 3000 + b" HTTP/1.1\r\n"
    turns = (request, "500 5.5.2 Line too long"), ("Host: mail.example\nEHLO x", NOT_SMTP)
    dialogue(*turns, hello="", closed=True)
