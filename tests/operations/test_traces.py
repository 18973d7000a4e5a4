"""`trace`: dialogues as they happen, without message data and credentials, at no cost to anybody else."""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_twisted
from certificates import certificate
from hypothesis import example, given
from hypothesis import strategies as st
from logbook import logbook
from logins import PASSWORD, USER, Checker, base64, plain
from loopback import Loopback
from operated import Operated
from tlsclient import TLSClient
from twisted.cred.error import UnauthorizedLogin

from twisted_smtpguard.engine.engine import Engine
from twisted_smtpguard.engine.table import STAGES
from twisted_smtpguard.operations.traces import MAX_SECONDS, MAX_TRACES, Traces
from twisted_smtpguard.tls.files import CertificateFiles
from twisted_smtpguard.values import TRUST, refuse

ADDRESS = "192.0.2.1"
SECRETS = (PASSWORD.decode(), base64(PASSWORD), base64(USER), plain(), plain(b"wrong"))


class Reader:
    """What a trace tells."""

    def __init__(self, trace: Any) -> None:
        self.rows: list[dict[str, Any]] = []
        self.ended = 0
        self.trace = trace
        trace.begin(self.rows.append, self.end)

    def end(self) -> None:
        self.ended += 1

    @property
    def lines(self) -> list[str]:
        """Who said what, since this was last asked for."""
        rows, self.rows[:] = list(self.rows), []
        assert json.loads(json.dumps(rows)) == rows
        assert all(row["text"].isascii() and row["text"].isprintable() for row in rows)
        return [f"{row['from']}: {row['text']}" for row in rows]


def traced(guard: Operated, network: str = ADDRESS, **arguments: str) -> Reader:
    return Reader(guard.operator.carry_out("trace", {"network": network, **arguments}))


DIALOGUE = [
    "guard: [connected]",
    "guard: 220 guard.example ESMTP ready",
    "client: EHLO client.example",
    "guard: 250-guard.example",
    "guard: 250-PIPELINING",
    "guard: 250-SIZE 10485760",
    "guard: 250-CHUNKING",
    "guard: 250-8BITMIME",
    "guard: 250-BINARYMIME",
    "guard: 250-SMTPUTF8",
    "guard: 250-LIMITS RCPTMAX=100",
    "guard: 250 ENHANCEDSTATUSCODES",
    "client: MAIL FROM:<a@b>",
    "guard: 250 2.1.0 Sender OK",
    "client: RCPT TO:<c@d>",
    "guard: 250 2.1.5 Recipient OK",
    "client: DATA",
    "guard: 354 End data with <CR><LF>.<CR><LF>",
    "client: [message data, 22 octets]",
    "guard: 250 2.0.0 Message accepted",
    "client: QUIT",
    "guard: 221 2.0.0 Closing connection",
]


@pytest.mark.parametrize("bytewise", [False, True])
def test_a_session_is_told_from_its_beginning_to_its_end(bytewise: bool) -> None:
    guard = Operated()
    reader = traced(guard)
    client = guard.connect()
    for line in ("EHLO client.example", "MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA"):
        client.say(line, bytewise=bytewise)
    client.say("Subject: secret", "", ".", bytewise=bytewise)
    client.say("QUIT", bytewise=bytewise)
    client.disconnect()
    assert reader.lines == [*DIALOGUE, "guard: [the connection has ended]"]


def test_each_line_names_its_time_its_client_and_its_session() -> None:
    guard = Operated()
    reader = traced(guard)
    guard.clock.advance(1.25)
    client = guard.connect()
    assert reader.rows[-1] == {
        "time": "1970-01-01T00:00:01.250Z",
        "client": ADDRESS,
        "session": client.protocol.engine.name,
        "from": "guard",
        "text": "220 guard.example ESMTP ready",
    }


def test_a_session_that_is_open_already_is_told_from_now_on() -> None:
    guard = Operated()
    client = guard.greeted()
    reader = traced(guard)
    client.say("MAIL FROM:<a@b>", "RCPT TO:<c@d>")
    assert reader.lines == [
        "client: MAIL FROM:<a@b>",
        "client: RCPT TO:<c@d>",
        "guard: 250 2.1.0 Sender OK",
        "guard: 250 2.1.5 Recipient OK",
    ]


