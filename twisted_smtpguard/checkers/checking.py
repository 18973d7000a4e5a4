"""The verdict on credentials, for which the checkers of twisted.cred are asked.

A checker gets the user's name and password as octets, as in Twisted, or as text if it shows that it stores text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hmac import compare_digest
from typing import Any

import attrs
from twisted.cred.credentials import IUsernameHashedPassword, IUsernamePassword, UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.python.reflect import safe_repr

from twisted_smtpguard.engine.sasl import Login
from twisted_smtpguard.hooks.later import call_hook, start_coroutine
from twisted_smtpguard.interfaces import ISaslMechanisms
from twisted_smtpguard.values import FAULTS, Challenge, LoggedIn, LoginClient, Refused

_MOST_OCTETS = 512 - len("250-AUTH\r\n")
"""EHLO names the mechanisms in one line, which may have 512 octets (RFC 5321 4.5.3.1.5)."""


@attrs.frozen
class User:
    """A user who has logged in."""

    name: str
    avatar_id: object
    """What the checker has answered."""


@attrs.frozen
class Judgement:
    """The verdict of all checkers together."""

    user: User | None = None
    """The user. None: no checker accepts the credentials."""
    failures: Sequence[Failure] = ()
    """The failures of checkers that could not judge. If there is no user either, it is unknown whether the credentials
    are valid."""
    final: bytes = b""
    """What the client is to be sent before it is told of the verdict."""


class Checkers:
    """Asks each checker in its order until one accepts the credentials. ValueError: a checker takes no passwords."""

    def __init__(self, checkers: Sequence[Any]) -> None:
        self._sasl = [each for each in checkers if ISaslMechanisms.providedBy(each)]
        self._checkers: list[_AskedMechanisms | _AskedChecker] = []
        for checker in checkers:
            if ISaslMechanisms.providedBy(checker):
                self._checkers.append(_AskedMechanisms(checker))
            elif takes_passwords(checker):
                self._checkers.append(_AskedChecker(checker))
            else:
                raise ValueError(f"checkers: {checker!r} does not check user names with passwords")

    @property
    def hooks(self) -> dict[str, Any]:
        """What a ServerContext has of them."""
        identify = self.identify if self._checkers else None
        return {"identify": identify, "mechanisms": self.mechanisms, "begin_exchange": self.begin}

    def mechanisms(self, certified: bool) -> Sequence[str]:
        """The mechanisms of AUTH, for a client that has shown a certificate or has not."""
        own = ("PLAIN", "LOGIN") if any(each.takes_passwords for each in self._checkers) else ()
        if not self._sasl:
            return own
        others = [name for each in self._sasl for name in each.mechanisms if name not in ("PLAIN", "LOGIN")]
        return _that_fit([*own, *(name for name in others if certified or name != "EXTERNAL")])

    def begin(self, mechanism: str, client: LoginClient) -> ExchangeWithJudgement:
        """Begin an exchange by one of the mechanisms, other than PLAIN and LOGIN."""
        checker = next(each for each in self._sasl if mechanism in each.mechanisms)
        return ExchangeWithJudgement(checker.begin(mechanism, client))

    def identify(self, login: Login) -> Judgement | Deferred[Judgement]:
        """The verdict on the credentials; a Deferred if a checker answers later. If one cannot judge, the next is
        asked."""
        return start_coroutine(self._identify(login))

    async def _identify(self, login: Login) -> Judgement:
        # Some user databases accept an empty password, as a request for anonymous access.
        if not login.username or not login.password or login.acts_for not in (b"", login.username):
            return Judgement()
        failures: list[Failure] = []
        for checker in self._checkers:
            try:
                avatar_id, name = await checker.avatar_of(login)
            except UnauthorizedLogin:
                continue
            except CancelledError:
                # The client has left.
                raise
            except FAULTS:
                failures.append(Failure())
                continue
            text = name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name
            return Judgement(User(text, avatar_id), failures)
        return Judgement(None, failures)


def _that_fit(names: Sequence[str]) -> tuple[str, ...]:
    """The first of these mechanisms, each once, for which the line of EHLO has room."""
    left = _MOST_OCTETS
    fitting = []
    for name in dict.fromkeys(names):
        left -= len(name) + 1
        if left < 0:
            break
        fitting.append(name)
    return tuple(fitting)


class ExchangeWithJudgement:
    """An exchange of an ISaslMechanisms, whose end is a judgement."""

    def __init__(self, exchange: Any) -> None:
        self._exchange = exchange
        self.abort: Callable[[], object] = exchange.abort

    def respond(self, response: bytes | None) -> Any:
        """The Challenge or the Judgement; a Deferred if it comes later. Raises what the exchange does, except that a
        wrong password is a judgement."""
        return start_coroutine(self._respond(response))

    async def _respond(self, response: bytes | None) -> Challenge | Judgement:
        try:
            outcome = await call_hook(self._exchange.respond, response)
        except UnauthorizedLogin:
            return Judgement()
        if isinstance(outcome, Challenge):
            return Judgement(None, (), outcome.octets) if outcome.wrong else outcome
        if not isinstance(outcome, LoggedIn):
            raise TypeError(f"{safe_repr(outcome)} is no Challenge and no LoggedIn")
        return Judgement(User(outcome.user, outcome.avatar_id), (), outcome.final)


class _AskedMechanisms:
    """A checker that does PLAIN itself."""

    def __init__(self, checker: Any) -> None:
        self._checker = checker

    @property
    def takes_passwords(self) -> bool:
        return "PLAIN" in self._checker.mechanisms

    async def avatar_of(self, login: Login) -> tuple[object, bytes | str]:
        if not self.takes_passwords:
            raise UnauthorizedLogin
        client = login.client
        assert client is not None, "the engine gives it"
        exchange = self._checker.begin("PLAIN", client)
        try:
            outcome = await call_hook(exchange.respond, b"\0".join((b"", login.username, login.password)))
        except Refused:
            # It does not even take such a password, so it is none of its users'.
            raise UnauthorizedLogin from None
        if not isinstance(outcome, LoggedIn):
            exchange.abort()
            raise TypeError(f"{safe_repr(outcome)} is no LoggedIn")
        return outcome.avatar_id, outcome.user


_WRONG_KIND = (TypeError, AttributeError, LookupError, UnicodeError)
"""The exceptions of code that gets octets instead of text, or text instead of octets."""


class _Octets(bytes):
    """Octets that record whether they were compared with text, as by a checker that stores text. Like all octets, they
    are never equal to text."""

    noticed: bool = False

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            self.noticed = True
            return False
        return bytes.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        # In a dict with keys of text the comparison happens only if the hashes are equal, as they are for ASCII alone.
        if not self.isascii():
            self.noticed = True
        return bytes.__hash__(self)


class _Credentials(UsernamePassword):
    """A name and a password, both octets or both text. The stored password may be of the other type."""

    def checkPassword(self, password: bytes | str) -> bool:  # noqa: N802 - Twisted's name
        """Called by a checker with the password that it stores."""
        return compare_digest(_octets(self.password), _octets(password))


def _octets(password: bytes | str) -> bytes:
    return password.encode("utf-8", "surrogateescape") if isinstance(password, str) else bytes(password)


class _AskedChecker:
    """One checker. It is asked with octets or with text, whichever it stores."""

    def __init__(self, checker: Any) -> None:
        self._checker = checker
        self._keeps_text: bool | None = None
        """Whether the checker stores text; None while that is unknown."""

    takes_passwords = True

    async def avatar_of(self, login: Login) -> tuple[object, bytes | str]:
        """The checker's answer, and the user's name. Raises as `_avatar_id`."""
        avatar_id = await self._avatar_id(login)
        return avatar_id, avatar_id if isinstance(avatar_id, bytes | str) and avatar_id else login.username

    async def _avatar_id(self, login: Login) -> object:
        """The checker's answer. UnauthorizedLogin: it does not know the user, or the password is wrong. Any other
        exception is a failure of the checker, which cannot judge.
        """
        if self._keeps_text:
            return await self._ask_with_text(login)
        username, password = _Octets(login.username), _Octets(login.password)
        try:
            return await self._ask(username, password)
        except (UnauthorizedLogin, *_WRONG_KIND) as error:
            compared_with_text = username.noticed or password.noticed
            if isinstance(error, UnauthorizedLogin) and (self._keeps_text is False or not compared_with_text):
                raise
            verdict = error
        # The checker may store text.
        try:
            avatar_id = await self._ask_with_text(login)
        except _WRONG_KIND:
            self._keeps_text = False
            raise verdict from None
        self._keeps_text = True
        return avatar_id

    async def _ask_with_text(self, login: Login) -> object:
        try:
            username, password = login.username.decode(), login.password.decode()
        except UnicodeDecodeError:
            raise UnauthorizedLogin from None
        return await self._ask(username, password)

    async def _ask(self, username: Any, password: Any) -> object:
        answer: object = await call_hook(self._checker.requestAvatarId, _Credentials(username, password))
        return bytes(answer) if isinstance(answer, _Octets) else answer


def takes_passwords(checker: Any) -> bool:
    """Whether a checker, or a factory of checkers, takes a user name and a password."""
    interfaces = getattr(checker, "credentialInterfaces", ())
    return any(each in (IUsernamePassword, IUsernameHashedPassword) for each in interfaces)
