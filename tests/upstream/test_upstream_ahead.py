"""What a client has sent already goes to a server with PIPELINING ahead of its turn, and nobody can tell."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import Conversation, FakeDelivery, FakeFilter, Guard, codes
from mailserver import Behind, Link, MailServer
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs
from zope.interface import implementer

from twisted_smtpguard import Limits, Rate
from twisted_smtpguard.delivery.domains import AcceptedDomains
from twisted_smtpguard.interfaces import TRUST, IDelivery

NETWORK = 0.01
"""How many seconds it takes until the guard has what the server says."""

SLOW, TIMEOUT = 2, 3


class FarLink(Link):
    """Over a network: what the server says arrives later, and all that it has said by then arrives together.

    How it answers MAIL and RCPT is the first word in the address.
    """

    server: FarServer

    def __init__(self, server: MailServer, protocol: Any) -> None:
        super().__init__(server, protocol)
        self.writes: list[bytes] = []
        self.arrivals = 0
        """How often something of the server's has arrived."""
        self.mail = False
        self.recipients = 0
        self._said = b""
        self._leaves = False

    def write(self, octets: bytes) -> None:
        if not self.closed:
            self.writes.append(octets)
        super().write(octets)

    def says(self, text: str) -> None:
        owed, self._owes_answer = self._owes_answer, False
        if not self._said:
            self.server.clock.callLater(NETWORK, self._arrive)
        self._said += f"{text}\r\n".encode()
        if owed:
            self._read()

    def _arrive(self) -> None:
        said, self._said, leaves = self._said, b"", self._leaves
        if said and not self.closed:
            self.arrivals += 1
            size = self.server.piece or len(said)
            for at in range(0, len(said), size):
                if not self.closed:
                    self.protocol.dataReceived(said[at : at + size])
        if leaves:
            self.close()

    def leave(self) -> None:
        """Close the connection after what was said."""
        self._owes_answer = True
        if not self._said:
            self.server.clock.callLater(NETWORK, self._arrive)
        self._leaves = True

    def answer(self, verb: str, line: str) -> None:
        if verb in ("RSET", "."):
            self.mail, self.recipients = False, 0
        if verb == "DATA":
            self.says("354 Go ahead" if self.begins_data() else "503 5.5.1 No valid recipients")
        elif verb not in ("MAIL", "RCPT"):
            super().answer(verb, line)
        elif verb == "RCPT" and not self.mail:
            self.says("503 5.5.1 MAIL first")
        else:
            found = re.search("<([a-z]+)", line)
            getattr(self, f"{found[1] if found else 'ok'}_")(verb, line)

    def begins_data(self) -> bool:
        if self.recipients or (self.mail and self.server.careless):
            self.begin_data()
            return True
        return False

    def _take(self, message: bytes) -> None:
        self.server.empty_messages += not self.recipients
        super()._take(message)

    def _command(self, line: str) -> None:
        if line != "DATA":
            super()._command(line)
        else:
            self.heard.append(line)
            self.answer("DATA", line)

    def ok_(self, verb: str, line: str) -> None:
        self.mail = True
        self.recipients += verb == "RCPT"
        self.says(f"250 2.1.0 {line} noted")

    def no_(self, verb: str, line: str) -> None:
        self.says(f"550 5.1.1 No {line}")

    def mad_(self, verb: str, line: str) -> None:
        """It goes on as if it had accepted the sender."""
        self.mail = True
        self.no_(verb, line)

    def later_(self, verb: str, line: str) -> None:
        self.says(f"451 4.1.1 Later {line}")

    def odd_(self, verb: str, line: str) -> None:
        self.says("354 What?")

    def down_(self, verb: str, line: str) -> None:
        self.says(f"421 4.3.2 Down at {verb}")
        self.leave()

    def bye_(self, verb: str, line: str) -> None:
        """It says that it closes the connection, and does not."""
        self.says("421 4.3.2 Goodbye")

    def dies_(self, verb: str, line: str) -> None:
        self.leave()

    def silent_(self, verb: str, line: str) -> None:
        self._owes_answer = True

    def tarpit_(self, verb: str, line: str) -> None:
        self.no_(verb, line)
        self._owes_answer = True
        self.server.clock.callLater(SLOW, self.reads_again)

    def reads_again(self) -> None:
        self._owes_answer = False
        self._read()

    def slow_(self, verb: str, line: str) -> None:
        self._owes_answer = True
        self.server.clock.callLater(SLOW, self.ok_, verb, line)


