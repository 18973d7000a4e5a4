"""AUTH to the upstream server (RFC 4954): the credentials, the mechanism and the lines to send. Pure but for the file
of the credentials."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Collection

import attrs

from twisted_smtpguard.inputs.regularfile import open_regular


@attrs.frozen
class Credentials:
    """The guard's user and password for the upstream server."""

    user: str
    password: str = attrs.field(repr=False)
    file: str = attrs.field(default="", eq=False)
    """The file that they were read from, which is read again at a reload. "": they are from no file."""


def read_credentials(path: str) -> Credentials:
    """Read the first line of the file at `path`, `user:password`, which may begin with a BOM. Everything after the
    first colon is the password. ValueError says what is wrong with the file."""
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
    """The lines to send, one after the other. The server answers each but the last with a 334. None: it offers no
    mechanism that the guard knows."""
    user, password = credentials.user, credentials.password
    if "PLAIN" in mechanisms:
        return [f"AUTH PLAIN {_base64(f'{chr(0)}{user}{chr(0)}{password}')}"]
    if "LOGIN" in mechanisms:
        return ["AUTH LOGIN", _base64(user), _base64(password)]
    return None


def _base64(text: str) -> str:
    return b64encode(text.encode()).decode("ascii")
