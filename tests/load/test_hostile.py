"""Crowds that mean harm against a real guard: memory stays bounded, and a fresh client is served within a second.

The quick form is a tenth of the long one. `pytest -m soak -s tests/load/test_hostile.py` prints what the long one cost.
"""

from __future__ import annotations

import math
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
import pytest
from crowd import (
    ENVELOPE,
    Behaviour,
    be_idle,
    descriptors_for,
    drip,
    knock,
    repeat,
    repeat_unheard,
    stay,
    vanish,
)
from processes import PATIENCE_SECONDS, ExecutedGuard
from siege import HEADLINE, KiB, MiB, Siege, besiege

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
    pytest.mark.xdist_group("load"),
]

MAX_WAIT_SECONDS = 1.0
"""Within this a fresh client has had its whole session, while the crowd is there."""

MAX_LOG_OCTETS_A_SECOND = 200 * KiB
"""Of refusals: Limits.max_log_lines of them, each at most 1 KiB as JSON."""

QUICK = ("--max-message-size=1M", "--read-timeout=1", "--linger-timeout=1", "--max-lingering=100")
"""What the quick form scales down besides the crowds. Most of it is one guard."""

DATA = ENVELOPE + b"DATA\r\n"
LINE = b"x" * 70 + b"\r\n"


@attrs.frozen
class Scale:
    """How large a crowd is: `part` of what the long form has."""

    part: float
    seconds: float

    @property
    def long(self) -> bool:
        return self.part == 1

    def clients(self, number: int) -> int:
        return descriptors_for(max(10, int(number * self.part)))


@pytest.fixture(
    params=[
        pytest.param(Scale(0.1, 0.6), id="quick"),
        pytest.param(Scale(1, 20.0), id="long", marks=[pytest.mark.soak, pytest.mark.timeout(300)]),
    ]
)
def scale(request: pytest.FixtureRequest) -> Scale:
    return request.param


@pytest.fixture(scope="module")
def table() -> Iterator[list[Siege]]:
    sieges: list[Siege] = []
    yield sieges
    print("\n\n" + "\n".join([HEADLINE, *map(str, sieges)]))


@pytest.fixture(scope="module")
def guards() -> Iterator[Callable[..., ExecutedGuard]]:
    """Guards by their options, each started once."""
    with ExitStack() as stack:
        started: dict[tuple[str, ...], ExecutedGuard] = {}

        def guard(directory: Path, *options: str) -> ExecutedGuard:
            if options not in started:
                process = ExecutedGuard(directory, "--deliver=discard", *options, log_format="json")
                started[options] = stack.enter_context(process)
            return started[options]

        yield guard


Attack = Callable[..., Siege]


@pytest.fixture
def attack(
    tmp_path: Path, scale: Scale, table: list[Siege], guards: Callable[..., ExecutedGuard]
) -> Iterator[Attack]:
    """`attack(name, behaviours, *options, ...)`: a siege of a guard with these options, whose other clients are
    served meanwhile. In the long form each test has a fresh one."""
    with ExitStack() as stack:
        own: list[ExecutedGuard] = []

        def run(name: str, behaviours: list[Behaviour], *options: str, holders: int = 0, **how: Any) -> Siege:
            if own:
                guard = own[0]
            elif scale.long:
                fresh = ExecutedGuard(tmp_path, "--deliver=discard", *options, log_format="json")
                guard = stack.enter_context(fresh)
                own.append(guard)
            else:
                guard = guards(tmp_path, *QUICK, *options)
            for _ in range(holders):
                stack.enter_context(socket.create_connection(("127.0.0.1", guard.port))).recv(3)
            siege = besiege(guard, name, behaviours, **how)
            table.append(siege)
            assert siege.waits.worst < MAX_WAIT_SECONDS
            return siege

        yield run


def told_all(siege: Siege, words: bytes) -> bool:
    return siege.told(words) == len(siege.clients)


def test_idle_connections_cost_a_few_kilobytes_each(attack: Attack, scale: Scale) -> None:
    crowd = [be_idle] * scale.clients(5000)
    siege = attack("idle", crowd, within=scale.seconds / 5, seconds=scale.seconds)
    assert told_all(siege, b"220 ")
    assert siege.octets_a_client < 16 * KiB


