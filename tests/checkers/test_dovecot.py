"""Logins against a server of Dovecot's protocol that answers, lies, hangs and comes back as a test says."""

from __future__ import annotations

from base64 import b64encode
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from typing import Any

import attrs
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, ConnectionLost
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from twisted_smtpguard.checkers.dovecot import (
    ANSWER_SECONDS,
    CONNECT_SECONDS,
    MOST_REQUESTS,
    DovecotAuth,
    DovecotExchange,
)
from twisted_smtpguard.checkers.dovecotconnection import DovecotConnection
from twisted_smtpguard.values import Challenge, CheckerUnavailable, LoggedIn, LoginClient, Peer, Refused

ANN = LoginClient(Peer(ip_address("192.0.2.1"), 5, None, None), "s-1")
HELLO = (
    b"VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nMECH\tSCRAM-SHA-256\nMECH\tANONYMOUS\tanonymous\nSPID\t1\nDONE\n"
)
MORE = b"".join(b"MECH\t%s\n" % each for each in (b"OAUTHBEARER", b"XOAUTH2", b"EXTERNAL"))
MESSAGE = b"\0ann\0o-so-secret"


class Transport(StringTransport):
    """It ends at once when it is aborted."""

    def abortConnection(self) -> None:
        super().abortConnection()
        self.end()

    def end(self) -> None:
        if self.connected:
            self.connected = False
            self.protocol.connectionLost(Failure(ConnectionLost()))

    protocol: Any = None


class Server:
    """The other end of the socket, and a DovecotAuth that is started."""

    def __init__(self, *, started: bool = True) -> None:
        self.reactor = MemoryReactorClock()
        self.auth = DovecotAuth("unix:/run/dovecot/auth-client", self.reactor)
        self.transports: list[Transport] = []
        if started:
            self.auth.startService()

    @property
    def dials(self) -> int:
        return len(self.reactor.unixClients)

    def accept(self, said: bytes = HELLO) -> Transport:
        """The connection that is being made is made, and the server says this."""
        _, factory, *_ = self.reactor.unixClients[-1]
        transport = Transport()
        transport.protocol = factory.buildProtocol(None)
        transport.protocol.makeConnection(transport)
        transport.says = transport.protocol.dataReceived  # type: ignore[attr-defined]
        self.transports.append(transport)
        self.say(said)
        return transport

    @property
    def connection(self) -> DovecotConnection:
        connection = self.auth._connection
        assert connection is not None
        assert self.transports[-1].producer is connection
        return connection

    def refuse(self) -> None:
        _, factory, *_ = self.reactor.unixClients[-1]
        factory.clientConnectionFailed(None, Failure(ConnectError(string="no such file")))

    def say(self, octets: bytes, *, bytewise: bool = False) -> None:
        for piece in (octets[at : at + 1] for at in range(len(octets))) if bytewise else [octets]:
            self.transports[-1].protocol.dataReceived(piece)

    def heard(self) -> list[bytes]:
        """The lines that the guard has sent since."""
        transport = self.transports[-1]
        octets = transport.value()
        transport.clear()
        return octets.splitlines()

    def login(
        self, mechanism: str = "PLAIN", response: bytes | None = MESSAGE, client: LoginClient = ANN
    ) -> Login:
        return Login(self.auth.begin(mechanism, client), response)


class Login:
    """One login, and what has become of it."""

    def __init__(self, exchange: DovecotExchange, response: bytes | None) -> None:
        self.exchange = exchange
        self.outcome: Any = None
        self.respond(response)

    def respond(self, response: bytes | None) -> None:
        self.outcome = None
        self.pending: Deferred[Any] = self.exchange.respond(response)
        self.pending.addBoth(self._take)

    def _take(self, outcome: Any) -> None:
        self.outcome = outcome.value if isinstance(outcome, Failure) else outcome

    @property
    def problem(self) -> str:
        assert isinstance(self.outcome, CheckerUnavailable), self.outcome
        return str(self.outcome)


def ready() -> Server:
    server = Server()
    server.accept(HELLO.replace(b"DONE", MORE + b"DONE"))
    server.heard()
    return server


