"""Whether credentials are right: what twisted.cred's checkers say."""

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
from twisted_smtpguard.hooks.later import begun


@attrs.frozen
class User:
    """Who has logged in."""

    name: str
    avatar_id: object
    """What the checker answered, as it is."""


@attrs.frozen
class Judgement:
    """What all checkers together say of credentials."""

    user: User | None = None
    """Who it is. None: no checker knows the user by this password."""
    failures: Sequence[Failure] = ()
    """Of checkers that could not judge. Where there is no user either, nobody can say whether the credentials are
    right."""


class Checkers:
    """Asks each checker in its order until one knows the user. ValueError for one that checks no passwords."""

    def __init__(self, checkers: Sequence[Any]) -> None:
        for checker in checkers:
            if not takes_passwords(checker):
                raise ValueError(f"checkers: {checker!r} does not check user names with passwords")
        self._checkers = tuple(AskedChecker(checker) for checker in checkers)

    def identify(self, login: Login) -> Judgement | Deferred[Judgement]:
        """Who has these credentials; a Deferred where a checker takes its time. One that cannot judge keeps nobody from
        asking the next."""
        return begun(self._identify(login))

    async def _identify(self, login: Login) -> Judgement:
        # Some user databases take an empty password for no wish to log in, and say yes.
        if not login.username or not login.password or login.acts_for not in (b"", login.username):
            return Judgement()
        failures: list[Failure] = []
        for checker in self._checkers:
            try:
                avatar_id = await checker.avatar_id(login)
            except UnauthorizedLogin:
                continue
            except CancelledError:
                # Nobody waits for an answer.
                raise
            except Exception:  # noqa: BLE001 - a checker is somebody else's code
                failures.append(Failure())
                continue
            name = avatar_id if isinstance(avatar_id, bytes | str) and avatar_id else login.username
            text = name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name
            return Judgement(User(text, avatar_id), failures)
        return Judgement(None, failures)


def takes_passwords(checker: Any) -> bool:
    """Whether a checker, or a factory of such, has anything to say about a user name and a password."""
    interfaces = getattr(checker, "credentialInterfaces", ())
    return any(each in (IUsernamePassword, IUsernameHashedPassword) for each in interfaces)
