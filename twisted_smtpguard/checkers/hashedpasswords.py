"""`--auth passwd:PATH`: users and hashes of their passwords in a file, which is read again when it has changed."""

from __future__ import annotations

import os
from binascii import crc32
from importlib.util import find_spec
from typing import Any

from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred
from zope.interface import implementer

from twisted_smtpguard.checkers.passwordfile import PasswordFile, Users
from twisted_smtpguard.checkers.passwordhashes import LOCKED, matcher, parse_hashes
from twisted_smtpguard.hooks.fairthreads import FairThreads
from twisted_smtpguard.interfaces import ISaslExchange, ISaslMechanisms
from twisted_smtpguard.values import CheckerUnavailable, LoggedIn, LoginClient

_MOST_OCTETS = 1024
"""A longer password fits no hash. SHA-crypt takes thirty times as long for one of 4,096 octets as for a usual one, and
libpass takes none that is longer."""


@implementer(ISaslMechanisms)
class HashedPasswordFile(PasswordFile):
    """Accepts the users in the file `path`, with lines `user:HASH`: see docs/reference/checkers.md. It is read as a
    PasswordFile is.

    Hashes take a tenth of a second each, or more. They are computed in a few threads, which clients share fairly: who
    has logged in from a client before, and whoever has not guessed, does not wait for a crowd of guessers.
    """

    mechanisms = ("PLAIN",)
    _parse = staticmethod(parse_hashes)

    def __init__(self, path: str | os.PathLike[str], reactor: Any) -> None:
        if find_spec("passlib") is None:
            raise ValueError(
                "passwd needs libpass, which is not installed: pip install twisted_smtpguard[auth]"
            )
        super().__init__(path, reactor)
        self._decoys_of: Users | None = None
        self._decoys: list[bytes] = []
        """The hashes of all users in `_decoys_of`."""
        self._threads = FairThreads(reactor, wasted=lambda fits: not fits)

    def begin(self, mechanism: str, client: LoginClient) -> HashedExchange:
        """Begin a login by PLAIN."""
        return HashedExchange(self, client)

    def requestAvatarId(self, credentials: Any) -> Deferred[bytes | tuple[()]]:  # noqa: N802 - Twisted's name
        """Fires with the user's name. Fails with UnauthorizedLogin, or with CheckerUnavailable."""
        user, password = bytes(credentials.username), bytes(credentials.password)
        return Deferred.fromCoroutine(self.judge(user, password))

    async def judge(self, user: bytes, password: bytes, client: LoginClient | None = None) -> bytes:
        """The user, if the password fits. Otherwise UnauthorizedLogin, or CheckerUnavailable."""
        if len(password) > _MOST_OCTETS:
            raise UnauthorizedLogin
        users = await self.current_users()
        kept = users.get(user, LOCKED)
        may_log_in = kept != LOCKED
        if not may_log_in:
            kept = self._decoy(users, user)
        name, known = ("", False) if client is None else (client.key, client.known)
        if known:
            # It shares its address with guessers, perhaps.
            name = f"{name} {user.hex()}"
        try:
            fits = await self._threads.run(name, known, _fits, kept, password)
        except ValueError as error:
            # Its message may have the hash in it.
            raise CheckerUnavailable(
                f"{self.path}: the hash of {user.decode('utf-8', 'replace')!r} cannot be compared"
            ) from error
        if not (fits and may_log_in):
            raise UnauthorizedLogin
        return user

    def _decoy(self, users: Users, user: bytes) -> bytes:
        """The hash that is computed for a user who has none, so that the time does not tell who may log in. It is
        always the same for the same name, and each kind of hash is as frequent among them as in the file."""
        if users is not self._decoys_of:
            self._decoys_of = users
            self._decoys = [each for each in users.values() if each != LOCKED]
        return self._decoys[crc32(user) % len(self._decoys)] if self._decoys else LOCKED


@implementer(ISaslExchange)
class HashedExchange:
    """One login."""

    def __init__(self, file: HashedPasswordFile, client: LoginClient) -> None:
        self._file = file
        self._client = client

    async def respond(self, response: bytes | None) -> LoggedIn:
        """Judge the message of PLAIN."""
        _, user, password = (response or b"\0\0").split(b"\0")
        avatar_id = await self._file.judge(user, password, self._client)
        return LoggedIn(avatar_id.decode(), avatar_id)

    def abort(self) -> None:
        """Nothing is left of it."""


def _fits(kept: bytes, password: bytes) -> bool:
    return kept != LOCKED and matcher(kept)(password)