def base64(octets: bytes) -> bytes:
    return b64encode(octets)


# What a server says.


@pytest.mark.parametrize("bytewise", [False, True])
def test_it_greets_and_takes_what_the_server_offers(bytewise: bool) -> None:
    server = Server()
    assert server.auth.mechanisms == ("PLAIN",)
    server.accept(b"")
    assert server.heard()[0] == b"VERSION\t1\t2"
    server.say(HELLO, bytewise=bytewise)
    assert server.auth.mechanisms == ("PLAIN", "SCRAM-SHA-256")


@pytest.mark.parametrize("bytewise", [False, True])
def test_a_password_is_right_or_wrong(bytewise: bool) -> None:
    server = ready()
    right, wrong = server.login(), server.login()
    first, second = server.heard()
    assert first.startswith(b"AUTH\t1\tPLAIN\tservice=smtp\tnologin\t")
    assert first.endswith(b"\tresp=" + base64(MESSAGE))
    assert second.startswith(b"AUTH\t2\t")
    server.say(b"FAIL\t2\tuser=ann\nOK\t1\tuser=Ann@example.org\n", bytewise=bytewise)
    assert right.outcome == LoggedIn("Ann@example.org")
    assert right.outcome.avatar_id == b"Ann@example.org"
    assert isinstance(wrong.outcome, UnauthorizedLogin)
    assert server.auth.places.taken == 0


@pytest.mark.parametrize("words", [b"temp", b"code=temp_fail", b"user=ann\ttemp\treason=db\x01tdown"])
def test_a_temporary_failure_cannot_be_judged(words: bytes) -> None:
    server = ready()
    login = server.login()
    server.say(b"FAIL\t1\t" + words + b"\n")
    assert login.problem.startswith("unix:/run/dovecot/auth-client: ")
    assert ("db\\x09down" in login.problem) is (b"reason" in words)
    assert server.auth.places.taken == 0


def test_an_exchange_goes_through_its_challenges() -> None:
    server = ready()
    login = server.login("SCRAM-SHA-256", b"n,,n=ann,r=x")
    server.say(b"CONT\t1\t" + base64(b"r=xy") + b"\n")
    assert login.outcome == Challenge(b"r=xy")
    server.heard()
    login.respond(b"proof")
    assert server.heard() == [b"CONT\t1\t" + base64(b"proof")]
    server.say(b"OK\t1\tuser=ann\tresp=" + base64(b"v=1") + b"\n")
    assert login.outcome == LoggedIn("ann", final=b"v=1")
    assert server.auth.places.taken == 0


@pytest.mark.parametrize("mechanism", ["OAUTHBEARER", "XOAUTH2"])
@pytest.mark.parametrize("initial", [True, False])
def test_a_challenge_to_a_token_says_what_is_wrong_and_is_answered_at_once(
    mechanism: str, initial: bool
) -> None:
    server = ready()
    if initial:
        login = server.login(mechanism, b"the token")
    else:
        login = server.login(mechanism, None)
        server.say(b"CONT\t1\t\n")
        assert login.outcome == Challenge(b"")
        login.respond(b"the token")
    server.heard()
    server.say(b"CONT\t1\t" + base64(b"{}") + b"\n")
    assert server.heard() == [b"CONT\t1\t" + base64(b"\x01")]
    assert login.outcome is None
    server.say(b"FAIL\t1\tuser=ann\n")
    assert login.outcome == Challenge(b"{}", wrong=True)
    assert server.auth.places.taken == 0


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        (b"OK\t1\tuser=ann\n", LoggedIn("ann")),
        (b"CONT\t1\t\n", Challenge(b"{}", wrong=True)),
        (b"FAIL\t1\ttemp\n", None),
    ],
)
def test_what_a_server_says_after_it_has_said_what_is_wrong(said: bytes, outcome: Any) -> None:
    server = ready()
    login = server.login("XOAUTH2", b"the token")
    server.say(b"CONT\t1\t" + base64(b"{}") + b"\n" + said)
    if outcome is None:
        assert login.problem
    else:
        assert login.outcome == outcome
    assert server.auth.places.taken == 0


