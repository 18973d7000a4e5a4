"""The checkers of `--auth` that come with the guard.

Twisted's own checkers of the same names do less: its `file` cuts a password at its second colon, its `memory` accepts
nobody, and its `unix` computes hashes in the reactor's own thread.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

import attrs
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse

from twisted_smtpguard.checkers.passwordfile import PasswordFile
from twisted_smtpguard.checkers.unixusers import UnixUsers, why_unusable


class _Make(Protocol):
    def __call__(self, argument: str, reactor: Any) -> Any: ...


@attrs.frozen
class BuiltinChecker:
    """A checker that `--auth` may name."""

    name: str
    argument_format: str
    """The argument after the colon, described in one line."""
    help: str
    """The text of --help-auth-type."""
    make: _Make
    """Makes the checker. ValueError is a sentence that does not repeat the argument, which may be a password."""
    why_unusable: str = ""
    """Why the checker cannot work in this process; "" if it can."""


def _make_file(argument: str, reactor: Any) -> PasswordFile:
    if not argument.strip():
        raise ValueError(_expected("file", _FILE_FORMAT))
    return PasswordFile(os.path.expanduser(argument), reactor)  # noqa: PTH111 - the path stays as it was written


def _make_memory(argument: str, reactor: object) -> InMemoryUsernamePasswordDatabaseDontUse:
    words = argument.encode("utf-8", "surrogateescape").split(b":")
    if len(words) % 2 or not all(words):
        raise ValueError(_expected("memory", _MEMORY_FORMAT))
    users = dict(zip(words[::2], words[1::2], strict=True))
    if len(users) < len(words) / 2:
        raise ValueError("memory: a user is given twice")
    checker = InMemoryUsernamePasswordDatabaseDontUse()
    checker.users = users
    return checker


def _make_unix(argument: str, reactor: Any) -> UnixUsers:
    if argument:
        raise ValueError(_expected("unix", _UNIX_FORMAT))
    problem = why_unusable()
    if problem:
        raise ValueError(f"unix: {problem}")
    return UnixUsers(reactor)


def _expected(name: str, argument_format: str) -> str:
    return f"{name}: the argument after the colon must be: {argument_format}"


_FILE_FORMAT = "The path of a file with a line user:password for each user."
_MEMORY_FORMAT = "A colon-separated list (name:password:...), none of them empty."
_UNIX_FORMAT = "Nothing."

_FILE_HELP = """
Each line of the file is `user:password`, with the password in clear. A line that begins
with # is a comment, and empty lines are skipped. A line ends with LF or CRLF, and the
file may begin with a BOM.

Everything after the first colon is the password, octet for octet: it may contain colons,
blanks (also at its ends), any character of UTF-8 and any other octet but NUL, CR and LF.
It has at least one octet. The name of a user is UTF-8; it has no colon and no control
character, no blank at its ends, and does not begin with #.

A wrong line is refused at start, and so are two lines for one user, a hash instead of a
password, and a file without users. The file is read again when it has changed; if it has
a wrong line then, the old users stay in force, and the log says so. While the file
cannot be read, AUTH is answered with 454.
"""

_MEMORY_HELP = """
Users and passwords on the command line, where everybody on the host can read them: for
tests only. Neither may contain a colon; use file for those that do.
"""

_UNIX_HELP = """
The accounts of this host, with the passwords in /etc/shadow. The guard must be able to
read that file, as root can, and Python must have the modules crypt and spwd, which
Python 3.12 was the last to have. The system's PAM is not used.
"""


def builtin_checkers() -> Sequence[BuiltinChecker]:
    """The checkers that come with the guard."""
    return (
        BuiltinChecker("file", _FILE_FORMAT, _FILE_HELP, _make_file),
        BuiltinChecker("memory", _MEMORY_FORMAT, _MEMORY_HELP, _make_memory),
        BuiltinChecker("unix", _UNIX_FORMAT, _UNIX_HELP, _make_unix, why_unusable()),
    )
