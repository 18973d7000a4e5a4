"""A PROXY header from where no proxy was named: the proxy is told, the operator finds the option, nobody is banned."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from fakes import Guard, codes, splits
from loopback import Loopback
from test_behind_proxy import V1, V2, Proxied, each_version

from twisted_smtpguard.testing import Clients, dialogue

TOLD = "421 4.7.0 Protocol error: unexpected PROXY header"
UNKNOWN = b"PROXY UNKNOWN\r\n"


def logged(guard: Clients) -> list[tuple[str, str, dict[str, Any]]]:
    """Every refusal from now on."""
    lines: list[tuple[str, str, dict[str, Any]]] = []
    guard.factory.context.events.reject = (  # type: ignore[method-assign]
        lambda peer, reason, **fields: lines.append((peer, reason, fields))
    )
    return lines


@pytest.mark.parametrize("header", [V1, V2, UNKNOWN], ids=["v1", "v2", "unknown"])
def test_a_header_as_the_first_line_is_told_and_nothing_after_it_is_executed(header: bytes) -> None:
    turns = (header, TOLD), (b"EHLO x\r\nMAIL FROM:<a@b.example>\r\nQUIT\r\n", "")
    client = dialogue(*turns, hello="", closed=True, bytewise=header is not V2)
    assert client.guard.delivery.calls == []
    assert client.guard.factory.statistics.refusals == {"unexpected_proxy_header": 1}


@each_version
def test_a_header_is_told_however_it_was_split(header: bytes) -> None:
    """An empty line is answered before anybody can know that it begins a header."""
    for pieces in [*splits(header), [header[i : i + 1] for i in range(len(header))]]:
        client = Guard().connect()
        client.heard()
        said = "".join(client.send(piece) for piece in pieces if not client.closed)
        assert said.endswith(f"{TOLD}\r\n")
        assert codes(said)[:-1] == [500] * (len(codes(said)) - 1)
        assert len(codes(said)) <= (1 if header is V1 else 3)
        assert client.closed


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (b"\r\n", [500]),
        (b"\r\n\r\nNOOP\r\n", [500, 500, 250]),
        (b"\r\n\0\r\n", [500, 500]),
        (b"\r\nPROXY TCP4 \r\nNOOP\r\n", [500, 500, 250]),
        (b"PROXY\r\nNOOP\r\n", [500, 250]),
        (b"proxy TCP4 \r\nNOOP\r\n", [500, 250]),
        (b"NOOP\r\nPROXY TCP4 192.0.2.7 198.51.100.1 4711 25\r\nNOOP\r\n", [250, 500, 250]),
        (b"NOOP\r\n\r\n\r\n\0\r\nNOOP\r\n", [250, 500, 500, 500, 250]),
    ],
)
@pytest.mark.parametrize("bytewise", [False, True])
def test_what_is_no_header_or_comes_later_is_what_it_was(
    octets: bytes, expected: list[int], bytewise: bool
) -> None:
    client = Guard().connect()
    client.heard()
    assert codes(client.send(octets, bytewise=bytewise)) == expected
    assert not client.closed


@each_version
def test_the_log_says_which_option_would_take_it(header: bytes) -> None:
    guard = Guard()
    lines = logged(guard)
    client = guard.connect("10.0.0.1")
    client.send(header)
    ((peer, reason, fields),) = lines
    assert (peer, reason) == ("10.0.0.1", "unexpected_proxy_header")
    assert fields["hint"] == "--proxy-protocol-from=10.0.0.1"
    assert fields["session"]


@each_version
def test_a_header_before_the_greeting_is_no_early_talker(header: bytes) -> None:
    """fail2ban counts early talkers, and would ban the load balancer."""
    guard = Guard(early_talker="refuse", greet_delay=2)
    lines = logged(guard)
    client = guard.connect("10.0.0.1")
    assert client.send(header) == f"{TOLD}\r\n"
    ((peer, reason, fields),) = lines
    assert (peer, reason) == ("10.0.0.1", "unexpected_proxy_header")
    assert fields["hint"] == "--proxy-protocol-from=10.0.0.1"


@each_version
def test_where_early_talkers_are_only_logged_it_is_none_either(header: bytes) -> None:
    guard = Guard(greet_delay=2)
    client = guard.connect()
    assert client.send(header) == ""
    guard.clock.advance(2)
    assert client.heard() == f"220 guard.example ESMTP ready\r\n{TOLD}\r\n"
    assert guard.factory.statistics.dry_run_refusals == {}


@each_version
@pytest_twisted.ensureDeferred
async def test_a_header_that_came_with_the_connection_is_seen_in_the_kernel(header: bytes) -> None:
    guard = Loopback(early_talker="refuse")
    guard.start()
    client = guard.client()
    client.send(header)
    await client.hears_the_end()
    assert client.heard == f"{TOLD}\r\n".encode()
    assert guard.factory.statistics.refusals == {"unexpected_proxy_header": 1}
    await guard.close()


@each_version
def test_a_second_header_from_a_proxy_is_an_invalid_command_of_its_client(header: bytes) -> None:
    """The hint would have the operator believe what clients say."""
    client = Proxied().through(V1)
    client.heard()
    assert set(codes(client.send(V1))) == {500}
    assert not client.closed
