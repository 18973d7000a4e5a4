"""The lines of Dovecot's authentication protocol, versions 1.1 and later, on the client's side. Pure: values in, lines
out, and the other way round.

    > VERSION 1 2; CPID 7            < VERSION 1 2; MECH PLAIN plaintext; …; DONE
    > AUTH 1 SCRAM-SHA-256 service=smtp … resp=…
    < CONT 1 …                       > CONT 1 …
    < OK 1 user=ann …                or FAIL 1 user=ann …

A line has words with tabs between them, and ends with LF.
"""

from __future__ import annotations

import os
from base64 import b64decode, b64encode
from binascii import Error

import attrs

from twisted_smtpguard.engine.sasl import MECHANISM_NAME
from twisted_smtpguard.values import LoginClient

MOST_OCTETS = 8192
"""The longest line that Dovecot takes. It would end the connection, on which others wait, at a longer one."""

_ESCAPES = {"\0": "\x010", "\x01": "\x011", "\t": "\x01t", "\r": "\x01r", "\n": "\x01n"}


class ProtocolError(Exception):
    """What came is not this protocol. The message is for the log."""


@attrs.frozen
class Answer:
    """An answer to a request."""

    verdict: str
    """OK, FAIL or CONT."""
    number: int
    fields: dict[str, str]
    """The parameters of an OK or a FAIL; "" for one that has no value."""
    octets: bytes = b""
    """The challenge of a CONT."""


def hello() -> bytes:
    """What is sent first."""
    return f"VERSION\t1\t2\nCPID\t{os.getpid()}\n".encode("ascii")


def auth_line(
    number: int, mechanism: str, client: LoginClient, response: bytes | None, certified_name: str = ""
) -> bytes:
    """The request to log in a client by a mechanism. `response` is what it has sent along; None for nothing.
    `certified_name` is whom its certificate names."""
    peer = client.peer
    words = ["AUTH", str(number), mechanism, "service=smtp", "nologin", f"session={escaped(client.session)}"]
    for name, value in (
        ("lip", peer.local_address),
        ("rip", peer.address),
        ("lport", peer.local_port),
        ("rport", peer.port),
    ):
        if value is not None:
            words.append(f"{name}={escaped(str(value))}")
    if client.tls:
        words.append("secured")
    if certified_name:
        words += ["valid-client-cert", f"cert_username={escaped(certified_name)}"]
    if response is not None:
        # The last one, for Dovecot takes everything after it.
        words.append(f"resp={b64encode(response).decode('ascii')}")
    return _line(words)


def cont_line(number: int, response: bytes) -> bytes:
    """The response to a challenge."""
    return _line(["CONT", str(number), b64encode(response).decode("ascii")])


def cancel_line(number: int) -> bytes:
    """Ends a request that has no answer yet."""
    return _line(["CANCEL", str(number)])


def _line(words: list[str]) -> bytes:
    return "\t".join(words).encode("utf-8") + b"\n"


def parse_mechanism(words: list[str]) -> str:
    """The name of the mechanism in the words after MECH. "" if it is no name, or nobody may log in by it here: without
    being told apart, by the means of a program that Dovecot itself knows, or bound to a TLS that Dovecot does not see.
    """
    name, *flags = words or [""]
    known = name.upper() if name.isascii() else ""
    excluded = {"anonymous", "private"} & set(flags) or known.endswith("-PLUS")
    return known if MECHANISM_NAME.fullmatch(known) and not excluded else ""


def parse_answer(verdict: str, words: list[str]) -> Answer:
    """The answer in the words after OK, FAIL or CONT. ProtocolError: it is none."""
    if not words or not (words[0].isascii() and words[0].isdecimal()) or len(words[0]) > 10:
        raise ProtocolError(f"there is no number after {verdict}")
    number, rest = int(words[0]), words[1:]
    if verdict == "CONT":
        return Answer(verdict, number, {}, _decoded("".join(rest[:1])))
    fields = {name: unescaped(value) for name, _, value in (word.partition("=") for word in rest)}
    return Answer(verdict, number, fields, _decoded(fields.get("resp", "")))


def _decoded(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except (Error, ValueError):
        raise ProtocolError("a challenge is no base64") from None


def escaped(text: str) -> str:
    """A value as it may stand in a line."""
    return "".join(_ESCAPES.get(each, each) for each in text)


def unescaped(text: str) -> str:
    """The value that `escaped` has made this of."""
    first, *others = text.split("\x01")
    plain = {escape[1]: each for each, escape in _ESCAPES.items()}
    return first + "".join(plain.get(each[:1], each[:1]) + each[1:] for each in others)
