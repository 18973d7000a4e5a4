"""`--auth dovecot:ENDPOINT`: users log in against Dovecot, or another server of its authentication protocol.

All logins share one connection, which is kept, and made anew when it is lost. What has no answer then, or none in time,
cannot be judged.
"""

# ruff: noqa: N802 - Twisted's own names

from __future__ import annotations

from typing import Any

from cryptography.x509 import load_der_x509_certificate
from cryptography.x509.oid import NameOID
from twisted.application.service import Service
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import clientFromString
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_smtpguard.checkers.dovecotconnection import DovecotConnection
from twisted_smtpguard.checkers.dovecotlines import MOST_OCTETS, Answer, ProtocolError, auth_line, cont_line
from twisted_smtpguard.checkers.fairplaces import FairPlaces
from twisted_smtpguard.hooks.later import within
from twisted_smtpguard.inputs.arguments import checked
from twisted_smtpguard.inputs.escaping import escape_text
from twisted_smtpguard.interfaces import ISaslExchange, ISaslMechanisms
from twisted_smtpguard.replies import BAD_AUTH_RESPONSE
from twisted_smtpguard.values import Challenge, CheckerUnavailable, LoggedIn, LoginClient, Refused

CONNECT_SECONDS = 5
"""How long a connection and the first lines of the server may take."""
ANSWER_SECONDS = 30
"""How long an answer may take. Dovecot itself holds back those to a client that has guessed often, for up to 15 s."""
MOST_REQUESTS = 1000
"""So many logins may wait for an answer at once, or for their clients; clients share these places fairly."""
_SHOWN = 200
_SAY_WHAT_IS_WRONG = ("OAUTHBEARER", "XOAUTH2")
"""The mechanisms by which a server that has got a token challenges only to say that it is wrong (RFC 7628 3.2.2)."""
_EVICTED = f"of {MOST_REQUESTS} logins it was the one to end for others"
_NOTHING = b"\x01"
"""What a client answers to that (RFC 7628 3.2.3)."""
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 5.0


