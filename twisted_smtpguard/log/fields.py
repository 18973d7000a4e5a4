"""The fields that several events have, and how each is written."""

from __future__ import annotations

from twisted_smtpguard.log.eventlog import word, words
from twisted_smtpguard.replies import Reply, words_of


def words_of_reply(reply: Reply | None) -> dict[str, object]:
    """The field for the words of a reply that a delivery, a filter or an upstream server chose; empty for a reply of
    the catalogue."""
    chosen = "" if reply is None else words_of(reply)
    return {"reply": words(chosen)} if chosen else {}


def place(port: int | None, listener: str) -> dict[str, object]:
    """The fields for the client's port and the listener, as far as they are known."""
    known: dict[str, object] = {}
    if port is not None:
        known["port"] = port
    if listener:
        known["listener"] = word(listener)
    return known


def encryption(tls: str) -> str:
    """TLS version and cipher as one word."""
    return tls.replace(" ", ":")


def said(**texts: str) -> dict[str, object]:
    """The texts that are not empty, as fields."""
    return {name: word(text) for name, text in texts.items() if text}


def item(text: str) -> str:
    """A word of a list with commas. A quoted local part may contain a comma (RFC 5321 4.1.2), which is escaped."""
    return word(text).replace(",", "\\x2c")


def counted(count: int, thing: str) -> str:
    """`3 sessions`, `1 session`."""
    return f"{count} {thing}{'s' * (count != 1)}"
