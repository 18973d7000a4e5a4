"""What a session remembers of what policies have said, when a step comes again, is refused, or a client logs in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from logbook import Logbook, logbook
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse

from twisted_smtpguard import Reply
from twisted_smtpguard.policies.policyentry import PolicyEntry
from twisted_smtpguard.policyvalues import PolicyRequest, PolicyVerdict
from twisted_smtpguard.testing import Conversation, FakePolicy, Guard

DUNNO = PolicyVerdict.dunno()
GREY = PolicyVerdict.defer_if_permit(Reply(450, "4.2.0", ("Greylisted",)))
NO = PolicyVerdict.refuse(Reply(550, "5.7.1", ("No",)))
MAIL = "MAIL FROM:<a@example.org>"
RCPT = "RCPT TO:<b@example.org>"


def by_name(**verdicts: PolicyVerdict) -> FakePolicy:
    """A policy that judges names in HELO."""
    return FakePolicy(lambda request: verdicts.get(request.helo, DUNNO), "helo")


@pytest.fixture
def log() -> Iterator[Logbook]:
    with logbook() as book:
        yield book


def said(client: Conversation, *lines: str) -> list[int]:
    return [code for line in lines for code in client.codes(line)]


def test_a_refused_name_does_not_take_back_what_was_said_about_the_one_before_it() -> None:
    client = Guard(policies=[by_name(grey=GREY, bad=NO)]).connect()
    client.heard()
    assert said(client, "HELO grey", "HELO bad", "EHLO bad", MAIL, RCPT) == [250, 550, 550, 250, 450]
    assert said(client, "HELO good", MAIL, RCPT) == [250, 250, 250]


def test_a_refused_name_leaves_no_field_of_its_own() -> None:
    marks = FakePolicy(lambda request: PolicyVerdict.prepend(f"X-Name: {request.helo}"), "helo")
    guard = Guard(policies=[marks, by_name(bad=NO)])
    client = guard.connect()
    client.heard()
    assert said(client, "HELO good", "HELO bad", MAIL, RCPT, "DATA", ".") == [250, 550, 250, 250, 354, 250]
    assert guard.delivery.messages[0].prepended == ["X-Name: good"]


def test_a_name_is_judged_anew_after_a_refused_one_without_a_deferral_before() -> None:
    client = Guard(policies=[FakePolicy(GREY, "helo"), by_name(bad=NO)]).connect()
    client.heard()
    assert said(client, "HELO bad") == [550]
    assert said(client, "HELO x", MAIL, RCPT) == [250, 250, 450]


def test_no_request_outside_a_message_has_the_instance_of_one() -> None:
    policy = FakePolicy(DUNNO, "helo", "mail", "rcpt")
    client = Guard(policies=[policy]).greeted()
    said(client, MAIL, RCPT, "EHLO again", MAIL, RCPT, "RSET", MAIL)
    of: dict[str, set[Any]] = {}
    numbers = {"helo": 0, "mail": 0}
    for request in policy.requests:
        if request.stage in numbers:
            numbers[request.stage] += 1
        of.setdefault(request.instance, set()).add("helo" if request.stage == "helo" else numbers["mail"])
    assert [*of.values()] == [{"helo"}, {1}, {"helo"}, {2}, {3}]


@pytest.mark.parametrize(
    ("stage", "fields", "kept", "problem"),
    [
        ("rcpt", [f"X: {'y' * 999}", "X-B: 2"], ["X-B: 2"], "it is too long for a line"),
        (
            "rcpt",
            [f"X: {'y ' * 30_000}", f"X: {'y ' * 5_000}"],
            [f"X: {'y ' * 30_000}"],
            "there are too many",
        ),
        ("end-of-data", ["X-A: 1"], [], "it is too late"),
    ],
)
def test_a_field_that_is_left_out_is_told_with_the_reason(
    log: Logbook, stage: str, fields: list[str], kept: list[str], problem: str
) -> None:
    policies = [FakePolicy(PolicyVerdict.prepend(field), stage) for field in fields]
    guard = Guard(policies=policies)
    assert said(guard.greeted(), MAIL, RCPT, "DATA", ".")[-1] == 250
    assert guard.delivery.messages[0].prepended == kept
    (line,) = log.take("field_left_out")
    assert line.endswith(f" {problem}")


class TestAClientThatLogsIn:
    """A policy that is for strangers alone has judged the client before that."""

    @staticmethod
    def client(*, strangers_only: bool) -> Conversation:
        checker = InMemoryUsernamePasswordDatabaseDontUse()
        checker.addUser(b"user", b"password")
        policy = FakePolicy(lambda request: GREY if _is_early(request) else DUNNO, "helo")
        entry = PolicyEntry(policy, strangers_only=strangers_only)
        return Guard(policies=[entry], checkers=[checker]).greeted()

    def test_is_not_deferred_as_a_stranger(self) -> None:
        client = self.client(strangers_only=True)
        assert said(client, MAIL, RCPT, "RSET") == [250, 450, 250]
        assert said(client, "AUTH PLAIN AHVzZXIAcGFzc3dvcmQ=", MAIL, RCPT) == [235, 250, 250]

    def test_is_deferred_by_a_policy_for_everybody(self) -> None:
        client = self.client(strangers_only=False)
        assert said(client, "AUTH PLAIN AHVzZXIAcGFzc3dvcmQ=", MAIL, RCPT) == [235, 250, 450]


def _is_early(request: PolicyRequest) -> bool:
    return request.identity is None