@pytest.mark.parametrize("behave", [repeat, repeat_unheard], ids=["heard", "unheard"])
def test_an_endless_line_is_skipped_and_not_kept(
    attack: Attack, scale: Scale, behave: Callable[[bytes, bytes], Behaviour]
) -> None:
    """Those who do not listen go on talking into a connection that lingers."""
    name = "endless lines" if behave is repeat else "endless lines, 421 unheard"
    endless = behave(b"", b"x" * 64 * KiB)
    siege = attack(name, [endless] * scale.clients(200), seconds=scale.seconds)
    assert siege.octets_a_client < 256 * KiB
    if behave is repeat:
        assert told_all(siege, b"421 4.4.0 Too many errors, closing connection\r\n")


BODIES = {
    "endless DATA": (DATA, LINE * 900),
    "endless DATA, one line": (DATA, b"x" * 64 * KiB),
    "endless DATA, dots": (DATA, b"\r\n.x" * 16_000),
    "endless BDAT": (ENVELOPE + b"BDAT 99999999999999999999\r\n", LINE * 900),
}


@pytest.mark.parametrize("name", BODIES)
def test_an_endless_body_is_cut_off_and_not_kept(attack: Attack, scale: Scale, name: str) -> None:
    endless = repeat(*BODIES[name])
    siege = attack(name, [endless] * scale.clients(50), seconds=3 * scale.seconds)
    assert told_all(siege, b"421 4.3.0 Message too large, closing connection\r\n")
    assert siege.octets_a_client < 512 * KiB


DRIPS = {"a drip of commands": (b"", b"NOOP" * 1000), "a drip of DATA": (DATA, b"x" * 1000)}


@pytest.mark.parametrize("name", DRIPS)
def test_a_drip_is_cut_off_at_the_read_timeout(attack: Attack, scale: Scale, name: str) -> None:
    interval, options = (1.0, ["--read-timeout=10"]) if scale.long else (0.1, [])
    dripping = drip(*DRIPS[name], interval)
    siege = attack(name, [dripping] * scale.clients(1000), *options, seconds=scale.seconds + 3)
    assert told_all(siege, b"421 4.4.2 Timeout waiting for client, closing connection\r\n")
    assert siege.octets_a_client < 32 * KiB


RESETS = {
    "resets, at once": vanish(b"", b""),
    "resets, in the greeting": vanish(b"", b"22", octets=2),
    "resets, after MAIL": vanish(b"EHLO x\r\nMAIL FROM:<>\r\n", b"250 2.1.0"),
    "resets, in DATA": vanish(DATA + LINE * 10, b"354 "),
}


@pytest.mark.parametrize("name", RESETS)
def test_connects_and_resets_leave_no_state(attack: Attack, scale: Scale, name: str) -> None:
    resets = [RESETS[name]] * scale.clients(5000)
    siege = attack(name, resets, seconds=3 * scale.seconds, at_once=200, lets_go=True)
    assert siege.peak - siege.before < 32 * MiB
    again = attack(f"{name}, again", resets, seconds=3 * scale.seconds, at_once=200, lets_go=True)
    assert again.after - again.before < 4 * MiB


@pytest.mark.parametrize("command", ["NOOP", "HELP"])
def test_clients_that_never_read_are_held_back(attack: Attack, scale: Scale, command: str) -> None:
    stuffing = repeat_unheard(b"", f"{command}\r\n".encode() * 10_000)
    siege = attack(
        f"never read, {command}",
        [stuffing] * scale.clients(500),
        seconds=scale.seconds,
        receive_buffer=1,
    )
    # Limits.max_input_buffer, one more arrival of 64 KiB after it, Limits.max_output_buffer, and the session.
    assert siege.octets_a_client < (64 + 64 + 16 + 32) * KiB


def test_clients_that_pipeline_without_end_do_not_keep_others_waiting(attack: Attack, scale: Scale) -> None:
    greedy = repeat(b"", b"NOOP\r\n" * 10_000)
    siege = attack("pipeline and read, NOOP", [greedy] * scale.clients(200), seconds=scale.seconds)
    assert siege.octets_a_client < (64 + 64 + 16 + 32) * KiB


def test_clients_that_stay_after_the_last_line_are_let_go(attack: Attack, scale: Scale) -> None:
    cap = 1024 if scale.long else 100
    staying = [stay(b"junk\r\n" * 20)] * scale.clients(1500)
    siege = attack("421, and they stay", staying, within=0.3, seconds=scale.seconds / 6 + 0.6, lets_go=True)
    assert told_all(siege, b"421 4.4.0 Too many errors, closing connection\r\n")
    assert siege.connections <= cap + 1
    assert siege.octets_a_client < 32 * KiB


