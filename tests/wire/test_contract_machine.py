"""Whatever clients, deliveries, the clock and a stop do, in any order: every transaction ends exactly once."""

from __future__ import annotations

from fakes import Conversation, Guard, refusal
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from strictdelivery import LATER, NOW, StrictDelivery

from twisted_smtpguard.engine.stages import Phase
from twisted_smtpguard.interfaces import Refused

MAIL, RCPT = b"MAIL FROM:<a@b.example>\r\n", b"RCPT TO:<c@d.example>\r\n"
BODY = b"Subject: x\r\n\r\ny\r\n.\r\n"
OCTETS = [
    MAIL,
    RCPT,
    MAIL + RCPT + RCPT,
    b"DATA\r\n",
    MAIL + RCPT + b"DATA\r\n",
    BODY,
    BODY + MAIL + RCPT + b"DATA\r\n" + BODY,
    b"half a line",
    b"a\nb\r\n.\r\n",
    b"x" * 250 + b"\r\n.\r\n",
    b"x" * 450,
    b"BDAT 5\r\nabcde",
    b"BDAT 99999\r\n",
    b"BDAT 2 LAST\r\n\r\n",
    b"BDAT 0 LAST\r\n",
    MAIL + RCPT + b"BDAT 5\r\nabcdeBDAT 2 LAST\r\n\r\n",
    b"BDAT\r\n",
    b"RSET\r\n",
    b"EHLO again\r\n",
    b"BREW\r\n",
    b"QUIT\r\n",
]
WHICH = st.integers(0, 7)
PLANS = st.dictionaries(
    st.sampled_from(["begin", "recipient", "data", "write", "finish"]),
    st.sampled_from((*NOW, *LATER)),
    max_size=2,
)
"""What each hook does when it is called next; then it answers now."""


class Contract(RuleBasedStateMachine):
    """Up to three clients of one guard."""

    make_delivery = StrictDelivery

    def __init__(self) -> None:
        super().__init__()
        self.plan: dict[str, str] = {}
        self.delivery = self.make_delivery(lambda hook: self.plan.pop(hook, "now"))
        self.guard = Guard(
            self.delivery,
            delivery_timeout=30,
            max_message_size=200,
            oversize_drain=200,
            max_pending_deliveries=2,
            shutdown_grace=40,
        )
        self.clients = [self.guard.greeted() for _ in range(3)]
        self.failures: list[str] = []
        self.guard.factory.context.events.failure = self.failed  # type: ignore[method-assign]

    def failed(self, failure: object, text: str, *names: str) -> None:
        """The log of failures."""
        self.failures.append(text)

    def client(self, which: int) -> Conversation:
        """One of those that are there."""
        return self.clients[which % len(self.clients)]

    @precondition(lambda self: self.clients)
    @rule(which=WHICH, plan=PLANS, chunked=st.booleans())
    def go_on(self, which: int, plan: dict[str, str], chunked: bool) -> None:
        """A client does what brings its message on."""
        client = self.client(which)
        session = client.protocol.engine
        if session.row.in_message:
            octets = BODY
        elif session.phase is Phase.RECIPIENTS:
            octets = b"BDAT 5\r\nabcde" if chunked else b"DATA\r\n"
        else:
            octets = {Phase.SENDER: RCPT, Phase.REFUSED: RCPT, Phase.CHUNKS: b"BDAT 2 LAST\r\n\r\n"}.get(
                session.phase, MAIL
            )
        self.send(client, octets, plan)

    @precondition(lambda self: self.clients)
    @rule(which=WHICH, plan=PLANS, chunked=st.booleans(), bytewise=st.booleans())
    def say_a_message(self, which: int, plan: dict[str, str], chunked: bool, bytewise: bool) -> None:
        octets = b"BDAT 0\r\nBDAT 2 LAST\r\n\r\n" if chunked else b"DATA\r\n" + BODY
        self.send(self.client(which), MAIL + RCPT + octets, plan, bytewise)

    @precondition(lambda self: self.clients)
    @rule(which=WHICH, octets=st.sampled_from(OCTETS), plan=PLANS)
    def say_anything(self, which: int, octets: bytes, plan: dict[str, str]) -> None:
        self.send(self.client(which), octets, plan)

    def send(self, client: Conversation, octets: bytes, plan: dict[str, str], bytewise: bool = False) -> None:
        self.plan = dict(plan)
        if not client.protocol.engine.input_ended:
            for piece in (octets[i : i + 1] for i in range(len(octets))) if bytewise else (octets,):
                client.protocol.dataReceived(piece)

    @precondition(lambda self: self.delivery.pending)
    @rule(which=WHICH, how=st.sampled_from(["succeed", "succeed", "refuse", "raise"]))
    def answer(self, which: int, how: str) -> None:
        pending = self.delivery.pending[which % len(self.delivery.pending)]
        if how == "succeed":
            pending.succeed()
        else:
            pending.fail(Refused(refusal(550, "No")) if how == "refuse" else ValueError("secret"))

    @precondition(lambda self: self.clients)
    @rule(which=WHICH)
    def leave(self, which: int) -> None:
        client = self.client(which)
        client.disconnect()

    @precondition(lambda self: self.clients)
    @rule(which=WHICH)
    def half_close(self, which: int) -> None:
        client = self.client(which)
        if not client.protocol.engine.input_ended:
            client.half_close()

    @rule(seconds=st.sampled_from([1, 31, 301]))
    def wait(self, seconds: int) -> None:
        self.guard.clock.pump([seconds / 10] * 10)

    @precondition(lambda self: not self.guard.factory.context.draining)
    @rule()
    def stop(self) -> None:
        self.guard.factory.drain()

    @precondition(
        lambda self: (
            self.guard.factory.context.draining
            and not self.clients
            and not self.guard.factory.context.pending_deliveries
        )
    )
    @rule()
    def start_again(self) -> None:
        self.guard.factory.reopen()

    @invariant()
    def no_promise_is_broken(self) -> None:
        assert self.delivery.broken == []

    @invariant()
    def nothing_failed_but_the_delivery(self) -> None:
        assert {text for text in self.failures if text != "the delivery failed: a hook raised"} == set()

    @invariant()
    def no_word_of_an_exception_goes_out(self) -> None:
        assert "secret" not in "".join(client.heard() for client in self.clients)

    @invariant()
    def where_one_has_gone_another_comes(self) -> None:
        self.clients = [client for client in self.clients if not client.transport.lost]
        while len(self.clients) < 3 and not self.guard.factory.context.draining:
            self.clients.append(self.guard.greeted())

    def teardown(self) -> None:
        for client in self.clients:
            client.disconnect()
        assert self.guard.factory.connections == 0
        for pending in list(self.delivery.pending):
            pending.succeed()
        assert self.delivery.pending == []
        self.no_promise_is_broken()
        self.nothing_failed_but_the_delivery()
        for transaction in self.delivery.transactions:
            assert len(transaction.ends) == transaction.handed_over
        assert self.guard.factory.context.pending_deliveries == 0
        self.wait(301)
        assert self.guard.clock.getDelayedCalls() == []


TestContract = Contract.TestCase
TestContract.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
