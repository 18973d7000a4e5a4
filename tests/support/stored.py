"""What stands in a Maildir: each message apart from the header fields that the guard put on top."""

from __future__ import annotations

import re
from pathlib import Path

import attrs

_TRACE = re.compile(
    rb"Return-Path: <(?P<sender>[^\n]*)>\n"
    rb"(?P<recipients>(?:Delivered-To: [^\n]+\n)+)"
    rb"(?P<received>Received: from [^\n]+\n\tby [^\n]+\n(?:\tfor <[^\n]+>;\n)?\t[^\n]+ \+0000\n)"
)


@attrs.frozen
class Stored:
    """One file of new/."""

    sender: str
    recipients: tuple[str, ...]
    received: str
    message: bytes
    """As the client sent it, with LF line ends."""


def stored(maildir: Path) -> list[Stored]:
    """Every message in new/. One whose trace header is not whole is an AssertionError."""
    return [_read(path) for path in sorted((maildir / "new").iterdir())]


def take(maildir: Path) -> list[Stored]:
    """As `stored`, and what was read is taken away; what comes meanwhile stays."""
    messages = []
    for path in (maildir / "new").iterdir():
        messages.append(_read(path))
        path.unlink()
    return messages


def unfinished(maildir: Path) -> list[Path]:
    """What stands in tmp/."""
    return list((maildir / "tmp").iterdir())


def empty(maildir: Path) -> None:
    """Take every message away."""
    for path in (maildir / "new").iterdir():
        path.unlink()


def _read(path: Path) -> Stored:
    octets = path.read_bytes()
    trace = _TRACE.match(octets)
    assert trace, f"{path} begins with {octets[:300]!r}"
    recipients = trace["recipients"].decode().splitlines()
    return Stored(
        trace["sender"].decode(),
        tuple(line.removeprefix("Delivered-To: ") for line in recipients),
        trace["received"].decode(),
        octets[trace.end() :],
    )
