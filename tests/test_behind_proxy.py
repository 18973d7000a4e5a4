"""A guard behind a proxy: whom it takes the client for, and what a connection is that says nothing or lies."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
import pytest_twisted
from certificates import certificate
from commandline import mistake, parsed
from fakes import Conversation, FakeDelivery, FakeFilter
from loopback import Loopback
from tlsclient import TLSClient
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs

from twisted_smtpguard import Limits, SMTPGuardFactory
from twisted_smtpguard.interfaces import PASS, Peer
from twisted_smtpguard.tap import make_service
from twisted_smtpguard.testing import Clients
from twisted_smtpguard.wire.tls import CertificateFiles

GREETING = "220 guard.example ESMTP ready\r\n"
PROXY = "10.0.0.1"
V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 25\r\n"
V2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x07\xc6\x33\x64\x01\x12\x67\x00\x19"
LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00"
each_version = pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])


class Proxied(Clients):
    """A guard whose proxies are in 10.0.0.0/8 and fd00::/8. `asked` are the peers that its filter has seen."""

    def __init__(self, **limits: Any) -> None:
        clock = Clock()
        self.asked: list[Peer] = []
        checks = FakeFilter()
        checks.check = lambda peer: self.asked.append(peer) or PASS  # type: ignore[method-assign,func-returns-value]
        factory = SMTPGuardFactory(
            clock,
            FakeDelivery(),
            limits=Limits(**limits),
            hostname="guard.example",
            ip_filters=[checks],
            proxy_protocol_from=["10.0.0.0/8", "fd00::/8"],
        )
        super().__init__(factory, clock)

    def through(self, header: bytes, proxy: str = PROXY) -> Conversation:
        client = self.connect(proxy)
        client.send(header)
        return client


def refusals(guard: Clients) -> dict[str, int]:
    return guard.factory.statistics.refusals


# The real client.


@each_version
def test_filters_and_deliveries_see_the_real_client(header: bytes) -> None:
    guard = Proxied()
    client = guard.connect(PROXY)
    assert client.heard() == ""
    assert guard.asked == []
    assert client.send(header) == GREETING
    real = Peer(ip_address("192.0.2.7"), 4711, ip_address("198.51.100.1"), 25, proxied=True)
    assert guard.asked == [real]
    client.say("EHLO a", "MAIL FROM:<a@b.example>", "RCPT TO:<b@c.example>", "DATA", "x", ".")
    (message,) = guard.delivery.messages
    assert message.client.peer == real


@each_version
def test_a_header_may_come_an_octet_at_a_time(header: bytes) -> None:
    guard = Proxied()
    client = guard.connect(PROXY)
    assert client.send(header, bytewise=True) == GREETING
    assert guard.asked[0].address == ip_address("192.0.2.7")


@each_version
def test_or_in_two_pieces_cut_anywhere(header: bytes) -> None:
    for cut in range(1, len(header)):
        client = Proxied().connect(PROXY)
        assert client.send(header[:cut]) == ""
        assert client.send(header[cut:]) == GREETING


def test_limits_per_client_count_the_real_client() -> None:
    guard = Proxied(max_connections_per_client=1)
    one, again, other = guard.through(V1), guard.through(V1), guard.through(V1.replace(b".7 ", b".8 "))
    assert one.heard() == ""
    assert again.transport.half_closed
    assert not other.closed
    assert refusals(guard) == {"max_connections_per_client": 1}


def test_the_log_has_the_real_client() -> None:
    with capturedLogs() as events:
        guard = Proxied()
        client = guard.through(V2)
        client.say("WHAT", "QUIT")
    assert {event["peer"] for event in events if "peer" in event} == {"192.0.2.7"}
    assert [event["event"] for event in events] == ["connect", "reject", "disconnect"]


def test_a_mapped_address_is_an_ipv4_one() -> None:
    guard = Proxied()
    guard.through(b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:198.51.100.1 4711 25\r\n", "fd00::1")
    assert guard.asked[0].address == ip_address("192.0.2.7")


@pytest.mark.parametrize("header", [LOCAL, b"PROXY UNKNOWN\r\n"], ids=["LOCAL", "UNKNOWN"])
def test_a_proxy_that_names_nobody_is_the_client_itself(header: bytes) -> None:
    guard = Proxied()
    client = guard.connect(PROXY)
    assert client.send(header) == GREETING
    assert guard.asked[0].address == ip_address(PROXY)
    assert not guard.asked[0].proxied


# From elsewhere.


def test_from_any_other_network_a_header_is_an_invalid_command() -> None:
    guard = Proxied()
    client = guard.connect("192.0.2.1")
    assert client.heard() == GREETING
    assert client.send(V1) == "500 5.5.1 Command not recognized\r\n"
    assert guard.asked[0].address == ip_address("192.0.2.1")


# Early talkers.


def test_what_stands_behind_the_header_is_early() -> None:
    guard = Proxied(early_talker="refuse")
    client = guard.connect(PROXY)
    assert client.send(V1 + b"EHLO a\r\n").startswith(
        "421 4.7.0 Protocol error: client spoke before the greeting"
    )
    assert guard.through(V1).closed is False


def test_or_is_served_where_early_talkers_are() -> None:
    client = Proxied().connect(PROXY)
    assert client.send(V2 + b"HELO a\r\n") == f"{GREETING}250 guard.example\r\n"


# What is no header.


@pytest.mark.parametrize(
    "octets",
    [
        b"EHLO a\r\n",
        b"\x16\x03\x01",
        b"PROXY TCP4 x\r\n",
        b"PROXY ".ljust(107, b"x"),
        V2[:12] + b"\x31\x11\0\0",
    ],
)
def test_what_is_no_header_ends_the_connection_without_a_word(octets: bytes) -> None:
    guard = Proxied()
    client = guard.connect(PROXY)
    assert client.send(octets) == ""
    assert client.transport.aborted
    assert guard.asked == []
    assert refusals(guard) == {"bad_proxy_header": 1}
    assert guard.factory.connections == 0
    assert guard.clock.getDelayedCalls() == []


def test_a_header_that_does_not_come_in_time_ends_it_too() -> None:
    guard = Proxied(max_connections=9)
    silent, drips = guard.connect(PROXY), guard.connect(PROXY)
    for octet in V1[:4]:
        drips.send(bytes([octet]))
        guard.clock.advance(1)
    assert guard.factory.connections == 2
    guard.clock.advance(1.2)
    assert silent.transport.aborted
    assert drips.transport.aborted
    assert refusals(guard) == {"proxy_header_timeout": 2}
    assert guard.factory.connections == 0


def test_its_time_is_never_longer_than_the_read_timeout() -> None:
    guard = Proxied(read_timeout=2)
    client = guard.connect(PROXY)
    guard.clock.advance(2.2)
    assert client.transport.aborted


def test_a_slot_is_taken_from_accept_on() -> None:
    guard = Proxied(max_connections=1)
    guard.connect(PROXY)
    assert guard.connect(PROXY).heard() == "421 4.7.0 Too many connections, try again later\r\n"


@pytest.mark.parametrize("end", ["disconnect", "half_close"])
def test_a_proxy_that_leaves_before_its_header_has_hung_up(end: str) -> None:
    guard = Proxied()
    getattr(guard.connect(PROXY), end)()
    assert guard.factory.connections == 0
    assert guard.factory.statistics.hangups == 1
    assert guard.clock.getDelayedCalls() == []


def test_a_proxy_that_has_not_said_who_comes_is_told_that_the_service_stops() -> None:
    guard = Proxied()
    client = guard.connect(PROXY)
    guard.factory.drain()
    assert client.heard() == "421 4.3.2 Server shutting down\r\n"


# With TLS behind it.


@each_version
@pytest_twisted.ensureDeferred
async def test_at_a_tls_listener_the_header_comes_first_and_the_hello_may_stand_right_behind_it(
    header: bytes,
) -> None:
    tls = CertificateFiles(str(certificate()))
    guard = Loopback(
        0,
        tls_listeners=1,
        options={"tls": tls, "proxy_protocol_from": ["127.0.0.0/8"]},
        early_talker="refuse",
    )
    guard.start()
    client = TLSClient(guard)
    client._unsent = header
    await client.shake_hands()
    await client.hears(GREETING.encode())
    await client.says(b"EHLO a\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<b@c.example>\r\nDATA\r\n")
    await client.hears(b"354 ")
    await client.says(b"x\r\n.\r\n")
    await client.hears(b"250 2.0.0 ")
    (message,) = guard.delivery.messages
    peer = message.client.peer
    assert (str(peer.address), peer.port, peer.tls, peer.proxied) == ("192.0.2.7", 4711, True, True)
    await guard.close()


# Asked for.


def test_the_networks_are_options() -> None:
    options = parsed("--proxy-protocol-from", "192.0.2.1", "--proxy-protocol-from", "2001:db8::/32")
    proxies = make_service(options, MemoryReactorClock()).factory.proxies
    assert proxies is not None
    assert proxies.has(ip_address("2001:db8::1"))
    assert not proxies.has(ip_address("192.0.2.2"))
    assert not proxies.has(None)


def test_what_is_no_network_is_a_mistake() -> None:
    assert mistake("--proxy-protocol-from", "any").startswith("--proxy-protocol-from: 'any' is no network; ")


def test_without_the_option_nobody_is_believed() -> None:
    assert SMTPGuardFactory(Clock(), FakeDelivery()).proxies is None
