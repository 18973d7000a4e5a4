"""Whatever octets come, however they are split, whenever hooks answer, and however it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise, zip_longest
from typing import Any

import attrs
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from purehost import FIN, REFUSAL, Later, PureAttempt, PureDelivery, PureGuard, PureHost

from twisted_smtpguard.admission.loginattempts import Exceeded
from twisted_smtpguard.engine import sasl
from twisted_smtpguard.engine.stages import Stage

HELLO = b"EHLO client.example\r\n"
MAIL, RCPT = b"MAIL FROM:<a@b.example>\r\n", b"RCPT TO:<c@d.example>\r\n"
MANY = b"NOOP\r\n" * 120
"""More than the share of a turn."""
BODY = b"Subject: x\r\n\r\n..y\r\n.\r\n"
PROXY = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 25\r\n"

WORDS = [
    HELLO,
    MAIL,
    RCPT,
    MAIL + RCPT,
    MAIL + RCPT + b"DATA\r\n",
    MAIL + RCPT + b"DATA\r\n" + BODY,
    MAIL + RCPT + b"BDAT 4\r\na\r\nbBDAT 3 LAST\r\n.\r\n",
    b"MAIL FROM:<> BODY=BINARYMIME\r\n" + RCPT + b"BDAT 2\r\na\rBDAT 0 LAST\r\n",
    b"DATA\r\n",
    BODY,
    b"a\nb\rc\r\n.\r\n",
    b"x" * 90 + b"\r\n.\r\n",
    b"BDAT 5\r\nabcde",
    b"BDAT 400\r\n",
    b"BDAT 0 LAST\r\n",
    b"BDAT\r\n",
    b"AUTH PLAIN AGEAYg==\r\n",
    b"AUTH LOGIN\r\nYQ==\r\nYg==\r\n",
    b"AUTH LOGIN\r\n",
    b"*\r\n",
    b"NOOP\r\n",
    b"RSET\r\n",
    b"noop\nquit\r\n",
    b"HELP\rx\r\n",
    b"x" * 70 + b"\r\n",
    b"\n" * 70,
    b"BREW x\r\n",
    b"QUIT\r\n",
    b"\r\n",
    b"\r\n\r\n\0",
    b"PROXY ",
    b"\r",
    b"\n",
    b".",
    b"\0",
]
OCTETS = st.builds(
    lambda begin, words: b"".join([*begin, *words]),
    st.sampled_from([[], [HELLO], [HELLO, MANY], [HELLO, MAIL + RCPT], [HELLO, MAIL + RCPT + b"DATA\r\n"]]),
    st.lists(st.one_of(st.sampled_from(WORDS), st.binary(max_size=3)), max_size=6),
)

HOOKS = ("begin", "recipient", "data", "finish", "attempt", "identify")
OUTCOMES = ("now", "refused", "raised", "later", "later refused", "later raised", "never", "stubborn")
"""`never` and `stubborn` are answered after the end, if at all."""
PLANS = st.dictionaries(
    st.tuples(st.sampled_from(HOOKS), st.integers(0, 2)), st.sampled_from(OUTCOMES), max_size=4
)
"""What a hook does when it is called for the n-th time; else it answers at once."""

LIMITS: list[dict[str, Any]] = [
    {},
    {"max_message_size": 60, "oversize_drain": 40},
    {"max_command_line": 60, "max_auth_line": 80, "max_endless_line": 100},
    {"max_invalid_commands": 3, "max_recipients": 1},
    {"max_errors": 3, "max_junk_commands": 2, "max_messages": 1},
    {"max_input_buffer": 10, "bare_newline": "normalize"},
    {"dry_run": {"bare_newline", "max_message_size", "max_invalid_commands"}, "max_message_size": 20},
    {"max_output_buffer": 50, "max_input_buffer": 40},
    {"max_rejected_recipients": 1, "max_auth_failures": 1},
]

ENDS: dict[str, Callable[[PureGuard, PureHost], object]] = {
    "lost": lambda guard, host: host.lose(),
    "end of input": lambda guard, host: host.send(FIN),
    "timed out": lambda guard, host: guard.advance(301),
    "stop": lambda guard, host: host.shut_down(now=False),
    "stop now": lambda guard, host: host.shut_down(now=True),
    "stop, then lost": lambda guard, host: (host.shut_down(now=False), host.lose()),
    "end of input, then lost": lambda guard, host: (host.send(FIN), host.lose()),
    "end of input, then timed out": lambda guard, host: (host.send(FIN), guard.advance(301)),
}


@attrs.frozen
class User:
    name: str
    avatar_id: object = None


@attrs.frozen
class Judgement:
    """What checkers say of a login."""

    user: User | None
    failures: tuple[Any, ...] = ()
    final: bytes = b""


@attrs.frozen
class Case:
    """What comes, and how the hooks answer."""

    octets: bytes
    end: str
    plan: dict[tuple[str, int], str]
    writes: str
    """How each write() answers."""
    limits: dict[str, Any]
    proxied: bool
    relay: bool
    reads: bool
    """The client reads at once, and not only when it has sent everything."""


CASES = st.builds(
    Case,
    octets=OCTETS,
    end=st.sampled_from(sorted(ENDS)),
    plan=PLANS,
    writes=st.sampled_from(["now", "now", "later"]),
    limits=st.sampled_from(LIMITS),
    proxied=st.booleans(),
    relay=st.booleans(),
    reads=st.booleans(),
)


class Run:
    """One connection to which a case happens."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.called: dict[str, int] = {}
        self.delivery = PureDelivery(self.outcome, relay=case.relay)
        self.guard = PureGuard(
            self.delivery,
            options={"identify": self.identify, "auth_without_tls": True},
            delivery_timeout=100,
            **case.limits,
        )
        self.guard.attempts.answer = partial(decide_attempt, self.delivery)

    def outcome(self, hook: str) -> str:
        """What the hook does this time."""
        if hook == "write":
            return self.case.writes
        number = self.called.get(hook, 0)
        self.called[hook] = number + 1
        return self.case.plan.get((hook, number), "now")

    def identify(self, login: sasl.Login) -> Any:
        """Who knows his name is who he says."""
        judgement = Judgement(User("a") if login.username == b"a" else None)
        return self.delivery.play("identify", _NoTransaction(), judgement, lambda: None)  # type: ignore[arg-type]

    def due(self) -> list[Later]:
        """The hooks that are to answer before the end."""
        return [each for each in self.delivery.pending if each.name not in ("never", "stubborn")]

    def happen(
        self, pieces: list[bytes], answers: Sequence[int] = (), *, rush: bool = False
    ) -> dict[str, Any]:
        """Send the pieces, with so many answers after each of them, or in a `rush`; then come the end, and the answers
        that are left. What became of it."""
        host = self.guard.connect(behind_proxy=self.case.proxied, reads=self.case.reads)
        host.late_turns = rush
        pieces = [piece for piece in pieces if piece]
        if rush and pieces:
            host.send(*pieces)
        for piece, number in zip_longest(() if rush else pieces, answers):
            if piece and not host.gone:
                host.send(piece)
            for _ in range(number or 0):
                self.answer_one(host)
        host.read_all()
        while self.due():
            self.answer_one(host)
        if not host.gone:
            ENDS[self.case.end](self.guard, host)
        while self.delivery.pending:
            self.delivery.pending[-1].answer()
            host.settle()
        host.lose()
        assert host.engine.stage is Stage.CLOSED
        assert [text for text, _ in self.guard.events.failures if "session" in text] == []
        self.guard.check_all_given_back()
        return {
            "written": host.written,
            # How much of a message that is refused was written before depends on how it came.
            "calls": [call for call in self.delivery.calls if call[0] != "write"],
            "messages": self.delivery.messages,
            "closes": host.closes,
            "log": [
                (name, fields.get("reason")) for name, fields in self.guard.events.seen if not early(fields)
            ],
            "failures": [text for text, _ in self.guard.events.failures],
        }

    @property
    def aborted(self) -> list[bytes]:
        """What was written of each message that was aborted."""
        sinks = [each.sink for each in self.delivery.transactions if each.ends == ["sink.abort"]]
        return [sink.octets for sink in sinks if sink is not None]

    def answer_one(self, host: PureHost) -> None:
        """One of the hooks that are due answers."""
        for later in self.due()[:1]:
            later.answer()
            host.settle()


