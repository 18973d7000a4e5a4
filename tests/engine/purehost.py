"""A host of engines in which there is no Twisted: a list of effects, a clock that a test sets, and answers that come
when a test gives them, in any order.

guard = PureGuard(PureDelivery(), max_recipients=2)
client = guard.connect()
client.send(b"EHLO client.example\r\n")
assert client.codes() == [220, 250]
client.lose()
guard.check_all_given_back()

This file imports neither twisted nor zope, so that a test can run it where neither can be imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from ipaddress import ip_address
from itertools import count
from typing import Any

from twisted_smtpguard import replies
from twisted_smtpguard.engine import arrival
from twisted_smtpguard.engine.context import ServerContext
from twisted_smtpguard.engine.engine import Engine
from twisted_smtpguard.engine.port import Answered, Cancelled, Close, Host
from twisted_smtpguard.engine.refusal import Refusal, refusal_of
from twisted_smtpguard.engine.table import STAGES
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.log.measurements import Measurements
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.values import Client, Path, Peer, Refused

FIN = b""
"""The end of the input, where octets are sent."""

Effect = tuple[Any, ...]
"""What the engine did: the name of the port's function, and what it was given."""


class Timer:
    """A call to come. `when` may be set to a later time; an earlier one has no effect."""

    def __init__(self, clock: FakeClock, when: float, function: Callable[[], object]) -> None:
        self.clock, self._when, self.function = clock, when, function

    @property
    def when(self) -> float:
        return self._when

    @when.setter
    def when(self, when: float) -> None:
        self._when = max(when, self._when)

    def cancel(self) -> None:
        if self in self.clock.timers:
            self.clock.timers.remove(self)


