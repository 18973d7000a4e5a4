"""Clients whose address a proxy announces, so that they may come from anywhere."""

from __future__ import annotations

import socket
from ipaddress import ip_address

from processes import PATIENCE_SECONDS, GuardProcess

PROXIED = "--proxy-protocol-from=127.0.0.0/8"
"""The option of a guard that believes it."""


def header(address: str) -> bytes:
    """The PROXY header of a client."""
    family, own = ("TCP6", "::1") if ip_address(address).version == 6 else ("TCP4", "127.0.0.1")
    return f"PROXY {family} {address} {own} 40000 25\r\n".encode()


def first_line(guard: GuardProcess, address: str) -> str:
    """What a client is told first."""
    with socket.create_connection(guard.address, PATIENCE_SECONDS) as connection:
        connection.sendall(header(address))
        line = connection.makefile("rb").readline().decode().rstrip("\r\n")
        if line.startswith("220 "):
            connection.sendall(b"QUIT\r\n")
        return line