class FarServer(MailServer):
    make_link = FarLink
    links: list[FarLink]  # type: ignore[assignment]

    def __init__(self, *keywords: str, careless: bool = False, piece: int = 0) -> None:
        super().__init__(*keywords)
        self.careless = careless
        """Begins message data though it has refused every recipient, as RFC 2920 3.1 allows."""
        self.piece = piece
        """Of how many octets its answers arrive; 0: all that have come by then arrive as one."""
        self.empty_messages = 0
        """How many messages it has taken for no recipient."""


def behind(
    *keywords: str, limits: Any = None, careless: bool = False, piece: int = 0, **options: Any
) -> Behind:
    server = FarServer(*(keywords or ("PIPELINING",)), careless=careless, piece=piece)
    guarded = Behind(server, limits=limits, timeout=TIMEOUT, **options)
    guarded.clock.advance(1)
    guarded.clock.pump([NETWORK] * 10)
    return guarded


def settle(guarded: Behind, seconds: float = 0.2) -> None:
    guarded.clock.pump([NETWORK] * int(seconds / NETWORK))


ENVELOPE = ["MAIL FROM:<ok@example.com>", "RCPT TO:<ok1@example.org>", "RCPT TO:<ok2@example.org>", "DATA"]


def lines(*commands: str) -> bytes:
    return "".join(f"{command}\r\n" for command in commands).encode()


def writes_to(client: Conversation) -> list[bytes]:
    """What is written to the client from now on."""
    written: list[bytes] = []
    write = client.transport.write

    def record(octets: bytes) -> None:
        written.append(octets)
        write(octets)

    client.transport.write = record  # type: ignore[method-assign]
    return written


@pytest.mark.parametrize("lmtp", [False, True])
def test_mail_its_recipients_and_data_leave_in_one_write_and_their_replies_too(lmtp: bool) -> None:
    guarded = behind(lmtp=lmtp)
    client = guarded.greeted()
    written = writes_to(client)
    for before in ([], ["RSET"]):
        # The second message finds the connection that the first has used.
        assert client.say(*ENVELOPE) == ""
        (link,) = guarded.server.links
        assert isinstance(link, FarLink)
        arrivals = link.arrivals
        written.clear()
        settle(guarded, NETWORK)
        assert [octets.count(b"\r\n") for octets in written] == [4]
        assert link.writes[-1].endswith(lines(*ENVELOPE))
        assert link.writes[-1].startswith(lines(*before)) or before == []
        assert link.arrivals == arrivals + 1
        assert client.heard().count("\r\n") == 4
        client.send(b"Subject: x\r\n\r\ntext\r\n.\r\n")
        settle(guarded)
        assert client.heard().startswith("250 2.0.0 ")
    assert [len(taken.envelope) for taken in guarded.server.taken] == [3, 3]
    client.disconnect()
    guarded.assert_nothing_is_left()


def writes(guarded: Behind) -> list[list[str]]:
    """The commands of each write since RSET, which is the first on a connection that was used before."""
    (link,) = guarded.server.links
    assert isinstance(link, FarLink)
    since = [octets.decode().splitlines() for octets in link.writes[1:]]
    assert since[0].pop(0) == "RSET"
    return [commands for commands in since if commands]


def test_a_server_without_pipelining_gets_one_command_at_a_time() -> None:
    guarded = behind("8BITMIME")
    client = guarded.greeted()
    client.say(*ENVELOPE)
    settle(guarded)
    assert codes(client.heard()) == [250, 250, 250, 354]
    assert writes(guarded) == [[each] for each in ENVELOPE]


