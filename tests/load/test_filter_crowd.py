"""Two thousand clients that wait for slow IP filters at once: each is told in time, and none leaves anything behind.

The quick form over real sockets is a tenth of the long one. `pytest -m soak -s tests/load/test_filter_crowd.py` prints
what the long one cost.
"""

from __future__ import annotations

import asyncio
import gc
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import slow_filter
from crowd import Client, descriptors_for, repeat_unheard, run_crowd
from fakes import Conversation, FakeFilter, Guard
from processes import LOCAL, ExecutedGuard, eventually
from siege import HEADLINE, KiB, MiB, Siege, besiege
from slow_filter import AT_ONCE, NEVER, WAYS, SlowFilter, way_of
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from vitals import Vitals

from twisted_smtpguard.admission.chain import FilterEntry
from twisted_smtpguard.counters.localstore import LocalCounterStore
from twisted_smtpguard.values import Wanted

pytestmark = pytest.mark.xdist_group("load")

TOO_MANY = "421 4.7.0 Too many connections, try again later\r\n"
REFUSED = "421 4.7.0 Connection refused\r\n"
CANNOT_SAY = "421 4.3.0 Internal error, try again later\r\n"
GREETING = "220 "


def expected(way: str, *, fail_open: bool = False) -> str:
    """What a client that is answered in this way is told in the end."""
    if way in ("pass_at_once", "pass_late", "trust_late", "coroutine"):
        return GREETING
    if way == "refuse_late":
        return REFUSED
    return GREETING if fail_open else CANNOT_SAY


# By the clock, in one process.

CROWD = 2000
LATE_SECONDS = 5.0
TIME_LIMIT = 10.0
TICK = 0.2
SLOW_WAYS = tuple(way for way in WAYS if way not in AT_ONCE)


@attrs.define
class Waiting:
    """One of the crowd: what it was told, and when."""

    way: str
    client: Conversation
    words: str = ""
    seconds: float = 0

    def listen(self, seconds: float) -> None:
        words = self.client.heard()
        if words and not self.words:
            self.words, self.seconds = words, seconds


@pytest.fixture
def unhandled() -> Iterator[list[object]]:
    """Failures of Deferreds that nobody took."""
    seen: list[object] = []

    def observe(event: dict[str, object]) -> None:
        if "Unhandled" in str(event.get("log_format")):
            seen.append(event)

    globalLogPublisher.addObserver(observe)
    yield seen
    globalLogPublisher.removeObserver(observe)


def deferreds() -> list[Deferred[Any]]:
    """All that there are."""
    gc.collect()
    return [each for each in gc.get_objects() if isinstance(each, Deferred)]


@pytest.mark.parametrize("fail_open", [False, True], ids=["fail closed", "fail open"])
def test_two_thousand_wait_at_once_and_each_is_told_in_time(fail_open: bool, unhandled: list[object]) -> None:
    # Held, so that those which other tests have left do not go away meanwhile.
    deferreds_before = deferreds()
    counts = one_crowd(fail_open)
    assert len(deferreds()) == len(deferreds_before)
    assert unhandled == []
    assert counts["let in"] > 0
    assert counts["turned away"] > 0


