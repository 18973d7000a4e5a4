"""Mechanisms of AUTH that a plug-in brings: challenges and responses, now or later, and each of their ends."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from fakes import Guard
from logins import Checker, base64, plain
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, globalLogPublisher, textFileLogObserver
from zope.interface import implementer

from twisted_smtpguard import replies
from twisted_smtpguard.interfaces import ISaslExchange, ISaslMechanisms
from twisted_smtpguard.limits.units import Rate
from twisted_smtpguard.values import Challenge, CheckerUnavailable, LoggedIn, LoginClient, Refused

YES = "235 2.7.0 Authentication successful\r\n"
FAILED = "535 5.7.8 Authentication credentials invalid\r\n"
LATER = "454 4.7.0 Temporary authentication failure\r\n"
FIRST, PROOF = b"n,,n=ann,r=abc", b"c=biws,r=abc,p=o-so-secret"


@implementer(ISaslExchange)
class Exchange:
    """Answers what the test says, in turn."""

    def __init__(self, answers: list[Any]) -> None:
        self._answers = answers
        self.heard: list[bytes | None] = []
        self.aborted = 0

    def respond(self, response: bytes | None) -> Any:
        self.heard.append(response)
        answer = self._answers[len(self.heard) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def abort(self) -> None:
        self.aborted += 1


@implementer(ISaslMechanisms)
class Mechanisms:
    def __init__(self, *answers: Any, mechanisms: tuple[str, ...] = ("SCRAM-SHA-256",)) -> None:
        self.mechanisms = mechanisms
        self.answers = list(answers)
        self.begun: list[tuple[str, LoginClient, Exchange]] = []

    def begin(self, mechanism: str, client: LoginClient) -> Exchange:
        self.begun.append((mechanism, client, Exchange(self.answers)))
        return self.begun[-1][2]

    @property
    def exchange(self) -> Exchange:
        return self.begun[-1][2]


@pytest.fixture(autouse=True)
def logged() -> Iterator[StringIO]:
    """All that is logged. No credentials are in it."""
    text = StringIO()
    observer = textFileLogObserver(text)

    def observe(event: LogEvent) -> None:
        observer(dict(event))

    globalLogPublisher.addObserver(observe)
    yield text
    globalLogPublisher.removeObserver(observe)
    for secret in (PROOF.decode(), base64(PROOF), base64(FIRST)):
        assert secret not in text.getvalue()


def client_of(*checkers: Any, **limits: Any) -> Any:
    client = Guard(checkers=checkers, **limits).greeted()
    client.heard()
    return client


def scram(client: Any, bytewise: bool = False) -> list[str]:
    """What the client hears to the two messages of an exchange."""
    return [
        client.say(f"AUTH SCRAM-SHA-256 {base64(FIRST)}", bytewise=bytewise),
        client.say(base64(PROOF), bytewise=bytewise),
    ]


# What is offered.


def test_ehlo_names_the_mechanisms_of_all_checkers_once() -> None:
    first = Mechanisms(mechanisms=("SCRAM-SHA-256", "PLAIN", "OAUTHBEARER"))
    second = Mechanisms(mechanisms=("OAUTHBEARER", "XOAUTH2"))
    guard = Guard(checkers=[first, second])
    assert "250-AUTH PLAIN LOGIN SCRAM-SHA-256 OAUTHBEARER XOAUTH2\r\n" in guard.connect().say("EHLO a")
    first.mechanisms = ("PLAIN",)
    assert "250-AUTH PLAIN LOGIN OAUTHBEARER XOAUTH2\r\n" in guard.connect().say("EHLO a")


def test_passwords_are_offered_where_a_checker_takes_them() -> None:
    guard = Guard(checkers=[Mechanisms()])
    assert "250-AUTH SCRAM-SHA-256\r\n" in guard.connect().say("EHLO a")
    assert guard.greeted().codes(f"AUTH PLAIN {plain()}")[-1] == 504
    guard = Guard(checkers=[Mechanisms(), Checker(b"ann")])
    assert "250-AUTH PLAIN LOGIN SCRAM-SHA-256\r\n" in guard.connect().say("EHLO a")
    assert guard.greeted().codes(f"AUTH PLAIN {plain()}")[-1] == 235


def test_where_nothing_is_offered_there_is_no_auth() -> None:
    assert "AUTH" not in Guard(checkers=[Mechanisms(mechanisms=())]).connect().say("EHLO a")


def test_external_is_offered_to_clients_with_a_certificate() -> None:
    guard = Guard(checkers=[Mechanisms(mechanisms=("EXTERNAL", "SCRAM-SHA-256"))])
    client = guard.connect()
    assert "250-AUTH SCRAM-SHA-256\r\n" in client.say("EHLO a")
    assert client.say("AUTH EXTERNAL =").startswith("504 ")
    assert guard.factory.context.mechanisms(True) == ("EXTERNAL", "SCRAM-SHA-256")
    assert "AUTH EXTERNAL SCRAM-SHA-256" in "".join(guard.factory.context.offer(True, True).reply.lines)


def test_the_line_with_the_mechanisms_is_no_longer_than_a_line_may_be() -> None:
    names = tuple(f"MECHANISM-NUMBER-{number:03}" for number in range(100))
    said = Guard(checkers=[Mechanisms(mechanisms=names)]).connect().say("EHLO a")
    line = next(line for line in said.splitlines(keepends=True) if "AUTH" in line)
    assert 490 < len(line) <= 512
    assert line.split()[1:] == [*names[: len(line.split()) - 1]]


@pytest.mark.parametrize("wrong", [False, True])
def test_a_challenge_is_no_longer_than_a_client_has_to_take(wrong: bool) -> None:
    mechanisms = Mechanisms(Challenge(b"x" * 9210, wrong=wrong))
    client = client_of(mechanisms)
    assert len(client.say(f"AUTH SCRAM-SHA-256 {base64(FIRST)}")) == 12288 - 2
    mechanisms.answers = [Challenge(b"x" * 9211, wrong=wrong)]
    client = client_of(mechanisms)
    assert client.say(f"AUTH SCRAM-SHA-256 {base64(FIRST)}") == LATER
    assert mechanisms.exchange.aborted == 1


def test_a_mechanism_is_told_the_client_as_the_limits_count_it() -> None:
    mechanisms = Mechanisms(Challenge(b"x"))
    guard = Guard(checkers=[mechanisms])
    for address in ("192.0.2.1", "2001:db8::1", "2001:db8::2"):
        guard.greeted(address).say(f"AUTH SCRAM-SHA-256 {base64(FIRST)}")
    assert [client.key for _, client, _ in mechanisms.begun] == ["192.0.2.1", *["2001:db8::/64"] * 2]


def test_an_exchange_of_a_thousand_steps_leaves_nothing_behind() -> None:
    mechanisms = Mechanisms(*[Challenge(b"x")] * 1000, UnauthorizedLogin())
    client = client_of(mechanisms)
    said = client.say(f"AUTH SCRAM-SHA-256 {base64(FIRST)}", *[base64(b"y")] * 1000)
    assert said == f"334 {base64(b'x')}\r\n" * 1000 + FAILED
    assert client.protocol.engine.failures == 1


def test_a_mechanism_that_is_gone_when_it_is_asked_for_is_not_recognized() -> None:
    mechanisms = Mechanisms()
    client = client_of(mechanisms)
    mechanisms.mechanisms = ()
    assert client.say("AUTH SCRAM-SHA-256") == "504 5.5.4 Unrecognized authentication mechanism\r\n"


# An exchange.


@pytest.mark.parametrize("bytewise", [False, True])
def test_an_exchange_ends_with_a_user_that_the_delivery_sees(bytewise: bool, logged: StringIO) -> None:
    mechanisms = Mechanisms(Challenge(b"r=abcdef"), LoggedIn("ann@example.org", "avatar"))
    client = client_of(mechanisms)
    assert scram(client, bytewise) == [f"334 {base64(b'r=abcdef')}\r\n", YES]
    assert mechanisms.exchange.heard == [FIRST, PROOF]
    name, told, _ = mechanisms.begun[0]
    assert (name, str(told.peer.address), told.session, told.tls) == (
        "SCRAM-SHA-256",
        "192.0.2.1",
        client.protocol.engine.name,
        "",
    )
    client.say("MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA", "x", ".")
    (message,) = client.guard.delivery.messages
    assert (message.client.identity, message.client.avatar_id) == ("ann@example.org", "avatar")
    assert " user=ann@example.org mechanism=SCRAM-SHA-256\n" in logged.getvalue()
    assert mechanisms.exchange.aborted == 0


def test_without_an_initial_response_the_exchange_is_told_of_none() -> None:
    mechanisms = Mechanisms(Challenge(), LoggedIn("ann"))
    client = client_of(mechanisms)
    assert client.say("AUTH SCRAM-SHA-256") == "334 \r\n"
    assert client.say(base64(PROOF)) == YES
    assert mechanisms.exchange.heard == [None, PROOF]
    client_of(mechanisms).say("AUTH SCRAM-SHA-256 =")
    assert mechanisms.exchange.heard == [b""]


def test_what_a_server_proves_is_sent_before_the_235() -> None:
    client = client_of(Mechanisms(Challenge(b"x"), LoggedIn("ann", final=b"v=proof")))
    assert scram(client)[1] == f"334 {base64(b'v=proof')}\r\n"
    assert client.protocol.engine.user is None
    assert client.say("") == YES
    assert client.protocol.engine.user.name == "ann"


@pytest.mark.parametrize("answer", ["*", base64(b"no")])
def test_a_client_that_does_not_take_the_proof_is_not_logged_in(answer: str) -> None:
    client = client_of(Mechanisms(Challenge(b"x"), LoggedIn("ann", final=b"v=proof")))
    scram(client)
    assert client.codes(answer, "NOOP") == [501, 250]
    assert client.protocol.engine.user is None


@pytest.mark.parametrize("line", ["", "*", "!", "AQ==", base64(b"another token")])
def test_a_challenge_that_says_what_is_wrong_ends_with_a_535_whatever_is_answered(line: str) -> None:
    mechanisms = Mechanisms(Challenge(b"{}", wrong=True))
    client = client_of(mechanisms, max_auth_failures=2)
    for ends in ("", "421 4.7.0 Too many authentication failures, closing connection\r\n"):
        assert client.say(f"AUTH SCRAM-SHA-256 {base64(FIRST)}") == f"334 {base64(b'{}')}\r\n"
        assert client.say(line) == FAILED + ends
        assert (mechanisms.exchange.heard, mechanisms.exchange.aborted) == ([FIRST], 1)
    assert client.guard.factory.statistics.refusals == {"auth_failed": 2, "max_auth_failures": 1}


def test_what_was_wrong_counts_when_it_is_said_and_not_when_the_client_answers() -> None:
    mechanisms = Mechanisms(Challenge(b"{}", wrong=True))
    guard = Guard(checkers=[mechanisms], auth_failure_rate=Rate(2, 600))
    for _ in range(2):
        client = guard.greeted()
        client.say(f"AUTH SCRAM-SHA-256 {base64(FIRST)}")
        client.disconnect()
    client = guard.greeted()
    client.heard()
    assert client.say(f"AUTH SCRAM-SHA-256 {base64(FIRST)}") == LATER


def test_answers_may_come_later_and_nothing_is_carried_out_before() -> None:
    challenge: Deferred[Any] = Deferred()
    verdict: Deferred[Any] = Deferred()
    client = client_of(Mechanisms(challenge, verdict))
    assert client.say(f"AUTH SCRAM-SHA-256 {base64(FIRST)}") == ""
    challenge.callback(Challenge(b"x"))
    assert client.heard() == f"334 {base64(b'x')}\r\n"
    assert client.say(base64(PROOF), "NOOP") == ""
    verdict.callback(LoggedIn("ann"))
    assert client.heard() == YES + "250 2.0.0 OK\r\n"


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(
    ("outcome", "heard", "reason"),
    [
        (UnauthorizedLogin("o-so-secret"), FAILED, "auth_failed"),
        (CheckerUnavailable("down"), LATER, "auth_unavailable"),
        (ValueError("o-so-secret"), LATER, "auth_unavailable"),
        (Refused(replies.BAD_AUTH_RESPONSE), "501 5.5.2 Cannot decode the response\r\n", "bad_auth_response"),
    ],
    ids=["wrong", "unavailable", "a bug", "malformed"],
)
def test_each_bad_end_has_its_reply(
    outcome: Exception, heard: str, reason: str, later: bool, logged: StringIO
) -> None:
    answer: Any = outcome
    if later:
        answer = Deferred()
    client = client_of(Mechanisms(Challenge(b"x"), answer))
    said = scram(client)[1]
    if later:
        answer.errback(outcome)
        said = client.heard()
    assert said == heard
    assert client.guard.factory.statistics.refusals == {reason: 1}
    assert client.protocol.engine.failures == (reason == "auth_failed")
    assert client.codes("NOOP") == [250]
    assert "o-so-secret" not in logged.getvalue()
    assert f"reason={reason} " in logged.getvalue()
    assert " command=AUTH user=ann " in logged.getvalue()


@pytest.mark.parametrize("answer", [None, "ann", b"challenge"])
def test_an_answer_that_is_none_is_a_fault_of_the_plug_in(answer: Any) -> None:
    client = client_of(Mechanisms(answer))
    assert client.say(f"AUTH SCRAM-SHA-256 {base64(FIRST)}") == LATER


def test_an_answer_that_does_not_come_is_given_up() -> None:
    cancelled: list[object] = []
    client = client_of(Mechanisms(Deferred(cancelled.append)), delivery_timeout=100)
    client.say(f"AUTH SCRAM-SHA-256 {base64(FIRST)}")
    client.guard.clock.advance(100.2)
    assert client.heard() == LATER
    assert len(cancelled) == 1


# Exchanges that are not gone on with.


@pytest.mark.parametrize("line", ["*", "!", "x" * 13000, "a\nb"])
def test_a_line_that_ends_the_exchange_is_told_to_it(line: str) -> None:
    mechanisms = Mechanisms(Challenge(b"x"))
    client = client_of(mechanisms)
    client.say(f"AUTH SCRAM-SHA-256 {base64(FIRST)}")
    client.say(line)
    assert mechanisms.exchange.aborted == 1
    assert client.codes("NOOP") == [250]


def test_a_client_that_leaves_between_two_steps_ends_the_exchange() -> None:
    mechanisms = Mechanisms(Challenge(b"x"))
    client = client_of(mechanisms)
    client.say(f"AUTH SCRAM-SHA-256 {base64(FIRST)}")
    client.disconnect()
    assert mechanisms.exchange.aborted == 1


def test_a_client_that_leaves_while_an_answer_is_due_cancels_it() -> None:
    cancelled: list[object] = []
    client = client_of(Mechanisms(Deferred(cancelled.append)))
    client.say(f"AUTH SCRAM-SHA-256 {base64(FIRST)}")
    client.disconnect()
    assert len(cancelled) == 1


def test_a_plug_in_that_raises_in_abort_or_in_begin_keeps_nobody(logged: StringIO) -> None:
    mechanisms = Mechanisms(Challenge(b"x"))
    client = client_of(mechanisms)
    client.say(f"AUTH SCRAM-SHA-256 {base64(FIRST)}")
    mechanisms.exchange._answers = []
    mechanisms.exchange.abort = lambda: 1 / 0  # type: ignore[method-assign]
    client.protocol.engine.auth.abort = mechanisms.exchange.abort
    assert client.codes("*", "NOOP") == [501, 250]
    mechanisms.begin = lambda *_: 1 / 0  # type: ignore[method-assign,assignment]
    assert client.say("AUTH SCRAM-SHA-256") == LATER
    assert client.codes("NOOP") == [250]


# With passwords, and the limits.


def test_a_plug_in_with_plain_is_asked_in_its_turn_with_its_message() -> None:
    first = Checker(UnauthorizedLogin())
    mechanisms = Mechanisms(LoggedIn("Ann"), mechanisms=("PLAIN",))
    last = Checker(b"nobody")
    client = client_of(first, mechanisms, last)
    client.say("AUTH LOGIN", base64(b"ann"))
    assert client.say(base64(b"o-so-secret")) == YES
    assert mechanisms.exchange.heard == [b"\0ann\0o-so-secret"]
    assert (len(first.asked), len(last.asked)) == (1, 0)
    assert client.protocol.engine.user.name == "Ann"


def test_a_plug_in_that_challenges_a_password_has_a_fault() -> None:
    mechanisms = Mechanisms(Challenge(b"x"), mechanisms=("PLAIN",))
    assert client_of(mechanisms).say(f"AUTH PLAIN {plain()}") == LATER
    assert mechanisms.exchange.aborted == 1


def test_only_wrong_ends_count_for_the_rate_and_past_it_nothing_is_asked() -> None:
    mechanisms = Mechanisms(Challenge(b"x"), UnauthorizedLogin())
    guard = Guard(checkers=[mechanisms], auth_failure_rate=Rate(2, 600))
    for _ in range(5):
        client = guard.greeted()
        client.say(f"AUTH SCRAM-SHA-256 {base64(FIRST)}", "*")
    assert scram(guard.greeted())[1] == FAILED
    assert scram(guard.greeted())[1] == FAILED
    client = guard.greeted()
    client.heard()
    assert client.say(f"AUTH SCRAM-SHA-256 {base64(FIRST)}") == LATER
    assert (mechanisms.exchange.heard, mechanisms.exchange.aborted) == ([], 1)


def test_the_user_who_is_named_in_an_exchange_is_counted_by_itself_where_it_has_logged_in() -> None:
    mechanisms = Mechanisms(Challenge(b"x"), LoggedIn("ann"))
    guard = Guard(checkers=[mechanisms, Checker(UnauthorizedLogin())], auth_failure_rate=Rate(2, 600))
    assert scram(guard.greeted())[1] == YES
    guard.greeted().say(*[f"AUTH PLAIN {plain(user=b'bob')}"] * 3)
    assert guard.greeted().codes(f"AUTH PLAIN {plain(user=b'bob')}")[-1] == 454
    assert scram(guard.greeted())[1] == YES


def test_a_stop_between_two_steps_ends_the_exchange() -> None:
    mechanisms = Mechanisms(Challenge(b"x"))
    client = client_of(mechanisms)
    client.say(f"AUTH SCRAM-SHA-256 {base64(FIRST)}")
    client.guard.factory.drain()
    assert mechanisms.exchange.aborted == 1
    assert client.closed


def test_a_password_that_a_plug_in_does_not_take_is_wrong() -> None:
    mechanisms = Mechanisms(Refused(replies.BAD_AUTH_RESPONSE), mechanisms=("PLAIN",))
    assert client_of(mechanisms).say(f"AUTH PLAIN {plain()}") == FAILED
    assert client_of(mechanisms, Checker(b"ann")).say(f"AUTH PLAIN {plain()}") == YES
