"""Dot-stuffing of message data after DATA (RFC 5321 4.5.2), in bulk instead of line by line. Pure."""

from __future__ import annotations


class DotStuffer:
    """The data of one message. Call `encode` for each piece, then `end` once.

    A dot after any LF is doubled, not only after CRLF. So the server finds no early end of the message, even if it
    takes a bare LF for a line end: that is SMTP smuggling.
    """

    def __init__(self) -> None:
        self._tail = b"\r\n"

    def encode(self, data: bytes) -> bytes:
        """The octets to send for `data`."""
        if not data:
            return b""
        stuffed = data.replace(b"\n.", b"\n..")
        if data[:1] == b"." and self._tail[-1:] == b"\n":
            stuffed = b"." + stuffed
        self._tail = (self._tail + data[-2:])[-2:]
        return stuffed

    def end(self) -> bytes:
        """The octets that end the message. They end the last line first, if it has no line end."""
        return b".\r\n" if self._tail == b"\r\n" else b"\r\n.\r\n"