def early(fields: dict[str, Any]) -> bool:
    """Whether a line of the log says that the client spoke before its greeting: that depends on the time only."""
    return fields.get("reason") == "early_talker"


def decide_attempt(delivery: PureDelivery, attempt: PureAttempt) -> Any:
    """Whether a password may be checked is decided now or later. What is no answer in the plan refuses it."""
    try:
        return delivery.play("attempt", _NoTransaction(), attempt, attempt.hand_over)  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001 - as the plan says
        attempt.exceeded = (Exceeded("auth_failure_rate", "", 11),)
        return attempt


class _NoTransaction:
    """To log in belongs to none."""

    busy = ""

    def free(self) -> None:
        pass


def split(octets: bytes, cuts: list[int]) -> list[bytes]:
    """Cut octets at these places."""
    places = sorted({0, len(octets), *(cut % (len(octets) + 1) for cut in cuts)})
    return [octets[one:other] for one, other in pairwise(places)]


@settings(max_examples=300)
@given(CASES, st.lists(st.integers(0, 500), max_size=6), st.lists(st.integers(0, 2), max_size=12))
def test_any_octets_in_any_split_have_the_effects_that_they_have_when_each_comes_alone(
    case: Case, cuts: list[int], answers: list[int]
) -> None:
    octets = PROXY * case.proxied + case.octets
    # The binary PROXY header begins with empty lines, which are answered where they come alone.
    assume(not octets.startswith(b"\r\n\r\n\0"))
    reference = Run(case)
    alone = reference.happen([octets[i : i + 1] for i in range(len(octets))], [1] * len(octets))
    pieces = split(octets, cuts)
    for how in (
        partial(Run.happen, pieces=pieces, answers=answers),
        partial(Run.happen, pieces=pieces, rush=True),
        partial(Run.happen, pieces=[octets]),
    ):
        run = Run(case)
        assert how(run) == alone
        for one, other in zip(run.aborted, reference.aborted, strict=True):
            assert one.startswith(other) or other.startswith(one)


