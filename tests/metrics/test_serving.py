"""Metrics and health over HTTP, in memory: what is answered, and what a hostile client can make of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from mailserver import Behind, MailServer
from prometheus_client.openmetrics.parser import text_string_to_metric_families as strict_families
from prometheus_client.parser import text_string_to_metric_families as families
from servedguard import ServedGuard, service_with
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import CannotListenError, ConnectionDone
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.web.server import Site
from zope.interface import implementer

from twisted_smtpguard.cli.settings import MetricsOfProcess
from twisted_smtpguard.metrics import serving
from twisted_smtpguard.metrics.boundedsite import MAX_REQUESTS, MAX_WAITING, SECONDS
from twisted_smtpguard.metrics.pages import GuardPages
from twisted_smtpguard.metrics.serving import MetricsService
from twisted_smtpguard.metrics.statuspage import HEADERS

GET = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
LOCAL = IPv4Address("TCP", "127.0.0.1", 9525)


class Transport(StringTransport):
    """A client's connection. `slow`: the client does not read, so what was written keeps it open."""

    aborted = False

    def __init__(self, *, slow: bool = False) -> None:
        super().__init__()
        self.slow = slow
        self.lost = False

    def abortConnection(self) -> None:
        self.aborted = True
        self.lose()

    def loseConnection(self) -> None:
        super().loseConnection()
        if not self.slow:
            self.lose()

    def lose(self) -> None:
        if not self.lost:
            self.lost = True
            self.protocol.connectionLost(Failure(ConnectionDone()))


@implementer(IStreamServerEndpoint)
class Endpoint:
    """`answer` is what listening on it comes to; by default a port at `host`."""

    def __init__(self, host: Any = LOCAL, answer: Any = None) -> None:
        self.host = host
        self.answer = answer
        self.open = 0
        self.factory: Any = None

    def listen(self, factory: Any) -> Deferred[Any]:
        if self.answer is not None:
            return self.answer
        self.factory = factory
        factory.doStart()
        self.open += 1
        return succeed(self)

    def getHost(self) -> Any:
        return self.host

    def stopListening(self) -> None:
        self.open -= 1


class Web:
    """Clients of the metrics of `guard`."""

    def __init__(self, guard: ServedGuard) -> None:
        self.guard = guard
        self.endpoint = Endpoint()
        self.service = MetricsService(guard.service, [self.endpoint], ["m"])
        self.service.startService()

    def connect(self, octets: bytes = b"", *, bytewise: bool = False, slow: bool = False) -> Transport:
        transport = Transport(slow=slow)
        transport.protocol = self.endpoint.factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
        transport.protocol.makeConnection(transport)
        for piece in (octets[i : i + 1] for i in range(len(octets))) if bytewise else (octets,):
            if piece and not transport.lost:
                transport.protocol.dataReceived(piece)
        return transport

    def said(self, octets: bytes, **how: bool) -> bytes:
        return self.connect(octets, **how).value()

    def answer(self, octets: bytes, **how: bool) -> tuple[int, dict[str, str], bytes]:
        """The status, the headers and the body."""
        head, _, body = self.said(octets, **how).partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        return int(status.split()[1]), dict(line.split(": ", 1) for line in lines), body


@pytest.fixture
def web() -> Iterator[Web]:
    web = Web(service_with())
    yield web
    web.service.stopService()
    assert web.endpoint.open == 0
    assert web.guard.clock.getDelayedCalls() == []


@pytest.mark.parametrize("bytewise", [False, True])
def test_metrics_are_text_by_default(web: Web, bytewise: bool) -> None:
    status, headers, body = web.answer(GET, bytewise=bytewise)
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert headers["Content-Length"] == str(len(body))
    names = {family.name for family in families(body.decode())}
    assert {"smtpguard_connections", "smtpguard_reactor_lag_seconds", "process_open_fds"} <= names
    assert b"# TYPE smtpguard_connections_total counter\n" in body


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text",
        "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
        "application/openmetrics-text; version=9.9; escaping=" + "x" * 100,
        "text/plain\r\nAccept: application/openmetrics-text",
    ],
)
def test_metrics_are_openmetrics_for_those_who_take_it(web: Web, accept: str) -> None:
    status, headers, body = web.answer(GET[:-2] + f"Accept: {accept}\r\n\r\n".encode())
    assert (status, headers["Content-Type"]) == (
        200,
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
    )
    # No two metrics may have the same name there.
    found = [family.name for family in strict_families(body.decode())]
    assert {"smtpguard_connections", "smtpguard_connections_total"} <= set(found)
    assert len(found) == len(set(found))