def test_what_arrives_while_mail_is_answered_leaves_with_the_next_recipient() -> None:
    guarded = behind()
    client = guarded.greeted()
    client.say(*ENVELOPE[:1])
    client.say(*ENVELOPE[1:], bytewise=True)
    settle(guarded)
    assert codes(client.heard()) == [250, 250, 250, 354]
    assert writes(guarded) == [ENVELOPE[:1], ENVELOPE[1:]]


@pytest.mark.parametrize("piece", [1, 3, 30])
def test_the_answers_to_what_was_sent_ahead_may_come_in_pieces(piece: int) -> None:
    guarded = behind(piece=piece)
    client = guarded.greeted()
    client.say(ENVELOPE[0], "RCPT TO:<no@example.org>", *ENVELOPE[1:])
    settle(guarded, NETWORK)
    assert codes(client.heard()) == [250, 550, 250, 250, 354]
    client.send(b"Subject: x\r\n\r\ntext\r\n.\r\n")
    settle(guarded)
    assert client.heard().startswith("250 2.0.0 ")


def test_a_line_that_has_come_in_part_is_not_sent_ahead() -> None:
    guarded = behind()
    guarded.greeted().send(lines(*ENVELOPE[:2]) + lines(*ENVELOPE[2:])[:-1])
    assert writes(guarded) == [ENVELOPE[:3]]


def test_a_server_that_begins_a_message_after_a_refused_mail_gets_none() -> None:
    """Though it takes the recipients too. Its connection is of no use to anybody after that."""
    guarded = behind(connections=1)
    client = guarded.greeted()
    client.say("MAIL FROM:<mad@example.com>", *ENVELOPE[1:])
    settle(guarded)
    assert codes(client.heard()) == [550, 503, 503, 503]
    assert guarded.server.commands[-1] == "DATA"
    assert guarded.server.open_links == []
    client.say(*ENVELOPE)
    settle(guarded)
    assert codes(client.heard()) == [250, 250, 250, 354]
    client.disconnect()
    assert guarded.server.taken == []


def test_a_refused_mail_is_told_at_once_and_its_connection_used_again_when_the_server_has_said_the_rest() -> (
    None
):
    guarded = behind(connections=1)
    client = guarded.greeted()
    client.say("MAIL FROM:<tarpit@example.org>", *ENVELOPE[1:])
    settle(guarded, NETWORK)
    assert codes(client.heard()) == [550, 503, 503, 503]
    assert client.say(*ENVELOPE) == ""
    settle(guarded, SLOW - 0.1)
    assert client.heard() == ""
    settle(guarded)
    assert codes(client.heard()) == [250, 250, 250, 354]
    assert len(guarded.server.links) == 1


def test_a_server_that_is_slow_to_say_what_nobody_asks_about_is_left_after_five_seconds() -> None:
    """Else a client that is gone would hold a place of the pool, though it counts no more."""
    guarded = behind(connections=1)
    client = guarded.greeted()
    client.say("MAIL FROM:<mad@example.org>", *[f"RCPT TO:<slow{each}@example.org>" for each in range(9)])
    settle(guarded)
    assert codes(client.heard()) == [550] + [503] * 9
    client.disconnect()
    other = guarded.greeted()
    assert other.say(*ENVELOPE) == ""
    settle(guarded, 4.7)
    assert other.heard() == ""
    settle(guarded, 0.4)
    assert codes(other.heard()) == [250, 250, 250, 354]
    other.disconnect()
    guarded.assert_nothing_is_left()