def test_an_ok_without_a_user_lets_nobody_in() -> None:
    server = ready()
    login = server.login()
    server.say(b"OK\t1\n")
    assert "it names no user" in login.problem


def test_lines_that_it_does_not_know_and_answers_to_nobody_are_left_out() -> None:
    server = ready()
    login = server.login()
    server.say(b"NEW\tthings\nOK\t99\tuser=eve\nCUID\t4\n\nOK\t1\tuser=ann\n")
    assert login.outcome == LoggedIn("ann")


def test_an_answer_that_nobody_waits_for_logs_nobody_in() -> None:
    server = ready()
    first = server.login()
    server.say(b"FAIL\t1\nOK\t1\tuser=eve\n")
    assert isinstance(first.outcome, UnauthorizedLogin)
    second = server.login("SCRAM-SHA-256", b"n,,n=ann,r=x")
    server.say(b"CONT\t2\t\nOK\t2\tuser=eve\nCONT\t2\tAAAA\n")
    assert second.outcome == Challenge(b"")
    third = server.login()
    third.pending.cancel()
    server.say(b"OK\t3\tuser=eve\nOK\t0\tuser=eve\nOK\t9999999999\tuser=eve\n")
    assert isinstance(third.outcome, CancelledError)
    second.respond(b"proof")
    assert second.outcome is None
    server.say(b"FAIL\t2\n")
    assert isinstance(second.outcome, UnauthorizedLogin)
    assert server.auth.places.taken == 0


def test_an_answer_of_an_earlier_connection_is_none_of_the_next() -> None:
    server = ready()
    old = server.transports[-1]
    server.login()
    old.end()
    login = server.login()
    server.accept(HELLO + b"CUID\t77\n")
    old.protocol.dataReceived(b"OK\t1\tuser=eve\n")
    assert login.outcome is None
    server.say(b"OK\t1\tuser=ann\n")
    assert login.outcome == LoggedIn("ann")


@pytest.mark.parametrize("said", [b"VERSION\t1\t3\n", b"VERSION\t1\t1\n", b"VERSION\t1\n"])
def test_every_version_1_is_spoken_to(said: bytes) -> None:
    server = Server()
    server.accept(said + b"MECH\tPLAIN\nDONE\n")
    login = server.login()
    server.say(b"OK\t1\tuser=ann\n")
    assert login.outcome == LoggedIn("ann")


def test_a_server_without_mechanisms_is_asked_for_none() -> None:
    server = Server()
    waiting = server.login()
    server.accept(b"VERSION\t1\t2\nDONE\n")
    assert server.auth.mechanisms == ()
    assert waiting.problem.endswith(": it does not offer PLAIN")


def test_half_a_line_and_then_silence_is_no_answer() -> None:
    server = ready()
    login = server.login()
    server.say(b"OK\t1\tuser=ann")
    server.reactor.advance(ANSWER_SECONDS)
    assert login.problem.endswith(": no answer in 30 seconds")
    assert server.transports[-1].disconnecting


# Servers that break the protocol.


@pytest.mark.parametrize(
    "said",
    [
        b"220 smtp.example ESMTP\r\n",
        b"VERSION\t2\t0\n",
        b"VERSION\nDONE\n",
        b"MECH\tPLAIN\nDONE\n",
        b"x" * 70_000,
        HELLO + b"OK\n",
        HELLO + b"CONT\t1\t!\n",
        HELLO + b"x" * 70_000,
    ],
    ids=[
        "SMTP",
        "version",
        "no version",
        "no greeting",
        "endless",
        "no number",
        "no base64",
        "endless later",
    ],
)
def test_it_is_left_and_asked_again_later(said: bytes) -> None:
    server = Server(started=False)
    login = server.login()
    server.auth.startService()
    transport = server.accept(said)
    assert transport.disconnecting
    assert login.problem
    assert server.auth.places.taken == 0
    assert server.dials == 1
    server.reactor.advance(5)
    assert server.dials == 2
    server.accept()
    login = server.login()
    server.say(b"OK\t2\tuser=ann\nOK\t1\tuser=ann\n")
    assert login.outcome == LoggedIn("ann")


