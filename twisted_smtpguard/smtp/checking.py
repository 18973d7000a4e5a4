"""Whether credentials are right: what twisted.cred's checkers say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from twisted.cred.credentials import IUsernameHashedPassword, IUsernamePassword, UsernamePassword
from twisted.cred.error import UnauthorizedLogin

from twisted_smtpguard.later import asked
from twisted_smtpguard.smtp.sasl import Login


@attrs.frozen
class User:
    """Who has logged in."""

    name: str
    avatar_id: object
    """What the checker answered, as it is."""


class Checkers:
    """Asks each checker in its order until one knows the user. ValueError for one that checks no passwords."""

    def __init__(self, checkers: Sequence[Any]) -> None:
        for checker in checkers:
            if not takes_passwords(checker):
                raise ValueError(f"{checker!r} does not check user names with passwords")
        self._checkers = tuple(checkers)

    async def identify(self, login: Login) -> User | None:
        """The user, or None. Raises what a checker raises that is no verdict."""
        # Some user databases take an empty password for no wish to log in, and say yes.
        if not login.username or not login.password or login.acts_for not in (b"", login.username):
            return None
        for checker in self._checkers:
            credentials = UsernamePassword(login.username, login.password)
            try:
                avatar_id: object = await asked(checker.requestAvatarId, credentials)
            except UnauthorizedLogin:
                continue
            name = avatar_id if isinstance(avatar_id, bytes | str) and avatar_id else login.username
            return User(
                name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name, avatar_id
            )
        return None


def takes_passwords(checker: Any) -> bool:
    """Whether a checker, or a factory of such, has anything to say about a user name and a password."""
    interfaces = checker.credentialInterfaces
    return any(each in (IUsernamePassword, IUsernameHashedPassword) for each in interfaces)
