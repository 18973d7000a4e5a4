"""Clients, an upstream server and the clock do anything in any order, and the pool between them keeps its promises.

The long form takes minutes: `pytest -m soak tests/upstream/test_upstream_fuzz.py`. What fails says its seed, which
repeats it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Generator
from fractions import Fraction
from typing import Any

import pytest
from fakes import Conversation
from mailserver import Behind, Link, MailServer
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError, ConnectingCancelledError
from twisted.logger import capturedLogs, formatEvent

CONNECT, TIMEOUT, VERDICT = 2.0, 3.0, 5.0

COMMANDS_TO_ANNOUNCE = 5
"""XCLIENT in two lines or three, and EHLO and HELO."""

MOST_RECIPIENTS = 3

LINKS = 0.01
"""How long a connect takes, and an answer that is not late."""

GOOD = {
    "greeting": "220 mx.example ESMTP",
    "MAIL": "250 2.1.0 Sender noted",
    "RCPT": "250 2.1.5 Recipient noted",
    "BDAT": "250 2.0.0 Octets noted",
    "DATA": "354 Go ahead",
    "RSET": "250 2.0.0 Forgotten",
    "XCLIENT": "220 mx.example ESMTP",
    "XFORWARD": "250 2.0.0 Noted",
    "STARTTLS": "220 2.0.0 Go ahead",
    "QUIT": "221 2.0.0 Bye",
}

BAD = ["421 4.3.2 Going down", "451 4.3.0 Later", "550 5.7.1 No", "221 2.0.0 Bye", "250-", "no reply at all"]


class WildLink(Link):
    """Answers as a server over a network does: never before the command was sent."""

    server: WildServer
    ended_at = float("-inf")

    def _end(self, reason: BaseException) -> None:
        self.ended_at = self.server.clock.seconds()
        super()._end(reason)

    def answer(self, verb: str, line: str) -> None:
        # What a PROXY header says is not answered.
        if verb != "PROXY":
            self.server.clock.callLater(LINKS, self.server.answer, self, verb, self.message_taken(verb))

    def message_taken(self, verb: str) -> str:
        """Which message it is whose end is answered."""
        return name_of(self.server.taken[-1].octets) if verb == "." else ""

    def startTLS(self, options: Any) -> None:
        self.server.clock.callLater(LINKS, self.server.shake_hands, self)


class WildServer(MailServer):
    """As bad as chance has it, until it is `well`."""

    make_link = WildLink

    def __init__(self, chance: random.Random, *keywords: str, badness: float, limit: int) -> None:
        super().__init__(*keywords)
        # EHLO and DATA are answered by answer(), too.
        self.answers = {"EHLO": "", "LHLO": "", "DATA": ""}
        self.chance = chance
        self.badness = badness
        self.limit = limit
        """Of connections; 0: none."""
        self.counts_late = chance.choice([0, 0.3])
        self.well = False
        self.late: list[Callable[[], None]] = []
        """Answers that come when chance has it."""
        self.connecting = 0
        self.promised: set[str] = set()
        """The messages that it has said 250 to."""

    @property
    def is_bad(self) -> bool:
        return not self.well and self.chance.random() < self.badness

    def is_full(self, newcomer: Link) -> bool:
        """Of connections that have just ended it may not know yet."""
        known_until = self.clock.seconds() - self.counts_late
        before = self.links[: self.links.index(newcomer)]
        there = sum(not link.closed or link.ended_at > known_until for link in before)
        return 0 < self.limit <= there and not self.well

    def connect(self, factory: Any) -> Deferred[Any]:
        connecting: Deferred[Any] = Deferred(lambda _: cancelled())
        self.connecting += 1

        def over() -> None:
            self.connecting -= 1
            if call.active():
                call.cancel()

        def cancelled() -> None:
            over()
            connecting.errback(ConnectingCancelledError(None))

        def arrive() -> None:
            over()
            MailServer.connect(self, factory).chainDeferred(connecting)

        def refuse() -> None:
            over()
            connecting.errback(ConnectError("refused"))

        fate = self.chance.choice([refuse, None]) if self.is_bad else arrive
        call = self.clock.callLater(LINKS if fate else 1e6, fate or arrive)
        return connecting

    def answer(self, link: WildLink, verb: str, message: str) -> None:
        """Whatever chance has it say."""
        if link.closed:
            return
        if verb == "greeting" and self.is_full(link):
            link.says("421 4.7.0 Too many connections")
            link.close()
            return
        good = GOOD.get(verb, f"250 2.0.0 Queued as {message}")
        if verb in ("EHLO", "LHLO"):
            good = "\r\n".join(["250-mx.example", *(f"250-{word}" for word in self.keywords), "250 HELP"])

        def say_good() -> None:
            if verb == "DATA":
                link.begin_data()
            if verb == "." and not link.closed:
                self.promised.add(message)
            link.says(good)

        def say_twice() -> None:
            say_good()
            link.says(good)

        def say_bad() -> None:
            link.says(self.chance.choice(BAD))

        def say_late() -> None:
            self.late.append(say_good)

        bad = [link.close, say_twice, say_bad, say_bad, say_late, lambda: None]
        (self.chance.choice(bad) if self.is_bad else say_good)()

    def shake_hands(self, link: WildLink) -> None:
        """The handshake succeeds, fails or is never over."""
        if link.closed:
            return
        if not self.is_bad:
            link.secure = True
            link.protocol.handshakeCompleted()
        elif self.chance.random() < 0.5:
            link.close()

    def misbehave(self) -> None:
        """On a connection on which nothing was asked, perhaps."""
        link = self.chance.choice(self.open_links)
        kind = self.chance.choice(["close", "say", "linger", "stop reading", "read on"])
        if kind == "close":
            link.close()
        elif kind == "say":
            link.says(self.chance.choice(BAD))
        elif kind == "linger":
            link.lingers = True
        elif kind == "stop reading":
            link.reads = False
        else:
            link.reads_on()

    def be_well(self) -> None:
        """From now on."""
        self.well = True
        self.late.clear()
        for link in self.open_links:
            if not link.reads:
                link.reads_on()


def name_of(message: bytes) -> str:
    """Of a message of a visitor's."""
    found = re.search(rb"^Subject: (\S+)\r$", message, re.MULTILINE)
    assert found is not None
    return found[1].decode()


