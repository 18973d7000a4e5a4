"""What a client says to log in, and a checker that answers what a test says."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

from twisted.cred.credentials import IUsernamePassword

USER, PASSWORD = b"ann", b"o-so-secret"


def base64(octets: bytes) -> str:
    return b64encode(octets).decode()


def plain(password: bytes = PASSWORD, user: bytes = USER, acts_for: bytes = b"") -> str:
    return base64(b"\0".join((acts_for, user, password)))


class Checker:
    """Answers what a test says, and remembers who was asked about."""

    credentialInterfaces = (IUsernamePassword,)

    def __init__(self, answer: Any = None) -> None:
        self.asked: list[Any] = []
        self._answer = answer

    def requestAvatarId(self, credentials: Any) -> Any:
        self.asked.append((credentials.username, credentials.password))
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer
