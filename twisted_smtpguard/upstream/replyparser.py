"""The parser of an SMTP or LMTP server's replies: octets in, replies out, and each as the guard's own client gets it.

Pure. Whatever the server sends, at most one incomplete reply is held, and its size is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

import attrs

from twisted_smtpguard.replies import ENHANCED_CODE, Reply, known_code

MAX_LINE_OCTETS = 2048
"""The longest reply line that is accepted. RFC 5321 4.5.3.1.5 allows 512; some servers send more."""

MAX_REPLY_LINES = 100

MAX_REPLY_OCTETS = 16 * 1024

HANGS_UP = frozenset({221, 421})
"""Codes after which the server closes the connection."""

_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(.*))?", re.DOTALL)
_WHOLE = re.compile(rb"([2-5][0-9][0-9])(?: ([^\n]*?))?\r?\n")
_ENHANCED = re.compile(rf"({ENHANCED_CODE})(?: +|$)")


class BadReply(Exception):  # noqa: N818 - what it is called
    """The input is not an SMTP reply, or it never ends."""


_USUAL_OCTETS = 128
"""The longest reply that is remembered. A server says the same few words to most commands."""


@attrs.define
class UpstreamReply:
    """One reply, which is not changed. `lines` holds the text as it came, without code and line ends; octets that are
    not UTF-8 are escaped."""

    code: int
    lines: tuple[str, ...]
    positive: bool = attrs.field(init=False, eq=False, repr=False)
    """Whether the reply is a 2xx other than 221. A 221 answers QUIT (RFC 5321 4.2.3), and accepts nothing."""
    _for_client: Reply | None = attrs.field(default=None, init=False, eq=False, repr=False)
    """What `for_client` has made of it."""

    def __attrs_post_init__(self) -> None:
        self.positive = 200 <= self.code < 300 and self.code != 221

    @property
    def text(self) -> str:
        """The reply in one line."""
        return " ".join([str(self.code), *self.lines])


class ReplyParser:
    """Parses replies. `feed` takes the input in pieces of any size."""

    def __init__(self) -> None:
        self._partial = b""
        self._lines: list[str] = []
        self._octets = 0
        self._code = 0

    @property
    def amid_reply(self) -> bool:
        """Whether part of a reply has come."""
        return bool(self._partial or self._lines)

    def whole(self, data: bytes) -> UpstreamReply | None:
        """The reply, if `data` is one short reply of one line and nothing else, as nearly all are. None: `data` has to
        be fed."""
        if len(data) > _USUAL_OCTETS or self._partial or self._lines:
            return None
        return _usual(data)

    def feed(self, data: bytes) -> Iterator[UpstreamReply]:
        """Yield each reply that `data` completes. BadReply is raised after the last valid one; the connection cannot be
        used any more then."""
        data, self._partial = self._partial + data, b""
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            usual = None
            if end - start < _USUAL_OCTETS and not self._lines:
                usual = _usual(data[start : end + 1])
            if usual is not None:
                yield usual
            elif self._take(data, start, end):
                reply = UpstreamReply(self._code, tuple(self._lines))
                self._lines, self._octets = [], 0
                yield reply
            start = end + 1
        self._partial = data[start:]
        if len(self._partial) > MAX_LINE_OCTETS:
            raise BadReply("a line does not end")

    def _take(self, data: bytes, start: int, end: int) -> bool:
        """Take the line in `data` from `start` to its LF at `end`. Returns whether it is the last one of its reply."""
        if data.startswith(b"\r", end - 1, end) and end > start:
            end -= 1
        if end - start > MAX_LINE_OCTETS:
            raise BadReply("a line is too long")
        match = _LINE.fullmatch(data, start, end)
        if match is None:
            raise BadReply("a line is no reply")
        if self._lines and int(match[1]) != self._code:
            raise BadReply("the lines of a reply have different codes")
        self._code = int(match[1])
        self._lines.append((match[3] or b"").decode("utf-8", "backslashreplace"))
        self._octets += end - start
        last = match[2] != b"-"
        if not last and (len(self._lines) >= MAX_REPLY_LINES or self._octets > MAX_REPLY_OCTETS):
            raise BadReply("a reply does not end")
        return last


@lru_cache(maxsize=256)
def _usual(data: bytes) -> UpstreamReply | None:
    """The reply that `data` is; None: it is not one line that is a whole reply."""
    match = _WHOLE.fullmatch(data)
    if match is None:
        return None
    return UpstreamReply(int(match[1]), ((match[2] or b"").decode("utf-8", "backslashreplace"),))


def for_client(reply: UpstreamReply) -> Reply:
    """The server's reply as the guard's own client gets it, with its code, enhanced code and text.

    A 421 becomes a 451 and a 521 a 554, since the client would expect that the guard closes the connection. A code that
    SMTP does not define becomes the plain code of its class.
    """
    if reply._for_client is None:
        reply._for_client = _for_client(reply)
    return reply._for_client


def _for_client(reply: UpstreamReply) -> Reply:
    code = {421: 451, 521: 554}.get(reply.code, known_code(reply.code))
    found = _ENHANCED.match(reply.lines[0])
    enhanced = found[1] if found else ""
    lines = [_without(line, enhanced) for line in reply.lines]
    if enhanced and int(enhanced[0]) != code // 100:
        enhanced = ""
    return Reply(code, enhanced, tuple(lines), said=reply.text)


def _without(line: str, enhanced: str) -> str:
    if enhanced and f"{line} ".startswith(f"{enhanced} "):
        return line[len(enhanced) :].lstrip(" ")
    return line
