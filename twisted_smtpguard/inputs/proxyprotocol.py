"""The constants of a PROXY header of version 2 (proxy-protocol.txt of haproxy.org), which is read and sent."""

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
"""The first octets of every header."""

LOCAL, PROXY = 0x20, 0x21
"""The version and the command: the connection is the proxy's own, or that of a client."""

UNSPECIFIED, TCP4, TCP6, UNIX = 0x00, 0x11, 0x21, 0x31
"""The family and the protocol of the addresses."""
