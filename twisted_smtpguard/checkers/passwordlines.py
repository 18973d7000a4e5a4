"""The parser of a password file, with lines `user:password`. Pure: octets in, users and passwords out, or a ValueError.

    # A line that begins with # is a comment. Empty lines are skipped.
    ann:correct horse
    bob:a:colon and a blank at the end

Everything after the first colon is the password, octet for octet. A line ends with LF or CRLF.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_BOM = b"\xef\xbb\xbf"
_LINES_AT_ONCE = 256
_EXPECTED = "a line `user:password` is expected"

_WRONG_USERS = [
    (rb"", "there is no user before the colon"),
    (rb"\s.*|.*\s", "there is a blank before or after the user's name"),
    (rb".*[\x00-\x1f\x7f].*", "there is a control character in the user's name"),
]
_WRONG_PASSWORDS = [
    (rb"", "there is no password after the colon"),
    (rb".*\0.*", "there is a NUL in the password, as in a file of UTF-16"),
    (rb".*\r.*", "there is a CR in the password"),
    # What crypt(3), htpasswd, LDAP and Dovecot write: `$6$…` and `{SSHA}…`.
    (
        rb"(\$[0-9a-z-]{1,16}\$[^\s:]{16,}|\{[A-Z][A-Z0-9.-]+\}[^\s:]{8,})(:.*)?",
        "this is a hash, while passwords must be in clear",
    ),
    # The fields after the name in /etc/passwd.
    (rb"x:\d+:\d+:[^:]*:[^:]*:[^:]*", "this is a line of /etc/passwd, which has no passwords"),
]


def parse_users(octets: bytes, yield_gil: Callable[[], object] = lambda: None) -> dict[bytes, bytes]:
    """The password of each user. `yield_gil` is called after each short piece of work.

    ValueError names the line that is wrong, and never repeats a password. A file without users is wrong too.
    """
    return users_of(octets, parse_line, yield_gil)


def users_of(
    octets: bytes, parse: Callable[[bytes], tuple[bytes, bytes] | None], yield_gil: Callable[[], object]
) -> dict[bytes, bytes]:
    """As `parse_users`, for lines that `parse` knows."""
    users: dict[bytes, bytes] = {}
    lines: dict[bytes, int] = {}
    for number, line in enumerate(octets.removeprefix(_BOM).split(b"\n"), 1):
        if number % _LINES_AT_ONCE == 0:
            yield_gil()
        try:
            parsed = parse(line)
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
    parted = part_line(line, _EXPECTED)
    problem = _wrong(parted[1], _WRONG_PASSWORDS) if parted else ""
    if problem:
        raise ValueError(f"{_EXPECTED}, and {problem}")
    return parted


def part_line(line: bytes, expected: str) -> tuple[bytes, bytes] | None:
    """The user, and what stands after the colon. None: the line is empty, or a comment. ValueError says why it is none
    that is `expected`."""
    line = line.removesuffix(b"\r")
    if not line.strip() or line.startswith(b"#"):
        return None
    user, colon, rest = line.partition(b":")
    if not colon:
        raise ValueError(f"{expected}, and there is no colon")
    problem = _wrong(user, _WRONG_USERS)
    try:
        user.decode()
    except UnicodeDecodeError:
        problem = problem or "the user's name is not UTF-8"
    if problem:
        raise ValueError(f"{expected}, and {problem}")
    return user, rest


def _wrong(octets: bytes, table: list[tuple[bytes, str]]) -> str:
    found = (problem for pattern, problem in table if re.fullmatch(pattern, octets, re.DOTALL))
    return next(found, "")
