"""A crowd takes all the seats that strangers may have: senders that the guard knows are served as if it were not there.

`pytest -m soak -s tests/load/test_known_crowd.py` prints the long form as a table, with Postfix and its postscreen
beside it.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from crowd import descriptors_for
from crowdoutcome import HEADLINE, Outcome, Scale, besiege_senders, name_of
from postfix import Postfix
from processes import ExecutedGuard, eventually

from twisted_smtpguard.service import service

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="uses epoll and all of 127.0.0.0/8"),
    pytest.mark.xdist_group("load"),
]

MOST_SECONDS_MORE = 1.0
"""So much longer than in quiet 99 of 100 sessions of known senders may take, as a whole."""

QUICK = Scale(
    cap=50,
    hostile=300,
    addresses=60,
    networks=15,
    known_of_file=4,
    known_by_mail=4,
    swaks=0,
    strangers=8,
    interval=0.5,
    seconds=4,
    part=2,
)
LONG = Scale(
    cap=500,
    hostile=5000,
    addresses=1000,
    networks=100,
    known_of_file=25,
    known_by_mail=25,
    swaks=12,
    strangers=50,
    interval=15,
    seconds=180,
    part=60,
)


def guard_options(directory: Path, scale: Scale) -> list[str]:
    known = directory / "known"
    known.write_text("".join(f"{name_of(number)}\n" for number in range(scale.known_of_file)))
    return [
        "--profile=edge",
        f"--max-connections={scale.cap}",
        # In stress there is none: the quiet time, which is compared, is to have none either.
        "--greet-delay=0",
        f"--known={known}",
        "--deliver=discard:",
    ]


def test_known_senders_are_served_while_a_crowd_has_all_seats_of_strangers(tmp_path: Path) -> None:
    with ExecutedGuard(tmp_path, *guard_options(tmp_path, QUICK)) as guard:
        outcome = besiege_senders("guard, quick", guard.port, QUICK)
    print(f"\n{HEADLINE}\n{outcome}")
    assert outcome.unserved == []
    assert outcome.served_in_parts == [8, 8]
    assert outcome.seconds_more("smtplib", 0.99) < MOST_SECONDS_MORE


AT_ONCE = 1500
"""More than those of the long form that come again at once, and fewer than the queue of a listener has room for."""


def test_a_crowd_that_comes_again_at_once_leaves_room_in_the_queue_of_the_listener(tmp_path: Path) -> None:
    """Who finds none there tries again after a second, known or not."""
    if int(Path("/proc/sys/net/core/somaxconn").read_text()) < service.BACKLOG:
        pytest.skip("the kernel of this machine cuts the queue")
    if descriptors_for(AT_ONCE + 100) < AT_ONCE + 100:
        pytest.skip("too few descriptors for the crowd")
    with ExecutedGuard(tmp_path, "--deliver=discard:") as guard, ExitStack() as stack:
        os.kill(guard.pid, signal.SIGSTOP)
        stack.callback(os.kill, guard.pid, signal.SIGCONT)
        waiting = select.epoll()
        stack.callback(waiting.close)
        for _ in range(AT_ONCE):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(guard.address)
            waiting.register(client, select.EPOLLOUT | select.EPOLLONESHOT)
        connected = 0

        def look() -> bool:
            nonlocal connected
            connected += len(waiting.poll(0, AT_ONCE))
            return connected == AT_ONCE

        eventually(look, "not all are in the queue")


@pytest.fixture(scope="module")
def table() -> Iterator[list[Outcome]]:
    outcomes: list[Outcome] = []
    yield outcomes
    print("\n\n" + "\n".join([HEADLINE, *map(str, outcomes)]))


def meets_the_measure(outcome: Outcome) -> None:
    assert set(outcome.served_in_parts) == {50}
    assert outcome.seconds_more("smtplib", 0.99) < MOST_SECONDS_MORE
    assert outcome.seconds_more("swaks", 0.99) < MOST_SECONDS_MORE


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("options", [(), ("--workers=2",)], ids=["one process", "2 workers"])
def test_known_senders_are_served_through_minutes_of_a_crowd(
    tmp_path: Path, table: list[Outcome], options: tuple[str, ...]
) -> None:
    with ExecutedGuard(tmp_path, *guard_options(tmp_path, LONG), *options) as guard:
        outcome = besiege_senders(f"guard {' '.join(options)}", guard.port, LONG)
    table.append(outcome)
    meets_the_measure(outcome)


AFTER_GREETING = (
    "postscreen_pipelining_enable = yes",
    "postscreen_non_smtp_command_enable = yes",
    "postscreen_bare_newline_enable = yes",
)
"""The tests of postscreen after its greeting: a client that it does not know talks to no smtpd in its first session."""


def postscreen(scale: Scale, *more: str) -> Postfix:
    """Postfix with postscreen, as near to the guard's options as its own come. Nothing is asked of how it serves."""
    permitted = ", ".join(f"{{ {name_of(number)} permit }}" for number in range(scale.known_of_file))
    return Postfix(
        "mynetworks = 127.0.0.1/32",
        f"postscreen_access_list = cidr:{{ {permitted} }}",
        "postscreen_greet_action = enforce",
        "postscreen_greet_wait = 2s",
        f"postscreen_pre_queue_limit = {scale.cap}",
        f"postscreen_post_queue_limit = {scale.cap}",
        # What the guard has in stress, from the beginning.
        "postscreen_command_time_limit = 30s",
        "smtpd_timeout = 30s",
        "smtpd_per_request_deadline = yes",
        "smtpd_client_connection_count_limit = 20",
        "smtpd_client_connection_rate_limit = 60",
        "smtpd_client_event_limit_exceptions =",
        "smtpd_peername_lookup = no",
        "smtpd_relay_restrictions = reject_unauth_destination",
        "smtpd_end_of_data_restrictions = check_client_access static:DISCARD",
        "in_flow_delay = 0",
        *more,
        smtpd_processes=scale.cap,
        postscreen=True,
    )


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "more", [(), AFTER_GREETING], ids=["tests before the greeting", "tests after it too"]
)
def test_the_same_crowd_comes_to_postscreen(
    table: list[Outcome], more: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    with postscreen(LONG, *more) as postfix:
        table.append(
            besiege_senders(f"Postfix with postscreen, {request.node.callspec.id}", postfix.port, LONG)
        )
