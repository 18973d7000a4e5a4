"""The verdict on credentials, which checkers of twisted.cred give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from twisted.cred.credentials import IUsernameHashedPassword, IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from twisted_smtpguard.checkers.credentials import AskedChecker
from twisted_smtpguard.engine.sasl import Login
from twisted_smtpguard.hooks.later import start_coroutine


@attrs.frozen
class User:
    """A user who has logged in."""

    name: str
    avatar_id: object
    """The checker's own answer."""


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
        self._checkers = tuple(AskedChecker(checker) for checker in checkers)

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
            except Exception:  # noqa: BLE001 - a checker is foreign code
                failures.append(Failure())
                continue
            name = avatar_id if isinstance(avatar_id, bytes | str) and avatar_id else login.username
            text = name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name
            return Judgement(User(text, avatar_id), failures)
        return Judgement(None, failures)


def takes_passwords(checker: Any) -> bool:
    """Whether a checker, or a factory of checkers, takes a user name and a password."""
    interfaces = getattr(checker, "credentialInterfaces", ())
    return any(each in (IUsernamePassword, IUsernameHashedPassword) for each in interfaces)