def test_nothing_is_planned_for_a_connection_that_has_ended_before_its_transaction() -> None:
    guarded = behind(limits={"delivery_timeout": 1})
    client = guarded.greeted()
    client.say(ENVELOPE[0], "RCPT TO:<silent@example.org>", *ENVELOPE[1:])
    settle(guarded, 1.5)
    assert codes(client.heard()) == [250, 451, 503, 503, 503]
    assert guarded.server.open_links == []
    client.disconnect()
    guarded.assert_nothing_is_left()
    assert guarded.clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("limits", "ahead"),
    [
        ({}, 4),
        ({"max_recipients": 2}, 2),
        ({"max_rejected_recipients": 3}, 3),
        ({"max_errors": 1}, 1),
        ({"recipient_rate": Rate(100, 60)}, 0),
        ({"recipient_rate": Rate(1, 60), "max_errors": 1, "ip_filters": [FakeFilter(TRUST)]}, 4),
    ],
)
def test_no_recipient_is_sent_ahead_that_the_guard_itself_may_refuse(
    limits: dict[str, Any], ahead: int
) -> None:
    guarded = behind(limits=limits)
    guarded.greeted().say(
        "MAIL FROM:<ok@example.com>", *[f"RCPT TO:<ok{each}@example.org>" for each in range(4)]
    )
    assert [each[1:] for each in writes(guarded)] == [
        [f"RCPT TO:<ok{each}@example.org>" for each in range(ahead)]
    ]


@pytest.mark.parametrize(
    ("limit", "before"),
    [
        ("max_errors", ["WHAT"]),
        ("max_rejected_recipients", [ENVELOPE[0], "RCPT TO:<no@example.org>", "RSET"]),
    ],
)
def test_refusals_so_far_and_the_recipient_being_asked_about_count_too(limit: str, before: list[str]) -> None:
    guarded = behind(limits={limit: 4})
    client = guarded.greeted()
    client.say(*before)
    settle(guarded)
    client.heard()
    client.say(ENVELOPE[0])
    client.say(*[ENVELOPE[1]] * 4)
    settle(guarded)
    assert codes(client.heard()) == [250] * 5
    assert [len(each) for each in writes(guarded)[-2:]] == [3, 1]


@pytest.mark.parametrize(
    ("commands", "ahead"),
    [
        (["RCPT TO:<ok1@b.example>", "DATA"], 2),
        (["DATA"], 0),
        (["RCPT TO:<ok1@b.example>", "DATA", "x"], 1),
        (["RCPT TO:<ok1@b.example>", "DATA", ".", "QUIT"], 1),
        (["RCPT TO:<ok1@b.example>", "RCPT TO:<ok2@b.example>", "BDAT 2 LAST", ""], 2),
        (["RCPT TO:<ok1@b.example>", "RSET", "MAIL FROM:<ok@example.com>"], 1),
        (["RCPT TO:<ok1@b.example>", "MAIL FROM:<ok@example.com>", "DATA"], 1),
        (["RCPT TO:<ok1@b.example>", "rcpt to:<ok2@b.example>"], 1),
        (["RCPT TO:<ok1@b.example>", "QUIT"], 1),
        (["RCPT TO:<ok1@b.example>", "DATA x"], 1),
        (["RCPT TO:<ok1@b.example>", "NOOP", "RCPT TO:<ok2@b.example>"], 1),
        (["RCPT TO:<ok1@b.example> NOTIFY=NEVER", "RCPT TO:<ok2@b.example>"], 0),
        (["RCPT TO:<ok1@b.example", "RCPT TO:<ok2@b.example>"], 0),
        (["RCPT TO:<>", "RCPT TO:<ok2@b.example>"], 0),
        ([f"RCPT TO:<ok{each}@b.example>" for each in range(50)], 32),
    ],
)
def test_only_plain_recipients_and_a_data_after_them_that_is_the_last_are_sent_ahead(
    commands: list[str], ahead: int
) -> None:
    guarded = behind("PIPELINING", "DSN")
    guarded.greeted().say("MAIL FROM:<ok@example.com>", *commands)
    assert [each[1:] for each in writes(guarded)] == [commands[:ahead]]


