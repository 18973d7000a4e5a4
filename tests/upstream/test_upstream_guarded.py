"""What is written to an upstream server as a command is one line, whatever sends it and however Python runs."""

from __future__ import annotations

import subprocess
import sys

import pytest
from mailserver import Behind, MailServer
from test_upstream_pure import CLIENT
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from twisted_smtpguard.hooks.later import call_hook
from twisted_smtpguard.interfaces import Path
from twisted_smtpguard.replies import UPSTREAM_LOST
from twisted_smtpguard.upstream.smtpclient import Connection

FORGED = ["EHLO x\r\nMAIL FROM:<a@b>", "EHLO x\nQUIT", "EHLO x\rQUIT", "EHLO x\0"]


@pytest.mark.parametrize("line", FORGED)
def test_what_is_more_than_one_line_is_not_sent(line: str) -> None:
    connection, transport = Connection(Clock(), lambda _: None), StringTransport()
    connection.makeConnection(transport)
    with pytest.raises(ValueError, match="a command is one line"):
        connection.command(line.encode(), 60)
    assert transport.value() == b""


def test_nor_is_it_where_python_leaves_out_assertions() -> None:
    program = f"""
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted_smtpguard.replies import UPSTREAM_LOST
from twisted_smtpguard.upstream.smtpclient import Connection
connection, transport = Connection(Clock(), lambda _: None), StringTransport()
connection.makeConnection(transport)
for line in {FORGED!r}:
    try:
        connection.command(line.encode(), 60)
    except ValueError:
        print("refused")
print(transport.value())
"""
    done = subprocess.run([sys.executable, "-O", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["refused"] * len(FORGED) + ["b''"]


def test_each_answer_goes_to_who_asked() -> None:
    connection = Connection(Clock(), lambda _: None)
    connection.makeConnection(StringTransport())
    answers = [connection.greeting(60), *connection.commands([b"RSET", b"MAIL FROM:<>"], 60)]
    connection.dataReceived(b"220 mx\r\n250 forgotten\r\n550 no\r\n")
    assert [answer.result().text for answer in answers] == ["220 mx", "250 forgotten", "550 no"]
    connection.end(UPSTREAM_LOST)


@pytest.mark.parametrize(
    ("end", "told"), [("end", [["first"], [None, UPSTREAM_LOST]]), ("forsake", [["first"]])]
)
def test_who_ends_the_connection_when_told_is_the_last_to_get_a_reply(end: str, told: list[object]) -> None:
    """Though the next reply has come with it. Nobody is told twice."""
    connection, transport = Connection(Clock(), lambda _: None), StringTransport()
    connection.makeConnection(transport)
    connection.dataReceived(b"220 mx\r\n")
    heard: list[object] = []

    def first(*_: object) -> None:
        heard.append(["first"])
        connection.end(UPSTREAM_LOST) if end == "end" else connection.forsake()

    connection.ask_together([b"RSET", b"NOOP"], [(first, 60), (lambda *each: heard.append([*each]), 60)])
    connection.dataReceived(b"250 forgotten\r\n250 nothing done\r\n")
    assert heard == told


def test_an_address_with_a_line_end_in_it_reaches_no_server_and_costs_no_connection() -> None:
    server = MailServer()
    behind = Behind(server)
    forged = call_hook(behind.proxy.begin, CLIENT, Path("a@b>\r\nRCPT TO:<c@d", {}))
    failures: list[object] = []
    forged.addErrback(lambda failure: failures.append(failure.type))
    assert failures == [ValueError]
    assert not any("a@b" in line for line in server.commands)
    assert behind.sends(behind.greeted()) == "250 2.0.0 Queued as 4711"
    behind.assert_nothing_is_left()
