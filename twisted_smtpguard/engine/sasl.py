"""The AUTH mechanisms PLAIN (RFC 4616) and LOGIN: responses in, challenges and finally credentials out; and what is
the same for all mechanisms.

Whether the credentials are right is decided by the checkers, and so is all about other mechanisms.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable, Generator
from typing import TypeAlias

import attrs

from twisted_smtpguard import replies
from twisted_smtpguard.values import Challenge, LoginClient, Refused

MECHANISM_NAME = re.compile(r"[A-Z0-9_-]{1,20}")
"""The name of a mechanism (RFC 4422 3.1)."""

_COMMAND = re.compile(rb"([A-Za-z0-9_-]{1,20})(?:[ \t]+(\S+))?")
_BASE64 = re.compile(rb"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")
_CANCEL = b"*"
_EMPTY = b"="


@attrs.frozen
class Login:
    """The credentials that a client has sent. The repr leaves the password out."""

    username: bytes
    password: bytes = attrs.field(repr=False)
    acts_for: bytes = b""
    """The user to act as (RFC 4616 2: authzid); b"" if the client named none."""
    client: LoginClient | None = attrs.field(default=None, eq=False, repr=False)
    """Who has sent them."""


Steps: TypeAlias = Generator[bytes, bytes, Login]
"""A running exchange: it yields challenges, is sent responses, and returns a Login."""

Mechanism: TypeAlias = Callable[[bytes | None], Steps]
"""Called with the initial response or None."""


def parse_auth(argument: bytes) -> tuple[str, bytes | None]:
    """Split the argument of AUTH into the mechanism, in upper case, and the initial response, None if there is none
    (RFC 4954 4)."""
    match = _COMMAND.fullmatch(argument)
    if match is None:
        raise Refused(replies.BAD_ARGUMENTS)
    return match[1].decode("ascii").upper(), match[2]


def decode_initial(response: bytes | None) -> bytes | None:
    """Decode the base64 of the initial response; `=` stands for an empty one (RFC 4954 4)."""
    if response is None:
        return None
    return b"" if response == _EMPTY else _decoded(response)


def decode_response(line: bytes) -> bytes:
    """Decode the response in a line after a challenge. Blanks at either end are ignored. Raises Refused if the line is
    `*`, which cancels, or no base64."""
    line = line.strip(b" \t")
    if line == _CANCEL:
        raise Refused(replies.AUTH_CANCELLED)
    return _decoded(line)


def _decoded(octets: bytes) -> bytes:
    if _BASE64.fullmatch(octets) is None:
        raise Refused(replies.BAD_AUTH_RESPONSE)
    return b64decode(octets)


def _plain(initial: bytes | None) -> Steps:
    message = (yield b"") if initial is None else initial
    parts = message.split(b"\0")
    if len(parts) != 3:
        raise Refused(replies.BAD_AUTH_RESPONSE)
    acts_for, username, password = parts
    return _login_of(username, password, acts_for)


def _login(initial: bytes | None) -> Steps:
    username = (yield b"Username:") if initial is None else initial
    password = yield b"Password:"
    return _login_of(username, password)


def _login_of(username: bytes, password: bytes, acts_for: bytes = b"") -> Login:
    # RFC 4616 demands UTF-8, but other octets are no syntax error here: old clients send ISO 8859-1, and the checkers
    # tell them that the credentials are wrong.
    if any(b"\0" in octets for octets in (username, password, acts_for)):
        raise Refused(replies.BAD_AUTH_RESPONSE)
    return Login(username, password, acts_for)


MECHANISMS: dict[str, Mechanism] = {"PLAIN": _plain, "LOGIN": _login}
"""The mechanisms, in the order in which EHLO offers them."""


class PasswordExchange:
    """An exchange by one of these mechanisms. It ends with a Login."""

    def __init__(self, mechanism: str, client: LoginClient) -> None:
        self._begin = MECHANISMS[mechanism]
        self._client = client
        self._steps: Steps | None = None

    def respond(self, response: bytes | None) -> Challenge | Login:
        """Take the initial response, or None, and then each response. Raises Refused if it is malformed."""
        try:
            if self._steps is None:
                self._steps = self._begin(response)
                return Challenge(next(self._steps))
            return Challenge(self._steps.send(response or b""))
        except StopIteration as end:
            login: Login = end.value
            return attrs.evolve(login, client=self._client)

    def abort(self) -> None:
        """Nothing is left of it."""


_CLAIMS = (
    # The names of GS2 (RFC 5801 4), as in OAUTHBEARER, whose name is the one to act as; those of SCRAM and XOAUTH2.
    ("SCRAM-", re.compile(rb"[pny](?:=[^,]*)?,[^,]*,n=([^,]{1,1024}),")),
    ("OAUTHBEARER", re.compile(rb"[pny](?:=[^,]*)?,a=([^,]{1,1024}),")),
    ("XOAUTH2", re.compile(rb"user=([^\x01]{1,1024})\x01")),
    ("EXTERNAL", re.compile(rb"([^\0]{1,1024})\Z")),
)


def claimed_user(mechanism: str, response: bytes | None) -> bytes:
    """The user as whom a client wants to log in by another mechanism, if a response says so; else b""."""
    for name, pattern in _CLAIMS:
        match = pattern.match(response or b"") if mechanism.startswith(name) else None
        if match is not None:
            return match[1].replace(b"=2C", b",").replace(b"=3D", b"=")
    return b""