Script = Generator["tuple[bytes, float]", str, None]
"""Yields what to send, and how long the answer may take; 0: there is none. Gets the answer."""


class Visitor:
    """A client that sends messages, as far as it is let and as chance has it."""

    def __init__(self, behind: Behind, chance: random.Random, name: str) -> None:
        self.name = name
        self.client = behind.connect(f"192.0.2.{chance.randrange(1, 250)}")
        self.finished: set[str] = set()
        """Messages of which it has sent all."""
        self.accepted: dict[str, str] = {}
        """What it was told of those that were taken."""
        self.asked: float | None = None
        """When, where it waits for an answer."""
        self.patience = 0.0
        self._behind = behind
        self._chance = chance
        self._pipelines = "PIPELINING" in behind.server.keywords
        self._script = self._talk()
        self._send(*next(self._script))

    @property
    def waits(self) -> bool:
        return self.asked is not None

    def go_on(self) -> None:
        """Say what comes next, unless an answer is due that has not come."""
        if self.waits:
            said = self.client.heard()
            if not said:
                return
            self.asked = None
            self._send(*self._script.send(said))
        else:
            self._send(*next(self._script))

    def leave(self) -> None:
        """Whatever is under way."""
        self._script.close()
        self.client.disconnect()

    def _send(self, octets: bytes, seconds: float) -> None:
        if seconds:
            self.asked, self.patience = self._behind.clock.seconds(), seconds
        if octets:
            self.client.protocol.dataReceived(octets)

    def _talk(self) -> Script:
        yield b"EHLO client.example\r\n", 1
        number = 0
        while True:
            number += 1
            name = f"{self.name}-{number}"
            said = yield from self._message(name)
            if said.startswith("250"):
                self.accepted[name] = said
            else:
                yield b"RSET\r\n", TIMEOUT

    def _message(self, name: str) -> Generator[tuple[bytes, float], str, str]:
        """What was said last."""
        options = self._behind.proxy.options
        announce = COMMANDS_TO_ANNOUNCE * TIMEOUT
        # The answer to RSET or EHLO, a connection under TLS and one in clear, and MAIL's own.
        tries = TIMEOUT + announce + 2 * 3 * CONNECT + announce + TIMEOUT
        mail = f"MAIL FROM:<{name}@example.com>\r\n".encode()
        if self._pipelines and self._chance.random() < 0.5:
            return (yield from self._message_at_once(name, mail, options.wait + tries))
        said = yield mail, options.wait + tries
        if not said.startswith("250"):
            return said
        recipients = self._chance.randint(1, MOST_RECIPIENTS)
        for recipient in range(recipients):
            said = yield f"RCPT TO:<{recipient}@example.org>\r\n".encode(), TIMEOUT
            if not said.startswith("250"):
                return said
        if self._chance.random() < 0.1:
            return "changed its mind"
        size = self._chance.choice([10, 20_000, 70_000])
        pieces = [f"Subject: {name}\r\n\r\n".encode(), b"x" * size + b"\r\n", f"end of {name}\r\n".encode()]
        verdict = 2 * TIMEOUT + recipients * VERDICT
        if self._chance.random() < 0.5 and self._behind.proxy.chunking:
            *pieces, last = pieces
            for piece in pieces:
                said = yield b"BDAT %d\r\n%b" % (len(piece), piece), 6 * TIMEOUT
                if not said.startswith("250"):
                    return said
            self.finished.add(name)
            said = yield b"BDAT %d LAST\r\n%b" % (len(last), last), verdict
            return said
        said = yield b"DATA\r\n", TIMEOUT
        if not said.startswith("354"):
            return said
        for piece in pieces:
            yield piece, 0
        self.finished.add(name)
        return (yield b".\r\n", verdict)

    def _message_at_once(
        self, name: str, mail: bytes, patience: float
    ) -> Generator[tuple[bytes, float], str, str]:
        """A message whose commands are sent together. What was said last."""
        recipients = self._chance.randint(1, MOST_RECIPIENTS)
        commands = [mail, *(f"RCPT TO:<{each}@example.org>\r\n".encode() for each in range(recipients))]
        if self._chance.random() < 0.9:
            commands.append(b"DATA\r\n")
        said = yield b"".join(commands), patience
        while said.count("\n") < len(commands):
            said += yield b"", TIMEOUT
        if not said.splitlines()[-1].startswith("354"):
            return "changed its mind"
        body = f"Subject: {name}\r\n\r\n{'x' * self._chance.choice([10, 20_000])}\r\nend of {name}\r\n.\r\n"
        self.finished.add(name)
        return (yield body.encode(), 6 * TIMEOUT + recipients * VERDICT)


