"""The checkers that `--auth` may name: the guard's own, and those of other distributions that Twisted's strcred finds.

Twisted's own checkers of the same names do less: its `file` cuts a password at its second colon, its `memory` accepts
nobody, and its `unix` computes hashes in the reactor's own thread.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import attrs
from twisted.cred import strcred
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse

from twisted_smtpguard.checkers.checking import takes_passwords
from twisted_smtpguard.checkers.dovecot import DovecotAuth
from twisted_smtpguard.checkers.hashedpasswords import HashedPasswordFile
from twisted_smtpguard.checkers.passwordfile import PasswordFile
from twisted_smtpguard.checkers.unixusers import UnixUsers, why_unusable
from twisted_smtpguard.limits.units import parse_path


@attrs.frozen
class _Builtin:
    """A checker that comes with the guard."""

    argument_format: str
    """The argument after the colon, described in one line."""
    make: Callable[[str, Any], Any]
    """Makes the checker from the argument and the reactor. ValueError is a sentence that does not repeat the argument,
    which may be a password. Its docstring is the text of --help-auth-type."""
    why_unusable: str = ""
    """Why the checker cannot work in this process; "" if it can."""


def make_checker(specification: str, reactor: Any) -> Any:
    """Make the checker for NAME[:ARGS]. ValueError is a sentence that does not repeat ARGS, which may be a password."""
    name, _, argument = specification.partition(":")
    factory = _factory(name)
    if isinstance(factory, _Builtin):
        return factory.make(argument, reactor)
    if not takes_passwords(factory):
        raise ValueError(f"{name} does not check user names with passwords")
    try:
        return factory.generateChecker(argument)
    except Exception as error:  # whatever a plugin raises
        raise _expected(name, factory.argStringFormat) from error


def checkers_table() -> str:
    """One line for each checker, with the argument after its colon, or why it cannot be used here."""
    lines = {name: factory.argStringFormat for name, factory in _others().items()}
    for name, each in _builtin().items():
        lines[name] = f"Not here: {each.why_unusable}." if each.why_unusable else each.argument_format
    width = max(map(len, lines))
    return "\n".join(f"{name.ljust(width)}  {lines[name]}" for name in sorted(lines))


def checker_description(name: str) -> str:
    """The help text of one checker."""
    factory = _factory(name)
    if isinstance(factory, _Builtin):
        about, text = factory.argument_format, inspect.getdoc(factory.make) or ""
        if factory.why_unusable:
            text += f"\nIt cannot be used here: {factory.why_unusable}."
    else:
        about, text = factory.argStringFormat, factory.authHelp
    return "\n".join([f"{name}: {about}", *(line.rstrip() for line in text.strip().splitlines())])


def _others() -> dict[str, Any]:
    """The checkers of other distributions that take passwords. If two have the same name, strcred uses the first."""
    factories = [*filter(takes_passwords, strcred.findCheckerFactories())]
    found = {factory.authType: factory for factory in reversed(factories)}
    return {name: found[name] for name in found.keys() - _builtin().keys()}


def _factory(name: str) -> Any:
    if name in _builtin():
        return _builtin()[name]
    try:
        return strcred.findCheckerFactory(name)
    except strcred.InvalidAuthType as error:
        known = ", ".join(sorted([*_others(), *_builtin()]))
        raise ValueError(f"one of {known} is expected, not {name!r}") from error


def _make_file(argument: str, reactor: Any) -> PasswordFile:
    """Each line of the file is `user:password`, with the password in clear. A line that begins
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
    if not argument.strip():
        raise _expected("file", _FILE_FORMAT)
    return PasswordFile(parse_path(argument), reactor)