def test_others_are_not_told_and_not_tapped() -> None:
    guard = Operated()
    before = guard.greeted("198.51.100.2")
    reader = traced(guard, "192.0.2.0/24")
    after = guard.greeted("198.51.100.1")
    for client in (before, after):
        client.say("NOOP")
        assert type(client.protocol.engine) is Engine
        assert not {"write", "lost", "turn_away"} & set(vars(client.protocol))
    assert reader.lines == []


@pytest.mark.parametrize("end", ["time", "stop"])
def test_a_trace_ends_and_leaves_nothing(end: str) -> None:
    guard = Operated()
    reader = traced(guard, **{"for": "10s"})
    client = guard.greeted()
    if end == "time":
        guard.clock.advance(11)
    else:
        reader.trace.stop()
        reader.trace.stop()
    assert reader.ended == (end == "time")
    before = reader.lines
    assert client.codes("NOOP", "QUIT") == [250, 221]
    assert before
    assert reader.lines == []
    engine = client.protocol.engine
    assert type(engine) is Engine
    assert engine.row is STAGES[engine.stage]
    assert not {"write", "lost", "turn_away", "tap"} & set(vars(client.protocol))
    assert guard.factory.on_connection is None
    assert guard.clock.getDelayedCalls() == []


def test_the_number_of_traces_and_their_time_are_bounded() -> None:
    guard = Operated()
    readers = [traced(guard) for _ in range(MAX_TRACES)]
    with pytest.raises(ValueError, match=f"there are {MAX_TRACES} traces already"):
        traced(guard)
    readers[0].trace.stop()
    traced(guard)
    for seconds in (0, -1, MAX_SECONDS + 1):
        with pytest.raises(ValueError, match="a trace lasts for at most 24 hours"):
            Traces(guard.factory).start(ADDRESS, seconds)
    with pytest.raises(ValueError, match="is not a network"):
        traced(guard, "mx.example")


def test_two_traces_are_told_each_what_it_asks_for() -> None:
    guard = Operated()
    wide, narrow = traced(guard, "192.0.2.0/24"), traced(guard, "192.0.2.2")
    guard.connect("192.0.2.1")
    guard.connect("192.0.2.2")
    assert (len(wide.lines), len(narrow.lines)) == (4, 2)
    wide.trace.stop()
    guard.connect("192.0.2.1")
    guard.connect("192.0.2.2")
    assert (wide.lines, len(narrow.lines)) == ([], 2)


def test_a_reader_that_fails_loses_its_trace_and_no_client_notices() -> None:
    guard = Operated()

    def fails(_: object) -> None:
        raise OSError("gone")

    failures: list[Any] = []
    guard.factory.context.events.failure = lambda *given: failures.append(given)  # type: ignore[method-assign]
    guard.operator.trace(ADDRESS).begin(fails, lambda: None)
    client = guard.greeted()
    assert client.codes("NOOP", "QUIT") == [250, 221]
    assert len(failures) == 1
    assert guard.factory.on_connection is None


def test_a_client_behind_a_proxy_is_known_once_it_is_named() -> None:
    guard = Operated(proxy_protocol_from=["10.0.0.1"])
    reader = traced(guard, "198.51.100.7")
    wanted, other = guard.connect("10.0.0.1"), guard.connect("10.0.0.1")
    wanted.send(b"PROXY TCP4 198.51.100.7 10.0.0.1 40000 25\r\n")
    other.send(b"PROXY TCP4 198.51.100.8 10.0.0.1 40000 25\r\n")
    wanted.say("NOOP")
    other.say("NOOP")
    assert reader.lines == [
        "client: [PROXY header, 43 octets]",
        "guard: 220 guard.example ESMTP ready",
        "client: NOOP",
        "guard: 250 2.0.0 OK",
    ]


@pytest.mark.parametrize("verdict", [refuse(), TRUST])
def test_what_a_refused_client_hears_is_told(verdict: Any) -> None:
    from fakes import FakeFilter

    guard = Operated(ip_filters=[FakeFilter(verdict)])
    reader = traced(guard)
    guard.connect()
    assert reader.lines[1][:10] == ("guard: 421" if verdict is not TRUST else "guard: 220")