WHICH = st.integers(0, 9)
OURS = ("the session failed",)
"""What is logged where the engine itself has a fault."""


class AnyOrder(RuleBasedStateMachine):
    """Some connections of one guard, to which anything happens in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.plan: dict[str, str] = {}
        self.delivery = PureDelivery(lambda hook: self.plan.pop(hook, "now"))
        self.guard = PureGuard(
            self.delivery,
            options={"identify": self.identify, "auth_without_tls": True, "starttls": True},
            delivery_timeout=30,
            max_message_size=200,
            oversize_drain=200,
            max_pending_deliveries=2,
            max_session_time=500,
            max_lingering=1,
            max_output_buffer=100,
            max_input_buffer=100,
            min_data_rate=1,
            data_rate_window=10,
        )
        self.guard.admission.answer = self.admit
        self.guard.attempts.answer = partial(decide_attempt, self.delivery)
        self.admissions: list[Later] = []
        self.admits = "now"

    def identify(self, login: sasl.Login) -> Any:
        """Everybody is let in."""
        return self.delivery.play("identify", _NoTransaction(), Judgement(User("a")), lambda: None)  # type: ignore[arg-type]

    def admit(self) -> Any:
        """As the test says."""
        if self.admits in ("now", "refused"):
            return REFUSAL if self.admits == "refused" else None
        self.admissions.append(Later(REFUSAL if self.admits == "later refused" else None))
        return self.admissions[-1]

    def open(self) -> list[PureHost]:
        """The connections that are there."""
        return [host for host in self.guard.hosts if not host.gone]

    def one(self, which: int) -> PureHost:
        """One of these."""
        hosts = self.open()
        return hosts[which % len(hosts)]

    @rule(
        early=st.sampled_from([b"", b"", HELLO, PROXY]),
        admits=st.sampled_from(["now", "now", "refused", "later", "later refused"]),
        implicit_tls=st.booleans(),
        tls_has_begun=st.booleans(),
        behind_proxy=st.booleans(),
        delay=st.sampled_from([0, 2]),
        reads=st.booleans(),
    )
    def connect(self, early: bytes, admits: str, delay: float, reads: bool, **how: bool) -> None:
        if len(self.open()) < 3:
            self.admits = admits
            self.guard.greet_delay = lambda: delay
            how["tls_has_begun"] &= how["implicit_tls"]
            self.guard.connect(early, reads=reads, **how)

    @precondition(lambda self: self.open())
    @rule(
        which=WHICH,
        words=st.lists(st.sampled_from([*WORDS, MANY, MANY, b"STARTTLS\r\n"]), max_size=3),
        plan=PLANS,
        rush=st.booleans(),
    )
    def send(self, which: int, words: list[bytes], plan: dict[tuple[str, int], str], rush: bool) -> None:
        self.plan = {hook: outcome for (hook, _), outcome in plan.items()}
        host = self.one(which)
        host.late_turns = rush
        host.send(*[HELLO, *words] if rush else [b"".join([HELLO, *words])])

    @precondition(lambda self: self.open())
    @rule(
        which=WHICH,
        words=st.sampled_from([MAIL, MAIL + RCPT, b"DATA\r\n", BODY, b"x" * 30, b"BDAT 9\r\n", b"QUIT\r\n"]),
        hook=st.sampled_from([*HOOKS, "write"]),
        outcome=st.sampled_from(OUTCOMES),
    )
    def go_on(self, which: int, words: bytes, hook: str, outcome: str) -> None:
        self.plan = {hook: outcome}
        self.one(which).send(words)

    @precondition(lambda self: self.delivery.pending)
    @rule(which=WHICH)
    def answer(self, which: int) -> None:
        self.delivery.pending[which % len(self.delivery.pending)].answer()
        self.guard.settle()

    @precondition(lambda self: self.admissions)
    @rule(which=WHICH)
    def admitted(self, which: int) -> None:
        self.admissions.pop(which % len(self.admissions)).answer()
        self.guard.settle()

    @rule(seconds=st.sampled_from([1, 3, 10, 31, 301]))
    def time_passes(self, seconds: float) -> None:
        self.guard.advance(seconds)

    @precondition(lambda self: self.open())
    @rule(
        which=WHICH,
        event=st.sampled_from(
            [
                "end",
                "lose",
                "read",
                "stall",
                "congest",
                "deaf",
                "stop",
                "stop now",
                "secured",
                "turn",
                "time over",
                "slow",
            ]
        ),
    )
    def something_else(self, which: int, event: str) -> None:
        host = self.one(which)
        {
            "end": lambda: host.send(FIN),
            "lose": host.lose,
            "read": host.read_all,
            "stall": host.engine.stalled,
            "congest": host.engine.congested,
            "deaf": lambda: setattr(host, "reads", False),
            "stop": lambda: host.shut_down(now=False),
            "stop now": lambda: host.shut_down(now=True),
            "secured": lambda: host.secured() if host.in_handshake else None,
            "turn": host.engine.take_turn,
            "time over": host.engine.time_over,
            "slow": host.engine.data_too_slow,
        }[event]()
        host.settle()

    @invariant()
    def no_promise_is_broken(self) -> None:
        assert self.delivery.broken == []
        assert [text for text, _ in self.guard.events.failures if text in OURS] == []

    @invariant()
    def a_connection_that_is_closed_holds_no_slot(self) -> None:
        holding = [host for host in self.guard.hosts if host.engine.holds_slot]
        assert len(holding) == self.guard.held_slots <= len(self.open())

    def teardown(self) -> None:
        for host in self.open():
            host.lose()
        while self.delivery.pending:
            self.delivery.pending[-1].answer()
        for later in self.admissions:
            later.answer()
        self.guard.check_all_given_back()
        self.no_promise_is_broken()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=100, stateful_step_count=30)
