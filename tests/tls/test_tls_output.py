"""Replies under TLS: they leave at once where they can, and what the kernel does not take comes later, in order."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from certificates import certificate
from keyupdates import CIPHER, key_updates
from loopback import Client, Loopback, reactor
from tlsclient import TLSClient
from twisted.internet import tcp
from twisted.internet.endpoints import serverFromString

from twisted_smtpguard.tls.files import CertificateFiles
from twisted_smtpguard.transport.output import _left_to_twisted

WAYS = ("STARTTLS", "implicit TLS", "ssl: endpoint")
each_way = pytest.mark.parametrize("way", WAYS)


def started(way: str, **limits: Any) -> Loopback:
    options = {"tls": CertificateFiles(str(certificate()))}
    if way == "STARTTLS":
        guard = Loopback(options=options, **limits)
    elif way == "implicit TLS":
        guard = Loopback(0, tls_listeners=1, options=options, **limits)
    else:
        pem = str(certificate()).replace(":", "\\:")
        endpoint = serverFromString(reactor, f"ssl:0:interface=127.0.0.1:privateKey={pem}")
        guard = Loopback(endpoints=[endpoint], **limits)
    guard.start()
    return guard


async def under_tls(guard: Loopback, way: str) -> TLSClient:
    client = TLSClient(guard)
    await (client.upgrade if way == "STARTTLS" else client.shake_hands)()
    await client.says(b"EHLO client.example\r\n")
    await client.hears(b"250 ENHANCEDSTATUSCODES\r\n")
    client.heard = b""
    return client


@each_way
@pytest_twisted.ensureDeferred
async def test_a_reply_needs_no_further_turn_of_the_reactor(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = started(way)
    client = await under_tls(guard, way)
    waits: list[object] = []
    monkeypatch.setattr(tcp.Server, "startWriting", waits.append)
    # Every 32nd waits for the end of its turn, to see whether others reply in it too.
    for _ in range(20):
        await client.says(b"NOOP\r\n")
        await client.hears(b"250 2.0.0 OK\r\n")
        client.heard = b""
    assert len(waits) <= 1
    monkeypatch.undo()
    await guard.close()


@each_way
@pytest.mark.parametrize("crowded", [False, True], ids=["alone", "among others"])
@pytest_twisted.ensureDeferred
async def test_replies_that_the_client_reads_late_come_whole_and_in_order(way: str, crowded: bool) -> None:
    guard = started(way, socket_send_buffer=4096, max_junk_commands=0, max_invalid_commands=0)
    client = await under_tls(guard, way)
    guard.factory.output_rules.batcher._crowded = crowded
    (protocol,) = guard.protocols
    number = 4000
    await client.says(b"".join(b"HELP\r\nX%d\r\n" % each for each in range(number)))
    await guard.until(lambda: protocol.congested)
    await client.says(b"QUIT\r\n")
    await client.hears(b"221 ")
    replies = client.heard.splitlines()
    assert replies[:-1] == replies[:2] * number
    await guard.close()


@each_way
@pytest_twisted.ensureDeferred
async def test_the_replies_to_one_arrival_leave_together_and_the_last_with_close_notify(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = started(way)
    client = await under_tls(guard, way)
    (protocol,) = guard.protocols
    sent: list[bytes] = []
    send = protocol.send_encrypted
    monkeypatch.setattr(protocol, "send_encrypted", lambda octets: sent.append(octets) or send(octets))
    await client.says(b"NOOP\r\nRSET\r\n")
    await client.hears(b"250 2.0.0 OK\r\n" * 2)
    assert len(sent) == 1
    await client.says(b"NOOP\r\nQUIT\r\n")
    await guard.until(lambda: client.read() or client.said_goodbye)
    assert client.heard.endswith(b"221 2.0.0 Closing connection\r\n")
    assert len(sent) == 2
    await guard.close()


@each_way
@pytest.mark.parametrize("left", [{"dataBuffer": b"x"}, {"_tempDataLen": 1}], ids=["taken over", "new"])
@pytest_twisted.ensureDeferred
async def test_octets_do_not_overtake_others_that_twisted_has_not_sent(
    way: str, left: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = started(way)
    client = await under_tls(guard, way)
    (protocol,) = guard.protocols
    with monkeypatch.context() as patch:
        for name, value in left.items():
            patch.setattr(plain(protocol), name, value)
        assert protocol.send_encrypted(b"octets") == b"octets"
    await client.says(b"NOOP\r\n")
    await client.hears(b"250 2.0.0 OK\r\n")
    await guard.close()


@each_way
@pytest_twisted.ensureDeferred
async def test_among_others_octets_are_left_to_twisted_which_sends_those_of_a_turn_together(way: str) -> None:
    guard = started(way)
    client = await under_tls(guard, way)
    (protocol,) = guard.protocols
    guard.factory.output_rules.batcher._crowded = True
    assert protocol.send_encrypted(b"octets") == b"octets"
    await client.says(b"NOOP\r\n")
    await client.hears(b"250 2.0.0 OK\r\n")
    await guard.close()


def plain(protocol: Any) -> Any:
    """What has the socket of a connection."""
    transport = protocol.transport
    return transport if isinstance(transport, tcp.Server) else transport.transport


@each_way
@pytest_twisted.ensureDeferred
async def test_a_ticket_does_not_hold_back_the_first_reply(way: str) -> None:
    guard = started(way)
    await under_tls(guard, way)
    (protocol,) = guard.protocols
    assert plain(protocol).getTcpNoDelay()
    await guard.close()


@each_way
@pytest_twisted.ensureDeferred
async def test_a_client_that_asks_for_new_keys_and_reads_none_is_not_read_itself(
    way: str, tmp_path: Path
) -> None:
    # Each request of 27 octets has an answer of 27 octets, which is no reply of the engine.
    guard = started(way, socket_send_buffer=4096)
    client = TLSClient(guard, receive_buffer=4096)
    client.context.keylog_filename = str(tmp_path / "keys")
    await (client.ask_for_tls() if way == "STARTTLS" else guard.turn())
    await client.shake_hands()
    assert client.tls is not None and client.tls.cipher()[0] == CIPHER  # type: ignore[index]
    (protocol,) = guard.protocols
    left = memoryview(key_updates(tmp_path / "keys", 20_000, then=b"NOOP\r\n"))

    def send() -> None:
        nonlocal left
        left = left[Client.send(client, left) :]

    await guard.until(lambda: send() or protocol.engine.paused)
    assert _left_to_twisted(protocol.transport) < 3 * 65536
    # Whoever reads is read again.
    await guard.until(lambda: send() or client.read() or b"250 2.0.0 OK\r\n" in client.heard)
    assert not protocol.engine.paused
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_tickets_do_not_wait_for_a_reply() -> None:
    # They acknowledge the end of the client's handshake. Until then the client's kernel may keep its EHLO (Nagle).
    guard = started("STARTTLS")
    client = TLSClient(guard)
    await client.upgrade()

    def has_ticket() -> bool:
        client.read()
        assert client.tls is not None and client.tls.session is not None
        return client.tls.session.has_ticket

    assert client.context.maximum_version != ssl.TLSVersion.TLSv1_2
    await guard.until(has_ticket)
    await guard.close()
