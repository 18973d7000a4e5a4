"""Where one command line ends and the next begins, whatever a stranger sends in between.

Only CRLF ends a command. A line ended by LF alone, or with a bare CR in it, is refused at once, and what follows it
up to the next CRLF is skipped: executing any of it would let one server see a command where another sees none. Each
further LF on the way there is refused too, so that a client that never sends CR is told, and runs into the limit. An
over-long line is skipped to its CRLF without keeping it, and its refusal comes there, or at the first LF.
"""

from __future__ import annotations

import math

import attrs

from twisted_smtpguard.smtp import replies
from twisted_smtpguard.smtp.replies import Reply


@attrs.frozen
class LineRules:
    """`max_line`: octets of a command line with its CRLF; `max_auth`: of one of AUTH. `max_endless`: what is skipped of
    one line before `endless` is set. 0 is no limit."""

    max_line: int
    max_endless: int
    max_auth: int = 0
    longest: float = attrs.field(init=False)
    """Octets that a command line may have without its CRLF, and one more."""

    def __attrs_post_init__(self) -> None:
        # A line of any length is still one that has to end: it would be kept, not skipped.
        object.__setattr__(self, "max_line", self.max_line or self.max_endless)
        object.__setattr__(self, "longest", self.max_line - 1 if self.max_line else math.inf)


class LineSplitter:
    """Walks the buffer of one connection. The result is the same however the octets were split on their way."""

    # What changes is kept with it: ten thousand idle ones have only what is their own.
    __slots__ = ("__dict__", "_rules")

    response_due = False
    """The next line is part of an AUTH dialogue."""
    endless = False
    """The line that is being skipped does not end: the session has to."""
    _skipping = False
    _skipped = 0
    _owed: Reply | None = None

    def __init__(self, rules: LineRules) -> None:
        self._rules = rules

    @property
    def amid_line(self) -> bool:
        """What comes next does not begin a command."""
        return self._skipping or self.response_due

    def next_line(self, buffer: bytes, offset: int) -> tuple[bytes | Reply | None, int]:
        """The next line without its CRLF, a refusal of it, or None for "more input is needed".

        With it comes where to go on. What lies before that is not needed any more.
        """
        if self._skipping:
            return self._skip(buffer, offset)
        return self._next(buffer, offset, self._rules.max_line)

    def _next(self, buffer: bytes, offset: int, max_line: int) -> tuple[bytes | Reply | None, int]:
        stop = offset + max_line if max_line else len(buffer)
        end = buffer.find(b"\n", offset, stop)
        if end >= 0:
            carriage_return = buffer.find(b"\r", offset, end)
            if offset <= carriage_return == end - 1:
                return buffer[offset:carriage_return], end + 1
            # At the first of the two, as if the octets had come one by one.
            return self._refuse(offset, (end if carriage_return < 0 else carriage_return) + 1)
        carriage_return = buffer.find(b"\r", offset, stop)
        if 0 <= carriage_return < min(stop, len(buffer)) - 1:
            return self._refuse(offset, carriage_return + 1)
        if max_line and len(buffer) >= stop:
            max_auth = self._rules.max_auth
            if max_line < max_auth and self._is_of_auth(buffer, offset):
                return self._next(buffer, offset, max_auth)
            self._skipping, self._skipped = True, 0
            self._owed = replies.LINE_TOO_LONG
            return self._skip(buffer, offset)
        return None, offset

    def _is_of_auth(self, buffer: bytes, offset: int) -> bool:
        return self.response_due or buffer[offset : offset + 5].upper() == b"AUTH "

    def _refuse(self, start: int, offset: int) -> tuple[Reply, int]:
        self._skipping, self._skipped = True, offset - start
        return replies.BAD_LINE_END, offset

    def _skip(self, buffer: bytes, offset: int) -> tuple[bytes | Reply | None, int]:
        # Not the next CRLF: to look for that at every LF would take quadratic time.
        end = buffer.find(b"\n", offset)
        # A CR at the end may be the first half of the CRLF.
        stop = end + 1 if end >= 0 else len(buffer) - buffer.endswith(b"\r", offset)
        self._skipped += stop - offset
        self.endless = 0 < self._rules.max_endless < self._skipped
        if end < 0 and not self.endless:
            return None, stop
        owed, self._owed = self._owed, None
        at_crlf = end >= 0 and buffer.endswith(b"\r", offset, end)
        self._skipping = not (at_crlf or self.endless)
        if owed is None and not self.endless:
            return self.next_line(buffer, stop) if at_crlf else (replies.BAD_LINE_END, stop)
        return owed, stop
