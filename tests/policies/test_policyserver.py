"""The connections to a policy server, and a server that does not keep to the protocol."""

from __future__ import annotations

import pytest
from scriptedserver import Policed
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError

from twisted_smtpguard.policies import policyserver
from twisted_smtpguard.policies.answers import MAX_ANSWER_OCTETS
from twisted_smtpguard.policies.policyserver import IDLE_SECONDS, MAX_LATE
from twisted_smtpguard.testing import codes


@pytest.mark.parametrize("bytewise", [False, True])
def test_a_server_is_asked_and_decides(bytewise: bool) -> None:
    policed = Policed()
    client = policed.at_recipient()
    (link,) = policed.server.links
    assert link.asked[0]["recipient"] == "b@example.org"
    link.say(b"action=REJECT 5.7.9 not today\n\n", bytewise=bytewise)
    assert client.heard() == "554 5.7.9 not today\r\n"


def test_a_connection_is_kept_and_asked_again() -> None:
    policed = Policed()
    for _ in range(3):
        client = policed.at_recipient()
        policed.server.links[-1].answer()
        assert codes(client.heard()) == [250]
    (link,) = policed.server.links
    assert len(link.asked) == 3


def test_a_connection_has_one_question_at_a_time() -> None:
    policed = Policed()
    clients = [policed.at_recipient() for _ in range(3)]
    assert [len(link.asked) for link in policed.server.links] == [1, 1, 1]
    policed.server.links[1].answer("450 later")
    assert [codes(each.heard()) for each in clients] == [[], [450], []]


def test_connections_are_bounded_and_a_question_that_waits_is_asked_when_one_is_free() -> None:
    policed = Policed(connections=2)
    clients = [policed.at_recipient() for _ in range(5)]
    assert [len(link.asked) for link in policed.server.links] == [1, 1]
    for _ in range(5):
        next(link for link in policed.server.links if link.protocol.question).answer()
    assert [codes(each.heard()) for each in clients] == [[250]] * 5
    assert sum(len(link.asked) for link in policed.server.links) == 5


def test_a_question_that_waits_is_asked_when_a_connection_could_not_be_opened() -> None:
    policed = Policed(connections=2)
    policed.at_recipient()
    opening: Deferred[None] = Deferred()
    connect, policed.server.connect = policed.server.connect, lambda _: opening  # type: ignore[method-assign]
    clients = [policed.at_recipient() for _ in range(2)]
    policed.server.connect = connect  # type: ignore[method-assign]
    # As by a UNIX socket whose queue is full for a moment.
    opening.errback(ConnectError("try again"))
    assert [len(link.asked) for link in policed.server.links] == [1, 1]
    policed.server.links[1].answer()
    assert [codes(each.heard()) for each in clients] == [[451], [250]]


def test_a_crowd_that_waits_for_a_server_that_cannot_be_reached_fails_at_once() -> None:
    policed = Policed(connections=2)
    policed.at_recipient()
    opening: Deferred[None] = Deferred()
    connect, policed.server.connect = policed.server.connect, lambda _: opening  # type: ignore[method-assign]
    clients = [policed.at_recipient() for _ in range(500)]
    policed.server.connect = connect  # type: ignore[method-assign]
    policed.server.reachable = False
    opening.errback(ConnectError("refused"))
    assert [codes(each.heard()) for each in clients] == [[451]] * 500


def test_the_wait_for_a_connection_counts_into_the_time_limit() -> None:
    policed = Policed(connections=1, timeout=4)
    first = policed.at_recipient()
    policed.clock.advance(3)
    second = policed.at_recipient()
    policed.clock.advance(1.1)
    assert (codes(first.heard()), second.heard()) == ([451], "")
    # The connection of the first is closed, since its answer may still come; the second has another.
    assert [len(link.asked) for link in policed.server.links] == [1, 1]
    policed.clock.advance(3)
    assert codes(second.heard()) == [451]


def test_the_questions_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policyserver, "MAX_WAITING", 3)
    policed = Policed(connections=1)
    told = []
    for _ in range(6):
        policed.at_recipient()
        told.append(codes(policed.at_once))
    assert told == [[], [], [], [], [451], [451]]