class FakeClock:
    """The time, which a test advances."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[Timer] = []
        self.after_each: Callable[[], object] = lambda: None
        """Called after each call that was due."""

    def seconds(self) -> float:
        return self.now

    def call_later(self, seconds: float, function: Callable[[], object]) -> Timer:
        timer = Timer(self, self.now + seconds, function)
        self.timers.append(timer)
        return timer

    def advance(self, seconds: float) -> None:
        """Let time pass, and call what is due, each at its time."""
        end = self.now + seconds
        while self.timers:
            timer = min(self.timers, key=lambda each: each.when)
            if timer.when > end:
                break
            self.now = max(self.now, timer.when)
            self.timers.remove(timer)
            timer.function()
            self.after_each()
        self.now = end


class Later:
    """The answer of a hook that comes later. One that is `stubborn` goes on in spite of its cancellation."""

    def __init__(
        self,
        value: object = None,
        *,
        name: str = "",
        stubborn: bool = False,
        raises: BaseException | None = None,
    ) -> None:
        self.value = value
        self.name = name
        """What the plan called it."""
        self.stubborn = stubborn
        self.raises = raises
        """What its answer is to raise."""
        self.cancels = 0
        self.over = False
        self.error: BaseException | None = None
        self.on_end: list[Callable[[Later], None]] = []
        """Called when it has answered, been refused or been cancelled."""
        self.on_answer: Callable[[], None] = lambda: None
        """Called when its value goes to the guard."""
        self.answered: Answered | None = None

    def __await__(self) -> Generator[Any, Any, Any]:
        raise RuntimeError("the pure host waits for it by itself")

    def answer(self) -> None:
        """It is there."""
        if self.raises is not None:
            self.fail(self.raises)
        elif not self.over:
            self.on_answer()
            self._end(None)

    def fail(self, error: BaseException) -> None:
        """It raises."""
        if not self.over:
            self._end(error)

    def cancel(self) -> None:
        """Called by the engine."""
        self.cancels += 1
        if not self.stubborn:
            self.fail(Cancelled())

    def _end(self, error: BaseException | None) -> None:
        self.over, self.error = True, error
        for each in self.on_end:
            each(self)
        if self.answered is not None:
            self.tell()

    def tell(self) -> None:
        """Hand it over to the hook that waits for it."""
        assert self.answered is not None
        self.answered(None if self.error is not None else self.value, self.error)


class PureDelivery:
    """Holds the guard to the contract, and answers each hook as `plan(hook)` says.

    An answer is `now`, `refused` or `raised`, or it comes later and stands in `pending`: `later`, `later refused`,
    `later raised`, `stubborn`, which a cancellation does not end, or any other word. `calls` are the hooks in their
    order, octets that follow each other joined.
    """

    extensions = frozenset({"8BITMIME", "SMTPUTF8", "BINARYMIME"})
    max_message_octets = 0

    def __init__(self, plan: Callable[[str], str] = lambda hook: "now", *, relay: bool = False) -> None:
        self.plan = plan
        self.relay = relay
        """Its transactions are those with another server."""
        self.calls: list[tuple[str, Any]] = []
        self.pending: list[Later] = []
        self.transactions: list[PureTransaction] = []
        self.begun: list[str] = []
        """The sessions for which `begin` was called."""
        self.ended: list[str] = []
        """The sessions that `session_ended` has told of."""
        self.messages: list[bytes] = []
        """Those that were finished."""
        self.broken: list[str] = []
        """Promises of the guard that were."""

    def begin(self, client: Client, sender: Path) -> Any:
        self.called("begin", sender.address)
        self.promise(client.session not in self.ended, "begin after the end of its session")
        self.begun.append(client.session)
        transaction = PureTransaction(self, client.session)
        self.transactions.append(transaction)
        return self.play("begin", transaction, transaction, transaction.hand_over)

    def session_ended(self, session: str) -> None:
        self.called("session_ended", session)
        self.promise(session not in self.ended, "session_ended twice")
        self.promise(
            not any(each.busy for each in self.transactions if each.session == session),
            "session_ended while a hook is at work",
        )
        self.ended.append(session)

    def called(self, hook: str, argument: object = None) -> None:
        """Note a call."""
        if hook == "write" and self.calls and self.calls[-1][0] == "write":
            self.calls[-1] = ("write", self.calls[-1][1] + argument)
        else:
            self.calls.append((hook, argument))

    def promise(self, kept: bool, text: str) -> None:
        """Note it where it was not."""
        if not kept:
            self.broken.append(text)

    def play(
        self, hook: str, transaction: PureTransaction, value: object, handed_over: Callable[[], None]
    ) -> Any:
        """Answer as the plan says."""
        outcome = self.plan(hook)
        if outcome == "now":
            handed_over()
            return value
        error: Exception | None = None
        if outcome.endswith("refused"):
            error = Refused(Reply(550, "5.7.1", ("No",)))
        elif outcome.endswith("raised"):
            error = ValueError("secret")
        if error is not None and not outcome.startswith("later"):
            raise error
        later = Later(value, name=outcome, stubborn=outcome == "stubborn", raises=error)
        later.on_answer = handed_over
        later.on_end.append(self.pending.remove)
        later.on_end.append(lambda _: transaction.free())
        self.pending.append(later)
        transaction.busy = hook
        return later


class PureTransaction:
    """A transaction and its sink, so that both ends are counted in one place."""

    begun = Reply(250, "2.1.0", ("Begun",))

    def __init__(self, delivery: PureDelivery, session: str) -> None:
        self.delivery, self.session = delivery, session
        self.busy = ""
        """The hook that is at work."""
        self.handed_over = False
        self.recipients = 0
        self.sink: PureSink | None = None
        self.ends: list[str] = []

    def hand_over(self) -> None:
        """The guard has it, and owes it an end."""
        self.handed_over = True

    def free(self) -> None:
        """No hook is at work."""
        self.busy = ""

    def begin_hook(self, hook: str, argument: object = None) -> None:
        """A call of a hook: what holds for all of them."""
        self.delivery.called(hook, argument)
        promise = self.delivery.promise
        promise(self.handed_over, f"{hook} of a transaction that was not handed over")
        promise(not self.busy, f"{hook} while {self.busy} is at work")
        promise(not self.ends, f"{hook} after {self.ends}")
        promise(self.session not in self.delivery.ended, f"{hook} after the end of its session")

    def recipient(self, recipient: Path) -> Any:
        self.begin_hook("recipient", recipient.address)
        self.delivery.promise(self.sink is None, "recipient after data")
        return self.delivery.play("recipient", self, None, self._accepted)

    def _accepted(self) -> None:
        self.recipients += 1

    def data(self) -> Any:
        return self._data("data")

    def data_in_chunks(self) -> Any:
        return self._data("data_in_chunks")

    def _data(self, hook: str) -> Any:
        self.begin_hook(hook)
        self.delivery.promise(self.sink is None, "data twice")
        self.delivery.promise(self.recipients > 0, "data without a recipient")
        sink = PureSink(self)
        return self.delivery.play("data", self, sink, sink.hand_over)

    def abort(self) -> None:
        self.delivery.promise(self.sink is None, "abort of the transaction after data")
        self.end("abort")

    def end(self, how: str) -> None:
        """One of the three ends."""
        if how != "finish":
            self.delivery.called(how)
        self.delivery.promise(self.handed_over, f"{how} of a transaction that was not handed over")
        self.delivery.promise(not self.ends, f"{how} after {self.ends}")
        self.delivery.promise(self.session not in self.delivery.ended, f"{how} after the end of its session")
        self.ends.append(how)


class PureSink:
    def __init__(self, transaction: PureTransaction) -> None:
        self.transaction = transaction
        self.octets = b""

    def hand_over(self) -> None:
        """From now on the sink gets the end."""
        self.transaction.sink = self

    def write(self, data: bytes) -> Any:
        self.transaction.begin_hook("write", data)
        delivery = self.transaction.delivery
        delivery.promise(0 < len(data) <= 65536, f"a write of {len(data)}")
        self.octets += data
        return delivery.play("write", self.transaction, None, lambda: None)

    def finish(self) -> Any:
        self.transaction.begin_hook("finish")
        self.transaction.end("finish")
        self.transaction.delivery.messages.append(self.octets)
        return self.transaction.delivery.play("finish", self.transaction, None, lambda: None)

    def abort(self) -> None:
        self.transaction.end("sink.abort")


class RecordingEvents:
    """In the place of the log. `seen` are the events with what they were given; failures stand apart."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.failures: list[tuple[str, BaseException]] = []
        self.measured = Measurements()

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *_, **fields: self.seen.append((name, fields))

    def reject(self, peer: str, reason: str, **fields: Any) -> None:
        self.seen.append(("reject", {"reason": reason, **fields}))

    def disconnect(self, session: str, peer: str, reason: str, *_: object, **__: object) -> None:
        self.seen.append(("disconnect", {"reason": reason}))

    def failure(self, error: BaseException, text: str, *_: object, **__: object) -> None:
        self.failures.append((text, error))

    def reasons(self) -> list[str]:
        """Why something was refused, in order."""
        return [fields["reason"] for name, fields in self.seen if name == "reject"]


