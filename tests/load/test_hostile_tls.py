"""Crowds that mean harm with TLS, PROXY headers and AUTH: memory stays bounded, others are served, slots come free."""

from __future__ import annotations

import sys
from base64 import b64encode
from pathlib import Path

import pytest
from certificates import certificate
from crowd import Behaviour, Client, be_idle, drip, repeat
from processes import LOCAL, ExecutedGuard
from siege import KiB, Siege, besiege
from tlsclient import client_hello

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
    pytest.mark.xdist_group("load"),
]

CLIENTS = 300
MAX_WAIT_SECONDS = 1.0
"""Within this a fresh client has had its whole session, while the crowd is there."""


def attack(
    directory: Path,
    name: str,
    behaviour: Behaviour,
    *options: str,
    clients: int = CLIENTS,
    tls: bool = False,
    **how: object,
) -> tuple[Siege, str]:
    """A siege of a guard with these options, at its listener of implicit TLS if `tls`; and what the guard logged."""
    with ExecutedGuard(
        directory,
        "--deliver=discard",
        f"--tls-certificate={certificate()}",
        "--max-log-lines=0",
        "--max-log-lines-per-client=0",
        *options,
        listen_tls=(LOCAL,),
    ) as guard:
        address = guard.addresses[1]
        assert isinstance(address, tuple)
        port = address[1] if tls else 0
        siege = besiege(guard, name, [behaviour] * clients, crowd_port=port, **how)  # type: ignore[arg-type]
        assert siege.waits.worst < MAX_WAIT_SECONDS
        return siege, guard.log.decode()


async def upgrade_and_be_silent(client: Client) -> None:
    await client.say(b"STARTTLS\r\n")
    await client.hear_the_end()


HANDSHAKES = {
    "silent at a TLS listener": (be_idle, True),
    "a hello that drips": (drip(b"", client_hello(), 0.05), True),
    "a hello that is never followed by anything": (drip(client_hello(), b"", 9), True),
    "silent after STARTTLS": (upgrade_and_be_silent, False),
    "half a hello after STARTTLS": (drip(b"STARTTLS\r\n", b"", 9), False),
}


@pytest.mark.parametrize(("behaviour", "tls"), HANDSHAKES.values(), ids=HANDSHAKES)
def test_handshakes_that_never_end_hold_nothing_beyond_their_time(
    tmp_path: Path, behaviour: Behaviour, tls: bool
) -> None:
    siege, log = attack(
        tmp_path, "handshakes", behaviour, "--tls-handshake-timeout=1", tls=tls, seconds=10, lets_go=True
    )
    assert siege.seconds < 9
    assert siege.octets_a_client < 128 * KiB
    assert log.count("reason=tls_handshake_timeout") >= CLIENTS


@pytest.mark.parametrize("behaviour", [drip(client_hello(), b"", 9), be_idle], ids=["hello", "silent"])
def test_twenty_handshakes_a_second_that_never_end_keep_nobody_from_tls(
    tmp_path: Path, behaviour: Behaviour
) -> None:
    # At the limit from the second second on, and long before the first handshake is out of time.
    siege, log = attack(
        tmp_path,
        "unfinished handshakes",
        behaviour,
        "--max-tls-handshakes=40",
        clients=160,
        tls=True,
        within=8,
        seconds=8,
        probe_tls=True,
    )
    assert len(siege.waits.seconds) > 20
    assert log.count("reason=max_tls_handshakes limit=40 value=41 ") > 100
    assert siege.connections <= 41
    assert siege.octets_a_client < 64 * KiB


def test_a_flood_of_handshakes_is_cut_to_the_limit_in_each_second(tmp_path: Path) -> None:
    siege, log = attack(
        tmp_path,
        "a flood of handshakes",
        drip(client_hello(), b"", 9),
        "--max-tls-handshakes=20",
        clients=400,
        tls=True,
        within=2,
        seconds=3,
    )
    # The rest is not computed: a connection that is refused costs a tenth of a handshake.
    assert log.count("reason=max_tls_handshakes") > 300
    assert siege.connections <= 22


HEADERS = {
    "none": be_idle,
    "a line that drips": drip(b"PROXY TCP4 ", b"1", 0.05),
    "a long one that drips": drip(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x0f\xff", b"x", 0.01),
}


@pytest.mark.parametrize("behaviour", HEADERS.values(), ids=HEADERS)
def test_headers_that_never_end_hold_nothing_beyond_their_time(tmp_path: Path, behaviour: Behaviour) -> None:
    # The crowd comes from these, the honest client from 127.0.0.1.
    networks = ("127.0.1.0/24", "127.0.2.0/23", "127.0.4.0/22", "127.0.8.0/21")
    proxies = [f"--proxy-protocol-from={network}" for network in networks]
    siege, log = attack(
        tmp_path,
        "headers",
        behaviour,
        *proxies,
        "--proxy-header-timeout=1",
        seconds=10,
        anywhere=True,
        lets_go=True,
    )
    assert siege.seconds < 9
    assert siege.octets_a_client < 32 * KiB
    assert log.count("reason=proxy_header_timeout") == CLIENTS


GARBAGE = {
    "no base64": b"AUTH PLAIN !\r\n" * 4000,
    "a long response": b"AUTH PLAIN\r\n" + b"A" * 12_000 + b"\r\n",
    "a line without end": b"AUTH PLAIN " + b"A" * 65_536,
    "challenges": b"AUTH LOGIN\r\n*\r\n" * 4000,
}


@pytest.mark.parametrize("octets", GARBAGE.values(), ids=GARBAGE)
def test_garbage_in_auth_costs_others_nothing(tmp_path: Path, octets: bytes) -> None:
    (tmp_path / "users").write_text("ann:secret\n")
    options = ("--auth-without-tls", f"--auth=file:{tmp_path / 'users'}", "--max-log-lines=200")
    siege, _ = attack(tmp_path, "garbage", repeat(b"EHLO a\r\n", octets), *options, clients=50, seconds=2)
    assert siege.octets_a_client < 512 * KiB


def test_who_guesses_passwords_has_three_to_a_connection(tmp_path: Path) -> None:
    (tmp_path / "users").write_text("ann:secret\n")
    guess = b"AUTH PLAIN " + b64encode(b"\0ann\0guess") + b"\r\n"
    siege, log = attack(
        tmp_path,
        "guesses",
        repeat(b"EHLO a\r\n", guess * 100),
        "--auth-without-tls",
        "--auth-failure-rate=0",
        f"--auth=file:{tmp_path / 'users'}",
        seconds=10,
        lets_go=True,
    )
    assert siege.told(b"421 4.7.0 Too many authentication failures, closing connection\r\n") > CLIENTS * 0.9
    assert log.count("reason=auth_failed") == 3 * CLIENTS