@pytest.mark.parametrize("fail_open", [False, True])
@pytest.mark.parametrize(
    "octets",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\n",
        b"\n\n",
        b"action=DUNNO\naction=REJECT\n\n",
        b"reason=x\n\n",
        b"action\n\n",
        bytes(range(256)) + b"\n\n",
        b"x" * 10_000_000,
        b"action=" + b"x" * 10_000_000,
        b"a=b\n" * 2_500_000,
    ],
    ids=range(10),
)
def test_garbage_and_an_answer_without_an_end_are_an_error(octets: bytes, fail_open: bool) -> None:
    policed = Policed(fail_open=fail_open)
    client = policed.at_recipient()
    link = policed.server.links[0]
    for start in range(0, len(octets), 65536):
        link.say(octets[start : start + 65536])
        assert len(link.protocol._parser._octets) <= 65536 + 2 * MAX_ANSWER_OCTETS
    assert codes(client.heard()) == [250 if fail_open else 451]
    # The next question finds it again.
    client = policed.at_recipient()
    policed.server.open[-1].answer("REJECT")
    assert codes(client.heard()) == [554]


@pytest.mark.parametrize("part", [b"", b"act", b"action=REJECT\n"])
@pytest.mark.parametrize("fail_open", [False, True])
def test_a_server_that_is_killed_in_mid_answer(part: bytes, fail_open: bool) -> None:
    policed = Policed(fail_open=fail_open)
    client = policed.at_recipient()
    policed.server.links[0].say(part)
    policed.server.links[0].close()
    assert codes(client.heard()) == [250 if fail_open else 451]
    client = policed.at_recipient()
    policed.server.open[0].answer()
    assert codes(client.heard()) == [250]


class TestKeptConnections:
    @staticmethod
    def kept() -> Policed:
        policed = Policed()
        policed.at_recipient()
        policed.server.links[0].answer()
        return policed

    def test_one_that_was_closed_meanwhile_is_not_used(self) -> None:
        policed = self.kept()
        policed.server.links[0].close()
        client = policed.at_recipient()
        policed.server.links[1].answer()
        assert codes(client.heard()) == [250]

    def test_one_that_turns_out_to_be_closed_is_replaced_once(self) -> None:
        policed = self.kept()
        client = policed.at_recipient()
        policed.server.links[0].close()
        assert len(policed.server.links) == 2
        policed.server.links[1].close()
        assert codes(client.heard()) == [451]
        assert len(policed.server.links) == 2

    def test_the_second_try_may_succeed(self) -> None:
        policed = self.kept()
        client = policed.at_recipient()
        policed.server.links[0].close()
        policed.server.links[1].answer("450 x")
        assert codes(client.heard()) == [450]

    def test_a_question_with_half_an_answer_is_not_asked_again(self) -> None:
        policed = self.kept()
        client = policed.at_recipient()
        policed.server.links[0].say(b"action=")
        policed.server.links[0].close()
        assert codes(client.heard()) == [451]

    def test_what_comes_unasked_is_no_answer(self) -> None:
        policed = self.kept()
        policed.server.links[0].say(b"action=OK\n\n")
        client = policed.at_recipient()
        policed.server.open[0].answer("REJECT")
        assert codes(client.heard()) == [554]
        assert not policed.server.links[0].open

    def test_a_second_answer_in_the_same_octets_closes_the_connection(self) -> None:
        policed = Policed()
        client = policed.at_recipient()
        policed.server.links[0].say(b"action=DUNNO\n\naction=REJECT\n\n")
        assert codes(client.heard()) == [250]
        assert policed.server.open == []

    def test_one_that_is_not_used_is_closed_after_a_while(self) -> None:
        policed = self.kept()
        policed.clock.advance(IDLE_SECONDS - 1)
        assert len(policed.server.open) == 1
        policed.clock.advance(2)
        assert policed.server.open == []

    def test_a_stop_closes_it(self) -> None:
        policed = self.kept()
        policed.policy.startService()
        policed.policy.stopService()
        assert policed.server.open == []


def test_a_server_that_cannot_be_reached_is_found_again() -> None:
    policed = Policed()
    policed.server.reachable = False
    policed.at_recipient()
    assert codes(policed.at_once) == [451]
    policed.server.reachable = True
    client = policed.at_recipient()
    policed.server.links[0].answer()
    assert codes(client.heard()) == [250]