def test_a_flood_of_refusals_fills_no_log(attack: Attack, scale: Scale) -> None:
    siege = attack(
        "refused at accept",
        [knock] * scale.clients(20_000),
        "--max-connections=100",
        "--read-timeout=300",
        seconds=PATIENCE_SECONDS,
        at_once=300,
        anywhere=True,
        holders=100,
        probe_greeting=421,
    )
    assert told_all(siege, b"421 4.7.0 Too many connections, try again later\r\n")
    # Limits count by the second of the clock: the shortest siege may lie in two of them.
    assert siege.log_octets < (math.ceil(siege.seconds) + 1) * MAX_LOG_OCTETS_A_SECOND
    assert siege.peak - siege.before < 16 * MiB


# Before the greeting.

EDGE = ("--profile=edge", "--trust=127.0.0.1", "--ipv4-networks=0", "--reserved-connections=0")
"""The crowd's twelve networks stand for as many as it has addresses, and the crowd may have all seats."""
EARLY = b"421 4.7.0 Protocol error: client spoke before the greeting\r\n"


def test_resets_at_the_edge_leave_no_state(attack: Attack, scale: Scale) -> None:
    """Each finds a greet delay, and is gone before it is over."""
    resets = [RESETS["resets, at once"]] * scale.clients(10_000)
    how = {"seconds": 3 * scale.seconds, "at_once": 200, "anywhere": True, "lets_go": True}
    siege = attack("edge: resets", resets, *EDGE, **how)
    assert siege.peak - siege.before < 32 * MiB
    again = attack("edge: resets, again", resets, *EDGE, **how)
    assert again.after - again.before < 4 * MiB


def test_silent_connections_at_the_edge_are_all_greeted(attack: Attack, scale: Scale) -> None:
    """As many as are let in; a trusted client is served meanwhile."""
    silent = [be_idle] * scale.clients(1900)
    siege = attack("edge: silent", silent, *EDGE, seconds=max(4, scale.seconds / 2), anywhere=True)
    assert told_all(siege, b"220 ")
    assert siege.octets_a_client < 16 * KiB


@pytest.mark.parametrize("behave", [repeat, repeat_unheard], ids=["heard", "unheard"])
def test_early_talkers_at_the_edge_are_not_kept(
    attack: Attack, scale: Scale, behave: Callable[[bytes, bytes], Behaviour]
) -> None:
    name = "edge: early talkers" if behave is repeat else "edge: early talkers, 421 unheard"
    talking = [behave(b"", b"NOOP\r\n" * 10_000)] * scale.clients(1000)
    # Those that listen connect a few at a time: none is so busy that its first command follows the greeting.
    at_once = 100 if behave is repeat else 1000
    siege = attack(
        name, talking, *EDGE, seconds=scale.seconds + 3, at_once=at_once, anywhere=True, lets_go=True
    )
    assert siege.octets_a_client < 64 * KiB
    if behave is repeat:
        assert told_all(siege, EARLY)


def test_input_before_the_greeting_is_bounded_where_it_is_not_refused(attack: Attack, scale: Scale) -> None:
    stuffing = repeat_unheard(b"", b"NOOP\r\n" * 10_000)
    siege = attack(
        "flood in the greet delay, unheard",
        [stuffing] * scale.clients(500),
        f"--greet-delay={round(3 * scale.seconds)}",
        "--trust=127.0.0.1",
        seconds=scale.seconds,
        anywhere=True,
        receive_buffer=1,
    )
    assert siege.octets_a_client < (64 + 64 + 48) * KiB


FLOODS_OF_ONE = {
    "refused: connections of a client": ("--max-connections-per-client=10", 10, b"421 4.7.0 Too many conn"),
    "refused: connection rate": ("--connection-rate=10/86400", 10, b"421 4.7.0 Connection rate exceeded"),
    "refused: denied": ("--deny=127.0.0.1", 0, b"421 4.7.0 Connection refused\r\n"),
}


@pytest.mark.parametrize("name", FLOODS_OF_ONE)
def test_a_flood_from_one_address_fills_no_log(attack: Attack, scale: Scale, name: str) -> None:
    option, holders, words = FLOODS_OF_ONE[name]
    siege = attack(
        name,
        [knock] * scale.clients(20_000),
        option,
        "--read-timeout=300",
        seconds=PATIENCE_SECONDS,
        at_once=300,
        holders=holders,
        probe_greeting=421,
    )
    assert told_all(siege, words)
    assert siege.log_octets < (siege.seconds + 1) * MAX_LOG_OCTETS_A_SECOND / 10
    assert siege.peak - siege.before < 16 * MiB