class Wilderness:
    """One run: what happens is `seed`'s."""

    def __init__(self, announce: str, seed: int, *more: str, **options: str) -> None:
        self.chance = chance = random.Random(f"{announce} {seed}")
        tls = chance.choice(["off", "off", "opportunistic", "required"])
        keywords = [
            "8BITMIME",
            *more,
            *(["CHUNKING"] if chance.random() < 0.5 else []),
            *([f"{announce.upper()} ADDR HELO"] if announce in ("xclient", "xforward") else []),
            *(["STARTTLS"] if tls != "off" else []),
        ]
        self.server = WildServer(
            chance,
            *keywords,
            badness=chance.choice([0, 0.05, 0.2, 0.5]),
            limit=chance.choice([0, 0, 1, 2]),
        )
        self.connections = chance.randint(1, 3)
        self.behind = Behind(
            self.server,
            lmtp=chance.random() < 0.3,
            # The guard is to hang up on nobody.
            limits={"read_timeout": 0, "max_invalid_commands": 0},
            announce=announce,
            tls=tls,
            tls_name="mx.example" if tls == "required" else "",
            connections=self.connections,
            messages=chance.choice([0, 1, 2, 100]),
            idle=chance.choice([5, 30]),
            wait=chance.choice([1, 4, 10, 60]),
            connect=CONNECT,
            timeout=TIMEOUT,
            verdict=VERDICT,
            **options,
        )
        # The reserve is never all, and everybody is served in the end, with it or without.
        self.behind.proxy.reserve(chance.choice([Fraction(0), Fraction(1, 5), Fraction(1, 2)]), "more")
        self.behind.factory.known.is_listed = lambda address: address.packed[3] % 2 == 0
        self.clock = self.behind.clock
        self.pool = self.behind.proxy._pool
        self.visitors: list[Visitor] = []
        """All that ever came."""

    @property
    def present(self) -> list[Visitor]:
        return [visitor for visitor in self.visitors if not visitor.client.closed]

    # What happens.

    def anything(self) -> None:
        """Happens."""
        happens = self.chance.random()
        if happens < 0.2 and len(self.present) < 8:
            self.visit()
        elif happens < 0.6 and self.present:
            self.chance.choice(self.present).go_on()
        elif happens < 0.64 and self.present:
            self.chance.choice(self.present).leave()
        elif happens < 0.7 and self.server.late:
            self.server.late.pop(self.chance.randrange(len(self.server.late)))()
        elif happens < 0.74 and self.server.open_links and self.server.badness:
            self.server.misbehave()
        elif happens < 0.75:
            self.behind.proxy.reload()
            self.behind.threads.work()
        elif happens < 0.76:
            self.restart()
        else:
            self.time_passes(self.chance.choice([LINKS, LINKS, 0.1, 0.5, 1, 3, 10]))

    def visit(self) -> Visitor:
        """One more comes."""
        visitor = Visitor(self.behind, self.chance, f"message-{len(self.visitors)}")
        self.visitors.append(visitor)
        return visitor

    def restart(self) -> None:
        """The delivery stops, and starts at once or after a while."""
        self.behind.proxy.stopService()
        if self.chance.random() < 0.5:
            self.time_passes(1)
            assert self.server.open_links == []
            assert self.server.connecting == 0
            assert upstream_timers(self.clock) == []
        self.behind.proxy.startService()

    def time_passes(self, seconds: float) -> None:
        """In steps so small that nothing comes later than it is due."""
        end = self.clock.seconds() + seconds
        while (due := self.next_due()) < end:
            self.clock.advance(max(due - self.clock.seconds(), 0))
            self.check()
        self.clock.advance(end - self.clock.seconds())
        self.check()

    def next_due(self) -> float:
        """When something happens by itself."""
        return min((call.getTime() for call in self.clock.getDelayedCalls()), default=float("inf"))

    # What has to be so all the time.

    def check(self) -> None:
        """Nothing is taken that there is not, and nobody waits too long."""
        assert len(self.server.open_links) + self.server.connecting <= self.connections
        places = self.pool.places
        assert 0 <= places.in_use <= self.connections
        assert 0 <= places.by_state["reserved"] <= places.reserved < self.connections
        if self.pool._waiting:
            stranger = self.pool._waiting.first_is_stranger
            assert not self.pool._can_try(stranger)
            free = places.is_one_free and places.are_open_to(stranger)
            assert not places.parked or places.closing or free
        if not self.server.badness:
            assert self.pool.health.down is None
        now = self.clock.seconds()
        for visitor in self.present:
            if visitor.asked is not None and now - visitor.asked > visitor.patience + 10 * LINKS:
                assert visitor.client.transport.value(), f"{visitor.name} waits"

    # How it ends.

    def be_well(self) -> None:
        """From now on all are served."""
        self.server.be_well()
        # As long as a server may be taken for one that cannot be used as configured.
        self.time_passes(700)
        for visitor in self.present:
            visitor.leave()
        self.time_passes(1)
        assert self.pool.places.in_use == len(self.pool.places.idle)
        until = self.clock.seconds() + 60
        visitors = [self.visit() for _ in range(2 * self.connections)]
        while self.present and self.clock.seconds() < until:
            for visitor in self.present:
                visitor.go_on()
                if visitor.accepted:
                    visitor.leave()
            self.time_passes(LINKS)
        assert [visitor.name for visitor in visitors if not visitor.accepted] == []

    def end(self) -> None:
        """Nothing is left, and every message was told of as it was."""
        self.time_passes(10)
        self.behind.assert_nothing_is_left()
        assert upstream_timers(self.clock) == []
        accepted = {name: said for each in self.visitors for name, said in each.accepted.items()}
        finished = {name for each in self.visitors for name in each.finished}
        for message in self.server.taken:
            name = name_of(message.octets)
            assert name in finished
            assert message.octets.endswith(f"\r\nend of {name}\r\n".encode())
        for name, said in accepted.items():
            assert name in self.server.promised
            # In LMTP the guard counts them.
            assert name in said or self.behind.proxy.lmtp