def test_chunks_and_endless_data_are_counted() -> None:
    guard = Operated(max_message_size=10, oversize_drain=1)
    client = guard.greeted()
    reader = traced(guard)
    client.say("MAIL FROM:<a@b>", "RCPT TO:<c@d>")
    reader.lines  # noqa: B018
    client.send(b"BDAT 3\r\nabc")
    client.send(b"BDAT 3 LAST\r\ndef")
    assert reader.lines == [
        "client: BDAT 3",
        "client: [message data, 3 octets]",
        "guard: 250 2.0.0 3 octets received",
        "client: BDAT 3 LAST",
        "client: [message data, 3 octets]",
        "guard: 250 2.0.0 Message accepted",
    ]
    client.say("MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA")
    reader.lines  # noqa: B018
    client.send(b"x" * 15)
    assert reader.lines == []
    client.send(b"x" * 15)
    assert reader.lines == [
        "client: [message data, 30 octets]",
        "guard: 421 4.3.0 Message too large, closing connection",
    ]


def test_data_that_are_cut_off_are_counted() -> None:
    guard = Operated()
    client = guard.greeted()
    reader = traced(guard)
    client.say("MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA")
    client.send(b"x: y\r\n")
    client.disconnect()
    assert reader.lines[-2:] == ["client: [message data, 6 octets]", "guard: [the connection has ended]"]


# Nothing that is told can be a credential, or do harm.

LOGINS = [
    (f"AUTH PLAIN {plain()}",),
    (f"auth plain {plain()}",),
    ("AUTH PLAIN", plain()),
    ("AUTH LOGIN", base64(USER), base64(PASSWORD)),
    (f"AUTH LOGIN {base64(USER)}", base64(PASSWORD)),
    ("AUTH LOGIN", base64(USER), "*"),
    # Malformed, misspelt, or not offered.
    (f"AUTH\tPLAIN\t{plain()}",),
    (f" AUTH PLAIN {plain()}",),
    (f"AUTHPLAIN {plain()}",),
    (f"AUTH={plain()}",),
    (f"xauth:plain:{plain()}",),
    (f"AUTH PLAIN {plain()} {plain()}",),
    (f"AUTH {plain()}",),
    (f"AUTH PLAIN\0 {plain()}",),
    (f"XAUTH PLAIN {plain()}",),
    ("AUTH\0 LOGIN", base64(USER), base64(PASSWORD)),
    ("XAUTH LOGIN", base64(USER), base64(PASSWORD)),
    ("AUTH CRAM-MD5", base64(USER), base64(PASSWORD)),
    ("AUTH", base64(USER), base64(PASSWORD)),
    ("AUTH PLAIN", "no!base64", plain()),
    ("AUTH LOGIN", base64(USER), base64(PASSWORD) + "\n" + base64(PASSWORD)),
    ("AUTH LOGIN", "x" * 13000, base64(PASSWORD)),
    ("AUTH LOGIN " + base64(PASSWORD) * 1000,),
    ("EHLO again", "AUTH LOGIN", base64(USER), base64(PASSWORD), base64(PASSWORD), PASSWORD.decode()),
]


@pytest.mark.parametrize("lines", LOGINS, ids=lambda lines: lines[0][:30])
@pytest.mark.parametrize("how", ["line by line", "at once", "bytewise", "begun before"])
@pytest.mark.parametrize("answer", [b"ann", UnauthorizedLogin(), None])
def test_no_credentials_are_told(lines: tuple[str, ...], how: str, answer: Any) -> None:
    guard = Operated(checkers=[Checker(answer)] if answer is not None else [], max_invalid_commands=0)
    if how == "begun before":
        client = guard.greeted()
        client.say(lines[0])
        reader, lines = traced(guard), lines[1:]
    else:
        reader = traced(guard)
        client = guard.greeted()
    if how == "at once":
        client.say(*lines, "NOOP hello")
    else:
        for line in (*lines, "NOOP hello"):
            if not client.closed:
                client.say(line, bytewise=how == "bytewise")
    told = "\n".join(reader.lines)
    assert not has_secrets(told)
    if not client.closed:
        assert "NOOP hello" in told


def has_secrets(text: str) -> bool:
    """Whether a secret, or a part of one, is in a text, in whatever case."""
    parts = [part for secret in SECRETS for part in (secret, secret[:8], secret[-8:])]
    return any(part.rstrip("=").lower() in text.lower() for part in parts)


@pytest.mark.parametrize("lines", LOGINS, ids=lambda lines: lines[0][:30])
def test_no_credentials_are_logged_or_remembered(lines: tuple[str, ...]) -> None:
    guard = Operated(checkers=[Checker(UnauthorizedLogin())], max_invalid_commands=0)
    client = guard.greeted()
    with logbook() as log:
        for line in lines:
            client.say(line)
        assert not has_secrets("\n".join(log.take("reject")))
    assert not has_secrets(str(guard.factory.context.events.history.refusals.latest(99)))