def test_data_is_not_sent_ahead_of_a_binary_message() -> None:
    guarded = behind("PIPELINING", "CHUNKING", "8BITMIME", "BINARYMIME")
    client = guarded.greeted()
    client.say("MAIL FROM:<ok@example.com> BODY=BINARYMIME", *ENVELOPE[1:])
    settle(guarded)
    assert codes(client.heard()) == [250, 250, 250, 503]
    assert "DATA" not in guarded.server.commands


def test_a_client_that_leaves_amid_what_was_sent_ahead_ends_the_connection_without_a_message() -> None:
    guarded = behind()
    client = guarded.greeted()
    client.say(*ENVELOPE)
    client.disconnect()
    settle(guarded)
    assert guarded.server.taken == []
    assert guarded.server.open_links == []
    guarded.assert_nothing_is_left()


def test_no_more_recipients_are_sent_ahead_than_the_server_takes_at_once() -> None:
    guarded = behind(lmtp=True, recipients=2)
    client = guarded.greeted()
    client.say(ENVELOPE[0], "RCPT TO:<no@example.org>", *ENVELOPE[1:3], *ENVELOPE[2:])
    settle(guarded)
    assert codes(client.heard()) == [250, 550, 250, 250, 452, 354]
    assert writes(guarded) == [
        [ENVELOPE[0], "RCPT TO:<no@example.org>", ENVELOPE[1]],
        [ENVELOPE[2]],
        ["DATA"],
    ]


def test_data_is_not_sent_ahead_where_the_guard_itself_says_354() -> None:
    guarded = behind("PIPELINING", "CHUNKING", bdat="small")
    client = guarded.greeted()
    client.say(*ENVELOPE)
    settle(guarded)
    assert codes(client.heard()) == [250, 250, 250, 354]
    assert writes(guarded) == [ENVELOPE[:3]]
    client.send(b"Subject: x\r\n\r\ntext\r\n.\r\n")
    settle(guarded)
    assert len(guarded.server.taken) == 1


def test_after_a_refused_data_the_transaction_goes_on() -> None:
    guarded = behind()
    client = guarded.greeted()
    client.say(ENVELOPE[0], "RCPT TO:<no@example.org>", "DATA")
    settle(guarded)
    assert codes(client.heard()) == [250, 550, 554]
    client.say(*ENVELOPE[1:])
    settle(guarded)
    assert codes(client.heard()) == [250, 250, 354]
    client.send(b"Subject: x\r\n\r\ntext\r\n.\r\n")
    settle(guarded)
    assert [each.envelope[-2:] for each in guarded.server.taken] == [ENVELOPE[1:3]]


def test_nothing_is_sent_behind_a_refused_data_that_the_server_has_not_answered() -> None:
    """DATA is the last of a group (RFC 2920 3.1). A server that is strict about that hangs up, with a 521."""
    guarded = behind()
    client = guarded.greeted()
    client.say(ENVELOPE[0], "RCPT TO:<tarpit@example.org>", "DATA")
    settle(guarded, NETWORK)
    assert codes(client.heard()) == [250, 550, 554]
    client.say(*ENVELOPE[1:])
    settle(guarded, SLOW - 0.1)
    assert writes(guarded)[1:] == []
    settle(guarded)
    assert codes(client.heard()) == [250, 250, 354]
    assert writes(guarded)[1:] == [ENVELOPE[1:2], ENVELOPE[2:]]
    client.disconnect()
    guarded.assert_nothing_is_left()


def test_a_server_that_begins_a_message_without_a_recipient_gets_none() -> None:
    guarded = behind(careless=True)
    client = guarded.greeted()
    client.say(ENVELOPE[0], "RCPT TO:<no@example.org>", "DATA")
    settle(guarded)
    assert codes(client.heard()) == [250, 550, 554]
    assert client.codes("RSET") == [250]
    assert guarded.server.open_links == []
    client.say(*ENVELOPE)
    settle(guarded)
    assert codes(client.heard()) == [250, 250, 250, 354]
    client.send(b"Subject: x\r\n\r\ntext\r\n.\r\n")
    settle(guarded)
    assert [each.envelope for each in guarded.server.taken] == [ENVELOPE[:3]]