class Place:
    """Among the connections that a client may have at once."""

    def __init__(self) -> None:
        self.given_back = 0

    def give_back(self) -> None:
        self.given_back += 1


class PureClients:
    """The limits per client: nothing is counted unless a test sets `counted`."""

    def __init__(self) -> None:
        self.counted: Callable[[str], Any] = lambda rate: 0
        self.peaks = PurePeaks()

    def key_of(self, address: object) -> str:
        return str(address)

    def widest_network(self, key: str) -> str:
        return key

    def rate(self, name: str) -> PureRate:
        return PureRate(self, name)


class PurePeaks:
    """Notes nothing."""

    def accepted(self, key: str) -> None:
        pass

    def refused(self, key: str) -> None:
        pass


class PureKnown:
    """Nobody is known until a mail of theirs is accepted."""

    is_listed = None

    def __init__(self) -> None:
        self.clients: set[str] = set()

    def has(self, key: str, address: object) -> bool:
        return key in self.clients

    def accepted(self, key: str) -> None:
        self.clients.add(key)

    def refused(self, key: str) -> None:
        self.clients.discard(key)


class PureRate:
    """One of those limits. Nothing is too much."""

    most = 0
    noted: frozenset[int] = frozenset()

    def __init__(self, clients: PureClients, name: str) -> None:
        self._clients = clients
        self.name = name

    def count(self, key: str, events: int = 1) -> Any:
        return self._clients.counted(self.name)

    def note(self, key: str, count: int) -> None:
        pass


