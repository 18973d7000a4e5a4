"""The MAIL and RCPT commands for the server behind. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from twisted_smtpguard.interfaces import Path, Refused
from twisted_smtpguard.smtp import replies
from twisted_smtpguard.upstream.hello import Hello

_NEEDS = {
    "SIZE": "SIZE",
    "BODY": "8BITMIME",
    "SMTPUTF8": "SMTPUTF8",
    "RET": "DSN",
    "ENVID": "DSN",
    "NOTIFY": "DSN",
    "ORCPT": "DSN",
}
"""Of each parameter the extension that brings it."""

_MAY_BE_LEFT_OUT = frozenset({("SIZE", None), ("BODY", "7BIT")})
"""What says nothing that the server would have to know. None: whatever the value."""

_OURS = frozenset({"AUTH"})
"""What is between the client and the guard: who logged in here is not for the server to believe (RFC 4954 5)."""


def mail_command(sender: Path, offered: Hello) -> bytes:
    """`Refused` where the client was promised what the server, asked again, no longer offers."""
    return _command("MAIL FROM", sender, offered)


def rcpt_command(recipient: Path, offered: Hello) -> bytes:
    """As `mail_command`."""
    return _command("RCPT TO", recipient, offered)


def _command(verb: str, path: Path, offered: Hello) -> bytes:
    return " ".join([f"{verb}:<{path.address}>", *_parameters(path, offered)]).encode()


def _parameters(path: Path, offered: Hello) -> Iterable[str]:
    for keyword, value in path.parameters.items():
        if keyword in _OURS:
            continue
        needed = {_NEEDS.get(keyword, keyword)}
        if value == "BINARYMIME":
            needed |= {"BINARYMIME", "CHUNKING"}
        if needed <= offered.keywords.keys():
            yield keyword if value is None else f"{keyword}={_value(keyword, value, offered)}"
        elif not {(keyword, None), (keyword, value)} & _MAY_BE_LEFT_OUT:
            raise Refused(replies.UPSTREAM_CHANGED)


def _value(keyword: str, value: str, offered: Hello) -> str:
    """As it came, but for an ORCPT of type utf-8: a server without SMTPUTF8 gets it in ASCII (RFC 6533 3)."""
    if keyword != "ORCPT" or value.isascii() or "SMTPUTF8" in offered:
        return value
    return "".join([letter if letter.isascii() else f"\\x{{{ord(letter):X}}}" for letter in value])