def test_what_the_server_refuses_of_what_was_sent_ahead_counts_against_its_connection() -> None:
    guarded = behind()
    client = guarded.greeted()
    client.say("MAIL FROM:<no@example.org>", *[ENVELOPE[1]] * 4)
    settle(guarded)
    assert codes(client.heard()) == [550, 503, 503, 503, 503]
    assert guarded.server.commands[-1] == "QUIT"


def test_a_goodbye_that_nobody_asks_about_ends_the_connection() -> None:
    guarded = behind()
    client = guarded.greeted()
    client.say("MAIL FROM:<mad@example.org>", "RCPT TO:<bye@example.org>")
    settle(guarded)
    assert codes(client.heard()) == [550, 503]
    assert guarded.server.open_links == []


def test_a_connection_of_one_session_is_used_again_after_a_refused_mail_if_the_server_has_said_all() -> None:
    guarded = behind(announce="proxy")
    client = guarded.greeted()
    for commands, told in (
        (["MAIL FROM:<no@example.org>", ENVELOPE[1]], [550, 503]),
        (ENVELOPE[:3], [250] * 3),
    ):
        client.say(*commands)
        settle(guarded)
        assert codes(client.heard()) == told
    # The first is that of the guard itself, which has tried the server.
    assert len(guarded.server.links) == 2


def test_a_connection_of_one_session_is_not_kept_for_it_when_that_is_over() -> None:
    guarded = behind(announce="proxy")
    client = guarded.greeted()
    client.say("MAIL FROM:<tarpit@example.org>", ENVELOPE[1])
    settle(guarded)
    assert codes(client.heard()) == [550, 503]
    client.disconnect()
    settle(guarded, SLOW + 1)
    assert guarded.server.open_links == []


class Guarded(Behind):
    """Its delivery is what `wrap` makes of the one to the server."""

    def __init__(self, wrap: Callable[[IDelivery], IDelivery], *keywords: str, **options: Any) -> None:
        super().__init__(FarServer("PIPELINING", *keywords), timeout=TIMEOUT, **options)
        self.wrapped = wrap(self.proxy)
        Guard.__init__(self, self.wrapped, self.clock)
        self.clock.pump([NETWORK] * 10)


@pytest.mark.parametrize("domain", ["outer.example", "inner.example", "other.example"])
def test_a_recipient_of_no_accepted_domain_never_reaches_the_server(domain: str) -> None:
    def wrap(proxy: IDelivery) -> IDelivery:
        inner = AcceptedDomains(proxy, ["example.org", "inner.example"])
        return AcceptedDomains(inner, ["example.org", "outer.example"])

    guarded = Guarded(wrap)
    client = guarded.greeted()
    client.say(
        "MAIL FROM:<ok@b.example>", "RCPT TO:<ok1@example.org>", f"RCPT TO:<ok@{domain}>", *ENVELOPE[2:]
    )
    settle(guarded)
    assert codes(client.heard()) == [250, 250, 550, 250, 354]
    assert writes(guarded) == [["MAIL FROM:<ok@b.example>", ENVELOPE[1]], ENVELOPE[2:]]


@pytest.mark.parametrize("bdat", ["client", "small"])
@pytest.mark.parametrize(
    ("commands", "told"),
    [
        (["RCPT TO:<ok@other.example>", *ENVELOPE[1:]], [250, 550, 451, 451, 554]),
        ([ENVELOPE[1], "RCPT TO:<ok@other.example>", "DATA"], [250, 250, 550, 451]),
        ([ENVELOPE[1], "RCPT TO:<ok@other.example>", "BDAT 0 LAST"], [250, 250, 550, 451]),
    ],
)
def test_a_domain_that_is_no_longer_accepted_ends_the_transaction_in_which_its_recipient_was_sent_ahead(
    commands: list[str], told: list[int], bdat: str, tmp_path: Path
) -> None:
    """The server may have accepted it, and cannot be told otherwise."""
    file = tmp_path / "domains"
    file.write_text("example.org\nother.example\n")
    guarded = Guarded(lambda proxy: AcceptedDomains(proxy, [str(file)]), "CHUNKING", bdat=bdat)
    client = guarded.greeted()
    client.say("MAIL FROM:<ok@b.example>", *commands)
    assert "RCPT TO:<ok@other.example>" in guarded.server.commands
    file.write_text("example.org\n")
    reloading = Deferred.fromCoroutine(guarded.wrapped.reload())
    guarded.threads.work()
    assert reloading.called
    settle(guarded)
    heard = codes(client.heard())
    if heard[-1] == 354:
        # The guard itself said that.
        heard[-1:] = codes(client.send(b"Subject: x\r\n\r\ntext\r\n.\r\n"))
    assert heard == told
    assert guarded.server.taken == []
    client.disconnect()
    guarded.assert_nothing_is_left()


