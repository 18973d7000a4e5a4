"""Each limit is changed in a running guard: before that the old value holds, and from the moment that its
`LimitSpec.holds_from` names the new one does.

What needs a socket is at the end: TLS handshakes, and the kernel's buffers.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
import pytest_twisted
from certificates import certificate
from fakes import (
    Conversation,
    FakeFilter,
    FakeTransport,
    Guard,
    SlowFilter,
    codes,
    delivery_without_nobody,
)
from logbook import logbook
from logins import Checker, plain
from loopback import Loopback
from tlsclient import TLSClient
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred

from twisted_smtpguard import Limits, Rate
from twisted_smtpguard.interfaces import PASS, TRUST
from twisted_smtpguard.limits.units import RESTART
from twisted_smtpguard.testing.conversation import Clients
from twisted_smtpguard.testing.fakes import FakePolicy
from twisted_smtpguard.tls.files import CertificateFiles

ENVELOPE = ("MAIL FROM:<a@b.example>", "RCPT TO:<b@c.example>")
LONG = b"x" * 3000
NOBODY = "RCPT TO:<nobody@c.example>"
MAIL = (*ENVELOPE, "DATA")


def change(guard: Clients | Loopback, **limits: Any) -> None:
    """Change some limits of a running guard."""
    guard.factory.set_limits(attrs.evolve(guard.factory.limits, **limits))


def message(client: Conversation, text: str = "x") -> int:
    """Send a message. The code of the verdict."""
    assert client.codes(*MAIL)[-1] == 354
    return client.codes(text, ".")[-1]


def says(client: Conversation, seconds: float) -> list[int]:
    """The codes of what the guard says by itself, once so many seconds are over."""
    client.heard()
    # A deadline that is set anew begins at the time of the call that sets it.
    client.guard.clock.pump([seconds / 100] * 100)
    return codes(client.heard())


def comes(guard: Guard, host: str = "192.0.2.1") -> int:
    """The code that a new client hears first."""
    return codes(guard.connect(host).heard())[0]


Case = Callable[[Guard], Iterator[None]]
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], Case]] = {}
"""By the name of the limit: the limits of the guard, those that are changed, and what is seen. A case yields where they
are."""


def case(before: dict[str, Any], after: dict[str, Any]) -> Callable[[Case], Case]:
    def add(function: Case) -> Case:
        (name,) = {*after} - {"dry_run"}
        CASES[name] = before, after, function
        return function

    return add


@pytest.mark.parametrize("name", [spec.name for spec in Limits.specs()])
def test_a_change_holds_from_its_moment_on_and_not_before(name: str) -> None:
    if name in OF_SOCKETS | NOT_CHANGED:
        return
    before, after, seen = CASES[name]
    with logbook():
        options = {"delivery_timeout": 1000, **before}
        checkers = [Checker(UnauthorizedLogin())] if "auth" in name else []
        guard = Guard(ip_filters=options.pop("ip_filters", ()), checkers=checkers, **options)
        steps = seen(guard)
        next(steps)
        change(guard, **after)
        assert next(steps, "the end") == "the end"


def test_every_limit_is_tried_here() -> None:
    specs = {spec.name: spec for spec in Limits.specs()}
    assert {*CASES} | OF_SOCKETS | NOT_CHANGED == {*specs}
    assert {name for name, spec in specs.items() if spec.holds_from == RESTART} == NOT_CHANGED


# Connections.


@case({"max_connections": 2}, {"max_connections": 1})
def _cap(guard: Guard) -> Iterator[None]:
    first, second = guard.connect(), guard.connect()
    yield
    assert first.codes("NOOP")[-1] == second.codes("NOOP")[-1] == 250
    assert comes(guard) == 421
    second.disconnect()
    assert comes(guard) == 421
    first.disconnect()
    assert comes(guard) == 220


@case({"max_connections": 10}, {"reserved_connections": 8})
def _reserve(guard: Guard) -> Iterator[None]:
    clients = [guard.connect() for _ in range(3)]
    yield
    assert [client.codes("NOOP")[-1] for client in clients] == [250] * 3
    assert comes(guard) == 421
    clients.pop().disconnect()
    assert comes(guard) == 421
    clients.pop().disconnect()
    assert comes(guard) == 220


@case({}, {"max_connections_per_client": 2})
def _cap_of_a_client(guard: Guard) -> Iterator[None]:
    clients = [guard.connect() for _ in range(3)]
    yield
    assert [client.codes("NOOP")[-1] for client in clients] == [250] * 3
    assert comes(guard) == 421
    assert comes(guard, "192.0.2.2") == 220
    for client in clients[:2]:
        client.disconnect()
    assert comes(guard) == 220
    assert comes(guard) == 421


@case({"connection_rate": Rate(3, 60)}, {"connection_rate": Rate(1, 60)})
def _connection_rate(guard: Guard) -> Iterator[None]:
    assert comes(guard) == comes(guard) == 220
    yield
    assert comes(guard) == 421
    guard.clock.advance(60)
    assert comes(guard) == 220
    assert comes(guard) == 421


@case({}, {"ban_after": 3})
def _ban_after(guard: Guard) -> Iterator[None]:
    client = guard.greeted()
    client.say(*["XYZZY"] * 5)
    assert comes(guard) == 220
    yield
    # What was done before has no points.
    client.say(*["XYZZY"] * 2)
    assert comes(guard) == 220
    client.say("XYZZY")
    assert comes(guard) == 421


@case({"ban_after": 10}, {"ban_points": {"unrecognized_command": 5}})
def _ban_points(guard: Guard) -> Iterator[None]:
    client = guard.greeted()
    client.say(*["XYZZY"] * 4)
    yield
    client.say("XYZZY")
    assert comes(guard) == 220
    client.say("XYZZY")
    assert comes(guard) == 421


@case({"message_rate": Rate(5, 60)}, {"message_rate": Rate(1, 60)})
def _message_rate(guard: Guard) -> Iterator[None]:
    client = guard.greeted()
    assert message(client) == 250
    yield
    assert client.codes(ENVELOPE[0]) == [450]
    guard.clock.advance(60)
    assert message(client) == 250


@case({}, {"recipient_rate": Rate(1, 60)})
def _recipient_rate(guard: Guard) -> Iterator[None]:
    client = guard.greeted()
    assert client.codes(*ENVELOPE, ENVELOPE[1]) == [250] * 3
    yield
    assert client.codes(ENVELOPE[1], ENVELOPE[1]) == [250, 450]


@case({"max_connections_per_client": 1}, {"ipv4_client_prefix": 24})
def _prefix(guard: Guard) -> Iterator[None]:
    assert comes(guard, "192.0.2.1") == comes(guard, "192.0.2.2") == 220
    yield
    assert comes(guard, "192.0.2.3") == 220
    assert comes(guard, "192.0.2.4") == 421


@case({"max_connections_per_client": 1}, {"ipv6_client_prefix": 48})
def _prefix_of_ipv6(guard: Guard) -> Iterator[None]:
    assert comes(guard, "2001:db8::1") == comes(guard, "2001:db8:0:1::1") == 220
    yield
    assert comes(guard, "2001:db8:0:2::1") == 220
    assert comes(guard, "2001:db8:0:3::1") == 421


@case({"max_connections_per_client": 1, "network_factor": 2}, {"ipv4_networks": (24,)})
def _networks(guard: Guard) -> Iterator[None]:
    clients = [guard.connect(f"192.0.2.{number}") for number in (1, 2, 3)]
    yield
    assert [client.codes("NOOP")[-1] for client in clients] == [250] * 3
    assert comes(guard, "192.0.2.4") == 421
    assert comes(guard, "192.0.3.4") == 220
    for client in clients[:2]:
        client.disconnect()
    assert [comes(guard, f"192.0.2.{number}") for number in (4, 5)] == [220, 421]


@case(
    {"message_rate": Rate(1, 60), "network_factor": 2, "ipv6_networks": (56,)},
    {"ipv6_networks": (48,)},
)
def _networks_of_ipv6(guard: Guard) -> Iterator[None]:
    clients = [guard.greeted(f"2001:db8:0:{number}00::1") for number in range(4)]
    assert [client.codes(ENVELOPE[0])[-1] for client in clients[:2]] == [250] * 2
    yield
    assert [client.codes("RSET", ENVELOPE[0])[-1] for client in clients] == [450, 450, 250, 250]
    assert guard.greeted("2001:db8:0:400::1").codes(ENVELOPE[0]) == [450]


@case({"max_connections_per_client": 1, "ipv4_networks": (24,), "network_factor": 3}, {"network_factor": 2})
def _network_factor(guard: Guard) -> Iterator[None]:
    clients = [guard.connect(f"192.0.2.{number}") for number in (1, 2, 3, 4)]
    assert [client.closed for client in clients] == [False] * 3 + [True]
    yield
    clients[0].disconnect()
    assert comes(guard, "192.0.2.5") == 421
    clients[1].disconnect()
    assert comes(guard, "192.0.2.5") == 220


@case({"connection_rate": Rate(1, 60), "max_tracked_clients": 3}, {"max_tracked_clients": 1})
def _tracked(guard: Guard) -> Iterator[None]:
    assert [comes(guard, f"192.0.2.{n}") for n in (1, 2, 3)] == [220] * 3
    yield
    assert comes(guard, "192.0.2.3") == 421
    assert comes(guard, "192.0.2.1") == 220


@case({}, {"known_for": 60})
def _known_for(guard: Guard) -> Iterator[None]:
    client = guard.greeted()
    assert message(client) == 250
    guard.clock.advance(100)
    assert client.protocol.engine.is_known
    yield
    assert not client.protocol.engine.is_known
    assert message(guard.greeted()) == 250
    assert client.protocol.engine.is_known


@case({}, {"max_known_clients": 1})
def _known_clients(guard: Guard) -> Iterator[None]:
    clients = [guard.greeted(f"192.0.2.{n}") for n in (1, 2)]
    for client in clients:
        assert message(client) == 250
        guard.clock.advance(1)
    assert [client.protocol.engine.is_known for client in clients] == [True, True]
    yield
    assert [client.protocol.engine.is_known for client in clients] == [False, True]


SLOW = SlowFilter()


@case({"ip_filters": [SLOW]}, {"ip_filter_timeout": 2})
def _filter_timeout(guard: Guard) -> Iterator[None]:
    early = guard.connect()
    yield
    late = guard.connect()
    assert says(late, 2) == [421]
    assert says(early, 7.8) == []
    assert says(early, 0.3) == [421]


@case({"greet_delay": 2}, {"early_talker": "refuse"})
def _early_talker(guard: Guard) -> Iterator[None]:
    greeted = guard.connect()
    guard.clock.advance(2)
    assert codes(greeted.heard()) == [220]
    waits = guard.connect()
    yield
    assert greeted.codes("NOOP") == [250]
    assert waits.codes("NOOP") == [421]


@case({"greet_delay": 9}, {"greet_delay": 2})
def _greet_delay(guard: Guard) -> Iterator[None]:
    early = guard.connect()
    yield
    late = guard.connect()
    assert says(late, 2) == [220]
    assert says(early, 6.9) == []
    assert says(early, 0.2) == [220]


@case({"proxy_header_timeout": 5}, {"proxy_header_timeout": 2})
def _proxy_header(_: Guard) -> Iterator[None]:
    guard = Guard(proxy_protocol_from=["192.0.2.1"])
    early = guard.connect()
    yield
    change(guard, proxy_header_timeout=2)
    late = guard.connect()
    guard.clock.advance(2.1)
    assert late.transport.aborted
    assert not early.transport.aborted
    guard.clock.advance(3)
    assert early.transport.aborted


# Commands.


@case({}, {"max_invalid_commands": 3})
def _invalid_commands(guard: Guard) -> Iterator[None]:
    client = guard.greeted()
    assert client.codes(*["WHAT"] * 4) == [500] * 4
    yield
    assert client.heard() == ""
    assert client.codes("NOOP") == [250, 421]


@case({}, {"max_errors": 2})
def _errors(guard: Guard) -> Iterator[None]:
    client = guard.greeted()
    assert client.codes("MAIL FROM:", "MAIL FROM:") == [501] * 2
    yield
    assert client.codes("MAIL FROM:") == [501, 421]


@case({"max_errors": 1}, {"max_junk_commands": 2})
def _junk(guard: Guard) -> Iterator[None]:
    client = guard.greeted()
    assert client.codes(*["NOOP"] * 3) == [250] * 3
    yield
    assert client.codes("NOOP") == [250, 421]


@case({}, {"max_recipients": 2})
def _recipients(guard: Guard) -> Iterator[None]:
    client = guard.greeted()
    assert client.codes(*ENVELOPE, ENVELOPE[1]) == [250] * 3
    yield
    assert client.codes(ENVELOPE[1]) == [452]
    assert "LIMITS RCPTMAX=2" in client.say("EHLO client.example")


@case({"max_recipients": 1}, {"strict_enhanced_codes": True})
def _strict(guard: Guard) -> Iterator[None]:
    client = guard.greeted()
    assert "452 5.5.3 " in client.say(*ENVELOPE, ENVELOPE[1])
    yield
    assert "452 4.5.3 " in client.say(ENVELOPE[1])


@case({}, {"max_rejected_recipients": 2})
def _rejected(guard: Guard) -> Iterator[None]:
    guard.delivery.answers = delivery_without_nobody().answers
    client = guard.greeted()
    assert client.codes(ENVELOPE[0], NOBODY, NOBODY)[-3:] == [250, 550, 550]
    yield
    assert client.codes(NOBODY) == [550, 421]


@case({"max_messages": 9}, {"max_messages": 1})
def _messages(guard: Guard) -> Iterator[None]:
    client = guard.greeted()
    assert message(client) == 250
    assert client.codes(*MAIL)[-1] == 354
    yield
    assert client.codes("x", ".") == [250]
    assert client.codes(ENVELOPE[0]) == [421]


@case({}, {"max_auth_failures": 2})
def _auth_failures(guard: Guard) -> Iterator[None]:
    client = guard.greeted()
    assert client.codes(f"AUTH PLAIN {plain()}")[-1] == 535
    yield
    assert client.codes(f"AUTH PLAIN {plain()}") == [535, 421]


@case({}, {"auth_failure_rate": Rate(2, 60)})
def _auth_failure_rate(guard: Guard) -> Iterator[None]:
    client = guard.greeted()
    assert client.codes(f"AUTH PLAIN {plain()}")[-1] == 535
    yield
    assert client.codes(*[f"AUTH PLAIN {plain()}"] * 2) == [535, 454]


@case({}, {"auth_failure_rate_per_user": Rate(1, 60)})
def _auth_failure_rate_per_user(guard: Guard) -> Iterator[None]:
    client = guard.greeted()
    assert client.codes(f"AUTH PLAIN {plain()}")[-1] == 535
    yield
    assert client.codes(*[f"AUTH PLAIN {plain()}"] * 2) == [535, 454]


@case({}, {"max_command_line": 100})
def _command_line(guard: Guard) -> Iterator[None]:
    client = guard.greeted()
    assert client.codes("NOOP " + "x" * 100) == [250]
    yield
    assert client.codes("NOOP " + "x" * 100) == [500]


@case({}, {"max_auth_line": 3000})
def _auth_line(guard: Guard) -> Iterator[None]:
    client = guard.greeted()
    assert client.codes(f"AUTH PLAIN {plain(LONG)}")[-1] == 535
    yield
    assert client.codes(f"AUTH PLAIN {plain(LONG)}") == [500]


@case({}, {"max_endless_line": 3000})
def _endless_line(guard: Guard) -> Iterator[None]:
    client = guard.greeted()
    assert client.codes("NOOP " + "x" * 4000) == [500]
    yield
    assert client.codes("NOOP " + "x" * 4000) == [500, 421]


@case({}, {"lenient_addresses": "all"})
def _lenient(guard: Guard) -> Iterator[None]:
    client = guard.greeted()
    assert client.codes("MAIL FROM:a@b.example") == [501]
    yield
    assert client.codes("MAIL FROM:a@b.example") == [250]


@case({}, {"unexpected_pipelining": "refuse"})
def _pipelining(guard: Guard) -> Iterator[None]:
    client = guard.greeted()
    assert client.codes("EHLO a.example", "NOOP") == [250, 250]
    yield
    assert client.codes("EHLO a.example", "NOOP") == [421]


@case({}, {"max_input_buffer": 100})
def _input_buffer(guard: Guard) -> Iterator[None]:
    guard.delivery.answers["begin"] = lambda *_: Deferred()
    first, second = guard.greeted(), guard.greeted()
    first.say(ENVELOPE[0])
    first.send(b"x" * 200)
    assert first.transport.producerState == "producing"
    yield
    second.say(ENVELOPE[0])
    second.send(b"x" * 200)
    assert second.transport.producerState == "paused"


@case({"max_output_buffer": 0}, {"max_output_buffer": 30})
def _output_buffer(guard: Guard) -> Iterator[None]:
    client = guard.greeted()
    client.transport.reads = False
    for _ in range(3):
        client.say("NOOP")
    assert client.protocol.congested is False
    yield
    client.say("NOOP")
    assert client.protocol.congested is True


# Messages.


@case({}, {"max_message_size": 1000})
def _message_size(guard: Guard) -> Iterator[None]:
    client = guard.greeted()
    assert client.codes(*MAIL)[-1] == 354
    yield
    assert client.codes("x" * 2000, ".") == [250]
    assert message(client, "x" * 2000) == 552
    assert "SIZE 1000\r\n" in client.say("EHLO client.example")


@case({"max_message_size": 10}, {"oversize_drain": 100})
def _drain(guard: Guard) -> Iterator[None]:
    client = guard.greeted()
    assert client.codes(*MAIL)[-1] == 354
    yield
    assert client.codes("x" * 2000, ".") == [552]
    assert client.codes(*MAIL)[-1] == 354
    assert client.codes("x" * 2000) == [421]


@case({}, {"bare_newline": "normalize"})
def _bare_newline(guard: Guard) -> Iterator[None]:
    client = guard.greeted()
    assert client.codes(*MAIL)[-1] == 354
    yield
    assert client.codes("a\nb", ".") == [550]
    assert message(client, "a\nb") == 250


@case({}, {"max_header_size": 100})
def _header_size(guard: Guard) -> Iterator[None]:
    client = guard.greeted()
    assert client.codes(*MAIL)[-1] == 354
    yield
    assert client.codes("Subject: " + "x" * 200, "", ".") == [250]
    assert message(client, "Subject: " + "x" * 200) == 552


@case({}, {"max_received_fields": 1})
def _received(guard: Guard) -> Iterator[None]:
    client = guard.greeted()
    assert client.codes(*MAIL)[-1] == 354
    yield
    assert client.codes("Received: a", "Received: b", "", ".") == [250]
    assert message(client, "Received: a\r\nReceived: b\r\n") == 554


@case({}, {"max_pending_deliveries": 1})
def _pending(guard: Guard) -> Iterator[None]:
    verdict: Deferred[None] = Deferred()
    guard.delivery.answers["finish"] = lambda: verdict
    leaves, stays = guard.greeted(), guard.greeted()
    leaves.say(*MAIL)
    leaves.say("x", ".")
    leaves.disconnect()
    assert stays.codes(ENVELOPE[0])[-1] == 250
    yield
    assert stays.codes("RSET", ENVELOPE[0]) == [250, 451]
    verdict.callback(None)
    assert stays.codes(ENVELOPE[0]) == [250]


# Time.


@case({"read_timeout": 300}, {"read_timeout": 10})
def _read_timeout(guard: Guard) -> Iterator[None]:
    waits, speaks, drips = (guard.greeted() for _ in range(3))
    yield
    speaks.say("NOOP")
    drips.send(b"NO")
    assert says(speaks, 10.1) == [421]
    assert says(drips, 280) == says(waits, 0) == []
    assert says(drips, 10.1) == [421]
    assert codes(waits.heard()) == [421]


@case({"max_connections": 1}, {"stress_read_timeout": 10})
def _stress_read_timeout(guard: Guard) -> Iterator[None]:
    client = guard.greeted()
    guard.clock.advance(1)
    yield
    assert says(client, 8.9) == []
    assert says(client, 0.3) == [421]


@case({"write_timeout": 300}, {"write_timeout": 10})
def _write_timeout(guard: Guard) -> Iterator[None]:
    early, late, takes = (guard.greeted() for _ in range(3))
    for client in (early, late, takes):
        client.transport.reads = False
    early.say("HELP")
    takes.say("HELP")
    yield
    late.say("HELP")
    takes.say("HELP")
    takes.transport.take(10_000)
    takes.say("HELP")
    guard.clock.advance(10.1)
    assert late.transport.aborted
    assert not early.transport.aborted
    guard.clock.advance(290)
    assert early.transport.aborted
    assert takes.transport.aborted


@case({"min_data_rate": 0}, {"min_data_rate": 500})
def _data_rate(guard: Guard) -> Iterator[None]:
    early, late = guard.greeted(), guard.greeted()
    assert early.codes(*MAIL)[-1] == 354
    yield
    assert late.codes(*MAIL)[-1] == 354
    for client in (early, late):
        client.say("x")
    assert says(late, 120.2) == [421]
    assert codes(early.say("x", ".")) == [250]


@case({"min_data_rate": 500}, {"data_rate_window": 10})
def _data_rate_window(guard: Guard) -> Iterator[None]:
    early, late = guard.greeted(), guard.greeted()
    assert message(late) == 250
    assert early.codes(*MAIL)[-1] == 354
    yield
    assert late.codes(*MAIL)[-1] == 354
    for client in (early, late):
        client.say("x")
    assert says(late, 20.2) == [421]
    assert says(early, 99.6) == []
    assert says(early, 0.4) == [421]


@case({"max_session_time": 0}, {"max_session_time": 100})
def _session_time(guard: Guard) -> Iterator[None]:
    old = guard.greeted()
    guard.clock.advance(60)
    in_mail = guard.greeted()
    in_mail.say(*MAIL)
    yield
    new = guard.greeted()
    assert says(old, 40.1) == [421]
    assert says(in_mail, 60) == []
    assert codes(new.heard()) == [421]
    assert codes(in_mail.say("x", ".")) == [250, 421]


@case({"delivery_timeout": 300}, {"delivery_timeout": 10})
def _delivery_timeout(guard: Guard) -> Iterator[None]:
    guard.delivery.answers["begin"] = lambda *_: Deferred()
    early, late = guard.greeted(), guard.greeted()
    early.say(ENVELOPE[0])
    yield
    late.say(ENVELOPE[0])
    assert says(late, 10.1) == [451]
    assert says(early, 289.8) == []
    assert says(early, 0.3) == [451]


def hung_up(guard: Guard) -> FakeTransport:
    """The transport of a client that has made its last mistake."""
    client = guard.greeted()
    assert client.codes("WHAT") == [500, 421]
    return client.transport


@case({"policies": [FakePolicy(lambda _: Deferred())]}, {"policy_timeout": 2})
def _policy_timeout(guard: Guard) -> Iterator[None]:
    early, late = guard.greeted(), guard.greeted()
    early.say(*ENVELOPE)
    yield
    late.say(*ENVELOPE)
    assert says(late, 2.1) == [451]
    assert says(early, 7.8) == []
    assert says(early, 0.3) == [451]


@case({"max_invalid_commands": 1}, {"linger_timeout": 1})
def _linger_timeout(guard: Guard) -> Iterator[None]:
    early = hung_up(guard)
    yield
    late = hung_up(guard)
    guard.clock.advance(1.1)
    assert (early.aborted, late.aborted) == (False, True)
    guard.clock.advance(4)
    assert early.aborted


@case({"max_invalid_commands": 1}, {"max_lingering": 2})
def _lingering(guard: Guard) -> Iterator[None]:
    early = [hung_up(guard) for _ in range(2)]
    yield
    assert hung_up(guard).lost
    assert not any(each.lost for each in early)


@case({"shutdown_grace": 30}, {"shutdown_grace": 5})
def _grace(guard: Guard) -> Iterator[None]:
    client = guard.greeted()
    client.say(*MAIL)
    yield
    guard.factory.drain()
    assert says(client, 4.9) == []
    assert says(client, 0.2) == [421]


# The log.


@case({"max_log_lines": 200}, {"max_log_lines": 2})
def _log_lines(guard: Guard) -> Iterator[None]:
    with logbook() as log:
        for number in range(3):
            guard.connect(f"192.0.2.{number}").say("WHAT")
        assert len(log.take("reject")) == 3
        yield
        guard.connect("192.0.2.9").say("WHAT")
        assert log.take("reject") == []


@case({"max_log_lines_per_client": 10}, {"max_log_lines_per_client": 2})
def _log_lines_of_a_client(guard: Guard) -> Iterator[None]:
    with logbook() as log:
        client = guard.connect()
        client.say(*["WHAT"] * 3)
        assert len(log.take("reject")) == 3
        yield
        client.say("WHAT")
        assert log.take("reject") == []
        guard.connect("192.0.2.9").say("WHAT")
        assert len(log.take("reject")) == 1


# With sockets.


OF_SOCKETS = {"max_tls_handshakes", "tls_handshake_timeout", "socket_send_buffer", "socket_receive_buffer"}
NOT_CHANGED = {"min_free_space", "max_policy_connections"}
"""A MaildirDelivery and a PolicyServer have theirs from their makers."""


async def shakes(guard: Loopback) -> TLSClient:
    """A client whose handshake has begun."""
    client = TLSClient(guard)
    await client.ask_for_tls()
    await guard.until(lambda: client.socket.getsockname()[1] in under_way(guard))
    return client


def under_way(guard: Loopback) -> list[int | None]:
    return [engine.port for engine in guard.factory.context.handshakes]


@pytest_twisted.ensureDeferred
async def test_handshakes_are_limited_from_the_next_one_on() -> None:
    guard = Loopback(options={"tls": CertificateFiles(str(certificate()))}, tls_handshake_timeout=30)
    guard.start()
    early = await shakes(guard)
    change(guard, tls_handshake_timeout=5)
    late = await shakes(guard)
    with logbook():
        guard.clock.advance(5.1)
        assert under_way(guard) == [early.socket.getsockname()[1]]
        late = await shakes(guard)
        change(guard, max_tls_handshakes=1)
        assert len(under_way(guard)) == 2
        guard.clock.advance(2)
        last = await shakes(guard)
        assert under_way(guard) == [each.socket.getsockname()[1] for each in (late, last)]
        await guard.turn()
        guard.clock.advance(30)
    await guard.close()


def sizes(of: socket.socket) -> tuple[int, int]:
    sides = socket.SO_SNDBUF, socket.SO_RCVBUF
    return of.getsockopt(socket.SOL_SOCKET, sides[0]), of.getsockopt(socket.SOL_SOCKET, sides[1])


@pytest_twisted.ensureDeferred
async def test_the_kernels_buffers_are_those_of_the_next_connection() -> None:
    guard = Loopback(socket_send_buffer=20_000, socket_receive_buffer=50_000)
    guard.start()
    await guard.greeted()
    (early,) = [protocol.transport.socket for protocol in guard.protocols]
    change(guard, socket_send_buffer=30_000, socket_receive_buffer=70_000)
    await guard.greeted()
    (late,) = [each.transport.socket for each in guard.protocols if each.transport.socket is not early]
    assert sizes(late) == (60_000, 140_000)
    assert sizes(early) == (40_000, 100_000)
    await guard.close()


# What a limit of 0 becomes, and what becomes 0.


def test_a_read_timeout_that_there_was_not_begins_with_the_next_command() -> None:
    guard = Guard(read_timeout=0)
    waits, speaks = guard.greeted(), guard.greeted()
    change(guard, read_timeout=10)
    speaks.say("NOOP")
    assert says(speaks, 10.1) == [421]
    assert says(waits, 1000) == []
    change(guard, read_timeout=0)
    waits.say("NOOP")
    assert says(waits, 1000) == []


def test_a_write_timeout_that_is_switched_off_aborts_nobody_who_goes_on_reading() -> None:
    guard = Guard(write_timeout=10)
    client = guard.greeted()
    client.transport.reads = False
    client.say(*["HELP"] * 100)
    change(guard, write_timeout=0)
    client.transport.take(10_000)
    guard.clock.pump([1] * 1000)
    assert not client.transport.aborted
    change(guard, write_timeout=10)
    client.transport.take(10_000)
    guard.clock.pump([1] * 11)
    assert client.transport.aborted


def test_a_session_whose_time_is_over_goes_on_if_it_gets_more_before_its_mail_has_ended() -> None:
    guard = Guard(max_session_time=10)
    client = guard.greeted()
    client.say(*MAIL)
    assert says(client, 11) == []
    change(guard, max_session_time=100)
    assert client.codes("x", ".", "NOOP") == [250, 250]
    assert says(client, 88) == []
    assert says(client, 1.1) == [421]
    assert says(client, 5.1) == guard.clock.getDelayedCalls() == []


def test_a_session_whose_time_is_over_is_ended_all_the_same_if_something_else_changes() -> None:
    guard = Guard(max_session_time=10)
    client = guard.greeted()
    client.say(*MAIL)
    assert says(client, 11) == []
    change(guard, max_recipients=3)
    assert client.codes("x", ".") == [250, 421]


def test_a_limit_that_leaves_its_dry_run_reaches_the_sessions_that_it_would_have_ended() -> None:
    guard = Guard(max_session_time=10, dry_run=["max_session_time"])
    client = guard.greeted()
    assert says(client, 11) == []
    change(guard, dry_run=frozenset())
    assert says(client, 0.2) == [421]


def test_the_places_of_clients_are_given_back_once_though_the_limit_came_and_went() -> None:
    guard = Guard()
    early = [guard.connect() for _ in range(3)]
    for cap in (2, 0, 4):
        change(guard, max_connections_per_client=cap)
    assert comes(guard) == 220
    assert comes(guard) == 421
    for client in early:
        client.disconnect()
    assert [comes(guard) for _ in range(4)] == [220, 220, 220, 421]


def test_clients_that_are_trusted_do_not_count_when_their_connections_get_a_limit() -> None:
    trusts = FakeFilter(TRUST)
    guard = Guard(ip_filters=[trusts])
    guard.connect(), guard.connect()
    trusts.answer = PASS
    change(guard, max_connections_per_client=1)
    assert [comes(guard), comes(guard)] == [220, 421]


def test_a_rate_of_a_client_is_counted_on_over_a_change_of_it() -> None:
    guard = Guard(message_rate=Rate(9, 60))
    client = guard.greeted()
    assert [message(client) for _ in range(3)] == [250] * 3
    change(guard, message_rate=Rate(4, 3600))
    assert message(client) == 250
    guard.clock.advance(61)
    assert client.codes(ENVELOPE[0]) == [450]
