"""IP filters: in which order they are asked, what they may answer, and when."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import Conversation, FakeFilter, FakeTransport, Guard, SlowFilter
from twisted.internet import address
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.interfaces import ISSLTransport
from twisted.logger import LogEvent, capturedLogs
from zope.interface import directlyProvides

from twisted_smtpguard.admission.chain import FilterEntry
from twisted_smtpguard.interfaces import PASS, TRUST, Peer, Verdict, refuse
from twisted_smtpguard.replies import Reply

GREETING = "220 guard.example ESMTP ready\r\n"
REFUSED = "421 4.7.0 Connection refused\r\n"
INTERNAL = "421 4.3.0 Internal error, try again later\r\n"
OWN = Reply(521, "5.7.1", ("No mail from here",))


async def coroutine(answer: Any) -> Any:
    return answer


def raises(_: Peer) -> Any:
    raise LookupError("no database")


def logged(events: list[LogEvent], name: str) -> list[LogEvent]:
    return [event for event in events if event.get("event") == name]


def assert_nothing_is_left(guard: Guard) -> None:
    assert guard.factory.connections == 0
    assert guard.factory._open == set()
    assert guard.clock.getDelayedCalls() == []


# Verdicts.


@pytest.mark.parametrize("wrapped", [lambda x: x, succeed, coroutine], ids=["now", "Deferred", "coroutine"])
@pytest.mark.parametrize(
    ("verdict", "heard"),
    [
        (PASS, GREETING),
        (TRUST, GREETING),
        (refuse(), REFUSED),
        (refuse(OWN), "521 5.7.1 No mail from here\r\n"),
    ],
)
def test_a_verdict_decides_what_the_client_hears_first(wrapped: Any, verdict: Verdict, heard: str) -> None:
    client = Guard(ip_filters=[FakeFilter(lambda _: wrapped(verdict))]).connect()
    assert client.heard() == heard
    assert client.closed is (verdict.kind == "refuse")


def test_a_refusal_in_dry_run_is_logged_and_the_next_filter_is_asked() -> None:
    following = FakeFilter()
    trying = FilterEntry(FakeFilter(refuse(OWN, "bl:127.0.0.2", dry_run=True)), "lists")
    guard = Guard(ip_filters=[trying, following])
    with capturedLogs() as events:
        assert guard.connect().heard() == GREETING
    assert len(following.peers) == 1
    (line,) = [event["text"] for event in logged(events, "reject")]
    assert line == (
        "reject peer=192.0.2.1 reason=ip_filter dry_run=true filter=lists rule=bl:127.0.0.2 port=4711"
    )
    assert guard.factory.statistics.dry_run_refusals == {"ip_filter": 1}
    assert guard.factory.statistics.refusals == {}


@pytest.mark.parametrize("kind", ["pass", "trust"])
def test_only_a_refusal_can_be_in_dry_run(kind: str) -> None:
    with pytest.raises(ValueError, match="only a refusal is in dry run"):
        Verdict(kind, dry_run=True)


@pytest.mark.parametrize("first", [TRUST, refuse()])
def test_the_first_that_decides_wins_and_the_others_are_not_asked(first: Verdict) -> None:
    passing, deciding, unasked = FakeFilter(PASS), FakeFilter(first), FakeFilter(raises)
    Guard(ip_filters=[passing, deciding, unasked]).connect()
    assert [len(each.peers) for each in (passing, deciding, unasked)] == [1, 1, 0]


def test_each_is_asked_only_when_the_one_before_has_answered() -> None:
    slow, last = SlowFilter(), FakeFilter(refuse())
    client = Guard(ip_filters=[FakeFilter(), slow, last]).connect()
    assert (len(slow.asked), last.peers, client.heard()) == (1, [], "")
    slow.asked[0].callback(PASS)
    assert (len(last.peers), client.heard()) == (1, REFUSED)


def test_a_filter_is_told_who_connects() -> None:
    asked = FakeFilter()
    Guard(ip_filters=[asked]).connect("2001:db8::1")
    (peer,) = asked.peers
    assert (str(peer.address), peer.port) == ("2001:db8::1", 4711)
    assert (str(peer.local_address), peer.local_port) == ("198.51.100.1", 25)
    assert (peer.tls, peer.proxied) == (False, False)


def test_a_filter_is_asked_once_a_connection_and_never_for_one_refused_at_accept() -> None:
    asked = FakeFilter()
    guard = Guard(ip_filters=[asked], max_connections=1)
    client = guard.connect()
    client.say("EHLO a", "MAIL FROM:<a@b.example>", "NOOP")
    guard.connect()
    assert len(asked.peers) == 1


@pytest.mark.parametrize("text", ["x" * 600, "a\r\n250 OK", "sch\u00f6n"])
def test_a_filters_own_text_is_one_line_of_printable_ascii(text: str) -> None:
    heard = Guard(ip_filters=[FakeFilter(refuse(Reply(421, "4.7.1", (text,))))]).connect().heard()
    assert heard.startswith("421 4.7.1 ")
    assert heard.endswith("\r\n")
    assert len(heard) <= 512
    assert heard[:-2].isprintable()
    assert heard.isascii()


@pytest.mark.parametrize(
    "reply",
    [
        Reply(450, "4.7.1", ("No",)),
        Reply(554, "5.7.1", ("No",)),
        None,
        "421 no",
        Reply(421, "4.7.1", ("No",) * 11),
    ],
)
def test_a_connection_is_refused_with_421_or_521_only(reply: Any) -> None:
    with pytest.raises(ValueError, match=r"^a connection is refused with a short 421 or 521 reply, not "):
        refuse(reply)


@pytest.mark.parametrize("parts", [("maybe",), ("pass", OWN), ("trust", OWN)])
def test_there_is_no_other_verdict(parts: Any) -> None:
    with pytest.raises(ValueError, match=r"^there is no verdict "):
        Verdict(*parts)


# Failures.


FAILURES: dict[str, Any] = {
    "raises": raises,
    "fails": lambda _: fail(LookupError("no database")),
    "cancels itself": lambda _: fail(CancelledError()),
    "None": None,
    "a word": "pass",
    "a reply": OWN,
    "the function": refuse,
    "a class": Verdict,
    "rubbish later": lambda _: succeed(None),
}


@pytest.mark.parametrize("answer", FAILURES.values(), ids=FAILURES)
def test_a_filter_that_cannot_judge_refuses(answer: Any) -> None:
    guard = Guard(ip_filters=[FakeFilter(lambda peer: answer(peer) if callable(answer) else answer)])
    if answer in (refuse, Verdict):
        guard = Guard(ip_filters=[FakeFilter(lambda _: answer)])
    with capturedLogs() as events:
        client = guard.connect()
    assert client.heard() == INTERNAL
    assert client.closed
    (failed,) = logged(events, "filter_failed")
    assert (failed["filter"], failed["outcome"], failed["log_level"].name) == (
        "FakeFilter",
        "refused",
        "warn",
    )
    assert guard.factory.statistics.refusals == {"internal_error": 1}
    assert guard.factory.statistics.failures == 1


@pytest.mark.parametrize("answer", FAILURES.values(), ids=FAILURES)
def test_one_that_fails_open_leaves_it_to_the_next(answer: Any) -> None:
    broken = FilterEntry(FakeFilter(lambda peer: answer(peer) if callable(answer) else answer), "db:x", True)
    if answer in (refuse, Verdict):
        broken = FilterEntry(FakeFilter(lambda _: answer), "db:x", True)
    following = FakeFilter()
    with capturedLogs() as events:
        client = Guard(ip_filters=[broken, following]).connect()
    assert client.heard() == GREETING
    assert len(following.peers) == 1
    (failed,) = logged(events, "filter_failed")
    assert (failed["filter"], failed["outcome"]) == ("db:x", "passed")
    assert logged(events, "reject") == []


def test_a_filter_in_dry_run_that_fails_refuses_no_client() -> None:
    guard = Guard(ip_filters=[FakeFilter(raises)], dry_run=["ip_filter"])
    with capturedLogs() as events:
        assert guard.connect().heard() == GREETING
    (failed,) = logged(events, "filter_failed")
    assert failed["outcome"] == "passed"
    (line,) = [event["text"] for event in logged(events, "reject")]
    assert line == "reject peer=192.0.2.1 reason=internal_error dry_run=true filter=FakeFilter port=4711"


def test_a_failure_that_stands_open_does_not_open_for_another_filter() -> None:
    client = Guard(ip_filters=[FilterEntry(FakeFilter(raises), fail_open=True), FakeFilter(raises)]).connect()
    assert client.heard() == INTERNAL


class Unshowable:
    """An answer whose repr() raises."""

    def __repr__(self) -> str:
        raise LookupError("no repr")


def test_an_answer_that_cannot_even_be_shown_is_no_verdict() -> None:
    answers = FakeFilter(lambda _: Unshowable())
    assert Guard(ip_filters=[answers]).connect().heard() == INTERNAL
    with capturedLogs() as events:
        client = Guard(ip_filters=[FilterEntry(answers, "odd", fail_open=True), FakeFilter(PASS)]).connect()
    assert client.heard() == GREETING
    (line,) = [event["text"] for event in logged(events, "filter_failed")]
    assert line == "filter_failed peer=192.0.2.1 filter=odd problem=no_verdict outcome=passed"


def test_a_refusal_is_logged_with_the_filter_that_refused() -> None:
    with capturedLogs() as events:
        Guard(ip_filters=[FilterEntry(FakeFilter(refuse(OWN, "zen a key")), "zen")]).connect()
    (line,) = [event["text"] for event in logged(events, "reject")]
    assert line == (
        "reject peer=192.0.2.1 reason=ip_filter filter=zen rule=zen\\x20a\\x20key code=521 "
        "reply=521\\x205.7.1\\x20No\\x20mail\\x20from\\x20here port=4711"
    )
    assert not logged(events, "connect")
    assert not logged(events, "disconnect")


# Time.


def test_a_filter_has_ten_seconds() -> None:
    slow = SlowFilter()
    guard = Guard(ip_filters=[slow])
    client = guard.connect()
    guard.clock.advance(9.9)
    assert (client.heard(), slow.cancelled) == ("", 0)
    with capturedLogs() as events:
        guard.clock.advance(0.2)
    assert (client.heard(), slow.cancelled) == (INTERNAL, 1)
    (line,) = [event["text"] for event in logged(events, "reject")]
    assert (
        line == "reject peer=192.0.2.1 reason=ip_filter_timeout filter=SlowFilter limit=10 code=421 port=4711"
    )
    assert guard.factory.statistics.failures == 0
    client.disconnect()
    assert_nothing_is_left(guard)


def test_each_filter_has_its_own_ten_seconds() -> None:
    first, second = SlowFilter(), SlowFilter()
    guard = Guard(ip_filters=[FilterEntry(first, fail_open=True), second])
    client = guard.connect()
    guard.clock.advance(10)
    guard.clock.advance(9.8)
    assert (client.heard(), first.cancelled, second.cancelled) == ("", 1, 0)
    second.asked[0].callback(PASS)
    assert client.heard() == GREETING


def test_a_time_limit_of_0_is_none() -> None:
    slow = SlowFilter()
    guard = Guard(ip_filters=[slow], ip_filter_timeout=0)
    client = guard.connect()
    assert guard.clock.getDelayedCalls() == []
    slow.asked[0].callback(PASS)
    assert client.heard() == GREETING


def test_what_a_filter_says_after_its_time_limit_is_dropped() -> None:
    late: Deferred[Verdict] = Deferred(lambda _: None)
    stubborn: list[Deferred[Verdict]] = []

    async def check(_: Peer) -> Verdict:
        try:
            return await late
        except CancelledError:
            stubborn.append(Deferred())
            return await stubborn[0]

    guard = Guard(ip_filters=[FakeFilter(check)])
    client = guard.connect()
    guard.clock.advance(10.1)
    assert client.heard() == INTERNAL
    stubborn[0].callback(TRUST)
    assert client.heard() == ""
    client.disconnect()
    assert_nothing_is_left(guard)


def test_a_canceller_that_raises_does_not_prevent_the_refusal() -> None:
    def canceller(_: object) -> None:
        raise RuntimeError("no")

    guard = Guard(ip_filters=[FakeFilter(lambda _: Deferred(canceller))])
    client = guard.connect()
    with capturedLogs() as events:
        guard.clock.advance(10.1)
    assert client.heard() == INTERNAL
    assert [event["log_failure"].type for event in events if "log_failure" in event] == [RuntimeError]


# The client leaves.


def leave_by_reset(client: Conversation) -> None:
    client.disconnect()


def leave_by_close(client: Conversation) -> None:
    client.half_close()


@pytest.mark.parametrize("leave", [leave_by_reset, leave_by_close])
@pytest.mark.parametrize("stubborn", [False, True])
def test_the_filter_is_cancelled_when_the_client_leaves(leave: Any, stubborn: bool) -> None:
    asked: list[Deferred[Verdict]] = []
    cancelled: list[object] = []

    async def check(_: Peer) -> Verdict:
        asked.append(Deferred(cancelled.append))
        try:
            return await asked[0]
        except CancelledError:
            if not stubborn:
                raise
            asked.append(Deferred())
            return await asked[1]

    following = FakeFilter()
    guard = Guard(ip_filters=[FakeFilter(check), following])
    client = guard.connect()
    with capturedLogs() as events:
        guard.clock.advance(1.5)
        leave(client)
        if stubborn:
            asked[1].callback(PASS)
    assert len(cancelled) == 1
    assert following.peers == []
    assert [event["text"] for event in events] == ["hangup peer=192.0.2.1 seconds=1.5 port=4711"]
    assert guard.factory.statistics.hangups == 1
    assert_nothing_is_left(guard)


def test_nothing_of_what_was_sent_ahead_is_executed_for_a_client_that_is_refused() -> None:
    slow = SlowFilter()
    guard = Guard(ip_filters=[slow])
    client = guard.connect()
    client.say("EHLO a", "MAIL FROM:<a@b.example>")
    slow.asked[0].callback(refuse())
    assert client.heard() == REFUSED
    assert client.transport.half_closed
    assert client.say("NOOP") == ""
    assert guard.delivery.calls == []


def test_input_is_read_while_a_filter_is_pending_but_no_more_than_the_buffer_holds() -> None:
    client = Guard(ip_filters=[SlowFilter()]).connect()
    for _ in range(15):
        client.send(b"x" * 4096)
    assert client.transport.producerState == "producing"
    client.send(b"x" * 4096)
    assert client.transport.producerState == "paused"


def test_the_next_filter_is_not_asked_about_a_client_that_is_gone() -> None:
    async def passes_on_whatever_happens(_: Peer) -> Verdict:
        try:
            return await Deferred[Verdict]()
        except Exception:  # noqa: BLE001 - Twisted's CancelledError is one
            return PASS

    for leave in (leave_by_reset, leave_by_close, lambda client: client.guard.factory.drain()):
        following = SlowFilter()
        guard = Guard(ip_filters=[FakeFilter(passes_on_whatever_happens), following])
        leave(guard.connect())
        assert following.peers == []


# Faults of ours.


def test_a_fault_while_it_is_greeted_or_refused_ends_the_connection() -> None:
    for verdict in (PASS, refuse()):
        for wrapped in (lambda x: x, None):
            slow = SlowFilter()
            guard = Guard(ip_filters=[slow if wrapped is None else FakeFilter(verdict)])
            guard.factory.next_session_name = None  # type: ignore[assignment, method-assign]
            guard.factory.context.events.reject = None  # type: ignore[assignment, method-assign]
            with capturedLogs() as events:
                client = guard.connect()
                for asked in slow.asked:
                    asked.callback(verdict)
            assert client.transport.aborted
            assert len(logged(events, "failure")) == 1
            assert_nothing_is_left(guard)


def test_a_fault_at_the_end_of_the_greet_delay_ends_the_connection() -> None:
    guard = Guard(greet_delay=2)
    guard.factory.next_session_name = None  # type: ignore[assignment, method-assign]
    with capturedLogs() as events:
        client = guard.connect()
        guard.clock.advance(2.1)
    assert client.transport.aborted
    assert len(logged(events, "failure")) == 1
    assert_nothing_is_left(guard)


@pytest.mark.parametrize("filter_", [object(), FakeFilter, None])
def test_what_is_no_filter_is_told_at_once(filter_: Any) -> None:
    with pytest.raises(TypeError, match="does not provide IIPFilter"):
        Guard(ip_filters=[filter_])


@pytest.mark.parametrize(
    ("enhanced", "heard"), [("", "4.0.0"), ("5.7.1", "4.0.0"), ("hello", "4.0.0"), ("4.7.9", "4.7.9")]
)
def test_a_filters_reply_has_an_enhanced_code_of_its_class(enhanced: str, heard: str) -> None:
    client = Guard(ip_filters=[FakeFilter(refuse(Reply(421, enhanced, ("Go away",))))]).connect()
    assert client.heard() == f"421 {heard} Go away\r\n"


# How a refusal is said.


def test_who_is_refused_at_once_costs_no_session_and_holds_no_slot() -> None:
    guard = Guard(ip_filters=[FakeFilter(refuse())])
    client = guard.connect()
    assert guard.factory.connections == 0
    assert not hasattr(client.protocol, "session")
    assert client.transport.lost
    assert guard.factory.statistics.connections_refused == 1
    assert guard.factory.statistics.connections_accepted == 0
    assert_nothing_is_left(guard)


def test_who_is_refused_after_a_wait_is_let_read_the_line_and_holds_no_slot() -> None:
    slow = SlowFilter()
    guard = Guard(ip_filters=[slow])
    client = guard.connect()
    assert guard.factory.connections == 1
    slow.asked[0].callback(refuse())
    assert client.transport.half_closed
    assert not client.transport.lost
    assert guard.factory.connections == 0
    guard.clock.advance(5.1)
    assert client.transport.aborted
    assert_nothing_is_left(guard)


@pytest.mark.parametrize("slow", [False, True])
def test_on_a_tls_listener_a_refused_connection_is_aborted_without_a_word(slow: bool) -> None:
    deciding = SlowFilter() if slow else FakeFilter(refuse())
    guard = Guard(ip_filters=[deciding])
    transport = FakeTransport()
    directlyProvides(transport, ISSLTransport)
    transport.protocol = guard.factory.buildProtocol(address.IPv4Address("TCP", "192.0.2.1", 4711))
    transport.protocol.makeConnection(transport)
    if isinstance(deciding, SlowFilter):
        deciding.asked[0].callback(refuse())
    assert transport.aborted
    assert transport.value() == b""
    assert_nothing_is_left(guard)


def test_a_refusal_that_is_not_read_ends_at_the_write_timeout() -> None:
    slow = SlowFilter()
    guard = Guard(ip_filters=[slow], write_timeout=20)
    client = guard.connect()
    client.transport.reads = False
    slow.asked[0].callback(refuse())
    guard.clock.advance(20.1)
    assert client.transport.aborted
    assert_nothing_is_left(guard)


# The service stops.


def test_who_waits_when_the_service_stops_is_told_so_and_the_filter_is_cancelled() -> None:
    slow = SlowFilter()
    guard = Guard(ip_filters=[slow])
    client = guard.connect()
    stopped: list[None] = []
    guard.factory.drain().addCallback(stopped.append)
    assert client.heard() == "421 4.3.2 Server shutting down\r\n"
    assert slow.cancelled == 1
    client.disconnect()
    assert stopped == [None]
    assert_nothing_is_left(guard)


# A crowd.


def test_two_thousand_waiting_clients_are_each_judged_in_time_and_none_leaks() -> None:
    slow = SlowFilter()
    guard = Guard(ip_filters=[slow], max_connections=2000)
    clients = [guard.connect(f"10.0.{n >> 8}.{n & 255}") for n in range(2000)]
    assert guard.factory.connections == 2000
    assert guard.connect().heard() == "421 4.7.0 Too many connections, try again later\r\n"
    for n, (client, asked) in enumerate(zip(clients, list(slow.asked), strict=True)):
        if n % 5 == 0:
            asked.callback(PASS)
        elif n % 5 == 1:
            asked.callback(refuse())
        elif n % 5 == 2:
            asked.errback(LookupError("no database"))
        elif n % 5 == 3:
            client.disconnect()
    assert guard.factory.connections == 800
    guard.clock.advance(10.1)
    assert [client.heard() for client in clients[:5]] == [GREETING, REFUSED, INTERNAL, "", INTERNAL]
    assert guard.factory.connections == 400
    assert slow.cancelled == 800
    for client in clients:
        client.disconnect()
    assert_nothing_is_left(guard)
