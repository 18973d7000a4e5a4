"""The parser of a password file, with lines `user:password`. Pure: octets in, users and passwords out, or a ValueError.

    # A line that begins with # is a comment. Empty lines are skipped.
    ann:correct horse
    bob:a:colon and a blank at the end

Everything after the first colon is the password, octet for octet. A line ends with LF or CRLF.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress

_BOM = b"\xef\xbb\xbf"
_LINES_AT_ONCE = 256
_EXPECTED = "a line `user:password` is expected"
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_CRYPT_HASH = re.compile(rb"\$[0-9a-z-]{1,16}\$\S{16,}|\{[A-Z][A-Z0-9.-]+\}\S{8,}")
"""The hashes that crypt(3), htpasswd, LDAP and Dovecot write: `$6$…` and `{SSHA}…`."""
_PASSWD_FIELDS = re.compile(rb"x:\d+:\d+:[^:]*:[^:]*:[^:]*")
"""The fields after the name in /etc/passwd."""


def parse_users(octets: bytes, yield_gil: Callable[[], object] = lambda: None) -> dict[bytes, bytes]:
    """The password of each user. `yield_gil` is called after each short piece of work.

    ValueError names the line that is wrong, and never repeats a password. A file without users is wrong too.
    """
    users: dict[bytes, bytes] = {}
    lines: dict[bytes, int] = {}
    for number, line in enumerate(octets.removeprefix(_BOM).split(b"\n"), 1):
        if number % _LINES_AT_ONCE == 0:
            yield_gil()
        try:
            parsed = parse_line(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        if parsed is None:
            continue
        user, password = parsed
        if user in users:
            raise ValueError(f"line {number}: the user {user.decode()!r} is on line {lines[user]} already")
        users[user] = password
        lines[user] = number
    if not users:
        raise ValueError("there is no user in it")
    return users


def parse_line(line: bytes) -> tuple[bytes, bytes] | None:
    """The user and the password of a line without its LF. None: the line is empty, or a comment.

    ValueError says why the line is wrong.
    """
    line = line.removesuffix(b"\r")
    if not line.strip() or line.startswith(b"#"):
        return None
    user, colon, password = line.partition(b":")
    if not colon:
        raise ValueError(f"{_EXPECTED}, and there is no colon")
    problem = _wrong_user(user) or _wrong_password(password)
    if problem:
        raise ValueError(f"{_EXPECTED}, and {problem}")
    return user, password


def _wrong_user(user: bytes) -> str:
    if not user:
        return "there is no user before the colon"
    if user != user.strip():
        return "there is a blank before or after the user's name"
    if _CONTROL.search(user):
        return "there is a control character in the user's name"
    with suppress(UnicodeDecodeError):
        user.decode()
        return ""
    return "the user's name is not UTF-8"


def _wrong_password(password: bytes) -> str:
    if not password:
        return "there is no password after the colon"
    if b"\0" in password:
        return "there is a NUL in the password, as in a file of UTF-16"
    if b"\r" in password:
        return "there is a CR in the password"
    if _CRYPT_HASH.fullmatch(password.partition(b":")[0]):
        return "this is a hash, while passwords must be in clear"
    if _PASSWD_FIELDS.fullmatch(password):
        return "this is a line of /etc/passwd, which has no passwords"
    return ""
