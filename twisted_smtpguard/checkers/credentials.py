"""What a checker of twisted.cred is given: a user's name and password as octets, as Twisted has it, or as text where
the checker shows that it keeps text."""

from __future__ import annotations

from hmac import compare_digest
from typing import Any

from twisted.cred.credentials import UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.python.failure import Failure

from twisted_smtpguard.engine.sasl import Login
from twisted_smtpguard.hooks.later import asked

_WRONG_KIND = (TypeError, AttributeError, LookupError, UnicodeError)
"""What code raises that is given octets for text, or text for octets."""


class _Octets(bytes):
    """Octets that notice whether they are compared with text. They never equal it, as all octets do."""

    noticed: bool = False

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            self.noticed = True
            return False
        return bytes.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        # A table of text is asked for text of the same hash, which only ASCII has as octets too.
        if not self.isascii():
            self.noticed = True
        return bytes.__hash__(self)


class _Credentials(UsernamePassword):
    """A name and a password of one kind. The password that is kept may be of the other."""

    def __init__(self, username: Any, password: Any) -> None:
        super().__init__(username, password)

    def checkPassword(self, password: bytes | str) -> bool:  # noqa: N802 - Twisted's name
        """Called by a checker with the password that it keeps."""
        return compare_digest(_octets(self.password), _octets(password))


def _octets(password: bytes | str) -> bytes:
    return password.encode("utf-8", "surrogateescape") if isinstance(password, str) else bytes(password)


class AskedChecker:
    """One checker, and what is known of what it keeps."""

    def __init__(self, checker: Any) -> None:
        self._checker = checker
        self._keeps_text: bool | None = None
        """None: it has not shown it yet."""

    async def avatar_id(self, login: Login) -> object:
        """What the checker answers. UnauthorizedLogin: it does not know the user, or the password is another.

        Any other exception is the checker's: it cannot judge.
        """
        if self._keeps_text:
            return await self._ask_with_text(login)
        username, password = _Octets(login.username), _Octets(login.password)
        try:
            return await self._ask(_Credentials(username, password))
        except UnauthorizedLogin:
            verdict = Failure()
            if self._keeps_text is False or not (username.noticed or password.noticed):
                raise
        except _WRONG_KIND:
            verdict = Failure()
        # What it keeps may be text.
        try:
            avatar_id = await self._ask_with_text(login)
        except UnauthorizedLogin:
            raise
        except _WRONG_KIND:
            self._keeps_text = False
            verdict.raiseException()
        self._keeps_text = True
        return avatar_id

    async def _ask_with_text(self, login: Login) -> object:
        try:
            credentials = _Credentials(login.username.decode(), login.password.decode())
        except UnicodeDecodeError:
            raise UnauthorizedLogin from None
        return await self._ask(credentials)

    async def _ask(self, credentials: _Credentials) -> object:
        answer: object = await asked(self._checker.requestAvatarId, credentials)
        return bytes(answer) if isinstance(answer, _Octets) else answer