@implementer(ISaslMechanisms)
class DovecotAuth(Service):
    """Logs users in against the server at `endpoint`, such as `unix:/run/dovecot/auth-client`. ValueError: this is no
    endpoint of Twisted.

    It is a service: while it runs it is connected, or tries to connect again after 0.1 to 5 seconds, and at each login.
    """

    @checked
    def __init__(self, endpoint: str, reactor: Any) -> None:
        self.server = endpoint
        self.reactor = reactor
        self.places = FairPlaces[DovecotExchange](MOST_REQUESTS, DovecotExchange.evict)
        """Those of the logins that go on."""
        self._endpoint = clientFromString(reactor, endpoint)
        self._connection: DovecotConnection | None = None
        self._waiting: dict[Deferred[DovecotConnection], None] = {}
        """Who waits for a connection."""
        self._dialling: Deferred[Any] | None = None
        self._again: Any = None
        self._failures = 0
        self._mechanisms: tuple[str, ...] = ("PLAIN",)

    @property
    def mechanisms(self) -> tuple[str, ...]:
        """What the server has offered last; PLAIN as long as it has not been reached."""
        return self._mechanisms

    def begin(self, mechanism: str, client: LoginClient) -> DovecotExchange:
        """Begin a login. CheckerUnavailable: too many go on, and no client has more of them."""
        exchange = DovecotExchange(self, mechanism, client)
        if not self.places.take(client.key, exchange):
            raise self.unavailable(f"{MOST_REQUESTS} logins are waiting already")
        return exchange

    def unavailable(self, problem: str) -> CheckerUnavailable:
        """The exception for a login that cannot be judged because of `problem`."""
        return CheckerUnavailable(f"{self.server}: {escape_text(problem[:_SHOWN])}")

    async def self_test(self) -> str:
        """Connect as at a start, and disconnect again. Returns why that is not possible; "" if it is."""
        try:
            connection = await self._connect()
        except Exception as error:  # noqa: BLE001 - an operator wants to know of all
            return str(self.unavailable(_words(error)))
        connection.fail("it was only tried")
        await connection.lost
        return ""

    def connection(self) -> Deferred[DovecotConnection]:
        """Fires with the connection, which is made if there is none. All who wait for it share one attempt."""
        if self._connection is not None:
            return succeed(self._connection)
        waiting: Deferred[DovecotConnection] = Deferred(lambda each: self._waiting.pop(each, None))
        self._waiting[waiting] = None
        self._dial()
        return waiting

    # As a service.

    def startService(self) -> None:
        """Begin to connect."""
        super().startService()
        self._dial()

    def stopService(self) -> None:
        """Disconnect. Logins that go on cannot be judged."""
        super().stopService()
        self._stop_pausing()
        if self._dialling is not None:
            self._dialling.cancel()
        if self._connection is not None:
            self._connection.fail("the guard stops")

    def _dial(self) -> None:
        if self._dialling is None:
            self._stop_pausing()
            self._dialling = Deferred.fromCoroutine(self._connect())
            self._dialling.addBoth(self._dialled)

    async def _connect(self) -> DovecotConnection:
        call_later = self.reactor.callLater
        dialling = self._endpoint.connect(Factory.forProtocol(DovecotConnection))
        try:
            connection: DovecotConnection = await within(CONNECT_SECONDS, call_later, dialling)
            return await within(CONNECT_SECONDS, call_later, connection.ready)
        except TimeoutError:
            raise ProtocolError(f"no answer in {CONNECT_SECONDS} seconds") from None

    def _dialled(self, outcome: DovecotConnection | Failure) -> None:
        self._dialling = None
        waiting, self._waiting = self._waiting, {}
        if isinstance(outcome, Failure):
            self._failures += 1
            self._pause()
        else:
            self._connection, self._failures, self._mechanisms = outcome, 0, outcome.mechanisms
            outcome.lost.addCallback(self._lost)
        for each in waiting:
            if not each.called:
                each.callback(outcome)

    def _lost(self, _: object) -> None:
        self._connection = None
        self._pause()

    def _pause(self) -> None:
        """Connect again after a while, unless somebody needs it before."""
        if self.running and self._again is None:
            delay = min(_FIRST_DELAY * 2 ** min(self._failures, 10), _LONGEST_DELAY)
            self._again = self.reactor.callLater(delay, self._try_again)

    def _try_again(self) -> None:
        self._again = None
        self._dial()

    def _stop_pausing(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None


@implementer(ISaslExchange)
class DovecotExchange:
    """One login, all of which goes through one connection."""

    def __init__(self, auth: DovecotAuth, mechanism: str, client: LoginClient) -> None:
        self._auth = auth
        self._mechanism = mechanism
        self._client = client
        self._connection: DovecotConnection | None = None
        self._number = 0
        self._over = False
        self._evicted = False
        self._awaited: Deferred[Any] | None = None
        """What it waits for now."""
        self._certified_name = _certified_name(client.peer.certificate)

    def respond(self, response: bytes | None) -> Deferred[Challenge | LoggedIn]:
        """Ask the server. Fires with its challenge, or with the user."""
        return Deferred.fromCoroutine(self._respond(response))

    async def _respond(self, response: bytes | None) -> Challenge | LoggedIn:
        if self._mechanism == "EXTERNAL" and not self._is_certified_as(response or b""):
            self.abort()
            raise UnauthorizedLogin
        answer = await self._answer(response)
        if answer.verdict != "CONT":
            return self._outcome(answer)
        if response is None or self._mechanism not in _SAY_WHAT_IS_WRONG:
            return Challenge(answer.octets)
        # The client might never answer to this, and the server waits for an answer, though for none that says anything.
        verdict = await self._answer(_NOTHING)
        if verdict.verdict == "CONT":
            self.abort()
            return Challenge(answer.octets, wrong=True)
        try:
            return self._outcome(verdict)
        except UnauthorizedLogin:
            return Challenge(answer.octets, wrong=True)

    async def _answer(self, response: bytes | None) -> Answer:
        connection, answers = self._connection, 0
        try:
            if self._evicted:
                raise CancelledError
            if connection is None:
                self._awaited = self._auth.connection()
                connection = self._connection = await self._awaited
                if self._mechanism not in connection.mechanisms:
                    # Dovecot would end the connection, on which others wait.
                    raise ProtocolError(f"it does not offer {self._mechanism}")
                self._number = connection.new_number()
                line = auth_line(self._number, self._mechanism, self._client, response, self._certified_name)
            else:
                line = cont_line(self._number, response or b"")
            if len(line) > MOST_OCTETS:
                self.abort()
                raise Refused(BAD_AUTH_RESPONSE)
            answers = connection.answers
            asked = connection.ask(self._number, line)
            self._awaited = answered = within(ANSWER_SECONDS, self._auth.reactor.callLater, asked)
            return await answered
        except (CancelledError, Refused) as error:
            self._end()
            if self._evicted:
                raise self._auth.unavailable(_EVICTED) from error
            raise
        except TimeoutError as error:
            self._end()
            problem = f"no answer in {ANSWER_SECONDS} seconds"
            if connection is not None and connection.answers == answers:
                # It has answered nobody: a new connection may do better.
                connection.fail(problem)
            raise self._auth.unavailable(problem) from error
        except Exception as error:
            self._end()
            raise self._auth.unavailable(_words(error)) from error
        finally:
            self._awaited = None

    def evict(self) -> None:
        """End the login, since its place is taken by another."""
        self._evicted = True
        if self._awaited is None:
            self.abort()
        else:
            self._awaited.cancel()

    def _is_certified_as(self, user: bytes) -> bool:
        """Whether the client may log in as this user, b"" for the one of its certificate."""
        name = self._certified_name.encode()
        return bool(name) and user in (b"", name)

    def abort(self) -> None:
        """End the login, if it goes on."""
        if self._connection is not None and not self._over:
            self._connection.cancel(self._number)
        self._end()

    def _outcome(self, answer: Answer) -> LoggedIn:
        self._end()
        fields = answer.fields
        if answer.verdict == "FAIL":
            if "temp" in fields or fields.get("code") == "temp_fail":
                raise self._auth.unavailable(fields.get("reason") or "a temporary failure")
            raise UnauthorizedLogin
        user = fields.get("user", "")
        if not user:
            raise self._auth.unavailable("it names no user")
        return LoggedIn(user, user.encode("utf-8", "surrogateescape"), answer.octets)

    def _end(self) -> None:
        if not self._over:
            self._over = True
            self._auth.places.give_back(self._client.key, self)


def _words(error: BaseException) -> str:
    return str(error).rstrip(".") or type(error).__name__


def _certified_name(certificate: bytes | None) -> str:
    """The common name in a client's certificate, for EXTERNAL; "" if there is none that could be a user's. One with
    a NUL might be read as that of another user, since C ends a text there."""
    if certificate is None:
        return ""
    try:
        names = load_der_x509_certificate(certificate).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        name = str(names[0].value) if names else ""
        return name if name.isprintable() else ""
    except ValueError:
        return ""