class PureAdmission:
    """Lets everybody in, unless `answer` is a Refusal, or an answer that comes later."""

    asks_nothing = False

    def __init__(self) -> None:
        self.answer: Callable[[], Any] = lambda: None
        self.places: list[Place] = []

    def decide(self, guest: Any) -> Any:
        guest.place = Place()
        self.places.append(guest.place)
        return self.answer()


class PureAttempt:
    """One password that a client tries."""

    def __init__(self) -> None:
        self.exceeded: tuple[Any, ...] = ()
        self.known = False
        self.owed = False
        """The engine has it, and owes it an end."""

    def hand_over(self) -> PureAttempt:
        self.owed = True
        return self

    def right(self) -> None:
        self.owed = False

    wrong = withdraw = right


class PureOffences:
    """Nobody is banned, and what clients have done wrong is written down."""

    def __init__(self) -> None:
        self.committed_by: list[tuple[str, str]] = []

    def committed(self, engine: Any, offence: str) -> None:
        self.committed_by.append((engine.key, offence))


class PureAttempts:
    """Every password may be checked, unless `answer` says otherwise of an attempt, now or later."""

    def __init__(self) -> None:
        self.answer: Callable[[PureAttempt], Any] = PureAttempt.hand_over
        self.begun: list[PureAttempt] = []

    def begin(self, client: str, username: bytes, *, trusted: bool = False) -> Any:
        self.begun.append(PureAttempt())
        return self.answer(self.begun[-1])


