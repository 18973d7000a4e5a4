"""A guard behind a proxy: which client it sees, and what happens if a header is missing or false."""

from __future__ import annotations

import struct
from base64 import b64encode
from ipaddress import ip_address
from pathlib import Path as FilePath
from typing import Any

import pytest
import pytest_twisted
from certificates import certificate
from commandline import mistake, parsed
from constantly import NamedConstant  # type: ignore[import-untyped]
from fakes import Conversation, FakeDelivery, FakeFilter
from loopback import Loopback, reactor
from tlsclient import TLSClient
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.internet.endpoints import UNIXServerEndpoint
from twisted.internet.ssl import ContextFactory
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel, capturedLogs

from twisted_smtpguard import Limits, SMTPGuardFactory
from twisted_smtpguard.cli.options import make_service
from twisted_smtpguard.interfaces import PASS, Peer
from twisted_smtpguard.log.eventlog import EventLog
from twisted_smtpguard.testing import Clients
from twisted_smtpguard.tls.files import CertificateFiles

GREETING = "220 guard.example ESMTP ready\r\n"
PROXY = "10.0.0.1"
V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 25\r\n"
V2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x07\xc6\x33\x64\x01\x12\x67\x00\x19"
LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00"
each_version = pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])


class Proxied(Clients):
    """A guard whose proxies are in 10.0.0.0/8 and fd00::/8. `asked` are the peers that its filter has seen."""

    def __init__(self, options: dict[str, Any] | None = None, **limits: Any) -> None:
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
            **(options or {}),
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
def test_a_proxy_that_names_no_client_is_the_client_itself(header: bytes) -> None:
    guard = Proxied()
    client = guard.connect(PROXY)
    assert client.send(header) == GREETING
    assert guard.asked[0].address == ip_address(PROXY)
    assert not guard.asked[0].proxied


# From elsewhere.


def test_from_any_other_network_a_header_is_refused() -> None:
    guard = Proxied()
    client = guard.connect("192.0.2.1")
    assert client.heard() == GREETING
    assert client.send(V1) == "421 4.7.0 Protocol error: unexpected PROXY header\r\n"
    assert guard.asked[0].address == ip_address("192.0.2.1")


# Early talkers.


def test_input_right_after_the_header_is_early() -> None:
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


# With TLS after it.


