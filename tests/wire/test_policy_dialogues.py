"""What session policies say, and what the client and the delivery get of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from twisted_smtpguard import Limits, Reply
from twisted_smtpguard.policies.policyentry import PolicyEntry
from twisted_smtpguard.policyvalues import PolicyUnavailable, PolicyVerdict
from twisted_smtpguard.testing import Conversation, FakeDelivery, FakePolicy, Guard, codes

DUNNO = PolicyVerdict.dunno()
GREY = PolicyVerdict.defer_if_permit(Reply(450, "4.2.0", ("Greylisted",)), "DEFER_IF_PERMIT 4.2.0 Greylisted")
NO = PolicyVerdict.refuse(Reply(554, "5.7.1", ("No",)), "REJECT No")
SOFT = PolicyVerdict.defer_if_reject(Reply(450, "4.7.1", ("Perhaps later",)), "DEFER_IF_REJECT")
FIELD = PolicyVerdict.prepend("X-Policy: seen")
STAGES = ("connect", "helo", "mail", "rcpt", "data", "end-of-data")

MAIL = "MAIL FROM:<a@example.org>"
RCPT = "RCPT TO:<b@example.org>"
BODY = "Subject: x\r\n\r\nHello\r\n."


def guard(*policies: Any, **limits: Any) -> Guard:
    return Guard(policies=policies, **limits)


def mail(client: Conversation) -> list[int]:
    """The codes of a whole mail, until one refuses."""
    said: list[int] = []
    for line in (MAIL, RCPT, "DATA", BODY):
        said += codes(client.say(line))
        if said[-1] >= 400:
            break
    return said


def events(of: Guard, name: str) -> list[dict[str, Any]]:
    return [each for each in of.seen if each.get("event") == name]  # type: ignore[attr-defined]


def test_a_policy_is_asked_at_each_of_its_stages_once_and_in_order() -> None:
    policy = FakePolicy(DUNNO, *STAGES)
    client = guard(policy).greeted()
    assert mail(client) == [250, 250, 354, 250]
    assert [each.stage for each in policy.requests] == list(STAGES)


def test_the_first_policy_that_decides_wins_and_no_other_is_asked() -> None:
    first, second, third = FakePolicy(DUNNO), FakePolicy(NO), FakePolicy(DUNNO)
    client = guard(first, second, third).greeted()
    assert mail(client) == [250, 554]
    assert [len(each.requests) for each in (first, second, third)] == [1, 1, 0]


def test_ok_ends_its_stage_only() -> None:
    early, late = FakePolicy(PolicyVerdict.ok(), "mail"), FakePolicy(NO, "mail", "rcpt")
    assert mail(guard(early, late).greeted()) == [250, 554]
    assert [each.stage for each in late.requests] == ["rcpt"]


@pytest.mark.parametrize(
    ("stage", "said"),
    [("mail", [554]), ("rcpt", [250, 554]), ("data", [250, 250, 554]), ("end-of-data", [250, 250, 354, 554])],
)
def test_a_refusal_leaves_the_session_open_and_nothing_is_delivered(stage: str, said: list[int]) -> None:
    answers = [NO, DUNNO]
    of = guard(FakePolicy(lambda _: answers.pop(0), stage))
    client = of.greeted()
    assert mail(client) == said
    assert of.delivery.messages == []
    client.say("RSET")
    answers[:] = [DUNNO]
    assert mail(client) == [250, 250, 354, 250]


def test_a_refused_message_is_aborted_and_the_next_may_follow_at_once() -> None:
    answers = [NO, DUNNO]
    of = guard(FakePolicy(lambda _: answers.pop(0), "end-of-data"))
    client = of.greeted()
    assert mail(client)[-1] == 554
    assert of.delivery.calls[-1] == "sink.abort"
    assert mail(client) == [250, 250, 354, 250]
    assert len(of.delivery.messages) == 1


def test_helo_is_refused_before_its_name_counts() -> None:
    policy = FakePolicy(lambda request: NO if request.helo == "bad.example" else DUNNO, "helo")
    client = guard(policy).connect()
    client.heard()
    assert codes(client.say("EHLO bad.example")) == [554]
    assert codes(client.say(MAIL)) == [503]
    assert codes(client.say("HELO good.example")) == [250]
    assert codes(client.say(MAIL)) == [250]
    assert [each.by_ehlo for each in policy.requests] == [True, False]


@pytest.mark.parametrize(
    ("verdict", "line"),
    [
        (NO, "521 5.7.1 No\r\n"),
        (GREY, "421 4.2.0 Greylisted\r\n"),
        (PolicyVerdict.refuse(Reply(450, "4.7.1", ("Later",))), "421 4.7.1 Later\r\n"),
    ],
)
def test_a_refusal_before_the_greeting_closes_as_every_refusal_there_does(
    verdict: PolicyVerdict, line: str
) -> None:
    client = guard(FakePolicy(verdict, "connect")).connect()
    if verdict is GREY:
        # Nothing is permitted yet.
        assert codes(client.heard()) == [220]
        client.say("EHLO x")
        assert [codes(client.say(each)) for each in (MAIL, RCPT)] == [[250], [450]]
        return
    assert client.heard() == line
    assert client.closed


def test_a_421_of_a_policy_ends_the_session() -> None:
    policy = FakePolicy(PolicyVerdict.refuse(Reply(421, "4.7.0", ("Go away",))))
    client = guard(policy).greeted()
    client.say(MAIL)
    assert client.say(RCPT) == "421 4.7.0 Go away\r\n"
    assert client.closed


@pytest.mark.parametrize("stage", ["connect", "helo", "mail", "rcpt"])
def test_defer_if_permit_defers_each_recipient_unless_a_later_policy_refuses(stage: str) -> None:
    of = guard(
        FakePolicy(GREY, stage),
        FakePolicy(lambda request: NO if request.recipient.address == "bad@example.org" else DUNNO, "rcpt"),
    )
    client = of.greeted()
    client.say(MAIL)
    assert client.say(RCPT) == "450 4.2.0 Greylisted\r\n"
    assert codes(client.say("RCPT TO:<bad@example.org>")) == [554]
    assert "recipient" not in of.delivery.calls
    assert codes(client.say("DATA")) == [554]


def test_defer_if_permit_at_mail_is_forgotten_with_its_message() -> None:
    answers = [GREY, DUNNO]
    client = guard(FakePolicy(lambda _: answers.pop(0), "mail")).greeted()
    assert mail(client) == [250, 450]
    client.say("RSET")
    assert mail(client) == [250, 250, 354, 250]


@pytest.mark.parametrize("stage", ["data", "end-of-data"])
def test_defer_if_permit_defers_the_step_itself_later(stage: str) -> None:
    of = guard(FakePolicy(GREY, stage))
    assert mail(of.greeted())[-1] == 450
    assert of.delivery.messages == []


def test_defer_if_reject_softens_a_later_policy_and_the_delivery() -> None:
    assert mail(guard(FakePolicy(SOFT), FakePolicy(NO)).greeted()) == [250, 450]
    of = guard(FakePolicy(SOFT))
    of.delivery.answers["recipient"] = lambda _: Reply(550, "5.1.1", ("Unknown",))
    client = of.greeted()
    client.say(MAIL)
    assert client.say(RCPT) == "450 4.7.1 Perhaps later\r\n"
    of.delivery.answers.clear()
    assert codes(client.say(RCPT)) == [250]


def test_prepended_fields_go_to_the_delivery_in_order_and_only_those_of_this_message() -> None:
    def answer(request: Any) -> PolicyVerdict:
        return PolicyVerdict.prepend(f"X-{request.stage}: {request.octets}")

    of = guard(FakePolicy(answer, *STAGES))
    client = of.greeted()
    for _ in range(2):
        assert mail(client) == [250, 250, 354, 250]
    expected = ["X-connect: 0", "X-helo: 0", "X-mail: 0", "X-rcpt: 0", "X-data: 0"]
    assert [each.prepended for each in of.delivery.messages] == [expected, expected]


def test_a_delivery_that_prepends_nothing_gets_the_message_without() -> None:
    class Plain(FakeDelivery):
        def begin(self, client: Any, sender: Any) -> Any:
            begun = super().begin(client, sender)

            class Transaction:
                recipient, data, abort = begun.recipient, begun.data, begun.abort

            return Transaction()

    of = Guard(Plain(), policies=[FakePolicy(FIELD)])
    assert mail(of.greeted()) == [250, 250, 354, 250]
    assert of.delivery.messages[0].prepended == []


def test_the_fields_of_one_message_are_bounded() -> None:
    field = PolicyVerdict.prepend(f"X: {'y ' * 5_000}")
    of = guard(FakePolicy(field))
    client = of.greeted()
    client.say(MAIL)
    for _ in range(20):
        client.say(RCPT)
    assert [codes(client.say(each)) for each in ("DATA", BODY)] == [[354], [250]]
    assert len(of.delivery.messages[0].prepended) == 6


def test_an_exception_of_prepend_is_that_of_data() -> None:
    of = guard(FakePolicy(FIELD))
    begin = of.delivery.begin

    def begin_faulty(client: Any, sender: Any) -> Any:
        begun = begin(client, sender)
        begun.prepend = lambda fields: 1 / 0
        return begun

    of.factory.context.begin = begin_faulty
    client = of.greeted()
    assert mail(client) == [250, 250, 451]
    assert of.delivery.calls[-1] == "transaction.abort"


class TestBdat:
    def test_the_data_policy_is_asked_once_and_the_size_at_the_end_is_that_of_all_chunks(self) -> None:
        policy = FakePolicy(DUNNO, "data", "end-of-data")
        client = guard(policy).greeted()
        for line in (MAIL, RCPT):
            client.say(line)
        assert client.send(b"BDAT 3\r\nabcBDAT 4 LAST\r\ndefg") == (
            "250 2.0.0 3 octets received\r\n250 2.0.0 Message accepted\r\n"
        )
        assert [(each.stage, each.octets) for each in policy.requests] == [("data", 0), ("end-of-data", 7)]

    def test_a_refused_chunk_is_swallowed(self) -> None:
        of = guard(FakePolicy(NO, "data"))
        client = of.greeted()
        for line in (MAIL, RCPT):
            client.say(line)
        assert codes(client.send(b"BDAT 6\r\nQUIT\r\nBDAT 0 LAST\r\nRSET\r\nNOOP\r\n")) == [
            554,
            554,
            250,
            250,
        ]
        assert of.delivery.calls[-1] == "transaction.abort"

    def test_a_refused_message_is_aborted(self) -> None:
        of = guard(FakePolicy(NO, "end-of-data"))
        client = of.greeted()
        for line in (MAIL, RCPT):
            client.say(line)
        assert codes(client.send(b"BDAT 3 LAST\r\nabc")) == [554]
        assert of.delivery.calls[-1] == "sink.abort"


class TestLater:
    """A policy that answers with a Deferred."""

    @staticmethod
    def slow(*stages: str) -> tuple[FakePolicy, list[Deferred[Any]], list[int]]:
        asked: list[Deferred[Any]] = []
        cancelled: list[int] = []

        def ask(_: object) -> Deferred[Any]:
            asked.append(Deferred(lambda _: cancelled.append(1)))
            return asked[-1]

        return FakePolicy(ask, *stages), asked, cancelled

    @pytest.mark.parametrize("pieces", ["whole", "bytewise"])
    def test_everything_waits_for_it_and_comes_in_order(self, pieces: str) -> None:
        policy, asked, _ = self.slow(*STAGES)
        of = guard(policy)
        client = of.connect()
        assert client.heard() == ""
        asked[-1].callback(DUNNO)
        lines = ("EHLO x", MAIL, RCPT, "DATA")
        octets = "".join(f"{line}\r\n" for line in lines).encode()
        heard = client.heard() + client.send(octets, bytewise=pieces == "bytewise")
        for _ in range(4):
            asked[-1].callback(DUNNO)
            heard += client.heard()
        heard += client.send(f"{BODY}\r\nNOOP\r\n".encode(), bytewise=pieces == "bytewise")
        assert of.delivery.messages == []
        asked[-1].callback(DUNNO)
        heard += client.heard()
        assert codes(heard) == [220, 250, 250, 250, 354, 250, 250]
        assert len(asked) == 6

    def test_a_coroutine_answers_as_a_deferred_does(self) -> None:
        waits: Deferred[Any] = Deferred()

        async def check(request: Any) -> PolicyVerdict:
            await waits
            return NO

        client = guard(FakePolicy(check)).greeted()
        client.say(MAIL)
        assert client.say(RCPT) == ""
        waits.callback(None)
        assert codes(client.heard()) == [554]

    @pytest.mark.parametrize("stage", STAGES)
    def test_a_client_that_leaves_has_its_question_cancelled_and_nothing_is_delivered(
        self, stage: str
    ) -> None:
        policy, asked, cancelled = self.slow(stage)
        of = guard(policy)
        client = of.connect()
        if stage != "connect":
            for line in ("EHLO x", MAIL, RCPT, "DATA", BODY):
                client.say(line)
                if asked:
                    break
        client.disconnect()
        assert (len(asked), cancelled) == (1, [1])
        assert of.delivery.messages == []
        assert of.factory.connections == 0
        began, ended = (
            of.delivery.calls.count("begin"),
            sum(each.endswith("abort") for each in of.delivery.calls),
        )
        assert began == ended == (stage in ("rcpt", "data", "end-of-data"))

    @pytest.mark.parametrize("fail_open", [False, True])
    def test_after_its_time_limit_the_client_gets_what_was_configured(self, fail_open: bool) -> None:
        policy, _, cancelled = self.slow("rcpt")
        of = guard(PolicyEntry(policy, "slow", fail_open=fail_open, timeout=3))
        client = of.greeted()
        client.say(MAIL)
        client.say(RCPT)
        of.clock.advance(2.9)
        assert client.heard() == ""
        of.clock.advance(0.2)
        assert codes(client.heard()) == [250 if fail_open else 451]
        assert cancelled == [1]

    def test_the_usual_time_limit_is_that_of_the_limits(self) -> None:
        policy, *_ = self.slow("connect")
        of = guard(policy, policy_timeout=4)
        client = of.connect()
        of.clock.advance(4.1)
        assert client.heard() == "421 4.3.0 Policy check failed, try again later\r\n"

    def test_what_follows_the_end_of_data_is_no_unexpected_pipelining(self) -> None:
        policy, asked, _ = self.slow("end-of-data")
        client = guard(policy, unexpected_pipelining="refuse").greeted()
        for line in (MAIL, RCPT, "DATA"):
            client.say(line)
        client.send(f"{BODY}\r\n{MAIL}\r\n".encode())
        asked[0].callback(DUNNO)
        assert codes(client.heard()) == [250, 250]

    def test_a_client_that_half_closes_gets_the_verdict(self) -> None:
        policy, asked, _ = self.slow("end-of-data")
        of = guard(policy)
        client = of.greeted()
        for line in (MAIL, RCPT, "DATA", BODY):
            client.say(line)
        assert client.half_close() == ""
        asked[0].callback(DUNNO)
        assert codes(client.heard()) == [250]
        assert len(of.delivery.messages) == 1


def _raises(error: BaseException) -> Callable[[object], Any]:
    def raise_it(_: object) -> Any:
        raise error

    return raise_it


@pytest.mark.parametrize(
    ("answer", "fails_open"),
    [
        (_raises(ValueError("x")), True),
        (lambda _: "OK", True),
        (_raises(PolicyUnavailable("away")), True),
        (_raises(PolicyUnavailable("nonsense", misconfigured=True)), False),
    ],
)
def test_a_policy_that_cannot_judge_defers_or_fails_open(answer: Any, fails_open: bool) -> None:
    after = FakePolicy(DUNNO)
    assert mail(guard(FakePolicy(answer), after).greeted()) == [250, 451]
    assert after.requests == []
    open_ = PolicyEntry(FakePolicy(answer), fail_open=True)
    assert mail(guard(open_).greeted()) == ([250, 250, 354, 250] if fails_open else [250, 451])


def test_an_unknown_action_is_a_configuration_error() -> None:
    policy = FakePolicy(_raises(PolicyUnavailable("action 'HOLD'", misconfigured=True)))
    client = guard(policy).greeted()
    client.say(MAIL)
    assert client.say(RCPT) == "451 4.3.5 Server configuration error\r\n"


@pytest.mark.parametrize("names", [{"policy"}, {"policy:probe"}])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("verdict", [NO, GREY])
def test_in_dry_run_refusals_are_logged_only(names: set[str], stage: str, verdict: PolicyVerdict) -> None:
    of = guard(PolicyEntry(FakePolicy(verdict, stage), "probe"), dry_run=frozenset(names))
    assert mail(of.greeted()) == [250, 250, 354, 250]
    assert of.factory.statistics.dry_run_refusals == {"policy": 1}


def test_in_dry_run_defer_if_reject_changes_no_refusal_and_is_none_itself() -> None:
    of = guard(FakePolicy(SOFT), dry_run=frozenset({"policy"}))
    client = of.greeted()
    assert mail(client) == [250, 250, 354, 250]
    of.delivery.answers["recipient"] = lambda _: Reply(550, "5.1.1", ("Unknown",))
    assert mail(client) == [250, 550]
    assert of.factory.statistics.dry_run_refusals == {}


def test_dry_run_of_one_policy_leaves_another() -> None:
    of = guard(FakePolicy(NO), PolicyEntry(FakePolicy(NO), "other"), dry_run=frozenset({"policy:FakePolicy"}))
    assert mail(of.greeted()) == [250, 554]


def test_a_name_in_dry_run_is_checked() -> None:
    with pytest.raises(ValueError, match="'policy:' has no dry run"):
        Limits(dry_run=frozenset({"policy:"}))


def test_strangers_only_spares_who_has_logged_in(checker: Any) -> None:
    policy = FakePolicy(NO)
    of = Guard(policies=[PolicyEntry(policy, strangers_only=True)], checkers=[checker])
    client = of.greeted()
    assert mail(client) == [250, 554]
    client.say("RSET")
    assert codes(client.say("AUTH PLAIN AHVzZXIAcGFzc3dvcmQ=")) == [235]
    assert mail(client) == [250, 250, 354, 250]


@pytest.fixture
def checker() -> Any:
    from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse

    checker = InMemoryUsernamePasswordDatabaseDontUse()
    checker.addUser(b"user", b"password")
    return checker


class TestRequest:
    """What a policy is told."""

    def test_it_has_what_is_known_at_each_stage(self) -> None:
        policy = FakePolicy(DUNNO, *STAGES)
        client = guard(policy).connect("192.0.2.7")
        client.say("EHLO client.example")
        for line in ("MAIL FROM:<a@example.org> SIZE=99", RCPT, "RCPT TO:<c@example.org>", "DATA", BODY):
            client.say(line)
        rows = [
            (
                each.stage,
                each.helo,
                each.sender and each.sender.address,
                each.recipient and each.recipient.address,
                each.recipients,
                each.octets,
            )
            for each in policy.requests
        ]
        name, sender = "client.example", "a@example.org"
        assert rows == [
            ("connect", "", None, None, 0, 0),
            ("helo", name, None, None, 0, 0),
            ("mail", name, sender, None, 0, 99),
            ("rcpt", name, sender, "b@example.org", 0, 99),
            ("rcpt", name, sender, "c@example.org", 1, 99),
            ("data", name, sender, None, 2, 99),
            ("end-of-data", name, sender, None, 2, 21),
        ]
        assert {str(each.peer.address) for each in policy.requests} == {"192.0.2.7"}

    def test_the_only_recipient_is_known_until_the_end(self) -> None:
        policy = FakePolicy(DUNNO, "data", "end-of-data")
        mail(guard(policy).greeted())
        assert [each.recipient and each.recipient.address for each in policy.requests] == [
            "b@example.org"
        ] * 2

    def test_the_instance_is_that_of_one_message(self) -> None:
        policy = FakePolicy(DUNNO, *STAGES)
        of = guard(policy)
        client = of.greeted()
        mail(client)
        mail(client)
        mail(of.greeted())
        instances = [each.instance for each in policy.requests if each.stage not in ("connect", "helo")]
        assert [instances.count(each) for each in dict.fromkeys(instances)] == [4, 4, 4]

    @pytest.mark.parametrize("stages", [STAGES, STAGES[1:]])
    def test_it_begins_with_the_id_of_the_session(self, stages: tuple[str, ...]) -> None:
        policy = FakePolicy(DUNNO, *stages)
        mail(guard(policy).greeted())
        of_session = [each for each in policy.requests if each.stage != "connect"]
        assert of_session[0].session != ""
        assert {each.instance.rpartition(".")[0] for each in of_session} == {of_session[0].session}
        assert len({each.instance for each in policy.requests if each.stage == "connect"}) == (
            "connect" in stages
        )

    def test_a_refused_mail_has_its_own_instance(self) -> None:
        policy = FakePolicy(NO, "mail")
        client = guard(policy).greeted()
        for _ in range(3):
            client.say(MAIL)
        assert len({each.instance for each in policy.requests}) == 3

    def test_it_tells_of_stress(self) -> None:
        policy = FakePolicy(DUNNO, "mail")
        of = guard(policy, max_connections=10)
        clients = [of.greeted() for _ in range(8)]
        clients[0].say(MAIL)
        for client in clients[3:]:
            client.disconnect()
        clients[1].say(MAIL)
        assert [each.stress for each in policy.requests] == [True, False]

    def test_it_has_the_user_and_how_the_client_has_logged_in(self, checker: Any) -> None:
        policy = FakePolicy(DUNNO, "mail")
        client = Guard(policies=[policy], checkers=[checker]).greeted()
        client.say("AUTH PLAIN AHVzZXIAcGFzc3dvcmQ=")
        client.say(MAIL)
        assert [(each.identity, each.mechanism) for each in policy.requests] == [("user", "PLAIN")]


class TestOrder:
    """Policies are asked after the guard's own limits, and before the delivery."""

    def test_they_are_not_asked_about_what_a_limit_refuses(self) -> None:
        policy = FakePolicy(DUNNO, "mail", "rcpt")
        client = guard(policy, max_recipients=1, max_message_size=1000, max_messages=9).greeted()
        client.say("MAIL FROM:<> SIZE=1001")
        client.say(MAIL)
        client.say(RCPT)
        assert codes(client.say(RCPT)) == [452]
        assert [each.stage for each in policy.requests] == ["mail", "rcpt"]

    def test_the_recipient_rate_comes_first(self) -> None:
        from twisted_smtpguard import Rate

        policy = FakePolicy(DUNNO, "rcpt")
        client = guard(policy, recipient_rate=Rate(1, 60), message_rate=Rate(9, 60)).greeted()
        client.say(MAIL)
        assert [codes(client.say(RCPT)) for _ in range(2)] == [[250], [450]]
        assert len(policy.requests) == 1

    def test_the_delivery_is_not_asked_about_what_a_policy_refuses(self) -> None:
        of = guard(FakePolicy(NO, "mail"))
        client = of.greeted()
        client.say(MAIL)
        assert of.delivery.calls == []

    def test_refused_recipients_count_as_those_of_the_delivery(self) -> None:
        client = guard(FakePolicy(NO), max_rejected_recipients=2).greeted()
        client.say(MAIL)
        client.say(RCPT)
        assert codes(client.say(RCPT)) == [554, 421]
