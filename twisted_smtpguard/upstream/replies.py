"""What an SMTP or LMTP server answers: octets in, replies out, and what each means to our own client.

Pure. Whatever the server sends, no more than one reply of MAX_REPLY_OCTETS is held.
"""

from __future__ import annotations

import re

import attrs

from twisted_smtpguard.smtp.replies import Reply, known_code

MAX_LINE_OCTETS = 2048
"""RFC 5321 4.5.3.1.5 has 512. Some servers say more."""

MAX_REPLY_LINES = 100

MAX_REPLY_OCTETS = 16 * 1024

_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(.*))?", re.DOTALL)
_ENHANCED = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?: +|$)")


class BadReply(Exception):  # noqa: N818 - what it is called
    """What came is no SMTP reply, or one that never ends. `replies` are those that came whole before it."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.replies: list[UpstreamReply] = []


@attrs.frozen
class UpstreamReply:
    """One reply. `lines` are as they came, without code and line end; undecodable octets as escapes."""

    code: int
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """As one line."""
        return " ".join([str(self.code), *self.lines])

    @property
    def positive(self) -> bool:
        """2xx, but for the 221 of a server that hangs up: it answers QUIT, and accepts nothing (RFC 5321 4.2.3)."""
        return 200 <= self.code < 300 and self.code != 221


class ReplyParser:
    """Feed it what arrives, in any pieces."""

    def __init__(self) -> None:
        self._partial = b""
        self._lines: list[str] = []
        self._octets = 0
        self._code = 0

    @property
    def amid_reply(self) -> bool:
        """Part of a reply has come."""
        return bool(self._partial or self._lines)

    def feed(self, data: bytes) -> list[UpstreamReply]:
        """The replies that are whole now. BadReply: nothing more can be made of this connection."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        replies: list[UpstreamReply] = []
        try:
            for line in lines:
                reply = self._line(line.removesuffix(b"\r"))
                if reply is not None:
                    replies.append(reply)
            if len(self._partial) > MAX_LINE_OCTETS:
                raise BadReply("a line does not end")
        except BadReply as bad:
            bad.replies = replies
            raise
        return replies

    def _line(self, line: bytes) -> UpstreamReply | None:
        if len(line) > MAX_LINE_OCTETS:
            raise BadReply("a line is too long")
        match = _LINE.fullmatch(line)
        if match is None:
            raise BadReply("a line is no reply")
        code = int(match[1])
        if self._lines and code != self._code:
            raise BadReply("the lines of a reply have different codes")
        self._code = code
        self._lines.append((match[3] or b"").decode("utf-8", "backslashreplace"))
        self._octets += len(line)
        if match[2] != b"-":
            reply = UpstreamReply(code, tuple(self._lines))
            self._lines, self._octets = [], 0
            return reply
        if len(self._lines) >= MAX_REPLY_LINES or self._octets > MAX_REPLY_OCTETS:
            raise BadReply("a reply does not end")
        return None


def for_client(reply: UpstreamReply) -> Reply:
    """A verdict as our own client gets it: its code, enhanced code and text.

    A 421 becomes a 451, a 521 a 554: to our client they would mean that we hang up. What is no code of SMTP becomes the
    plain one of its class.
    """
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