def test_a_mechanism_that_the_server_offers_no_more_is_not_asked_for() -> None:
    server = ready()
    server.transports[-1].end()
    login = server.login("XOAUTH2", b"x")
    server.accept()
    assert login.problem.endswith(": it does not offer XOAUTH2")
    assert len(server.heard()) == 2
    assert not server.transports[-1].disconnecting


def test_a_server_that_does_not_read_is_sent_no_more_and_who_leaves_leaves_nothing() -> None:
    server = ready()
    connection = server.connection
    begun = server.login("SCRAM-SHA-256", b"n,,n=ann,r=x")
    server.say(b"CONT\t1\t\n")
    server.heard()
    connection.pauseProducing()
    for _ in range(5000):
        server.login("PLAIN", MESSAGE + b"x" * 4000).pending.cancel()
    assert (server.heard(), connection._unsent) == ([], {})
    begun.respond(b"proof")
    waiting = server.login()
    begun.pending.cancel()
    assert server.heard() == [b"CANCEL\t1"]
    connection.resumeProducing()
    assert [line.split(b"\t")[0] for line in server.heard()] == [b"AUTH"]
    server.say(b"OK\t5002\tuser=ann\n")
    assert waiting.outcome == LoggedIn("ann")


def test_a_server_that_reads_again_and_then_not_is_sent_what_there_is_room_for() -> None:
    server = ready()
    connection, transport = server.connection, server.transports[-1]
    connection.pauseProducing()
    for _ in range(3):
        server.login()
    write = transport.write

    def fill(octets: bytes) -> None:
        write(octets)
        connection.pauseProducing()

    transport.write = fill  # type: ignore[method-assign]
    connection.resumeProducing()
    assert len(server.heard()) == 1
    connection.resumeProducing()
    connection.resumeProducing()
    assert len(server.heard()) == 2
    assert connection._unsent == {}


