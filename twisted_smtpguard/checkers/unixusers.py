"""`--auth unix`: the accounts of this host, where their passwords can be checked."""

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
_LOCKED = ("", "*", "!", "x")
"""With these, or with what begins with one of the middle two, nobody logs in by password."""


def why_unusable() -> str:
    """Why no password of the system can be checked in this process. "": it can be."""
    for module in ("crypt", "spwd"):
        try:
            _imported(module)
        except ImportError:
            return f"this Python has no module {module}, as none has since 3.13, so that no password can be checked"
    try:
        with open(_SHADOW, "rb"):  # noqa: PTH123 - whether it can be
            return ""
    except OSError as error:
        return f"{_SHADOW}: {error.strerror}; only a process that can read it, such as root's, can check passwords"


@implementer(ICredentialsChecker)
class UnixUsers:
    """Logs in who has an account with a password on this host. To compute a hash takes some milliseconds, in one of the
    threads of `reactor`, one at a time. Where the shadow file cannot be read, or has a hash of an unknown kind,
    credentials cannot be judged: CheckerUnavailable.
    """

    credentialInterfaces = (IUsernamePassword,)  # noqa: N815 - Twisted's name

    def __init__(self, reactor: ThreadedReactor) -> None:
        self._thread = OneThread(reactor)

    def requestAvatarId(self, credentials: Any) -> Deferred[bytes | tuple[()]]:  # noqa: N802 - Twisted's name
        """Fires with the user's name. Fails with UnauthorizedLogin, or with CheckerUnavailable."""
        return self._thread.run(_judge, bytes(credentials.username), bytes(credentials.password))


def _judge(user: bytes, password: bytes) -> bytes | tuple[()]:
    """Called in a thread."""
    try:
        name, word = user.decode(), password.decode()
    except UnicodeDecodeError:
        # crypt() of Python takes text only.
        raise UnauthorizedLogin from None
    kept = _kept(name)
    if kept in _LOCKED or kept.startswith(("*", "!")):
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


def _kept(name: str) -> str:
    """The hash of a user's password. UnauthorizedLogin: there is no such user."""
    try:
        kept: str = _imported("spwd").getspnam(name).sp_pwdp
    except KeyError:
        raise UnauthorizedLogin from None
    except OSError as error:
        raise CheckerUnavailable(f"{_SHADOW}: {error.strerror}") from error
    return kept


def _imported(module: str) -> Any:
    with warnings.catch_warnings():
        # That it is gone in 3.13 is not the operator's to see.
        warnings.simplefilter("ignore", DeprecationWarning)
        return import_module(module)