def test_a_cap_that_is_lowered_ends_the_transaction_in_which_a_recipient_above_it_was_sent_ahead() -> None:
    guarded = behind()
    client = guarded.greeted()
    client.say(*ENVELOPE)
    guarded.factory.set_limits(Limits(max_recipients=1))
    settle(guarded)
    assert codes(client.heard()) == [250, 250, 452, 451]
    assert guarded.server.taken == []
    assert guarded.server.open_links == []
    client.disconnect()
    guarded.assert_nothing_is_left()


def test_a_delivery_that_wraps_it_and_knows_nothing_of_this_sees_one_command_at_a_time() -> None:
    @implementer(IDelivery)
    class Wrapping(FakeDelivery):
        def __init__(self, proxy: IDelivery) -> None:
            super().__init__()
            self.proxy = proxy

        async def begin(self, client: Any, sender: Any) -> Any:
            return await self.proxy.begin(client, sender)  # type: ignore[misc]

    guarded = Guarded(Wrapping)
    client = guarded.greeted()
    client.say(*ENVELOPE)
    settle(guarded)
    assert codes(client.heard()) == [250, 250, 250, 354]
    assert writes(guarded) == [[each] for each in ENVELOPE]


# Whatever happens, the client and the log cannot tell.

FATES = ["ok"] * 8 + ["no", "no", "later", "odd", "down", "dies", "silent", "slow", "tarpit", "mad", "bye"]


def address(chance: random.Random, number: int, badness: float) -> str:
    return f"{chance.choice(FATES) if chance.random() < badness else 'ok'}{number}@example.org"


def group(chance: random.Random, badness: float) -> list[str]:
    """The commands of a mail transaction, as a client with PIPELINING sends them, and what a client should not send."""
    sender = address(chance, 0, badness / 2)
    commands = [f"MAIL FROM:<{sender}>" + chance.choice(["", "", " SIZE=100", " BODY=BINARYMIME"])]
    for number in range(1, chance.choice([1, 2, 3, 6]) + 1):
        commands.append(f"RCPT TO:<{address(chance, number, badness)}>")
    commands.append(chance.choice(["DATA", "DATA", "DATA", "DATA", "RSET", "BDAT 0 LAST", "QUIT", "NOOP"]))
    if chance.random() < badness:
        more = [
            "NOOP",
            "RSET",
            "rcpt to:<ok@example.org>",
            "RCPT TO:<b@",
            "DATA",
            "WHAT",
            "DATA x",
            commands[0],
        ]
        commands.insert(chance.randrange(len(commands) + 1), chance.choice(more))
    return commands


def pieces(chance: random.Random, octets: bytes) -> Iterator[bytes]:
    """The octets, cut as chance has it."""
    how = chance.choice(["whole", "lines", "octets", "cut"])
    if how == "lines":
        yield from octets.splitlines(keepends=True)
    elif how == "octets":
        yield from (octets[at : at + 1] for at in range(len(octets)))
    elif how == "cut":
        at = chance.randrange(len(octets))
        yield from (octets[:at], octets[at:])
    else:
        yield octets


