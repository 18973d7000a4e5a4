"""The verdict on credentials, for which the checkers of twisted.cred are asked.

A checker gets the user's name and password as octets, as in Twisted, or as text if it shows that it stores text.
"""

from __future__ import annotations

from collections.abc import Sequence
from hmac import compare_digest
from typing import Any

import attrs
from twisted.cred.credentials import IUsernameHashedPassword, IUsernamePassword, UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from twisted_smtpguard.engine.sasl import Login
from twisted_smtpguard.hooks.later import call_hook, start_coroutine
from twisted_smtpguard.values import FAULTS


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


class Checkers:
    """Asks each checker in its order until one accepts the credentials. ValueError: a checker takes no passwords."""

    def __init__(self, checkers: Sequence[Any]) -> None:
        for checker in checkers:
            if not takes_passwords(checker):
                raise ValueError(f"checkers: {checker!r} does not check user names with passwords")
        self._checkers = tuple(_AskedChecker(checker) for checker in checkers)

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
                avatar_id = await checker.avatar_id(login)
            except UnauthorizedLogin:
                continue
            except CancelledError:
                # The client has left.
                raise
            except FAULTS:
                failures.append(Failure())
                continue
            name = avatar_id if isinstance(avatar_id, bytes | str) and avatar_id else login.username
            text = name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name
            return Judgement(User(text, avatar_id), failures)
        return Judgement(None, failures)


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

    async def avatar_id(self, login: Login) -> object:
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