def upstream_timers(clock: Any) -> list[str]:
    """What is still to happen in the pool or on one of its connections."""
    functions = (repr(call.func) for call in clock.getDelayedCalls())
    return [each for each in functions if re.search(r"Pool|Health|Waiting|Leaving|Connection\b|within", each)]


SEEDS = [range(30), pytest.param(range(30, 3000), marks=[pytest.mark.soak, pytest.mark.timeout(1800)])]


@pytest.mark.parametrize("announce", ["received", "xclient", "xforward", "proxy", "proxy-v1"])
@pytest.mark.parametrize(
    ("more", "options"),
    [((), {}), (("PIPELINING",), {"bdat": "small"})],
    ids=["one by one", "as few round trips as can be"],
)
@pytest.mark.parametrize("seeds", SEEDS, ids=["short", "long"])
def test_whatever_happens_the_pool_keeps_its_promises(
    announce: str, seeds: range, more: tuple[str, ...], options: dict[str, str]
) -> None:
    for seed in seeds:
        with capturedLogs() as events:
            try:
                wilderness = Wilderness(announce, seed, *more, **options)
                for _ in range(wilderness.chance.choice([60, 200])):
                    wilderness.anything()
                    wilderness.check()
                wilderness.be_well()
                wilderness.end()
            except Exception as error:
                raise AssertionError(f"{announce}, seed {seed}") from error
        assert [formatEvent(each) for each in events if "log_failure" in each] == [], (
            f"{announce}, seed {seed}"
        )