class PureHost(Host):
    """One connection: the port that its engine has its effects on, and the client at the other end."""

    def __init__(self, guard: PureGuard, peer: Peer) -> None:
        self.guard = guard
        self.engine: Any = None
        self.effects: list[Effect] = []
        self.heard = b""
        """What the client has read."""
        self.reads = True
        """The client reads. Where it does not, replies wait."""
        self.late_turns = False
        """A connection that has had its share is read once more before it has its next turn."""
        self.paused = False
        self.gone = False
        self.encrypted = False
        self._peer = peer
        self._waiting = b""
        self._close: Close | None = None
        self._timer: Timer | None = None
        self._unread = b""
        self._ends = self._told_of_end = self._turn = False
        self.in_handshake = False

    # The port.

    @property
    def idle(self) -> bool:
        return not self._waiting

    def write(self, octets: bytes) -> bool:
        assert octets, "nothing was to be written"
        assert self._close is None, "written after the close"
        self.effects.append(("write", octets))
        if self.reads:
            self.heard += octets
            return False
        self._waiting += octets
        return len(self._waiting) >= (self.guard.limits.max_output_buffer or math.inf)

    def pause(self) -> None:
        assert not self.paused
        self.effects.append(("pause",))
        self.paused = True

    def resume(self) -> None:
        assert self.paused
        self.effects.append(("resume",))
        self.paused = False

    def close(self, how: Close) -> None:
        self.effects.append(("close", how))
        if how is Close.ABORT or self._close is not None:
            self._lose()
        else:
            self._close = how
            if self.idle:
                self._close_now()

    def _close_now(self) -> None:
        lingers = self._close is Close.LINGER
        self.engine.all_sent(lingers=lingers or self.encrypted)
        if lingers and not self.encrypted:
            self.half_closed = True
            self.engine.half_closed()
        elif not self.encrypted:
            self._lose()

    def turn_away(self, line: bytes) -> None:
        self.effects.append(("turn_away", line))
        self.heard += line
        self._close = Close.PLAIN
        self._lose()

    def start_tls(self, octets: bytes) -> None:
        self.effects.append(("start_tls", octets))
        self.in_handshake = self.encrypted = True

    def deadline(self, seconds: float) -> Timer | None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.guard.clock.call_later(seconds, self._time_out) if seconds else None
        return self._timer

    def _time_out(self) -> None:
        self._timer = None
        self.engine.timed_out()

    def wait(self, later: Any, answered: Answered) -> Later:
        assert isinstance(later, Later)
        assert later.answered is None, "waited for twice"
        later.answered = answered
        if later.over:
            later.tell()
        return later

    def next_turn(self) -> None:
        assert not self._turn, "asked twice for a turn"
        self._turn = True

    def waiting_octets(self, most: int) -> bytes:
        return self._unread[:most]

    def address(self) -> Any:
        return self._peer.address

    def peer(self) -> Peer:
        return self._peer

    def is_own(self, header: Any) -> bool:
        return header.client is None

    # The client and the network.

    def begin(self, early: bytes = b"", **how: bool) -> None:
        """The connection was accepted; `early` has come already. `how` is for `arrival.begin`."""
        self.encrypted = self.in_handshake = how.get("tls_has_begun", False)
        self._unread = early
        arrival.begin(self.engine, **how)
        self.settle()

    def send(self, *pieces: bytes) -> None:
        """The client sends octets, or its end where a piece has none. Pieces come one after another, whether or not all
        that follows from one of them has happened."""
        for octets in pieces[:-1]:
            self._unread += octets
            if not self.gone:
                self._step()
        self._unread += pieces[-1]
        self._ends |= pieces[-1] == FIN
        self.settle()

    def settle(self) -> None:
        """Hand over what can be handed over, until nothing more happens."""
        while not self.gone and self._step():
            pass

    def _step(self) -> bool:
        engine = self.engine
        readable = self._unread and not self.paused and not self.in_handshake
        if self._turn and not (readable and self.late_turns):
            self._turn = False
            engine.take_turn()
        elif readable:
            octets, self._unread = self._unread[:65536], self._unread[65536:]
            engine.received(octets)
        elif self._ends and not self._unread and not self.paused and not self._told_of_end:
            self._told_of_end = True
            engine.ended()
        elif self._ends and self.paused and not engine.end_announced:
            engine.end_announced_by_host()
        else:
            return False
        return True

    def read_all(self) -> None:
        """The client reads what waits for it."""
        self.reads = True
        self.heard += self._waiting
        self._waiting = b""
        if self._close is not None and not (self.gone or self.half_closed):
            self._close_now()
        else:
            self.engine.drained()
        self.settle()

    def secured(self, tls: str = "TLSv1.3 X") -> None:
        """The TLS handshake is complete."""
        self.in_handshake = False
        arrival.secured(self.engine, tls, None)
        self.settle()

    def lose(self) -> None:
        """The connection is gone. Once counts."""
        self._lose()

    def _lose(self) -> None:
        if not self.gone:
            self.gone = True
            self.deadline(0)
            self._waiting = b""
            self.engine.lost()
            self.engine.host = Host()
            self.guard.lingering -= self.engine.lingers

    def shut_down(self, *, now: bool) -> None:
        """The service stops."""
        self.guard.context.draining = True
        self.engine.shut_down(now=now)
        self.settle()

    # What a test looks at.

    def codes(self) -> list[int]:
        """Of the replies that the client has read since this was last asked."""
        heard, self.heard = self.heard.decode("ascii"), b""
        return [int(line[:3]) for line in heard.split("\r\n") if line[3:4] == " "]

    @property
    def written(self) -> bytes:
        """All that was said."""
        return b"".join(effect[1] for effect in self.effects if effect[0] in ("write", "turn_away"))

    @property
    def closes(self) -> list[Close]:
        """How the connection was ended, in order."""
        return [effect[1] for effect in self.effects if effect[0] == "close"]