def test_a_connect_that_is_not_answered_ends_with_the_time_limit() -> None:
    policed = Policed(timeout=2, connections=1)
    policed.server.answers_connects = False
    clients = [policed.at_recipient() for _ in range(3)]
    policed.clock.advance(2.1)
    assert [codes(each.heard()) for each in clients] == [[451]] * 3
    assert policed.server.connects_cancelled >= 1
    policed.server.answers_connects = True
    client = policed.at_recipient()
    policed.server.links[-1].answer()
    assert codes(client.heard()) == [250]


@pytest.mark.parametrize("waiting_for", ["a connect", "a free connection", "an answer"])
def test_a_client_that_leaves_frees_what_its_question_held(waiting_for: str) -> None:
    policed = Policed(connections=1)
    policed.server.answers_connects = waiting_for != "a connect"
    first = policed.at_recipient()
    second = policed.at_recipient()
    leaves, stays = (second, first) if waiting_for == "a free connection" else (first, second)
    policed.server.answers_connects = True
    leaves.disconnect()
    policed.server.open[-1].answer()
    assert codes(stays.heard()) == [250]
    assert sum(len(link.asked) for link in policed.server.links) == (2 if waiting_for == "an answer" else 1)


def test_a_client_that_leaves_costs_no_connection_if_the_answer_comes_in_time() -> None:
    policed = Policed()
    for _ in range(5):
        policed.at_recipient().disconnect()
        policed.clock.advance(9.9)
        policed.server.open[-1].answer("REJECT")
    assert len(policed.server.links) == len(policed.server.open) == 1
    # The late answers are nobody else's.
    client = policed.at_recipient()
    assert client.heard() == ""
    policed.server.links[0].answer("DUNNO")
    assert codes(client.heard()) == [250]
    assert len(policed.server.links) == 1
    policed.policy.stopService()
    assert policed.server.open == []


@pytest.mark.parametrize("octets", [b"", b"action=DUN", b"action=DUNNO\n\naction=OK\n\n", b"rubbish\n\n"])
def test_a_connection_whose_late_answer_does_not_come_whole_and_alone_is_closed(octets: bytes) -> None:
    policed = Policed()
    policed.at_recipient().disconnect()
    policed.clock.advance(5)
    policed.server.links[0].say(octets)
    policed.clock.advance(5)
    assert policed.server.open == []
    client = policed.at_recipient()
    policed.server.links[1].answer()
    assert codes(client.heard()) == [250]


def test_a_server_that_closes_instead_of_a_late_answer_is_not_asked_again() -> None:
    policed = Policed()
    client = policed.at_recipient()
    policed.server.links[0].answer()
    assert codes(client.heard()) == [250]
    policed.at_recipient().disconnect()
    policed.server.links[0].close()
    assert len(policed.server.links) == 1
    policed.clock.advance(20)
    assert policed.server.open == []


def test_those_who_ask_and_leave_keep_nobody_waiting_and_no_more_connections_than_there_may_be() -> None:
    policed = Policed(connections=3)
    for _ in range(100):
        policed.at_recipient().disconnect()
        assert len(policed.server.open) <= 3
        assert len(policed.policy._late) <= 3
    client = policed.at_recipient()
    policed.server.open[-1].answer()
    assert codes(client.heard()) == [250]
    policed.clock.advance(10)
    assert len(policed.server.open) == 1


def test_of_any_number_of_connections_few_wait_for_late_answers() -> None:
    policed = Policed(connections=0)
    clients = [policed.at_recipient() for _ in range(3 * MAX_LATE)]
    for client in clients:
        client.disconnect()
    assert len(policed.server.open) == len(policed.policy._late) == MAX_LATE
    policed.clock.advance(10)
    assert policed.server.open == []


def test_an_unknown_action_is_a_configuration_error_even_of_one_that_fails_open() -> None:
    policed = Policed(fail_open=True)
    client = policed.at_recipient()
    policed.server.links[0].answer("HOLD please")
    assert client.heard() == "451 4.3.5 Server configuration error\r\n"
    # It keeps to the protocol, so that its connection is good.
    assert len(policed.server.open) == 1


def test_a_thousand_clients_at_once_have_few_connections_and_all_their_answers() -> None:
    policed = Policed(connections=10)
    clients = [policed.at_recipient() for _ in range(1000)]
    while any(link.protocol.question for link in policed.server.links):
        for link in policed.server.links:
            if link.protocol.question:
                link.answer()
    assert len(policed.server.links) == 10
    assert all(codes(each.heard()) == [250] for each in clients)
