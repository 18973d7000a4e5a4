"""`--auth file:PATH`: users and passwords in a file, which is read again when it has changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from hmac import compare_digest
from typing import Any, Protocol, TypeAlias

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_smtpguard.checkers.passwordlines import parse_users
from twisted_smtpguard.engine.port import Cancellable
from twisted_smtpguard.hooks.threads import ReadInThread, ThreadedReactor, yield_gil
from twisted_smtpguard.inputs.arguments import checked
from twisted_smtpguard.inputs.regularfile import FaultyFileError, open_regular
from twisted_smtpguard.interfaces import IPreparedReload, IReadsFiles
from twisted_smtpguard.log.eventlog import EventLog, of_file
from twisted_smtpguard.values import CheckerUnavailable

_SECONDS = 5
"""How long a look at the file, or reading it, may take. After that the disk counts as hanging."""

_UNSETTLED_SECONDS = 0.1
"""A file that was last written less than this before it was read may change again without a newer time."""

Users: TypeAlias = "dict[bytes, bytes]"
_Version: TypeAlias = "tuple[int, ...]"
_Reading: TypeAlias = "tuple[_Version | None, Users | str]"
"""The version of the file, or None if it may change again without a newer time; and its users, or the text that says
which line is wrong and why."""


class _Reactor(ThreadedReactor, Protocol):
    def callLater(self, delay: float, callable: Any) -> Any: ...  # noqa: A002, N802 - Twisted's names


@implementer(ICredentialsChecker, IPreparedReload, IReadsFiles)
class PasswordFile(ReadInThread[_Reading]):
    """Accepts the users in the file `path`, with lines `user:password`: see docs/reference/checkers.md.

    The file is read at once; ValueError says why it cannot be read, or which line is wrong. At each login the checker
    looks whether it has changed, and reads it again then, in one of the threads of `reactor`. If a line is wrong then,
    the old users stay in force, and the log says so once. If the file cannot be read, or the disk does not answer
    within 5 seconds, credentials cannot be judged: CheckerUnavailable.
    """

    credentialInterfaces = (IUsernamePassword,)  # noqa: N815 - Twisted's name
    _parse = staticmethod(parse_users)

    @checked
    def __init__(self, path: str | os.PathLike[str], reactor: _Reactor) -> None:
        super().__init__(reactor)
        self.path = os.fspath(path)
        self._reactor = reactor
        try:
            self._version, users = _read(self.path, self._parse)
        except FileNotFoundError:
            raise ValueError(f"there is no file {self.path!r}") from None
        except OSError as error:
            raise ValueError(f"{self.path}: {error.strerror}") from error
        if isinstance(users, str):
            raise ValueError(f"{self.path} {users}")
        self._users = users
        self._log = EventLog(reactor.seconds)
        self._looking = False
        """Whether a thread is at work on the file."""
        self._timer: Cancellable | None = None
        """The time limit of that look. None while a thread is at work means that the limit has passed."""
        self._waiting: list[Deferred[Users]] = []
        """The logins that came before that thread began to look."""
        self._next: list[Deferred[Users]] = []
        """The logins that came later, for which the file may have changed since."""

    @property
    def files(self) -> Mapping[str, str]:
        """The file that a reload reads."""
        return {self.path: "auth"}

    def requestAvatarId(self, credentials: Any) -> Deferred[bytes | tuple[()]]:  # noqa: N802 - Twisted's name
        """Fires with the user's name. Fails with UnauthorizedLogin, or with CheckerUnavailable."""
        user, password = bytes(credentials.username), bytes(credentials.password)
        return self.current_users().addCallback(_judge, user, password)

    def _read(self) -> _Reading:
        reading: _Reading = _read(self.path, self._parse, None, yield_gil)
        if isinstance(reading[1], str):
            raise FaultyFileError("auth", self.path, reading[1])
        return reading

    def current_users(self) -> Deferred[Users]:
        """Fires with the users that the file has now. All logins that come during one look share the next look."""
        waiting: Deferred[Users] = Deferred(self._forget)
        if self._looking and self._timer is None:
            return fail(self._hanging())
        self._next.append(waiting)
        if not self._looking:
            self._look()
        return waiting

    def _forget(self, waiting: Deferred[Users]) -> None:
        """Called when a login is cancelled, because its client has disconnected."""
        for each in (self._waiting, self._next):
            if waiting in each:
                each.remove(waiting)

    def _look(self) -> None:
        self._waiting, self._next = self._next, []
        self._looking = True
        self._timer = self._reactor.callLater(_SECONDS, self._time_out)
        self._in_thread(_read, self.path, self._parse, self._version, yield_gil).addBoth(self._looked)

    def _time_out(self) -> None:
        self._timer = None
        waiting = [*self._waiting, *self._next]
        self._waiting, self._next = [], []
        for each in waiting:
            # A callback of one login may have cancelled another.
            if not each.called:
                each.errback(self._hanging())

    def _looked(self, outcome: _Reading | Failure | None) -> None:
        self._looking = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, []
        unreadable: CheckerUnavailable | None = None
        if isinstance(outcome, Failure):
            error = outcome.value
            reason = error.strerror if isinstance(error, OSError) else type(error).__name__
            unreadable = CheckerUnavailable(f"{self.path}: {reason}")
        elif outcome is not None:
            self._take(outcome)
        for each in waiting:
            # A callback of one login may have cancelled another.
            if not each.called:
                each.callback(self._users if unreadable is None else Failure(unreadable))
        # A callback above may have asked again, and so have begun the next look.
        if self._next and not self._looking:
            self._look()

    def _take(self, data: _Reading) -> None:
        self._version, users = data
        if isinstance(users, str):
            problem = f"{users}; the old users stay in force"
            self._log.warn("reload_failed", of_file("checker", "auth", self.path), problem)
        else:
            self._users = users

    def _hanging(self) -> CheckerUnavailable:
        return CheckerUnavailable(f"{self.path}: no answer from the disk in {_SECONDS} seconds")


def _judge(users: Users, user: bytes, password: bytes) -> bytes | tuple[()]:
    # The passwords are compared for an unknown user too, and in a time that does not tell how much of one is right.
    right = compare_digest(users.get(user, b""), password)
    if not right or user not in users:
        raise UnauthorizedLogin
    return user


def _read(
    path: str,
    parse: Callable[[bytes, Callable[[], object]], Any],
    known: _Version | None = None,
    yield_gil: Callable[[], object] = lambda: None,
) -> Any:
    """Read the file; returns None if its version is still `known`. Called in a thread. OSError: it cannot be read, or
    is not a regular file."""
    if known is not None and _version(os.stat(path)) == known:  # noqa: PTH116 - it costs less
        return None
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        octets = file.read()
    settled = abs(time.time() - status.st_mtime) > _UNSETTLED_SECONDS
    version = _version(status) if settled else None
    try:
        return version, parse(octets, yield_gil)
    except ValueError as error:
        return version, str(error)


def _version(status: os.stat_result) -> _Version:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