def one_crowd(fail_open: bool) -> Counter[str]:
    clock, counters = Clock(), LocalCounterStore(100)
    slow = FilterEntry(SlowFilter(clock, LATE_SECONDS, SLOW_WAYS), "slow", fail_open=fail_open)
    guard = Guard(
        clock=clock,
        counters=counters,
        # Behind it one more, which has no opinion.
        ip_filters=[slow, FakeFilter()],
        max_connections=CROWD,
        max_connections_per_client=CROWD,
        ipv4_client_prefix=24,
        ip_filter_timeout=TIME_LIMIT,
    )
    counts: Counter[str] = Counter()

    def knock() -> None:
        """One more comes, and is in exactly where there is room."""
        before = guard.factory.connections
        one = guard.connect("127.0.0.1")
        if before < CROWD:
            assert guard.factory.connections == before + 1
            one.disconnect()
            counts["hangups"] += 1
        else:
            assert one.heard() == TOO_MANY
            counts["turned away"] += 1
        assert guard.factory.connections == before

    crowd, leaving = [], []
    for number in range(CROWD):
        network, host = number % len(SLOW_WAYS), number // len(SLOW_WAYS)
        source = f"127.0.{network}.{host % 250 + 1}"
        waiting = Waiting(way_of(source, SLOW_WAYS), guard.connect(source))
        (leaving if host % 3 == 0 else crowd).append(waiting)
    assert guard.factory.connections == CROWD
    uncancellable = sum(each.way == "never_and_cannot_be_cancelled" for each in crowd + leaving)

    # Until the last answer has arrived, even of those whose client has left.
    while clock.getDelayedCalls():
        clock.advance(TICK)
        if leaving and clock.seconds() > LATE_SECONDS / 2:
            counts["hangups"] += len(leaving)
            for number, waiting in enumerate(leaving):
                [waiting.client.disconnect, waiting.client.half_close][number % 2]()
                assert waiting.client.heard() == ""
            leaving = []
        for waiting in crowd:
            waiting.listen(clock.seconds())
        assert guard.factory.connections == len(leaving) + sum(not each.client.closed for each in crowd)
        knock()
        if clock.seconds() > TIME_LIMIT + 1:
            for waiting in crowd:
                if not waiting.client.closed:
                    waiting.client.say("QUIT")

    for waiting in crowd:
        assert waiting.words.startswith(expected(waiting.way, fail_open=fail_open)), waiting
        due = TIME_LIMIT if waiting.way in NEVER else LATE_SECONDS
        assert due <= waiting.seconds <= due + 2 * TICK, waiting
    assert guard.factory._open == set()
    for network in range(len(SLOW_WAYS)):
        assert counters.look([Wanted("max_connections_per_client", f"127.0.{network}.0/24")])[0][0] == 0

    counts["let in"] = add_up(guard, crowd, counts, fail_open)
    # A canceller that raises is logged too, of those that had left as well.
    raising = sum(each.way in ("raise_late", "rubbish_late") for each in crowd)
    assert guard.factory.statistics.failures == raising + uncancellable
    return counts


def add_up(guard: Guard, crowd: list[Waiting], counts: Counter[str], fail_open: bool) -> int:
    """Hold the statistics against what became of everybody. How many of the crowd were let in."""
    statistics = guard.factory.statistics
    told = Counter(expected(each.way, fail_open=fail_open) for each in crowd)
    cannot_say = statistics.refusals.get("internal_error", 0) + statistics.refusals.get(
        "ip_filter_timeout", 0
    )
    assert statistics.connections_accepted == statistics.sessions_ended == told[GREETING]
    assert statistics.refusals.get("ip_filter") == told[REFUSED]
    assert cannot_say == told[CANNOT_SAY]
    assert statistics.refusals["max_connections"] == counts["turned away"]
    assert statistics.hangups == counts["hangups"]
    assert statistics.live_connections == 0
    return told[GREETING]


# Over sockets, against a real process.


@attrs.frozen
class Scale:
    crowd: int
    late_seconds: float
    time_limit: float
    patience: float
    """How much later than it is due a client may be told, on a machine that has a crowd to serve."""

    @property
    def options(self) -> tuple[str, ...]:
        return (
            f"--ip-filter-timeout={self.time_limit}",
            "--trust=127.0.0.1",
            "--deliver=discard",
            "--linger-timeout=1",
        )

    def due(self, way: str) -> float:
        if way in AT_ONCE:
            return 0
        return self.time_limit if way in NEVER else self.late_seconds