@pytest.mark.parametrize("seeds", SEEDS, ids=["short", "long"])
def test_who_waits_is_served_in_the_order_of_coming(seeds: range) -> None:
    """By a server that may take fewer connections than there are to be, for clients of whom some leave."""
    for seed in seeds:
        chance = random.Random(seed)
        server = WildServer(chance, "8BITMIME", badness=0, limit=chance.choice([0, 1, 2]))
        connections, messages = chance.choice([1, 2, 3]), chance.choice([0, 1, 2])
        behind = Behind(server, connections=connections, messages=messages, wait=1000)
        waiting: list[Conversation] = []
        served: list[Conversation] = []
        for _ in range(60):
            happens = chance.random()
            if happens < 0.4 and len(waiting) < 10:
                waiting.append(behind.greeted())
                waiting[-1].say("MAIL FROM:<a@example.com>")
            elif happens < 0.5 and waiting:
                waiting.pop(chance.randrange(len(waiting))).disconnect()
            elif served:
                client = served.pop(chance.randrange(len(served)))
                chance.choice([client.disconnect, lambda client=client: client.say("RSET")])()
            behind.clock.pump([LINKS] * chance.choice([5, 100]))
            while behind.proxy._pool.places.held:
                # Who is tried for is being served, and may have to wait again.
                behind.clock.advance(LINKS)
            answers = [client.heard()[:4] for client in waiting]
            done = answers.count("250 ")
            assert answers == ["250 "] * done + [""] * (len(waiting) - done), f"seed {seed}"
            served += waiting[:done]
            del waiting[:done]