def _make_memory(argument: str, reactor: object) -> InMemoryUsernamePasswordDatabaseDontUse:
    """Users and passwords on the command line, where everybody on the host can read them: for
    tests only. Neither may contain a colon; use file for those that do.
    """
    words = argument.encode("utf-8", "surrogateescape").split(b":")
    if len(words) % 2 or not all(words):
        raise _expected("memory", _MEMORY_FORMAT)
    users = dict(zip(words[::2], words[1::2], strict=True))
    if len(users) < len(words) / 2:
        raise ValueError("memory: a user is given twice")
    checker = InMemoryUsernamePasswordDatabaseDontUse()
    checker.users = users
    return checker


def _make_unix(argument: str, reactor: Any) -> UnixUsers:
    """The accounts of this host, with the passwords in /etc/shadow. The guard must be able to
    read that file, as root can, and Python must have the modules crypt and spwd, which
    Python 3.12 was the last to have. The system's PAM is not used.
    """
    if argument:
        raise _expected("unix", _UNIX_FORMAT)
    problem = why_unusable()
    if problem:
        raise ValueError(f"unix: {problem}")
    return UnixUsers(reactor)


def _expected(name: str, argument_format: str) -> ValueError:
    return ValueError(f"{name}: the argument after the colon must be: {argument_format}")


def _make_dovecot(argument: str, reactor: Any) -> DovecotAuth:
    """Users log in against Dovecot, or another server of its authentication protocol (versions
    1.1 and later). The argument is an endpoint, as a rule unix:/run/dovecot/auth-client: a
    socket that Dovecot's `service auth` has for others. Besides PLAIN and LOGIN the mechanisms
    are offered that the server has, such as SCRAM-SHA-256 and OAUTHBEARER. EXTERNAL is offered
    to clients with a certificate (--tls-client-authorities).

    One connection is kept for all logins. While the server cannot be reached, or says that its
    failure is temporary, AUTH is answered with 454.
    """
    try:
        return DovecotAuth(argument.strip(), reactor)
    except (ValueError, TypeError, LookupError):
        raise _expected("dovecot", _DOVECOT_FORMAT) from None


def _make_hashes(argument: str, reactor: Any) -> HashedPasswordFile:
    """Each line of the file is `user:HASH`. A line that begins with # is a comment, and empty
    lines are skipped. What follows another colon, as in a passwd-file of Dovecot, is ignored.

    A hash is one of crypt(3), as htpasswd and mkpasswd write them: bcrypt ($2y$), SHA-crypt
    ($5$, $6$), argon2, MD5 ($1$, $apr1$), DES; or one with a scheme of Dovecot in braces, such as
    {SSHA256}, {BLF-CRYPT}, {SHA512-CRYPT}, {ARGON2ID}, {PBKDF2}, {SCRAM-SHA-256} and {PLAIN}. A
    user whose hash is * or begins with ! cannot log in.

    A wrong line is refused at start. The file is read again when it has changed; if it has a
    wrong line then, the old users stay in force, and the log says so. Needs the extra auth:
    pip install twisted_smtpguard[auth].
    """
    if not argument.strip():
        raise _expected("passwd", _HASHES_FORMAT)
    return HashedPasswordFile(parse_path(argument), reactor)


_HASHES_FORMAT = "The path of a file with a line user:HASH for each user."
_DOVECOT_FORMAT = "An endpoint such as unix:/run/dovecot/auth-client or tcp:127.0.0.1:12345."
_FILE_FORMAT = "The path of a file with a line user:password for each user."
_MEMORY_FORMAT = "A colon-separated list (name:password:...), none of them empty."
_UNIX_FORMAT = "Nothing."


def _builtin() -> dict[str, _Builtin]:
    """The checkers that come with the guard, by name."""
    return {
        "dovecot": _Builtin(_DOVECOT_FORMAT, _make_dovecot),
        "file": _Builtin(_FILE_FORMAT, _make_file),
        "memory": _Builtin(_MEMORY_FORMAT, _make_memory),
        "passwd": _Builtin(_HASHES_FORMAT, _make_hashes),
        "unix": _Builtin(_UNIX_FORMAT, _make_unix, why_unusable()),
    }