@pytest.fixture(
    params=[
        pytest.param(Scale(120, 0.2, 0.5, 1), id="quick"),
        pytest.param(Scale(2000, 4, 10, 2), id="long", marks=[pytest.mark.soak, pytest.mark.timeout(300)]),
    ]
)
def scale(request: pytest.FixtureRequest) -> Scale:
    whole: Scale = request.param
    return attrs.evolve(whole, crowd=descriptors_for(whole.crowd * 5 // 4) * 4 // 5)


@pytest.fixture(scope="module")
def table() -> Iterator[list[Siege | str]]:
    lines: list[Siege | str] = []
    yield lines
    print("\n\n" + "\n".join([HEADLINE, *map(str, lines)]))


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`twist` knows the filter `slow`."""
    folder = tmp_path / "plugins" / "twisted" / "plugins"
    folder.mkdir(parents=True)
    shutil.copy(slow_filter.__file__, folder)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "plugins"))


class Told:
    """What the clients of a crowd were told, and how long after they were connected."""

    def __init__(self) -> None:
        self.words: dict[str, Counter[str]] = {}
        self.seconds: dict[str, list[float]] = {}

    async def wait(self, client: Client) -> None:
        """Wait for the first words, and if it is a greeting, have a short session."""
        began = time.monotonic()
        way = way_of(client.socket.getsockname()[0])
        await client.hear()
        self.seconds.setdefault(way, []).append(time.monotonic() - began)
        first = client.heard.decode()
        self.words.setdefault(way, Counter())[GREETING if first.startswith(GREETING) else first] += 1
        if first.startswith(GREETING):
            await client.say(b"EHLO crowd.example\r\nQUIT\r\n")
        await client.hear_the_end()

    def leave(self, seconds: float, how: Callable[[Client], None]) -> Callable[[Client], object]:
        async def behave(client: Client) -> None:
            await asyncio.sleep(seconds)
            how(client)

        return behave


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@linux
def test_each_client_of_a_real_crowd_is_told_in_time_and_the_memory_comes_back(
    tmp_path: Path, scale: Scale, table: list[Siege | str]
) -> None:
    """A fifth leave, one way or another, before they are answered. A trusted client is served all the while."""
    options = (
        f"--max-connections={2 * scale.crowd}",
        f"--ip-filter=slow:{scale.late_seconds}",
        *scale.options,
    )
    with ExecutedGuard(tmp_path, *options, log_format="json") as guard:
        sieges = []
        for name in ("waiting", "waiting, again", "waiting, a third time"):
            told = Told()
            leaving = [told.leave(scale.late_seconds / 2, how) for how in (Client.close, Client.reset)]
            behaviours = [leaving[n // 5 % 2] if n % 5 == 4 else told.wait for n in range(scale.crowd)]
            siege = besiege(
                guard,
                name,
                behaviours,
                # A burst longer than the listener's backlog has everybody wait a second for the kernel.
                within=scale.late_seconds / 2,
                seconds=scale.time_limit + scale.late_seconds + 3 * scale.patience,
                anywhere=True,
                lets_go=True,
            )
            sieges.append(siege)
            table.append(siege)
            assert {way: set(words) for way, words in told.words.items()} == {
                way: {expected(way)} for way in WAYS
            }
            assert sum(words.total() for words in told.words.values()) == scale.crowd * 4 // 5
            for way, seconds in told.seconds.items():
                table.append(f"    {way:40} {min(seconds):6.2f} to {max(seconds):6.2f} s")
                # Its filter was asked before the client knew that it is connected.
                assert scale.due(way) / 2 <= max(seconds) < scale.due(way) + scale.patience, way
            assert siege.waits.worst < 1
        assert sieges[0].octets_a_client < 64 * KiB
        assert sieges[2].after - sieges[1].after < 4 * MiB


@linux
def test_of_more_clients_than_may_wait_exactly_the_rest_is_turned_away(
    tmp_path: Path, scale: Scale, table: list[Siege | str]
) -> None:
    options = (f"--max-connections={scale.crowd}", "--ip-filter=slow:1:never", *scale.options)
    more = scale.crowd // 4
    # Room for all, or the kernel has some of them wait for seconds before the guard sees them.
    with ExecutedGuard(tmp_path, *options, listen=(f"{LOCAL}:backlog=4096",)) as guard:
        vitals = Vitals(guard.pid)
        own = vitals.descriptors
        clients = run_crowd(
            [Client.hear_the_end] * (scale.crowd + more),
            lambda: Client(guard.port, anywhere=True),
            at_once=scale.crowd + more,
            # Before the first of those who wait has waited long enough.
            within=scale.time_limit / 4,
            seconds=scale.time_limit + 3 * scale.patience,
        )
        told = Counter(client.heard.decode() for client in clients)
        assert told == {CANNOT_SAY: scale.crowd, TOO_MANY: more}
        table.append(f"    {scale.crowd} waited, {told[TOO_MANY]} of {len(clients)} were turned away")
        eventually(lambda: vitals.descriptors == own, "it keeps connections open")


@linux
def test_clients_that_talk_on_while_a_filter_thinks_are_held_back(
    tmp_path: Path, scale: Scale, table: list[Siege | str]
) -> None:
    options = (f"--max-connections={2 * scale.crowd}", "--ip-filter=slow:1:never", *scale.options)
    with ExecutedGuard(tmp_path, *options, log_format="json") as guard:
        siege = besiege(
            guard,
            "flood a pending filter, unheard",
            [repeat_unheard(b"", b"NOOP\r\n" * 10_000)] * (scale.crowd // 4),
            seconds=scale.time_limit + 3 * scale.patience,
            anywhere=True,
            receive_buffer=1,
            lets_go=True,
        )
        table.append(siege)
        # Limits.max_input_buffer, one more arrival of 64 KiB after it, and what joining them and a connection take.
        assert siege.octets_a_client < (64 + 64 + 48) * KiB
        assert siege.waits.worst < 1
