"""AUTH to the server behind (RFC 4954): which mechanism, and what is said. Pure."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Collection

import attrs

from twisted_smtpguard.regularfile import open_regular


@attrs.frozen
class Credentials:
    """A user of the server behind."""

    user: str
    password: str = attrs.field(repr=False)
    file: str = attrs.field(default="", eq=False)
    """Where they come from, to be read again at a reload. "": from nowhere."""


def read_credentials(path: str) -> Credentials:
    """The first line of the file at `path`, `user:password`, which may begin with a BOM. All after the first colon is
    the password. ValueError says what is wrong with it."""
    try:
        with open_regular(path) as file:
            text = file.read().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text") from error
    user, colon, password = text.partition("\n")[0].removesuffix("\r").partition(":")
    if not colon or not user or "\0" in text:
        raise ValueError(f"{path} has no line user:password")
    return Credentials(user, password, path)


def dialogue(credentials: Credentials, mechanisms: Collection[str]) -> list[str] | None:
    """The lines to send one after the other: each but the last is answered with a 334. None: no mechanism in common."""
    user, password = credentials.user, credentials.password
    if "PLAIN" in mechanisms:
        return [f"AUTH PLAIN {_base64(f'{chr(0)}{user}{chr(0)}{password}')}"]
    if "LOGIN" in mechanisms:
        return ["AUTH LOGIN", _base64(user), _base64(password)]
    return None


def _base64(text: str) -> str:
    return b64encode(text.encode()).decode("ascii")