def test_a_challenge_is_not_told() -> None:
    guard = Operated(checkers=[Checker(b"ann")])
    client = guard.greeted()
    reader = traced(guard)
    client.say("AUTH LOGIN")
    assert reader.lines == ["client: AUTH LOGIN", "guard: 334 [challenge]"]
    client.say(base64(USER))
    assert reader.lines == ["client: [response, 6 octets]", "guard: 334 [challenge]"]


@pytest.mark.parametrize(
    ("octets", "told"),
    [
        (b"EHLO \x1b[2J\r\n", "client: EHLO \\x1b[2J"),
        (b"MAIL FROM:<\xe2\x80\xae@x>\r\n", "client: MAIL FROM:<\\u202e@x>"),
        (b"NOOP \xff\r\n", "client: NOOP \\xff"),
        (b"NO\nOP\r\n", "client: NO\\x0a"),
        (b"GET / HTTP/1.1\r\n", "client: GET [10 octets]"),
        (b"\r\n", "client: [0 octets]"),
    ],
)
def test_what_a_client_says_is_escaped(octets: bytes, told: str) -> None:
    guard = Operated()
    client = guard.greeted()
    reader = traced(guard)
    client.say("NOOP")
    reader.lines  # noqa: B018
    client.send(octets)
    assert reader.lines[0] == told


def test_a_long_line_is_cut() -> None:
    guard = Operated()
    client = guard.greeted()
    reader = traced(guard)
    client.say("NOOP " + "x" * 1500)
    assert reader.lines[0] == f"client: NOOP {'x' * 992}..."


# A traced session is the same session.

PIECES = [
    b"EHLO a\r\n",
    b"MAIL FROM:<a@b>\r\n",
    b"RCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\n",
    b"DATA\r\n",
    b"Subject: x\r\n\r\ny\r\n.\r\n",
    b".\r\n",
    b"BDAT 4\r\nabcd",
    b"BDAT 2 LAST\r\nxy",
    b"RSET\r\nNOOP\r\n",
    b"AUTH LOGIN\r\n",
    b"YW5u\r\n",
    b"AUTH PLAIN " + plain().encode() + b"\r\n",
    b"NO\nOP\r\n",
    b"x" * 3000,
    b"\r\n",
    b"\r",
    b"\n",
    b"BREW\r\n",
    b"GET / HTTP/1.0\r\n",
    b"QUIT\r\n",
]


@given(pieces=st.lists(st.sampled_from(PIECES), max_size=12), change=st.lists(st.booleans(), max_size=12))
@example(pieces=PIECES, change=[True])
def test_a_client_cannot_tell_whether_it_is_traced(pieces: list[bytes], change: list[bool]) -> None:
    """Also if the trace begins or ends anywhere."""
    heard = []
    for is_traced in (False, True):
        guard = Operated(checkers=[Checker(b"ann")])
        reader = traced(guard) if is_traced else None
        client = guard.connect()
        said = client.heard()
        changes = iter(change)
        for piece in pieces:
            said += client.send(piece)
            if is_traced and next(changes, False):
                if reader is None:
                    reader = traced(guard)
                else:
                    reader.trace.stop()
                    reader = None
        guard.clock.advance(1)
        said += client.heard()
        heard.append((said, client.closed, client.protocol.engine.stage, len(guard.delivery.messages)))
    assert heard[0] == heard[1]


@pytest_twisted.ensureDeferred
async def test_under_tls_the_lines_are_told_in_clear() -> None:
    guard = Loopback(options={"tls": CertificateFiles(str(certificate()))})
    guard.start()
    reader = Reader(Traces(guard.factory).start("127.0.0.0/8", 60))
    client = TLSClient(guard)
    await client.hears(b"220 ")
    await client.says(b"EHLO a\r\n")
    await client.hears(b"250 ENHANCEDSTATUSCODES")
    await client.says(b"STARTTLS\r\n")
    await client.hears(b"220 2.0.0")
    await client.shake_hands()
    await client.says(b"NOOP secure\r\n")
    await client.hears(b"250 2.0.0")
    lines = reader.lines
    begin = lines.index("client: STARTTLS")
    assert lines[begin:] == [
        "client: STARTTLS",
        "guard: 220 2.0.0 Ready to start TLS",
        "guard: [TLS handshake]",
        "client: NOOP secure",
        "guard: 250 2.0.0 OK",
    ]
    reader.trace.stop()
    await guard.close()
