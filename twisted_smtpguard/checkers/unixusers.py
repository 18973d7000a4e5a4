"""`--auth unix`: the accounts of this host, if their passwords can be checked."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred
from zope.interface import implementer

from twisted_smtpguard.hooks.threads import OneThread, ThreadedReactor
from twisted_smtpguard.values import CheckerUnavailable

_SHADOW = "/etc/shadow"
_NO_PASSWORD = ("", "x")
"""Entries of accounts without a password login. Those that begin with "*" or "!" have none either."""


def why_unusable() -> str:
    """Why no password of the system can be checked in this process; "" if it can be."""
    for module in ("crypt", "spwd"):
        try:
            _imported(module)
        except ImportError:
            return f"this Python has no module {module}, which Python 3.13 removed, so no password can be checked"
    try:
        with open(_SHADOW, "rb"):  # noqa: PTH123 - only whether it can be opened
            return ""
    except OSError as error:
        return f"{_SHADOW}: {error.strerror}; only a process that can read it, such as root's, can check passwords"


@implementer(ICredentialsChecker)
class UnixUsers:
    """Accepts the users who have an account with a password on this host. Hashes, which take some milliseconds, are
    computed in one of the threads of `reactor`, one at a time. If the shadow file cannot be read, or has a hash of an
    unknown kind, credentials cannot be judged: CheckerUnavailable.
    """

    credentialInterfaces = (IUsernamePassword,)  # noqa: N815 - Twisted's name

    def __init__(self, reactor: ThreadedReactor) -> None:
        self._thread = OneThread(reactor)

    def requestAvatarId(self, credentials: Any) -> Deferred[bytes | tuple[()]]:  # noqa: N802 - Twisted's name
        """Fires with the user's name. Fails with UnauthorizedLogin, or with CheckerUnavailable."""
        return self._thread.run(_judge, bytes(credentials.username), bytes(credentials.password))


def _judge(user: bytes, password: bytes) -> bytes | tuple[()]:
    """The user's name, if the password is right. Called in a thread."""
    try:
        name, word = user.decode(), password.decode()
    except UnicodeDecodeError:
        # Python's crypt() takes text only.
        raise UnauthorizedLogin from None
    try:
        kept: str = _imported("spwd").getspnam(name).sp_pwdp
    except KeyError:
        # There is no such user.
        raise UnauthorizedLogin from None
    except OSError as error:
        raise CheckerUnavailable(f"{_SHADOW}: {error.strerror}") from error
    if kept in _NO_PASSWORD or kept.startswith(("*", "!")):
        raise UnauthorizedLogin
    try:
        made = _imported("crypt").crypt(word, kept)
    except OSError:
        made = None
    if made is None or made.startswith("*"):
        raise CheckerUnavailable(
            f"{_SHADOW}: the password of {name!r} has a format that this host does not know"
        )
    if made != kept:
        raise UnauthorizedLogin
    return user


def _imported(module: str) -> Any:
    with warnings.catch_warnings():
        # The operator need not see that the module is deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        return import_module(module)