class PureGuard:
    """What the engines of a guard share, and what they gave back. `options` are fields of ServerContext."""

    def __init__(
        self, delivery: PureDelivery | None = None, *, options: dict[str, Any] | None = None, **limits: Any
    ) -> None:
        self.delivery = delivery or PureDelivery()
        self.limits = Limits(**{"max_invalid_commands": 0, **limits})
        self.clock = FakeClock()
        self.clock.after_each = self.settle
        self.events = RecordingEvents()
        self.clients = PureClients()
        self.admission = PureAdmission()
        self.known = PureKnown()
        self.attempts = PureAttempts()
        self.offences = PureOffences()
        self.held_slots = 0
        self.released: list[Any] = []
        self.lingering = 0
        self.settled = 0
        self.hosts: list[PureHost] = []
        names = count(1)
        self.next_session_name = lambda: f"s{next(names)}"
        self.greet_delay = lambda: self.limits.greet_delay
        self.ages: list[Any] = []
        self.session_times = self
        self.context = ServerContext(
            limits=self.limits,
            delivery=self.delivery,
            hostname="guard.example",
            events=self.events,
            clients=self.clients,
            admission=self.admission,
            known=self.known,
            attempts=self.attempts,
            offences=self.offences,
            seconds=self.clock.seconds,
            call_later=self.clock.call_later,
            stages=STAGES,
            guard=self,
            pending_delivery_settled=self._pending_delivery_settled,
            is_relay=lambda _: self.delivery.relay,
            offers_chunking=lambda: True,
            session_ended=self.delivery.session_ended,
            **(options or {}),
        )

    def connect(
        self, early: bytes = b"", *, implicit_tls: bool = False, reads: bool = True, **how: bool
    ) -> PureHost:
        """A connection is accepted. `how` is for `arrival.begin`."""
        host = self.accept(implicit_tls=implicit_tls)
        host.reads = reads
        host.begin(early, **how)
        return host

    def accept(self, *, implicit_tls: bool = False) -> PureHost:
        """A connection that has a slot and an engine, and has not begun."""
        host = PureHost(
            self, Peer(ip_address("192.0.2.1"), 4711, ip_address("198.51.100.1"), 25, tls=implicit_tls)
        )
        host.engine = Engine(
            self.context, host, "192.0.2.1", port=4711, listener="smtp", implicit_tls=implicit_tls
        )
        self.held_slots += 1
        self.hosts.append(host)
        return host

    def settle(self) -> None:
        """All that can happen without time, answers or octets has happened."""
        for host in self.hosts:
            host.settle()

    def advance(self, seconds: float) -> None:
        """Time passes."""
        self.clock.advance(seconds)

    def answer_all(self) -> None:
        """Every hook that has not answered does."""
        while self.delivery.pending:
            self.delivery.pending[0].answer()
            self.settle()

    def release(self, engine: Any) -> None:
        assert engine not in self.released, "a slot was given back twice"
        self.released.append(engine)
        self.held_slots -= 1

    def may_linger(self) -> bool:
        if 0 < self.limits.max_lingering <= self.lingering:
            return False
        self.lingering += 1
        return True

    def _pending_delivery_settled(self) -> None:
        self.settled += 1

    # The queue of sessions that have a time limit.

    def add(self, engine: Any) -> None:
        assert engine not in self.ages
        self.ages.append(engine)

    def remove(self, engine: Any) -> None:
        if engine in self.ages:
            self.ages.remove(engine)

    def check_all_given_back(self) -> None:
        """Of connections that are gone, whose hooks have answered, nothing is left."""
        delivery = self.delivery
        assert delivery.broken == []
        for transaction in delivery.transactions:
            assert len(transaction.ends) == transaction.handed_over, transaction.ends
        assert sorted(delivery.ended) == sorted(set(delivery.begun))
        assert self.held_slots == 0
        assert all(place.given_back >= 1 for place in self.admission.places)
        assert not any(attempt.owed for attempt in self.attempts.begun)
        assert self.lingering == 0
        assert self.ages == []
        assert self.context.pending_deliveries == 0
        assert self.clock.timers == []


REFUSAL: Refusal = refusal_of(replies.TOO_MANY_CONNECTIONS_OF_CLIENT, 3)
"""What an admission that lets nobody in answers."""
