"""Crowds of clients that send something and leave: the places of their address are free again at once."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from certificates import AUTHORITY, certificate
from processes import LOCAL, Address, GuardProcess, eventually
from rawclient import RawClient
from tlsclient import client_hello

HELLO = client_hello()
V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 25\r\n"
CLIENTS = 100
"""Five times as many as the edge profile lets an address have at once."""


def close(client: socket.socket) -> None:
    client.close()


def half_close(client: socket.socket) -> None:
    client.shutdown(socket.SHUT_WR)


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


OCTETS = {
    "a hello": (1, HELLO),
    "half a hello": (1, HELLO[:50]),
    "half a header": (2, V1[:20]),
    "half a header before TLS": (3, V1[:20]),
    "a hello after a header": (3, V1 + HELLO),
}


@pytest.mark.parametrize(
    ("reactor", "end"),
    [("default", close), ("default", half_close), ("default", reset), ("asyncio", half_close)],
)
def test_ended_connections_shut_no_client_out(
    tmp_path: Path, reactor: str, end: Callable[[socket.socket], None]
) -> None:
    options = (
        "--profile=edge",
        "--greet-delay=0.2",
        "--connection-rate=0",
        "--read-timeout=0",
        "--proxy-header-timeout=0",
        "--tls-handshake-timeout=0",
        "--proxy-protocol-from=127.0.0.2",
        "--deliver=discard",
        "--max-log-lines=0",
        "--max-log-lines-per-client=0",
        f"--tls-certificate={certificate()}",
    )
    with GuardProcess(tmp_path, *options, listen_tls=(LOCAL,), reactor=reactor) as guard:
        plain, implicit = guard.addresses
        left = 0
        sources = {1: ("127.0.0.3", implicit), 2: ("127.0.0.2", plain), 3: ("127.0.0.2", implicit)}
        for number, octets in OCTETS.values():
            source, address = sources[number]
            open_still = []
            for _ in range(CLIENTS // 20):
                batch = [connected(address, source) for _ in range(20)]
                for client in batch:
                    client.sendall(octets)
                for client in batch:
                    end(client)
                open_still += batch
                left += len(batch)
                eventually(lambda n=left: hangups(guard) == n, "they are still there")
            greeted_under_tls(implicit, "127.0.0.3")
            with RawClient(plain, "127.0.0.3"):
                pass
            for client in open_still:
                client.close()
        assert " reject " not in guard.log.decode()


def connected(address: Address, source: str) -> socket.socket:
    assert isinstance(address, tuple)
    return socket.create_connection(address, 10, (source, 0))


def hangups(guard: GuardProcess) -> int:
    return guard.log.count(b"] hangup ")


def greeted_under_tls(address: Address, source: str) -> None:
    context = ssl.create_default_context(cafile=str(AUTHORITY))
    with context.wrap_socket(connected(address, source), server_hostname="localhost") as client:
        assert client.recv(100).startswith(b"220 ")
