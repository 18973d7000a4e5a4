"""A message as it goes behind DATA (RFC 5321 4.5.2): in bulk, never line by line. Pure."""

from __future__ import annotations


class DotStuffer:
    """One message. `encode` each piece, then `end` once.

    A dot behind any LF is doubled, not only behind CRLF: whatever the server takes for a line end, it finds no
    end of the message in it.
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
        """What ends the message. A last line without its end gets one."""
        return b".\r\n" if self._tail == b"\r\n" else b"\r\n.\r\n"
