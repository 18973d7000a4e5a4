"""The escaping of text that a stranger chose, for replies and log lines."""

from __future__ import annotations

import re

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), 0x7F)}
_WORD = {**_CONTROLS, ord(" "): "\\x20", ord('"'): '\\"', ord("\\"): "\\\\"}
_is_word = re.compile(r"[!#-\[\]-~]*").fullmatch


def escape_text(text: str) -> str:
    """`text` as printable ASCII: control characters become `\\xNN`, non-ASCII characters Python's backslash escapes.
    Spaces stay."""
    if text.isascii() and text.isprintable():
        return text
    return text.translate(_CONTROLS).encode("ascii", "backslashreplace").decode("ascii")


def escape_word(text: str) -> str:
    """`text` as one word of printable ASCII: as `escape_text`, and space, quote and backslash are escaped too.

    A log line is `name=value name=value`. No value that a client sent can end early or forge another name.
    """
    if _is_word(text):
        return text
    return text.translate(_WORD).encode("ascii", "backslashreplace").decode("ascii")
