"""The questions to one list: joined, kept, and bounded."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, ip_address
from typing import Any

import pytest
from twisted.internet.task import Clock

from twisted_smtpguard.filters import dnsblasker
from twisted_smtpguard.filters.dnsblasker import MAX_CODES, MAX_IN_FLIGHT, MAX_KEPT, TROUBLE, Asker
from twisted_smtpguard.filters.dnsbldecision import ERROR, TIMEOUT, Answer
from twisted_smtpguard.filters.dnsblsettings import DnsList, parse_codes

TWO = int(IPv4Address("127.0.0.2"))
LISTED, NONE = Answer((TWO,), 300), Answer((), 300)
SILENT = Answer(problem="no answer in time", outcome=TIMEOUT)
WRONG = Answer((int(IPv4Address("127.255.255.254")),), 300)
CLIENT = ip_address("192.0.2.1")


def client(number: int) -> IPv4Address:
    return IPv4Address(0x01000000 + number)


class Question:
    def __init__(self, name: str, seconds: float, answered: Callable[[Answer], object]) -> None:
        self.name, self.seconds, self.answer = name, seconds, answered
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Told:
    """A listener, and what it was told."""

    def __init__(self) -> None:
        self.codes: list[Any] = []

    def told(self, asker: Asker, codes: Any) -> None:
        self.codes.append(codes)


class Asked:
    """An asker whose questions the test answers."""

    def __init__(self, *, at_once: Answer | None = None, lists: int = 1, codes: str = "") -> None:
        self.clock = Clock()
        self.questions: list[Question] = []
        self.troubles = 0
        self.at_once = at_once
        of_list = DnsList("bl.example", "bl", codes=parse_codes(codes) if codes else None)
        self.asker = Asker(of_list, self._ask, self.clock.seconds, 2, (60, 3600), lists, self._trouble)

    def _ask(self, name: str, seconds: float, answered: Callable[[Answer], object]) -> Question:
        question = Question(name, seconds, answered)
        self.questions.append(question)
        if self.at_once is not None:
            answered(self.at_once)
        return question

    def _trouble(self) -> None:
        self.troubles += 1

    def ask(self, address: Any = CLIENT) -> Told:
        told = Told()
        self.asker.ask(address, told)
        return told


def test_a_client_is_asked_about_by_its_name_in_the_zone() -> None:
    asked = Asked()
    told = asked.ask()
    (question,) = asked.questions
    assert (question.name, question.seconds) == ("1.2.0.192.bl.example", 2)
    question.answer(LISTED)
    assert told.codes == [(TWO,)]


def test_many_who_ask_for_one_client_share_a_question() -> None:
    asked = Asked()
    told = [asked.ask() for _ in range(1000)]
    (question,) = asked.questions
    question.answer(NONE)
    assert [each.codes for each in told] == [[()]] * 1000


@pytest.mark.parametrize(
    ("ttl", "seconds"), [(300, 300), (0, 60), (59, 60), (7 * 86400, 3600), (2**31 - 1, 3600)]
)
@pytest.mark.parametrize("codes", [(), (TWO,)])
def test_an_answer_is_kept_for_its_ttl_within_the_bounds(
    ttl: int, seconds: int, codes: tuple[int, ...]
) -> None:
    asked = Asked()
    asked.ask()
    asked.questions[0].answer(Answer(codes, ttl))
    asked.clock.advance(seconds - 0.5)
    assert asked.asker.kept(CLIENT) == codes
    asked.clock.advance(0.5)
    assert asked.asker.kept(CLIENT) is None


@pytest.mark.parametrize("failed", [SILENT, WRONG, Answer(problem="SERVFAIL", outcome=ERROR)])
def test_what_is_no_answer_is_not_kept_and_asked_again(failed: Answer) -> None:
    asked = Asked()
    told = asked.ask()
    asked.questions[0].answer(failed)
    assert told.codes == [None]
    assert asked.asker.kept(CLIENT) is None
    asked.ask()
    assert len(asked.questions) == 2


def test_only_codes_that_count_are_kept_and_few_of_them() -> None:
    asked = Asked(codes="127.0.1.[100..255]")
    told = asked.ask()
    asked.questions[0].answer(Answer(tuple(int(IPv4Address("127.0.1.0")) + i for i in range(256)), 300))
    assert told.codes == [tuple(int(IPv4Address(f"127.0.1.{100 + i}")) for i in range(MAX_CODES))]
    told = asked.ask(client(1))
    asked.questions[1].answer(LISTED)
    assert told.codes == [()]


def test_what_came_of_the_questions_is_counted() -> None:
    asked = Asked()
    for i, answer in enumerate([LISTED, NONE, NONE, SILENT, WRONG]):
        asked.ask(client(i))
        asked.questions[i].answer(answer)
    assert asked.asker.answers == {"listed": 1, "not_listed": 2, "error": 1, "timeout": 1, "not_asked": 0}


def test_who_gives_up_is_told_nothing_and_the_others_are() -> None:
    asked = Asked()
    leaving, staying = asked.ask(), asked.ask()
    asked.asker.give_up(CLIENT, leaving)
    asked.questions[0].answer(LISTED)
    assert (leaving.codes, staying.codes) == ([], [(TWO,)])


def test_a_question_that_is_on_its_way_goes_on_since_its_answer_is_kept() -> None:
    asked = Asked()
    for _ in range(1000):
        asked.asker.give_up(CLIENT, asked.ask())
    assert len(asked.questions) == 1
    asked.questions[0].answer(LISTED)
    assert asked.asker.kept(CLIENT) == (TWO,)


@pytest.mark.parametrize("lists", [1, 4])
def test_so_many_are_on_their_way_and_the_latest_is_the_next(lists: int) -> None:
    asked = Asked(lists=lists)
    most = MAX_IN_FLIGHT // lists
    told = [asked.ask(client(i)) for i in range(most + 100)]
    assert len(asked.questions) == asked.asker.in_flight == most
    asked.questions[0].answer(NONE)
    assert len(asked.questions) == most + 1
    latest = ".".join(reversed(str(client(most + 99)).split(".")))
    assert asked.questions[-1].name == f"{latest}.bl.example"
    # It grows meanwhile.
    for i, question in enumerate(asked.questions):
        if i:
            question.answer(NONE)
    assert {tuple(each.codes) for each in told} == {((),)}
    assert asked.asker.in_flight == 0


def test_a_question_for_which_nobody_waits_any_more_is_never_sent() -> None:
    asked = Asked()
    for i in range(MAX_IN_FLIGHT):
        asked.ask(client(i))
    waiting = asked.ask(CLIENT)
    asked.asker.give_up(CLIENT, waiting)
    asked.questions[0].answer(NONE)
    assert len(asked.questions) == MAX_IN_FLIGHT
    assert asked.asker.in_flight == MAX_IN_FLIGHT - 1


def test_of_too_many_that_wait_the_oldest_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dnsblasker, "MAX_WAITING", 50)
    asked = Asked()
    told = [asked.ask(client(i)) for i in range(MAX_IN_FLIGHT + 50 + TROUBLE)]
    given_up = [i for i, each in enumerate(told) if each.codes == [None]]
    assert given_up == [MAX_IN_FLIGHT + i for i in range(TROUBLE)]
    assert asked.asker.answers["not_asked"] == TROUBLE
    # That the guard is busy says nothing about the list.
    assert asked.troubles == 0


def test_answers_that_come_in_the_call_of_ten_thousand_questions_need_no_stack() -> None:
    asked = Asked()
    told = [asked.ask(client(i)) for i in range(MAX_IN_FLIGHT + 9000)]
    asked.at_once = SILENT
    asked.questions[0].answer(SILENT)
    assert sum(each.codes == [None] for each in told) == 9001


@pytest.mark.parametrize("lists", [1, 3])
def test_so_many_answers_are_kept_and_the_least_recently_used_goes_first(lists: int) -> None:
    asked = Asked(at_once=NONE, lists=lists)
    most = MAX_KEPT // lists
    for i in range(most):
        asked.ask(client(i))
    assert asked.asker.kept(client(0)) == ()
    asked.ask(client(most))
    assert asked.asker.kept(client(0)) == ()
    assert asked.asker.kept(client(1)) is None
    assert len(asked.asker._kept) == most


def test_many_questions_in_a_row_without_an_answer_are_told() -> None:
    asked = Asked(at_once=SILENT)
    for i in range(TROUBLE - 1):
        asked.ask(client(i))
    asked.at_once = NONE
    asked.ask(client(TROUBLE))
    asked.at_once = SILENT
    for i in range(TROUBLE - 1):
        asked.ask(client(i))
    assert asked.troubles == 0
    asked.ask(CLIENT)
    assert asked.troubles == 1


def test_what_is_kept_can_be_forgotten() -> None:
    asked = Asked(at_once=LISTED)
    asked.ask()
    asked.asker.forget()
    assert asked.asker.kept(CLIENT) is None


def test_a_stop_ends_all_questions_and_tells_nobody() -> None:
    asked = Asked()
    told = [asked.ask(client(i)) for i in range(MAX_IN_FLIGHT + 10)]
    asked.asker.stop()
    assert all(question.cancelled for question in asked.questions)
    assert (asked.asker.in_flight, [each.codes for each in told]) == (0, [[]] * len(told))
    asked.ask(CLIENT)
    assert len(asked.questions) == MAX_IN_FLIGHT + 1


def test_an_ipv6_client_and_an_ipv4_client_are_two() -> None:
    asked = Asked(at_once=LISTED)
    asked.ask(ip_address("2001:db8::1"))
    assert asked.asker.kept(ip_address("2001:db8::1")) == (TWO,)
    assert asked.asker.kept(CLIENT) is None