@each_version
@pytest_twisted.ensureDeferred
async def test_at_a_tls_listener_the_header_comes_first_and_the_hello_may_follow_at_once(
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


# TLS that the proxy has ended.


def vector(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def tls_header(client: int = 0x01, *inner: bytes, more: bytes = b"") -> bytes:
    """A header of version 2 with the vector of TLS after another one."""
    vectors = vector(0x04, b"x") + vector(0x20, struct.pack("!BI", client, 0) + b"".join(inner)) + more
    rest = V2[16:] + vectors
    return V2[:14] + struct.pack("!H", len(rest)) + rest


VERSION, CIPHER = vector(0x21, b"TLSv1.3"), vector(0x23, b"TLS_AES_256_GCM_SHA384")
PROXY_TLS = {"proxy_protocol_tls": True, "checkers": [InMemoryUsernamePasswordDatabaseDontUse(bob=b"pw")]}


def keywords(said: str) -> set[str]:
    return {line[4:].split(" ")[0] for line in said.splitlines()[1:]}


def log_in(user: str, password: str) -> str:
    return "AUTH PLAIN " + b64encode(f"\0{user}\0{password}".encode()).decode()


def test_the_log_has_it() -> None:
    with capturedLogs() as events:
        Proxied(PROXY_TLS).through(tls_header(1, VERSION, CIPHER))
    (connect,) = (event for event in events if event.get("event") == "connect")
    assert connect["tls"] == "TLSv1.3:TLS_AES_256_GCM_SHA384"


def test_it_counts_as_tls_where_the_operator_says_so() -> None:
    guard = Proxied({**PROXY_TLS, "tls": ContextFactory(), "require_tls": True, "require_auth": True})
    client = guard.connect(PROXY)
    assert client.send(tls_header(1, VERSION, CIPHER)) == GREETING
    said = keywords(client.say("EHLO a"))
    assert "AUTH" in said
    assert "STARTTLS" not in said
    assert client.say("STARTTLS").startswith("503 5.5.1 ")
    assert client.say(log_in("bob", "pw")).startswith("235 ")
    client.say("MAIL FROM:<a@b.example>", "RCPT TO:<b@c.example>", "DATA", "x", ".")
    (message,) = guard.delivery.messages
    assert message.client.tls == "TLSv1.3 TLS_AES_256_GCM_SHA384"
    assert message.client.protocol == "ESMTPSA"
    assert message.client.peer.tls
    assert guard.asked[0].tls


@pytest.mark.parametrize(
    ("header", "tls"),
    [
        (tls_header(0x01), "TLS"),
        (tls_header(0x07, VERSION), "TLSv1.3"),
        (tls_header(0x01, CIPHER), "TLS TLS_AES_256_GCM_SHA384"),
        (tls_header(0x01, vector(0x21, b"a\r\nb")), "TLS"),
        (tls_header(0x00, VERSION), ""),
        (tls_header(0x02, VERSION), ""),
        (V2, ""),
        (V1, ""),
    ],
)
def test_only_where_the_header_says_that_the_client_has_spoken_it(header: bytes, tls: str) -> None:
    guard = Proxied(PROXY_TLS)
    client = guard.connect(PROXY)
    assert client.send(header, bytewise=True) == GREETING
    assert ("AUTH" in keywords(client.say("EHLO a"))) is (tls != "")
    client.say("MAIL FROM:<a@b.example>", "RCPT TO:<b@c.example>", "DATA", "x", ".")
    assert guard.delivery.messages[0].client.tls == tls
    assert guard.asked[0].tls is (tls != "")


@pytest.mark.parametrize("header", [LOCAL, LOCAL[:12] + b"\x20\x11" + tls_header(1, VERSION)[14:]])
def test_a_connection_of_the_proxy_itself_speaks_none(header: bytes) -> None:
    client = Proxied(PROXY_TLS).connect(PROXY)
    assert client.send(header) == GREETING
    assert "AUTH" not in keywords(client.say("EHLO a"))


def test_without_the_option_it_is_in_clear() -> None:
    client = Proxied({**PROXY_TLS, "proxy_protocol_tls": False}).connect(PROXY)
    client.send(tls_header(1, VERSION, CIPHER))
    assert "AUTH" not in keywords(client.say("EHLO a"))


def test_from_other_addresses_no_client_is_believed_to_have_spoken_tls() -> None:
    guard = Proxied(PROXY_TLS)
    client = guard.connect("192.0.2.1")
    client.send(tls_header(1, VERSION, CIPHER))
    assert "AUTH" not in keywords(client.say("EHLO a"))


@pytest.mark.parametrize("octets", [b"\x20", b"\x20\0", b"\x20\0\x05\x01", vector(0x20, b"\x01\0\0\0")])
def test_vectors_that_are_cut_off_are_no_header(octets: bytes) -> None:
    guard = Proxied(PROXY_TLS)
    client = guard.connect(PROXY)
    assert client.send(tls_header(0, more=octets)) == ""
    assert client.transport.aborted
    assert refusals(guard) == {"bad_proxy_header": 1}


def test_what_needs_a_proxy_is_refused_without_one() -> None:
    with pytest.raises(ValueError, match="proxy_protocol_tls needs proxy_protocol_from"):
        SMTPGuardFactory(Clock(), FakeDelivery(), proxy_protocol_tls=True)
    assert mistake("--proxy-protocol-tls") == "--proxy-protocol-tls: --proxy-protocol-from is needed"


def test_with_it_no_certificate_is_needed() -> None:
    service = make_service(
        parsed("--proxy-protocol-from", "unix", "--proxy-protocol-tls", "--require-tls", "--deliver=discard"),
        MemoryReactorClock(),
    )
    assert service.factory.context.proxy_tls
    assert service.factory.proxies is not None
    assert service.factory.proxies.has(None)


# Health checks.

HAPROXYS_OWN = b"PROXY TCP4 10.0.0.1 198.51.100.1 4711 25\r\n"
"""What its check-send-proxy says in version 1."""
NOBODY = pytest.mark.parametrize(
    "header", [LOCAL, b"PROXY UNKNOWN\r\n", HAPROXYS_OWN], ids=["LOCAL", "UNKNOWN", "its own end"]
)


def levels(events: list[Any]) -> list[tuple[str, str]]:
    return [(event["event"], event["log_level"].name) for event in events if "event" in event]


def watched(level: NamedConstant, **limits: Any) -> Proxied:
    guard = Proxied(**limits)
    events = guard.factory.context.events
    events._log = EventLog(guard.clock.seconds, level)
    return guard


@NOBODY
def test_one_that_says_nothing_is_logged_at_debug_only(header: bytes) -> None:
    for level, expected in [
        (LogLevel.info, []),
        (LogLevel.debug, [("connect", "debug"), ("disconnect", "debug")]),
    ]:
        with capturedLogs() as events:
            guard = watched(level)
            guard.through(header).disconnect()
        assert levels(events) == expected
        counts = guard.factory.statistics
        assert (counts.connections_accepted, counts.sessions_ended, counts.live_connections) == (1, 1, 0)


@NOBODY
def test_or_leaves_before_its_greeting(header: bytes) -> None:
    for level, expected in [(LogLevel.info, []), (LogLevel.debug, [("hangup", "debug")])]:
        with capturedLogs() as events:
            guard = watched(level, greet_delay=2)
            guard.through(header).disconnect()
        assert levels(events) == expected
        assert guard.factory.statistics.hangups == 1


@NOBODY
@pytest.mark.parametrize("behind", [True, False])
def test_one_that_says_something_is_logged_like_a_client(header: bytes, behind: bool) -> None:
    with capturedLogs() as events:
        client = Proxied().through(header + b"QUIT\r\n" if behind else header)
        if not behind:
            client.say("NOOP")
            client.say("QUIT")
    lines = [event["text"].split()[0] for event in events if event.get("event") != "reject"]
    assert lines == ["connect", "disconnect"]


def test_a_client_that_is_named_and_says_nothing_is_logged_too() -> None:
    with capturedLogs() as events:
        Proxied().through(V2).disconnect()
    assert levels(events) == [("connect", "info"), ("disconnect", "info")]


# Over UNIX sockets.


@pytest_twisted.ensureDeferred
async def test_at_a_unix_socket_too(tmp_path: FilePath) -> None:
    endpoint = UNIXServerEndpoint(reactor, str(tmp_path / "smtp.sock"))
    guard = Loopback(endpoints=[endpoint], options={"proxy_protocol_from": ["unix"]})
    guard.start()
    client = guard.client()
    await client.says(V2[:20])
    assert client.heard == b""
    await client.says(V2[20:] + b"HELO a\r\nMAIL FROM:<a@b.example>\r\n")
    await client.hears(b"250 2.1.0 ")
    await client.says(b"RCPT TO:<b@c.example>\r\nDATA\r\n")
    await client.hears(b"354 ")
    await client.says(b"x\r\n.\r\n")
    await client.hears(b"250 2.0.0 ")
    (message,) = guard.delivery.messages
    assert message.client.peer == Peer(
        ip_address("192.0.2.7"), 4711, ip_address("198.51.100.1"), 25, proxied=True
    )
    await guard.close()


def test_unix_names_no_network_and_networks_no_socket() -> None:
    proxies = SMTPGuardFactory(Clock(), FakeDelivery(), proxy_protocol_from=["unix"]).proxies
    assert proxies is not None
    assert proxies.has(None)
    assert not proxies.has(ip_address("127.0.0.1"))


# Asked for.


def test_the_networks_are_options() -> None:
    options = parsed("--proxy-protocol-from", "192.0.2.1", "--proxy-protocol-from", "2001:db8::/32")
    proxies = make_service(options, MemoryReactorClock()).factory.proxies
    assert proxies is not None
    assert proxies.has(ip_address("2001:db8::1"))
    assert not proxies.has(ip_address("192.0.2.2"))
    assert not proxies.has(None)


def test_what_is_no_network_is_a_mistake() -> None:
    assert mistake("--proxy-protocol-from", "any").startswith(
        "--proxy-protocol-from: 'any' is not a network; "
    )


def test_without_the_option_no_header_is_believed() -> None:
    assert SMTPGuardFactory(Clock(), FakeDelivery()).proxies is None