def certified(name: str) -> LoginClient:
    """A client with a certificate of this name."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
    now = datetime.now(timezone.utc)
    certificate = x509.CertificateBuilder(names, names, key.public_key(), 1, now, now + timedelta(1)).sign(
        key, SHA256()
    )
    return attrs.evolve(ANN, peer=attrs.evolve(ANN.peer, certificate=certificate.public_bytes(Encoding.DER)))


@pytest.mark.parametrize("response", [b"", b"ann"])
def test_a_certificate_logs_in_the_user_whom_it_names(response: bytes) -> None:
    server = ready()
    login = server.login("EXTERNAL", response, certified("ann"))
    (line,) = server.heard()
    assert b"\tvalid-client-cert\tcert_username=ann\tresp=" in line
    server.say(b"OK\t1\tuser=ann\n")
    assert login.outcome == LoggedIn("ann")


@pytest.mark.parametrize("asked_first", [False, True])
@pytest.mark.parametrize(
    ("name", "response"),
    [
        ("ann", b"eve"),
        ("ann", b"ann\0"),
        ("ann", b"\xff"),
        ("", b""),
        ("", b"ann"),
        ("ann\0.evil", b""),
        ("a\tb", b""),
    ],
)
def test_a_certificate_logs_in_nobody_else(name: str, response: bytes, asked_first: bool) -> None:
    server = ready()
    if asked_first and name == "ann":
        login = server.login("EXTERNAL", None, certified(name))
        server.say(b"CONT\t1\t\n")
        server.heard()
        login.respond(response)
        assert server.heard() == [b"CANCEL\t1"]
    else:
        login = server.login("EXTERNAL", response, certified(name))
        assert server.heard() == []
    assert isinstance(login.outcome, UnauthorizedLogin)
    assert server.auth.places.taken == 0


def test_who_has_no_certificate_is_no_user_of_one() -> None:
    server = ready()
    login = server.login("EXTERNAL", b"ann")
    assert isinstance(login.outcome, UnauthorizedLogin)
    assert server.heard() == []
    server.login()
    assert b"cert" not in server.heard()[0]


def test_many_mechanisms_are_too_many() -> None:
    server = Server()
    server.accept(
        b"VERSION\t1\t2\n" + b"".join(b"MECH\tX%d\n" % number for number in range(5000)) + b"DONE\n"
    )
    assert len(server.auth.mechanisms) == 100


# Servers that are away, or slow.


def test_a_server_that_is_not_there_is_told_and_tried_again_ever_more_seldom() -> None:
    server = Server()
    login = server.login()
    server.refuse()
    assert login.problem == "unix:/run/dovecot/auth-client: An error occurred while connecting: no such file"
    delays = []
    for _ in range(12):
        before, dials = server.reactor.seconds(), server.dials
        while server.dials == dials:
            server.reactor.advance(0.1)
        delays.append(round(server.reactor.seconds() - before, 1))
        server.refuse()
    assert delays[0] < 0.5
    assert delays[-1] == pytest.approx(5, abs=0.2)


def test_a_login_does_not_wait_for_the_next_attempt() -> None:
    server = Server()
    server.refuse()
    login = server.login()
    assert server.dials == 2
    server.accept()
    server.say(b"OK\t1\tuser=ann\n")
    assert login.outcome == LoggedIn("ann")
    server.reactor.advance(100)
    assert server.dials == 2


def test_it_works_without_being_started() -> None:
    server = Server(started=False)
    login = server.login()
    server.accept()
    server.say(b"OK\t1\tuser=ann\n")
    assert login.outcome == LoggedIn("ann")


def test_logins_that_come_meanwhile_share_one_connection() -> None:
    server = Server()
    logins = [server.login() for _ in range(20)]
    server.accept()
    server.say(b"".join(b"OK\t%d\tuser=ann\n" % number for number in range(1, 21)))
    assert [login.outcome for login in logins] == [LoggedIn("ann")] * 20
    assert server.dials == 1


@pytest.mark.parametrize("accepted", [False, True])
def test_a_server_that_says_nothing_is_given_up(accepted: bool) -> None:
    server = Server()
    login = server.login()
    if accepted:
        server.accept(b"VERSION\t1\t2\n")
    server.reactor.advance(CONNECT_SECONDS)
    assert login.problem.endswith(": no answer in 5 seconds")
    assert server.auth.places.taken == 0


def test_a_server_that_hangs_is_left_and_one_that_is_slow_with_one_login_is_not() -> None:
    server = ready()
    slow, quick = server.login(), server.login()
    server.say(b"OK\t2\tuser=ann\n")
    server.reactor.advance(ANSWER_SECONDS)
    assert slow.problem.endswith(": no answer in 30 seconds")
    assert server.heard()[-1] == b"CANCEL\t1"
    assert not server.transports[-1].disconnecting
    assert quick.outcome == LoggedIn("ann")
    server.login()
    server.reactor.advance(ANSWER_SECONDS)
    assert server.transports[-1].disconnecting


def test_logins_that_are_waiting_when_the_connection_is_lost_cannot_be_judged_and_later_ones_can() -> None:
    server = ready()
    waiting, between = server.login(), server.login("SCRAM-SHA-256", b"n,,n=ann,r=x")
    server.say(b"CONT\t2\t\n")
    server.transports[-1].end()
    assert waiting.problem.endswith(": the connection was lost")
    between.respond(b"proof")
    assert between.problem.endswith(": the connection was lost")
    assert server.auth.places.taken == 0
    later = server.login()
    server.accept()
    server.say(b"OK\t1\tuser=ann\n")
    assert later.outcome == LoggedIn("ann")


# Clients that leave, send too much, or are too many.


def test_a_client_that_leaves_cancels_its_request() -> None:
    server = ready()
    login, other = server.login(), server.login("SCRAM-SHA-256", b"n,,n=ann,r=x")
    server.say(b"CONT\t2\t\n")
    login.pending.cancel()
    other.exchange.abort()
    other.exchange.abort()
    assert isinstance(login.outcome, CancelledError)
    assert server.heard()[-2:] == [b"CANCEL\t1", b"CANCEL\t2"]
    assert server.auth.places.taken == 0
    server.say(b"OK\t1\tuser=ann\nOK\t2\tuser=ann\n")


def test_a_client_that_leaves_before_there_is_a_connection_is_forgotten() -> None:
    server = Server()
    login = server.login()
    login.pending.cancel()
    server.accept()
    assert server.heard()[2:] == []
    assert server.auth.places.taken == 0


def test_a_response_that_is_longer_than_the_server_takes_is_refused_and_harms_nobody() -> None:
    server = ready()
    login = server.login("PLAIN", b"\0ann\0" + b"x" * 9000)
    assert isinstance(login.outcome, Refused)
    assert server.auth.places.taken == 0
    other = server.login("SCRAM-SHA-256", b"n,,n=ann,r=x")
    server.say(b"CONT\t2\t\n")
    other.respond(b"x" * 9000)
    assert isinstance(other.outcome, Refused)
    assert server.heard()[-1] == b"CANCEL\t2"
    assert not server.transports[-1].disconnecting


def of_client(name: str) -> LoginClient:
    return attrs.evolve(ANN, key=name)


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
def test_a_client_with_all_places_keeps_no_other_out(mechanism: str) -> None:
    server = ready()
    greedy = [server.login(mechanism, client=of_client("greedy")) for _ in range(MOST_REQUESTS)]
    if mechanism != "PLAIN":
        server.say(b"".join(b"CONT\t%d\t\n" % number for number in range(1, MOST_REQUESTS + 1)))
    server.heard()
    login = server.login(client=of_client("honest"))
    assert server.heard()[0] == b"CANCEL\t1"
    server.say(b"OK\t1\tuser=eve\nOK\t%d\tuser=ann\n" % (MOST_REQUESTS + 1))
    assert login.outcome == LoggedIn("ann")
    if mechanism != "PLAIN":
        assert greedy[0].outcome == Challenge(b"")
        greedy[0].respond(b"proof")
    assert greedy[0].problem.endswith(": of 1000 logins it was the one to end for others")
    assert server.auth.places.taken == MOST_REQUESTS - 1
    greedy[1].exchange.abort()
    assert server.auth.places.taken == MOST_REQUESTS - 2


def test_a_login_that_waits_for_a_connection_can_lose_its_place_too() -> None:
    server = Server()
    greedy = [server.login(client=of_client("greedy")) for _ in range(MOST_REQUESTS)]
    for number in range(10):
        server.login(client=of_client(f"honest{number}"))
    assert [bool(each.outcome) for each in greedy] == [True] * 10 + [False] * (MOST_REQUESTS - 10)
    assert len(server.auth._waiting) == MOST_REQUESTS
    server.accept()
    assert len(server.heard()) == 2 + MOST_REQUESTS


def test_the_number_of_logins_is_bounded() -> None:
    server = ready()
    logins = [server.login() for _ in range(MOST_REQUESTS)]
    with pytest.raises(CheckerUnavailable, match="1000 logins are waiting already"):
        server.login()
    logins[0].pending.cancel()
    server.login()


# Starts and stops.


def test_a_stop_ends_the_connection_and_what_waits() -> None:
    server = ready()
    login = server.login()
    server.auth.stopService()
    assert login.problem.endswith(": the guard stops")
    assert server.transports[-1].disconnecting
    server.reactor.advance(100)
    assert server.dials == 1
    server.auth.startService()
    assert server.dials == 2


def test_a_stop_while_it_is_connecting_ends_that() -> None:
    server = Server()
    login = server.login()
    server.auth.stopService()
    assert login.problem
    server.reactor.advance(100)
    assert server.dials == 1
    assert server.reactor.getDelayedCalls() == []


@pytest.mark.parametrize("endpoint", ["", "nonsense", "nonsense:x", "unix"])
def test_what_is_no_endpoint_is_told(endpoint: str) -> None:
    with pytest.raises((ValueError, TypeError, IndexError)):
        DovecotAuth(endpoint, MemoryReactorClock())


def test_no_password_is_in_a_repr() -> None:
    server = ready()
    login = server.login()
    assert "o-so-secret" not in repr(vars(login.exchange))