def dialogue(seed: int, *keywords: str) -> tuple[str, list[str], list[Any]]:
    """What a client hears, the log says and the server has taken. Nothing, where that depends on how quick all are."""
    chance = random.Random(seed)
    limits = {
        "max_recipients": chance.choice([2, 100]),
        "max_rejected_recipients": chance.choice([0, 1, 2]),
        "max_errors": chance.choice([0, 0, 3]),
        "max_messages": chance.choice([0, 2]),
        "recipient_rate": chance.choice([Rate(0, 0), Rate(0, 0), Rate(3, 60)]),
        "unexpected_pipelining": chance.choice(["serve", "refuse"]),
        "delivery_timeout": chance.choice([300, 300, 1]),
        "max_session_time": chance.choice([0, 0, 0, 0, 3]),
    }
    announce = chance.choice(["received", "received", "proxy", "xclient", "xforward"])
    kept: dict[str, Any] = {"lmtp": chance.random() < 0.3, "announce": announce}
    if announce.startswith("x"):
        keywords += (f"{announce.upper()} ADDR HELO",)
    kept["bdat"] = chance.choice(["client", "small"])
    if kept["lmtp"]:
        kept["recipients"] = chance.choice([0, 2])
    badness = chance.choice([0, 0.2, 0.6])
    careless = chance.random() < 0.3
    piece = chance.choice([0, 0, 1, 7, 50])
    with capturedLogs() as events:
        guarded = behind(*keywords, limits=limits, careless=careless, piece=piece, **kept)
        client = guarded.greeted()
        heard, untold = "", limits["max_session_time"] > 0
        for _ in range(chance.choice([1, 3])):
            octets = lines(*group(chance, badness))
            at_once = chance.random() < 0.2
            body = b"Subject: x\r\n\r\ntext\r\n.\r\n"
            gap = chance.choice([0, 0, 1, 3])
            untold |= gap > 0 and limits["unexpected_pipelining"] == "refuse"
            for piece in pieces(chance, octets + (body if at_once else b"")):
                heard += client.send(piece)
                guarded.clock.pump([NETWORK] * gap)
            leaves = chance.random() < 0.05
            stops = chance.random() < 0.03
            untold |= leaves or stops
            if leaves:
                client.disconnect()
            if stops:
                guarded.factory.drain()
            settle(guarded, 20)
            heard += client.heard()
            if heard.endswith("354 Start mail input; end with <CRLF>.<CRLF>\r\n"):
                heard += client.send(body)
                settle(guarded, 20)
                heard += client.heard()
        client.disconnect()
        settle(guarded, 20)
        guarded.assert_nothing_is_left()
    assert guarded.server.empty_messages == 0
    assert {each.octets.partition(b"\r\n\r\n")[2] for each in guarded.server.taken} <= {b"", b"text\r\n"}
    assert [event for event in events if "log_failure" in event] == []
    # A client that goes on after a refused DATA, with a server that has begun message data without a recipient.
    untold |= careless and "554 5.5.1 No valid" in heard
    if untold:
        return "", [], []
    texts = [
        re.sub(r"[0-9a-f]{8}-(\d+)| seconds=\S+", r"\1", each["text"]) for each in events if "event" in each
    ]
    texts = [text for text in texts if not text.startswith("upstream")]
    taken = [(each.envelope, each.octets.partition(b"\r\n\r\n")[2]) for each in guarded.server.taken]
    return heard, texts, taken


@pytest.mark.parametrize(
    "seeds",
    [range(150), pytest.param(range(150, 20000), marks=[pytest.mark.soak, pytest.mark.timeout(3600)])],
    ids=["short", "long"],
)
def test_neither_client_nor_log_nor_server_tells_that_commands_were_sent_ahead(seeds: range) -> None:
    for seed in seeds:
        rest = ("CHUNKING", "BINARYMIME", "8BITMIME", "SIZE 1000000")
        try:
            assert dialogue(seed, *rest, "PIPELINING") == dialogue(seed, *rest)
        except BaseException as error:
            raise AssertionError(f"seed {seed}") from error
