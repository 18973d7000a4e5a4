"""check_policy finds what is wrong with a session policy, and nothing where nothing is."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_smtpguard.interfaces import PASS, ISessionPolicy
from twisted_smtpguard.policyvalues import POLICY_STAGES, PolicyUnavailable, PolicyVerdict
from twisted_smtpguard.testing import check_policy
from twisted_smtpguard.testing.policychecks import requests_of

DUNNO = PolicyVerdict.dunno()


@implementer(ISessionPolicy)
class Good:
    stages = frozenset({"rcpt", "end-of-data"})

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.asked: list[Any] = []

    def check(self, request: Any) -> Any:
        self.asked.append(request)
        return DUNNO


def checked(policy: Any, clock: Clock) -> int:
    outcomes: list[Any] = []
    check_policy(policy, seconds=clock.seconds).addBoth(outcomes.append)
    for _ in range(100):
        clock.advance(1)
    (outcome,) = outcomes
    if isinstance(outcome, Failure):
        outcome.raiseException()
    return outcome  # type: ignore[no-any-return]


def spoilt(**spoils: Any) -> int:
    clock = Clock()
    return checked(type("Spoilt", (Good,), spoils)(clock), clock)


def test_a_good_policy_is_asked_at_its_stages_about_everything() -> None:
    clock = Clock()
    policy = Good(clock)
    # Those who leave are asked about, and have no verdict.
    assert 500 < checked(policy, clock) < len(policy.asked)
    assert {each.stage for each in policy.asked} == {"rcpt", "end-of-data"}


def test_every_stage_has_requests_and_more_come_later_in_a_session() -> None:
    numbers = [len(requests_of(stage)) for stage in POLICY_STAGES]
    assert numbers == sorted(numbers[:4]) + numbers[4:]


def test_one_that_answers_later_is_good_too() -> None:
    assert spoilt(check=lambda self, request: deferLater(self.clock, 1, lambda: DUNNO)) > 100


@pytest.mark.parametrize(
    ("spoils", "told"),
    [
        ({"stages": frozenset()}, "stages must be a frozenset"),
        ({"stages": frozenset({"RCPT"})}, "stages must be a frozenset"),
        ({"stages": {"rcpt"}}, "stages must be a frozenset"),
        ({"check": lambda self, request: None}, "answered None, not a PolicyVerdict"),
        ({"check": lambda self, request: PASS}, "not a PolicyVerdict"),
        ({"check": lambda self, request: succeed(True)}, "answered True, not a PolicyVerdict"),
        ({"check": lambda self, request: 1 / 0}, "raised ZeroDivisionError"),
        ({"check": lambda self, request: fail(PolicyUnavailable("x"))}, "raised PolicyUnavailable"),
        (
            {"check": lambda self, request: (request.sender.address.encode("ascii"), DUNNO)[1]},
            "SMTPUTF8 at rcpt raised",
        ),
        (
            {"check": lambda self, request: str(request.peer.address + 0) and DUNNO},
            "a UNIX socket at rcpt raised",
        ),
    ],
)
def test_what_is_wrong_is_told(spoils: dict[str, Any], told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        spoilt(**spoils)


def test_one_deferred_for_two_requests_is_wrong() -> None:
    shared: Deferred[Any] = succeed(DUNNO)
    with pytest.raises(AssertionError, match="answered with a Deferred that it gave before"):
        spoilt(check=lambda self, request: shared)
