"""STARTTLS: when it is offered, what is forgotten after it, and that nothing can be injected before it (RFC 3207)."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from certificates import certificate
from fakes import Guard
from loopback import Loopback
from tlsclient import TLSClient
from twisted.logger import capturedLogs

from twisted_smtpguard.tls.files import CertificateFiles

INJECTED = b"421 4.7.0 Protocol error: input after STARTTLS\r\n"
ENVELOPE = b"MAIL FROM:<a@client.example>\r\nRCPT TO:<b@guard.example>\r\n"


def started(**limits: Any) -> Loopback:
    guard = Loopback(options={"tls": CertificateFiles(str(certificate()))}, **limits)
    guard.start()
    return guard


async def asks(client: Any, line: bytes, answer: bytes) -> bytes:
    """Say a line, hear an answer with `answer` in it; all that was heard."""
    client.heard = b""
    await client.says(line + b"\r\n")
    await client.hears(answer)
    return bytes(client.heard)


# Offered.


def test_without_a_certificate_starttls_is_an_unknown_command() -> None:
    client = Guard().greeted()
    assert "STARTTLS" not in client.say("EHLO client.example")
    assert client.say("STARTTLS") == "500 5.5.1 Command not recognized\r\n"
    assert client.say("STARTTLS x") == "500 5.5.1 Command not recognized\r\n"
    assert client.protocol.engine.invalid_commands == 2


@pytest_twisted.ensureDeferred
async def test_it_is_offered_in_clear_and_not_under_tls() -> None:
    guard = started()
    client = TLSClient(guard)
    await client.hears(b"220 ")
    assert b"250-STARTTLS\r\n" in await asks(client, b"EHLO a", b"250 ENHANCEDSTATUSCODES")
    assert b" STARTTLS " in await asks(client, b"HELP", b"214 ")
    await asks(client, b"STARTTLS", b"220 2.0.0 Ready to start TLS\r\n")
    await client.shake_hands()
    assert b"STARTTLS" not in await asks(client, b"EHLO a", b"250 ENHANCEDSTATUSCODES")
    assert b"STARTTLS" not in await asks(client, b"HELP", b"214 ")
    # The other sort of session gets its own offer again.
    other = await guard.greeted()
    assert b"250-STARTTLS\r\n" in await asks(other, b"EHLO a", b"250 ENHANCEDSTATUSCODES")
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_an_argument_is_refused_and_a_second_starttls_is_out_of_sequence() -> None:
    guard = started()
    client = TLSClient(guard)
    await client.hears(b"220 ")
    await asks(client, b"STARTTLS now", b"501 5.5.4 ")
    await asks(client, b"STARTTLS", b"220 2.0.0 ")
    await client.shake_hands()
    await asks(client, b"STARTTLS", b"503 5.5.1 Bad sequence of commands\r\n")
    await guard.close()


# What was said in clear.


@pytest_twisted.ensureDeferred
async def test_input_in_clear_after_starttls_ends_the_session() -> None:
    guard = started()
    client = TLSClient(guard)
    await client.hears(b"220 ")
    client.heard = b""
    await client.says(b"STARTTLS\r\nEHLO injected\r\n" + ENVELOPE)
    assert await client.hears_the_end() == "FIN"
    assert client.heard == INJECTED
    assert guard.factory.statistics.refusals == {"starttls_injection": 1}
    assert guard.delivery.calls == []
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_so_does_a_tls_hello_that_does_not_wait() -> None:
    guard = started()
    client = TLSClient(guard)
    await client.hears(b"220 ")
    client.heard = b""
    hello = client.hello()
    client.tls = None
    await client.says(b"STARTTLS\r\n" + hello)
    await client.hears(INJECTED)
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_unread_input_in_the_kernel_does_so_too() -> None:
    guard = started()
    client = TLSClient(guard)
    await client.hears(b"220 ")
    client.heard = b""
    (protocol,) = guard.protocols
    # It arrives while the line is looked at.
    await client.says(b"NOOP\r\n")
    protocol.dataReceived(b"STARTTLS\r\n")
    await client.hears(INJECTED)
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_hello_transaction_and_offer_are_forgotten() -> None:
    guard = started()
    client = TLSClient(guard)
    await client.hears(b"220 ")
    await asks(client, b"EHLO client.example", b"250 ENHANCEDSTATUSCODES")
    await asks(client, ENVELOPE.rstrip(), b"250 2.1.5 ")
    await asks(client, b"STARTTLS", b"220 2.0.0 ")
    assert guard.delivery.calls == ["begin", "recipient", "transaction.abort"]
    await client.shake_hands()
    await asks(client, b"DATA", b"503 5.5.1 ")
    await asks(client, b"MAIL FROM:<a@client.example>", b"503 5.5.1 ")
    await asks(client, b"HELO client.example", b"250 guard.example\r\n")
    await asks(client, b"MAIL FROM:<a@client.example> SIZE=1", b"555 5.5.4 ")
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_what_was_counted_against_the_client_stays() -> None:
    guard = started(max_invalid_commands=3)
    client = TLSClient(guard)
    await client.hears(b"220 ")
    await asks(client, b"WHAT", b"500 ")
    await asks(client, b"WHAT", b"500 ")
    await asks(client, b"STARTTLS", b"220 2.0.0 ")
    await client.shake_hands()
    await asks(client, b"WHAT", b"421 4.4.0 Too many errors, closing connection\r\n")
    await guard.close()


# Under TLS.


@pytest_twisted.ensureDeferred
async def test_a_message_arrives_and_its_protocol_is_esmtps_though_tls_was_not_implicit() -> None:
    guard = started()
    client = await TLSClient.upgraded(guard)
    await asks(client, b"EHLO client.example", b"250 ENHANCEDSTATUSCODES")
    await asks(client, ENVELOPE + b"DATA", b"354 ")
    await asks(client, b"Subject: x\r\n\r\ntext\r\n.", b"250 2.0.0 ")
    (message,) = guard.delivery.messages
    assert message.octets == b"Subject: x\r\n\r\ntext\r\n"
    assert message.client.protocol == "ESMTPS"
    assert message.client.tls.startswith("TLSv1.3 TLS_")
    assert not message.client.peer.tls
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_not_one_octet_leaves_in_clear_after_the_220() -> None:
    guard = started()
    client = await TLSClient.upgraded(guard)
    sent = b""
    for line in (b"EHLO a", b"NOOP", b"WHAT", b"QUIT"):
        await client.says(line + b"\r\n")
        client.tls, tls = None, client.tls
        client.heard = b""
        # A whole TLS record of application data, to somebody who reads the wire.
        await guard.until(lambda: client.read() or len(client.heard) > 5)
        assert client.heard.startswith(b"\x17\x03\x03")
        client.tls = tls
        sent += client.heard
        client._incoming.write(client.heard)
    assert b"250" not in sent and b"500" not in sent
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_a_long_pipelined_burst_is_answered_whole() -> None:
    guard = started(max_invalid_commands=0)
    client = await TLSClient.upgraded(guard)
    await client.says(b"NOOP\r\n" * 20_000)
    await guard.until(lambda: client.read() or client.heard.count(b"\r\n") == 20_000)
    assert client.heard == b"250 2.0.0 OK\r\n" * 20_000
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_a_client_that_never_reads_is_held_back_and_cut_off_at_the_write_timeout() -> None:
    guard = started(max_invalid_commands=0, write_timeout=20)
    client = await TLSClient.upgraded(guard)
    (protocol,) = guard.protocols
    for _ in range(2000):
        client.send(b"NOOP\r\n" * 1000)
        await guard.turn()
        if protocol.congested:
            break
    assert protocol.congested
    assert len(protocol._backlog._waiting) < 64 * 1024
    guard.clock.advance(20.1)
    await guard.until(lambda: guard.factory.connections == 0)
    assert guard.factory.statistics.refusals == {"write_timeout": 1}
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_the_last_line_arrives_though_the_client_goes_on_sending() -> None:
    guard = started()
    client = await TLSClient.upgraded(guard)
    await client.says(b"WHAT\r\n" * 2000)
    await client.hears(b"421 4.4.0 Too many errors, closing connection\r\n")
    await guard.until(lambda: client.read() or client.said_goodbye)
    assert client.heard.count(b"500 ") == 10
    assert guard.factory.connections == 0
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_quit_ends_tls_before_the_connection() -> None:
    guard = started()
    client = await TLSClient.upgraded(guard)
    await client.says(b"QUIT\r\n")
    await guard.until(lambda: client.read() or client.said_goodbye)
    assert client.heard == b"221 2.0.0 Closing connection\r\n"
    await guard.close()


@pytest.mark.parametrize(
    "octets", [b"EHLO injected\r\n", b"\x16\x03\x01\x00\x05\x09\x00\x00\x01\x00", b"\0" * 100]
)
@pytest_twisted.ensureDeferred
async def test_a_handshake_that_fails_ends_the_connection_and_nothing_in_it_is_a_command(
    octets: bytes,
) -> None:
    guard = started()
    client = await guard.greeted()
    await asks(client, b"STARTTLS", b"220 2.0.0 ")
    client.heard = b""
    with capturedLogs() as logged:
        await client.says(octets)
        await client.hears_the_end()
        await guard.until(lambda: guard.factory.connections == 0)
    assert not any(word in client.heard for word in (b"250", b"500", b"421"))
    assert guard.factory.statistics.refusals == {"tls_failed": 1}
    assert [event["reason"] for event in logged if event.get("event") == "disconnect"] == ["tls_failed"]
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_who_leaves_in_the_handshake_is_lost() -> None:
    guard = started()
    client = await guard.greeted()
    await asks(client, b"STARTTLS", b"220 2.0.0 ")
    client.close()
    await guard.until(lambda: guard.factory.connections == 0)
    assert guard.factory.statistics.refusals == {}
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_a_stop_within_the_handshake_is_told_under_tls() -> None:
    guard = started()
    client = TLSClient(guard)
    await client.hears(b"220 ")
    await asks(client, b"STARTTLS", b"220 2.0.0 ")
    client.heard = b""
    guard.factory.drain()
    await client.shake_hands()
    await client.hears(b"421 4.3.2 Server shutting down\r\n")
    await guard.until(lambda: guard.factory.connections == 0)
    client.close()
    await guard.until(lambda: not guard.protocols)
    guard.factory.reopen()
    await guard.close()


# A client that is slow to take what comes before.


def test_tls_waits_until_what_was_said_in_clear_has_been_taken() -> None:
    guard = Guard(max_invalid_commands=0)
    guard.factory.context.starttls = True
    client = guard.connect()
    begun: list[bytes] = []
    client.transport.startTLS = lambda tls: begun.append(client.transport.value())  # type: ignore[attr-defined]
    client.heard()
    client.transport.reads = False
    client.say(*["NOOP"] * 500, "STARTTLS")
    assert begun == []
    client.transport.reads = True
    client.transport.drain()
    (said,) = begun
    assert said.endswith(b"250 2.0.0 OK\r\n220 2.0.0 Ready to start TLS\r\n")
    client.disconnect()


def test_who_sends_before_it_has_taken_the_220_is_told_so() -> None:
    guard = Guard()
    guard.factory.context.starttls = True
    client = guard.connect()
    client.heard()
    client.transport.reads = False
    client.say(*["NOOP"] * 500, "STARTTLS")
    client.send(b"EHLO injected\r\n")
    client.transport.reads = True
    client.transport.drain()
    assert client.heard().endswith("220 2.0.0 Ready to start TLS\r\n" + INJECTED.decode())
    assert client.closed


@pytest_twisted.ensureDeferred
async def test_in_a_crowd_whose_replies_leave_together_none_leaves_in_clear_after_the_220() -> None:
    guard = started()
    clients = [TLSClient(guard) for _ in range(6)]
    for client in clients:
        await client.hears(b"220 ")
    while not guard.factory.output_rules.batcher._crowded:
        for client in clients:
            client.send(b"NOOP\r\n")
        for client in clients:
            await client.hears(b"250 2.0.0 OK\r\n")
            client.heard = b""
    for client in clients:
        client.send(b"STARTTLS\r\n")
    for client in clients:
        await client.hears(b"220 2.0.0 Ready to start TLS\r\n")
        assert client.heard == b"220 2.0.0 Ready to start TLS\r\n"
    for client in clients:
        await client.shake_hands()
        assert b"250-guard.example" in await asks(client, b"EHLO a", b"250 ENHANCEDSTATUSCODES")
    await guard.close()
