"""Ends of connections that only real sockets show: resets, half-closes, and last lines that have to arrive."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from fakes import codes
from loopback import Client, Loopback
from twisted.internet.defer import Deferred

ENVELOPE = b"MAIL FROM:<a@client.example>\r\nRCPT TO:<b@guard.example>\r\n"
MESSAGE = ENVELOPE + b"DATA\r\ntext\r\n.\r\n"


@pytest_twisted.async_yield_fixture
async def guard() -> Any:
    loopback = Loopback(max_connections=1)
    # A stranger would have less time and fewer errors, since one client is a crowd here.
    loopback.factory.known.is_listed = lambda address: True
    loopback.start()
    yield loopback
    await loopback.close()


async def a_fresh_client_gets_in(guard: Loopback) -> None:
    await guard.until(lambda: guard.factory.connections == 0)
    await guard.greeted()


async def nobody_is_left(guard: Loopback) -> None:
    await guard.until(lambda: not guard.protocols)
    assert guard.clock.getDelayedCalls() == []


@pytest_twisted.ensureDeferred
async def test_a_session_from_greeting_to_quit(guard: Loopback) -> None:
    client = guard.client()
    await client.says(b"EHLO x\r\n" + MESSAGE + b"QUIT\r\n")
    assert await client.hears_the_end() == "FIN"
    assert codes(client.heard.decode()) == [220, 250, 250, 250, 354, 250, 221]
    assert [message.octets for message in guard.delivery.messages] == [b"text\r\n"]
    await nobody_is_left(guard)
    await a_fresh_client_gets_in(guard)


@pytest.mark.parametrize(
    "said", [b"", b"NOO", ENVELOPE, ENVELOPE + b"DATA\r\ntext\r\n", ENVELOPE + b"BDAT 9\r\nx"]
)
@pytest_twisted.ensureDeferred
async def test_a_client_that_resets_frees_its_slot_and_delivers_nothing(guard: Loopback, said: bytes) -> None:
    client = await guard.greeted()
    await client.says(said)
    await guard.turn()
    client.reset()
    await nobody_is_left(guard)
    assert guard.delivery.messages == []
    await a_fresh_client_gets_in(guard)


@pytest_twisted.ensureDeferred
async def test_a_client_that_resets_while_the_delivery_thinks_is_noticed_and_the_hook_cancelled(
    guard: Loopback,
) -> None:
    cancelled: list[object] = []
    guard.delivery.answers["recipient"] = lambda _: Deferred(cancelled.append)
    client = await guard.greeted()
    await client.says(ENVELOPE)
    await guard.until(lambda: "recipient" in guard.delivery.calls)
    client.reset()
    await nobody_is_left(guard)
    assert len(cancelled) == 1


@pytest.mark.parametrize("said", [b"", b"NOO", b"NOOP\r\n" * 3, MESSAGE])
@pytest_twisted.ensureDeferred
async def test_a_client_that_half_closes_gets_every_reply_and_then_the_end(
    guard: Loopback, said: bytes
) -> None:
    client = await guard.greeted()
    await client.says(said)
    client.half_close()
    assert await client.hears_the_end() == "FIN"
    assert codes(client.heard.decode()) == {b"": [], b"NOO": [], MESSAGE: [250, 250, 354, 250]}.get(
        said, [250] * 3
    )
    await nobody_is_left(guard)


@pytest_twisted.ensureDeferred
async def test_a_client_that_half_closes_after_a_long_burst_gets_every_reply(guard: Loopback) -> None:
    client = await guard.greeted()
    await client.says(b"NOOP\r\n" * 2000)
    client.half_close()
    assert await client.hears_the_end() == "FIN"
    assert codes(client.heard.decode()) == [250] * 2000


@pytest_twisted.ensureDeferred
async def test_a_client_that_half_closes_while_the_delivery_thinks_gets_its_answer(guard: Loopback) -> None:
    verdict: Deferred[None] = Deferred()
    guard.delivery.answers["finish"] = lambda: verdict
    client = await guard.greeted()
    await client.says(MESSAGE)
    client.half_close()
    (protocol,) = guard.protocols
    await guard.until(lambda: protocol.engine.input_ended)
    verdict.callback(None)
    assert await client.hears_the_end() == "FIN"
    assert codes(client.heard.decode()) == [250, 250, 354, 250]


@pytest_twisted.ensureDeferred
async def test_a_client_that_half_closes_in_data_has_lost_its_message(guard: Loopback) -> None:
    client = await guard.greeted()
    await client.says(ENVELOPE + b"DATA\r\ntext\r\n.")
    client.half_close()
    assert await client.hears_the_end() == "FIN"
    assert guard.delivery.messages == []
    assert guard.delivery.calls[-1] == "sink.abort"


# The last line arrives.


async def deaf(client: Client, octets: bytes) -> None:
    """Send all of it, whatever the guard says."""
    await client.says(octets)
    for _ in range(5):
        await client.guard.turn()


@pytest.mark.parametrize("megabytes", [0, 5])
@pytest_twisted.ensureDeferred
async def test_the_421_reaches_a_client_that_was_still_sending(guard: Loopback, megabytes: int) -> None:
    client = await guard.greeted()
    await deaf(client, b"WHAT\r\n" * 10 + b"junk that nobody reads\r\n" * (megabytes * 1024 * 1024 // 24))
    assert guard.factory.connections == 0
    assert await client.hears_the_end() == "FIN"
    assert client.heard.endswith(b"\r\n421 4.4.0 Too many errors, closing connection\r\n")
    assert codes(client.heard.decode()) == [500] * 10 + [421]
    client.close()
    await nobody_is_left(guard)


@pytest_twisted.ensureDeferred
async def test_a_client_that_goes_on_sending_is_reset_when_the_lingering_is_over(guard: Loopback) -> None:
    client = await guard.greeted()
    await deaf(client, b"WHAT\r\n" * 10)
    guard.clock.advance(5)
    await nobody_is_left(guard)
    await client.hears_the_end()
    assert codes(client.heard.decode())[-1] == 421


@pytest_twisted.ensureDeferred
async def test_the_read_timeout_is_told_to_the_client(guard: Loopback) -> None:
    client = await guard.greeted()
    guard.clock.advance(300)
    assert await client.hears_the_end() == "FIN"
    assert client.heard == b"421 4.4.2 Timeout waiting for client, closing connection\r\n"


@pytest_twisted.ensureDeferred
async def test_a_client_that_does_not_read_is_reset_by_the_write_timeout(guard: Loopback) -> None:
    client = await guard.greeted(receive_buffer=4096)
    (protocol,) = guard.protocols

    def stuffed() -> bool:
        client.send(b"HELP\r\n" * 1000)
        return bool(protocol.engine.paused)

    await guard.until(stuffed)
    guard.clock.advance(300)
    await nobody_is_left(guard)
    assert protocol.engine.end_reason == "write_timeout"
    assert await client.hears_the_end() == "RST"
    await a_fresh_client_gets_in(guard)


@pytest_twisted.ensureDeferred
async def test_the_last_line_arrives_even_if_the_connection_is_aborted_right_after_it(
    guard: Loopback,
) -> None:
    client = await guard.greeted()
    await client.says(ENVELOPE + b"DATA\r\ntext\r\n")
    await client.hears(b"354 ")
    client.heard = b""
    stopped: list[object] = []
    guard.service.stopService().addCallback(stopped.append)
    await guard.turn()
    guard.clock.advance(30)
    await guard.until(lambda: stopped)
    await client.hears_the_end()
    assert client.heard == b"421 4.3.2 Server shutting down\r\n"
