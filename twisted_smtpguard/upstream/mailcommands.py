"""The MAIL and RCPT commands for the upstream server. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from twisted_smtpguard import replies
from twisted_smtpguard.upstream.hello import Hello
from twisted_smtpguard.values import Path, Refused

_NEEDS = {"BODY": "8BITMIME", **dict.fromkeys(("RET", "ENVID", "NOTIFY", "ORCPT"), "DSN")}
"""The extension that defines each parameter. A parameter that is not listed has the same name as its extension."""

_MAY_BE_LEFT_OUT = frozenset({("SIZE", None), ("BODY", "7BIT")})
"""Parameters that may be dropped, since the server does not need them. The value None stands for any value."""


def mail_command(sender: Path, offered: Hello) -> bytes:
    """The MAIL command for `sender`. `Refused`: a parameter needs an extension that the guard has offered to the
    client, and that the server no longer offers."""
    return _command("MAIL FROM", sender, offered)


def rcpt_command(recipient: Path, offered: Hello) -> bytes:
    """The RCPT command for `recipient`. `Refused` as for `mail_command`."""
    return _command("RCPT TO", recipient, offered)


def _command(verb: str, path: Path, offered: Hello) -> bytes:
    return " ".join([f"{verb}:<{path.address}>", *_parameters(path, offered)]).encode()


def _parameters(path: Path, offered: Hello) -> Iterable[str]:
    for keyword, value in path.parameters.items():
        if keyword == "AUTH":
            # AUTH is never passed on, since the server must not trust the guard about who has logged in (RFC 4954 5).
            continue
        needed = {_NEEDS.get(keyword, keyword)}
        if value == "BINARYMIME":
            needed |= {"BINARYMIME", "CHUNKING"}
        if needed <= offered.keywords.keys():
            yield keyword if value is None else f"{keyword}={_value(keyword, value, offered)}"
        elif not {(keyword, None), (keyword, value)} & _MAY_BE_LEFT_OUT:
            raise Refused(replies.UPSTREAM_CHANGED)


def _value(keyword: str, value: str, offered: Hello) -> str:
    """The value as the client sent it, except that a server without SMTPUTF8 gets a utf-8 ORCPT in ASCII
    (RFC 6533 3)."""
    if keyword != "ORCPT" or value.isascii() or "SMTPUTF8" in offered:
        return value
    return "".join([letter if letter.isascii() else f"\\x{{{ord(letter):X}}}" for letter in value])