def test_no_header_tells_the_software_and_the_connection_ends(web: Web) -> None:
    transport = web.connect(GET)
    assert transport.lost
    assert b"Twisted" not in transport.value()
    _, headers, _ = web.answer(GET)
    assert set(headers) == {
        "Connection",
        "Date",
        "Content-Type",
        "Content-Length",
        "Cache-Control",
        "X-Content-Type-Options",
    }
    assert headers["Connection"] == "close"


def test_the_status_comes_with_a_policy_and_is_kept_nowhere(web: Web) -> None:
    status, headers, body = web.answer(b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert headers["Content-Length"] == str(len(body))
    assert headers["Content-Security-Policy"] == HEADERS["Content-Security-Policy"]
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert "Server" not in headers
    status, headers, body = web.answer(b"GET /status.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(body)["status"]["state"] == "stopped"
    assert web.answer(b"HEAD /status HTTP/1.1\r\nHost: localhost\r\n\r\n")[::2] == (200, b"")


def test_head_has_no_body(web: Web) -> None:
    status, headers, body = web.answer(b"HEAD /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (status, body) == (503, b"")
    assert int(headers["Content-Length"]) > 0


@pytest.mark.parametrize("path", ["/metrics", "/nothing"])
def test_head_is_not_logged(web: Web, path: str) -> None:
    with capturedLogs() as events:
        web.answer(f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert events == []


@pytest.mark.parametrize(("method", "status"), [("OPTIONS", 405), ("GET", 404)])
def test_the_path_of_the_server_itself_is_none(web: Web, method: str, status: int) -> None:
    answer = web.answer(f"{method} * HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert (answer[0], "Server" in answer[1]) == (status, False)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "FROB"])
def test_other_methods_are_refused(web: Web, method: str) -> None:
    status, headers, _ = web.answer(f"{method} /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "path", ["/", "/metrics/", "//metrics", "/metrics%00", "/../metrics", "/status/", "/<script>"]
)
def test_there_is_nothing_else(web: Web, path: str) -> None:
    status, headers, body = web.answer(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert (status, headers["Content-Type"]) == (404, "text/plain; charset=utf-8")
    assert body == b"there are /metrics, /healthz, /status and /status.json\n"


def test_a_query_is_ignored(web: Web) -> None:
    assert web.answer(b"GET /metrics?a=b HTTP/1.1\r\nHost: localhost\r\n\r\n")[0] == 200


# Health.


def health(web: Web) -> tuple[int, str]:
    status, _, body = web.answer(HEALTHZ)
    return status, body.decode()


def test_a_guard_is_healthy_while_it_listens(web: Web) -> None:
    service = web.guard.service
    assert health(web) == (503, "the guard does not listen, it is stopped\n")
    service.startService()
    assert health(web) == (200, "ok\n")
    client = web.guard.greeted()
    client.say("MAIL FROM:<a@example.org>")
    service.drain()
    web.guard.clock.advance(0.2)
    assert health(web) == (503, "the guard does not listen, it is draining\n")
    client.disconnect()
    assert health(web) == (503, "the guard does not listen, it is drained\n")
    service.startService()
    assert health(web) == (200, "ok\n")
    service.stopService()
    web.guard.clock.advance(0.2)
    assert health(web) == (503, "the guard does not listen, it is stopped\n")


def test_a_guard_whose_server_is_down_is_not_healthy() -> None:
    server = MailServer()
    server.reachable = False
    behind = Behind(server)
    guard = service_with(behind.proxy, clock=behind.clock)
    web = Web(guard)
    guard.service.startService()
    assert health(web) == (
        503,
        "the delivery is down: 451 4.4.1 Upstream server unavailable, try again later\n",
    )
    server.reachable = True
    behind.clock.advance(10)
    assert health(web) == (200, "ok\n")


def test_metrics_of_a_child_are_there_before_the_guard_listens_and_until_it_has_ended() -> None:
    guard = service_with()
    endpoint = Endpoint()
    seen: list[tuple[str, int]] = []
    guard.service.on_listening = lambda: seen.append(("smtp", endpoint.open))
    MetricsService(guard.service, [endpoint]).setServiceParent(guard.service)
    guard.service.startService()
    assert seen == [("smtp", 1)]
    client = guard.greeted()
    client.say("MAIL FROM:<a@example.org>")
    guard.service.stopService()
    guard.clock.advance(0.2)
    assert endpoint.open == 1
    client.disconnect()
    guard.clock.advance(0)
    assert endpoint.open == 0
    guard.service.startService()
    assert endpoint.open == 1


# Who may ask: a page in the operator's browser has its own Host, though its name points to this server.


class Names:
    """What a guard that is `guard.example` answers to a Host."""

    def __init__(self, *hosts: str) -> None:
        self.guard = service_with()
        self.endpoint = Endpoint()
        self.service = MetricsService(self.guard.service, [self.endpoint], ["m"], hosts)
        self.service.startService()

    def status(self, fields: bytes, path: bytes = b"/status.json", at: Any = LOCAL) -> int:
        transport = Transport()
        transport.hostAddr = at
        transport.protocol = self.endpoint.factory.buildProtocol(LOCAL)
        transport.protocol.makeConnection(transport)
        transport.protocol.dataReceived(b"GET " + path + b" HTTP/1.1\r\n" + fields + b"\r\n")
        assert transport.lost
        return int(transport.value().split()[1])


OF_THE_GUARD = [
    "127.0.0.1",
    "127.0.0.1:9525",
    "10.1.2.3:9525",
    "[::1]",
    "[::1]:9525",
    "[fe80::1%25eth0]:9525",
    "localhost",
    "LOCALHOST:9525",
    "guard.example:9525",
    "Guard.Example.",
    "status.example.org",
    "Status.Example.Org.:80",
]
OF_OTHERS = [
    "attacker.example",
    "attacker.example:9525",
    "guard.example.attacker.example",
    "xguard.example",
    "127.0.0.1.attacker.example",
    "127.0.0.1:9525:9525",
    "localhost.attacker.example",
    "localhost:x",
    "[::1].attacker.example",
    "[::1",
    "[attacker.example]",
    "127.0.0.1, attacker.example",
    "attacker.example@127.0.0.1",
    "guard.example..",
    ".",
    "\xff",
    "x" * 4000,
]


@pytest.mark.parametrize("host", OF_THE_GUARD)
def test_who_asks_for_an_address_or_a_name_of_the_guard_is_answered(host: str) -> None:
    assert Names("status.example.org").status(f"Host: {host}\r\n".encode()) == 200


def test_a_request_without_a_host_is_answered_as_load_balancers_send_it(web: Web) -> None:
    assert Names().status(b"") == 200
    assert web.answer(b"GET /metrics HTTP/1.0\r\n\r\n")[0] == 200


@pytest.mark.parametrize("path", [b"/status.json", b"/status", b"/metrics", b"/healthz", b"/nothing", b"*"])
@pytest.mark.parametrize("host", OF_OTHERS)
def test_who_asks_for_another_name_is_told_nothing(host: str, path: bytes) -> None:
    names = Names("status.example.org")
    assert names.status(b"Host: " + host.encode("latin-1") + b"\r\n", path) == 421


def test_one_good_host_does_not_hide_another() -> None:
    assert Names().status(b"Host: localhost\r\nHost: attacker.example\r\n") == 421
    assert Names().status(b"Host: attacker.example\r\nHost: localhost\r\n") == 421


@pytest.mark.parametrize("host", OF_OTHERS)
def test_on_a_unix_socket_any_name_will_do(host: str) -> None:
    fields = b"Host: " + host.encode("latin-1") + b"\r\n"
    assert Names().status(fields, at=UNIXAddress("m.sock")) == 200


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST", b"OPTIONS"])
def test_the_refusal_of_a_name_says_what_to_do_and_does_not_repeat_it(web: Web, method: bytes) -> None:
    asked = method + b" /status.json HTTP/1.1\r\nHost: attacker.example\r\n\r\n"
    assert web.said(asked).startswith(b"HTTP/1.1 421 Misdirected Request\r\n")
    status, headers, body = web.answer(asked)
    assert (status, headers["Connection"], "Server" in headers) == (421, "close", False)
    assert int(headers["Content-Length"]) == len(body) or (method == b"HEAD" and not body)
    assert (b"--metrics-host" in body) is (method != b"HEAD")
    assert b"attacker" not in body


def test_those_who_ask_for_another_name_are_bounded_as_others_are(web: Web) -> None:
    asked = b"GET / HTTP/1.1\r\nHost: attacker.example\r\n\r\n"
    slow = [web.connect(asked, slow=True) for _ in range(MAX_REQUESTS)]
    assert web.said(GET).startswith(b"HTTP/1.1 503 ")
    web.guard.clock.advance(SECONDS)
    assert all(each.lost for each in slow)


# Hostile clients.


HOSTILE = [
    b"A" * 20_000,
    b"GET " + b"/" * 20_000,
    b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 20_000,
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5000,
    b"GET / HTTP/1.1\r\n" + b" folded\r\n" * 5000,
    b"\r\n" * 20_000,
    b"\n" * 20_000,
    b"\0" * 20_000,
    b"\x16\x03\x01\x02\x00" * 1000,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 20_000,
    b"EHLO x\r\nMAIL FROM:<a@example.org>\r\n",
]


@pytest.mark.parametrize("octets", HOSTILE)
@pytest.mark.parametrize("bytewise", [False, True])
def test_what_is_no_request_ends_the_connection_within_its_time(
    web: Web, octets: bytes, bytewise: bool
) -> None:
    transport = web.connect(octets, bytewise=bytewise)
    assert transport.value().partition(b"\r\n")[0] in (
        b"",
        b"HTTP/1.1 400 Bad Request",
        b"HTTP/1.1 404 Not Found",
    )
    # Of an arrival that ended the connection the rest may still be there.
    assert transport.lost or len(getattr(transport.protocol, "_buffer", b"")) < 20_000
    web.guard.clock.advance(SECONDS)
    assert transport.lost


def test_a_request_that_does_not_end_is_dropped(web: Web) -> None:
    transport = web.connect(GET[:-2])
    for _ in range(4):
        # To go on does not extend it.
        web.guard.clock.advance(1)
        transport.protocol.dataReceived(b"X: y\r\n")
    assert not transport.lost
    web.guard.clock.advance(1)
    assert transport.aborted
    assert transport.value() == b""


@pytest.mark.parametrize("length", [b"Content-Length: 1000000000", b"Transfer-Encoding: chunked"])
def test_a_body_is_not_kept_and_has_no_more_time(web: Web, length: bytes) -> None:
    transport = web.connect(b"POST /metrics HTTP/1.1\r\n" + length + b"\r\n\r\n")
    for _ in range(100):
        chunk = b"10000\r\n" if b"chunked" in length else b""
        transport.protocol.dataReceived(chunk + b"x" * 65536 + b"\r\n" * bool(chunk))
    (request,) = transport.protocol.requests
    assert request.content.getvalue() == b""
    web.guard.clock.advance(SECONDS)
    assert transport.aborted


def test_a_second_request_on_the_connection_is_ignored(web: Web) -> None:
    assert web.said(HEALTHZ * 1000).count(b"HTTP/1.1 ") == 1


def test_there_are_so_many_answers_at_once(web: Web) -> None:
    slow = [web.connect(GET, slow=True) for _ in range(MAX_REQUESTS)]
    assert all(b" 200 OK\r\n" in each.value() for each in slow)
    assert web.said(GET) == (
        b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    )
    slow[0].lose()
    assert b" 200 OK\r\n" in web.said(GET)
    web.guard.clock.advance(SECONDS)
    assert all(each.lost for each in slow)


def test_those_who_say_nothing_keep_out_nobody_who_asks(web: Web) -> None:
    silent = [web.connect() for _ in range(10_000)]
    assert sum(not each.lost for each in silent) == MAX_WAITING
    assert not silent[-1].lost
    assert b" 200 OK\r\n" in web.said(GET)
    web.guard.clock.advance(SECONDS)
    assert all(each.lost for each in silent)


def test_a_stop_drops_open_connections() -> None:
    web = Web(service_with())
    open_ones = [web.connect(), web.connect(GET, slow=True)]
    web.service.stopService()
    assert all(each.aborted for each in open_ones)
    assert web.guard.clock.getDelayedCalls() == []


# Start.


def logged(guard: ServedGuard) -> list[str]:
    """From here on, what the guard logs."""
    lines: list[str] = []
    guard.factory.context.events._log._logger.observer = lambda event: lines.append(formatEvent(event))
    return lines


@pytest.mark.parametrize(
    ("host", "warned"),
    [
        (LOCAL, False),
        (IPv4Address("TCP", "127.0.0.2", 1), False),
        (IPv6Address("TCP", "::1", 1), False),
        (UNIXAddress("m.sock"), False),
        (IPv4Address("TCP", "0.0.0.0", 1), True),
        (IPv6Address("TCP", "::", 1), True),
        (IPv4Address("TCP", "192.0.2.1", 1), True),
        (IPv6Address("TCP", "fe80::1%eth0", 1), True),
    ],
)
def test_an_address_that_others_can_reach_is_a_warning(host: Any, warned: bool) -> None:
    guard = service_with()
    lines = logged(guard)
    service = MetricsService(guard.service, [Endpoint(host)], ["tcp:9525"])
    service.startService()
    assert lines[0].startswith("serving_metrics endpoint=tcp:9525 address=")
    assert [line.partition(" other")[0] for line in lines[1:]] == ["setup_warning what=metrics"] * warned
    service.stopService()


def test_an_endpoint_that_cannot_be_listened_on_fails_the_start_and_leaves_nothing_open() -> None:
    guard = service_with()
    first = Endpoint()
    taken = Endpoint(answer=fail(CannotListenError("127.0.0.1", 9525, OSError(98, "Address in use"))))
    service = MetricsService(guard.service, [first, taken])
    with pytest.raises(CannotListenError):
        service.startService()
    assert (first.open, guard.clock.getDelayedCalls()) == (0, [])


def test_under_twist_that_ends_the_process_with_a_sentence() -> None:
    guard = service_with()
    taken = Endpoint(answer=fail(CannotListenError("", 9525, OSError(98, "Address already in use"))))
    with pytest.raises(SystemExit, match=r"^--metrics: cannot listen on tcp:9525: .*Address already in use"):
        MetricsOfProcess(guard.service, [taken], ["tcp:9525"]).startService()


def test_without_prometheus_client_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^metrics need prometheus-client, .*twisted_smtpguard\[metrics\]"):
        MetricsService(service_with().service, [Endpoint()])


# For applications.


def test_an_application_mounts_the_pages_where_it_likes() -> None:
    from twisted.web.resource import Resource

    guard = service_with()
    root = Resource()
    root.putChild(b"guard", GuardPages(guard.service))
    transport = Transport()
    transport.protocol = Site(root, reactor=Clock()).buildProtocol(LOCAL)  # type: ignore[assignment]
    transport.protocol.makeConnection(transport)
    transport.protocol.dataReceived(b"GET /guard/metrics HTTP/1.0\r\n\r\n")
    assert b"\nsmtpguard_build_info{" in transport.value()
    assert b"Server:" not in transport.value()


def test_how_late_the_reactor_is_is_measured_each_second(web: Web) -> None:
    def lag() -> str:
        body = web.answer(GET)[2].decode()
        return next(
            line for line in body.splitlines() if line.startswith("smtpguard_reactor_lag_seconds_sum")
        )

    web.guard.clock.pump([1, 1])
    assert lag().endswith(" 0.0")
    # A turn of the reactor took so long.
    web.guard.clock.rightNow += 3.5
    web.guard.clock.advance(0)
    assert lag().endswith(" 2.5")
