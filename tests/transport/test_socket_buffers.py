"""What the kernel holds of a connection whose client does not read, or that we do not read, by its own figures."""

from __future__ import annotations

import socket
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from commandline import parsed
from loopback import Client, Loopback, reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    AdoptedStreamServerEndpoint,
    TCP4ServerEndpoint,
    TCP6ServerEndpoint,
    UNIXServerEndpoint,
)

from twisted_smtpguard import Limits

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory of a socket")

SO_MEMINFO = 55
"""Of asm-generic/socket.h: received, its bound, in flight, its bound, kept for later, queued to be sent, and more."""
SEND, RECEIVE = Limits().socket_send_buffer, Limits().socket_receive_buffer


def held(of: socket.socket) -> tuple[int, int]:
    """Octets that the kernel holds of what is to be sent, and of what was received, all its own things included."""
    received, _, _, _, _, queued, *_ = struct.unpack("9I", of.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))
    return queued, received


def sizes(of: socket.socket) -> tuple[int, int]:
    return tuple(of.getsockopt(socket.SOL_SOCKET, side) for side in (socket.SO_SNDBUF, socket.SO_RCVBUF))  # type: ignore[return-value]


def sockets(guard: Loopback) -> list[socket.socket]:
    return [protocol.transport.socket for protocol in guard.protocols]


async def fill(guard: Loopback, client: Client, octets: bytes) -> int:
    """Send until nothing more is taken; how much was."""
    sent, idle = 0, 0
    while idle < 200:
        went = client.send(octets)
        sent, idle = sent + went, 0 if went else idle + 1
        await guard.turn()
    return sent


def listening() -> socket.socket:
    """A socket that listens already, as systemd gives it."""
    own = socket.socket()
    own.bind(("127.0.0.1", 0))
    own.listen()
    own.setblocking(False)
    return own


def endpoint(kind: str, directory: Path) -> Any:
    if kind == "tcp":
        return TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
    if kind == "tcp6":
        return TCP6ServerEndpoint(reactor, 0, interface="::1")
    if kind == "unix":
        return UNIXServerEndpoint(reactor, str(directory / "smtp.sock"))
    with listening() as given:
        return AdoptedStreamServerEndpoint(reactor, given.detach(), socket.AF_INET)


each_kind = pytest.mark.parametrize("kind", ["tcp", "tcp6", "unix", "systemd"])


@each_kind
@pytest_twisted.ensureDeferred
async def test_a_client_that_sends_on_and_never_reads_makes_the_kernel_hold_no_more(
    kind: str, tmp_path: Path
) -> None:
    guard = Loopback(endpoints=[endpoint(kind, tmp_path)])
    guard.start()
    client = guard.client()
    await fill(guard, client, b"NOOP\r\n" * 10_000)
    (own,) = sockets(guard)
    queued, received = held(own)
    # Linux doubles what is asked for, and lets one more packet in.
    assert queued <= 2 * SEND + 64 * 1024
    if kind != "unix":
        # There what waits is the client's, in its own send buffer.
        assert received <= 2 * RECEIVE + 64 * 1024
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_without_the_limit_it_would_be_megabytes() -> None:
    guard = Loopback(socket_send_buffer=0, socket_receive_buffer=0)
    guard.start()
    client = guard.client()
    await fill(guard, client, b"NOOP\r\n" * 10_000)
    (own,) = sockets(guard)
    assert held(own)[0] > 1_000_000
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_message_data_that_the_delivery_does_not_take_stay_within_it_too() -> None:
    guard = Loopback()
    # A sender whose window has grown: nothing is in its way at first.
    waiting: list[Deferred[None]] = []
    guard.delivery.answers["write"] = lambda _: waiting[0] if waiting else None
    guard.start()
    client = await guard.greeted()
    await client.says(b"MAIL FROM:<a@b.example>\r\nRCPT TO:<b@c.example>\r\nDATA\r\n")
    await client.hears(b"354 ")
    line = b"x" * 998 + b"\r\n"
    await client.says(line * 4000)
    waiting.append(Deferred())
    await fill(guard, client, line * 64)
    (own,) = sockets(guard)
    assert held(own)[1] <= 2 * RECEIVE + 64 * 1024
    waiting.pop().callback(None)
    await guard.close()


@each_kind
@pytest_twisted.ensureDeferred
async def test_every_connection_has_the_sizes_of_the_options(kind: str, tmp_path: Path) -> None:
    guard = Loopback(
        endpoints=[endpoint(kind, tmp_path)], socket_send_buffer=20_000, socket_receive_buffer=50_000
    )
    guard.start()
    for _ in range(3):
        await guard.greeted()
    assert {sizes(own) for own in sockets(guard)} == {(40_000, 100_000)}
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_so_has_one_that_waited_before_the_guard_was_started() -> None:
    given = listening()
    port = given.getsockname()[1]
    guard = Loopback(endpoints=[AdoptedStreamServerEndpoint(reactor, given.detach(), socket.AF_INET)])
    early = Client(guard, port)
    guard.clients.append(early)
    guard.start()
    await early.hears(b"220 ")
    await guard.greeted()
    assert {sizes(own) for own in sockets(guard)} == {(2 * SEND, 2 * RECEIVE)}
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_so_has_one_of_a_listener_that_is_not_the_services() -> None:
    guard = Loopback()
    guard.start()
    late = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(guard.factory)
    for _ in range(2):
        client = Client(guard, late.getHost().port)
        guard.clients.append(client)
        await client.hears(b"220 ")
    assert {sizes(own) for own in sockets(guard)} == {(2 * SEND, 2 * RECEIVE)}
    await late.stopListening()
    await guard.close()


@pytest.mark.parametrize(
    ("limits", "changed"),
    [
        ({"socket_send_buffer": 0}, (False, True)),
        ({"socket_receive_buffer": 0}, (True, False)),
        ({"socket_send_buffer": 0, "socket_receive_buffer": 0}, (False, False)),
    ],
)
@pytest_twisted.ensureDeferred
async def test_0_leaves_a_side_to_the_system(limits: dict[str, int], changed: tuple[bool, bool]) -> None:
    guard = Loopback(**limits)
    guard.start()
    await guard.greeted()
    (own,) = sockets(guard)
    assert (
        tuple(size == 2 * bound for size, bound in zip(sizes(own), (SEND, RECEIVE), strict=True)) == changed
    )
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_a_listening_socket_hands_them_on_so_that_a_connection_takes_no_call() -> None:
    guard = Loopback(2)
    guard.start()
    assert {sizes(port.socket) for port in guard.service.ports} == {(2 * SEND, 2 * RECEIVE)}  # type: ignore[attr-defined]
    await guard.close()


def test_they_are_options() -> None:
    limits = parsed("--socket-send-buffer=16k", "--socket-receive-buffer=0").limits
    assert (limits.socket_send_buffer, limits.socket_receive_buffer) == (16 * 1024, 0)
