"""Header fields as lines of a message, none of which is too long or forges another.

What a session policy prepends is folded where it is too long. An address has no place for a fold.
"""

from __future__ import annotations

import re

MAX_LINE_OCTETS = 998
"""The longest line, without its CRLF (RFC 5322 2.1.1)."""

_BEFORE_WORD = re.compile(rb"(?=[ \t][^ \t])")
_CONTROLS = {code: "?" for code in (*range(32), 127) if code != ord("\t")}


def line(octets: bytes) -> bytes:
    """`octets` with CRLF. Empty if they are too long for a line."""
    return b"%b\r\n" % octets if len(octets) <= MAX_LINE_OCTETS else b""


def folded(field: str) -> bytes:
    """`field`, `Name: value`, with CRLF. One that is too long for a line is folded at its blanks (RFC 5322 2.2.3).

    Empty if no fold makes it short enough. A control character that is no tab becomes `?`, so that it cannot end the
    field early, or begin another one.
    """
    octets = field.translate(_CONTROLS).encode("utf-8", "replace")
    if whole := line(octets):
        return whole
    first, *words = _BEFORE_WORD.split(octets)
    lines = [first]
    for word in words:
        # Each has something but blanks in it: a line of blanks would end the header.
        if len(lines[-1]) + len(word) > MAX_LINE_OCTETS:
            lines.append(word)
        else:
            lines[-1] += word
    shown = [line(each) for each in lines]
    return b"".join(shown) if all(shown) else b""
