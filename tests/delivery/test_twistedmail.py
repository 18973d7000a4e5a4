"""The twisted.mail bridge, rule by rule: logins, answers in every form, refusals, lines, ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import attrs
import pytest
from fakes import Conversation, codes, splits
from twisted.cred.error import UnauthorizedLogin
from twisted.cred.portal import Portal
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent, globalLogPublisher
from twisted.mail import smtp
from twistedmail import HOST, KINDS, Late, Message, Notebook, Realm, auth, deliverer, guarded, users

from twisted_smtpguard import Client, Path, Peer, TwistedMailDelivery
from twisted_smtpguard.delivery.twistedmailview import ProtocolView, client_host
from twisted_smtpguard.testing import check_delivery

ENVELOPE = ("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>")
MESSAGE = (*ENVELOPE, "DATA", "Subject: x", ".")
HELLO = "EHLO client.example"
INTERNAL_ERROR = "451 4.3.0 Internal error, try again later\r\n"
HOOKS = {
    "login": 0,
    "getMessageDelivery": 0,
    "validateFrom": 0,
    "validateTo": 1,
    "make_message": 2,
    "receivedHeader": 2,
    "eomReceived": 4,
}
"""Which line of MESSAGE calls the hook."""
KEPT = {"login", "make_message"}
"""What these answer has to hear of its end, however late it comes: they are never cancelled."""
each_hook = pytest.mark.parametrize("hook", HOOKS)


def greeted(notebook: Notebook, kind: str = "portal of factories", **limits: Any) -> Conversation:
    client = guarded(notebook, kind, **limits)
    client.say(HELLO)
    return client


def usual(notebook: Notebook, hook: str) -> Callable[..., Any]:
    """What the hook answers when nothing else is asked of it."""

    def answer(*args: Any) -> Any:
        other = notebook.answers.pop(hook)
        seen = list(notebook.seen)
        try:
            return {
                "login": lambda: Realm(notebook, factories=True).requestAvatar("", None),
                "getMessageDelivery": lambda: deliverer("factory", notebook).getMessageDelivery(),
                "validateFrom": lambda: args[1],
                "validateTo": lambda: lambda: deliverer("delivery", notebook).make_message(args[0]),
                "make_message": lambda: deliverer("delivery", notebook).make_message(args[0]),
                "receivedHeader": lambda: b"Received: x",
                "eomReceived": lambda: None,
            }[hook]()
        finally:
            notebook.seen[:] = seen
            notebook.answers[hook] = other

    return answer


async def _coroutine(answer: Any) -> Any:
    return answer


async def _waits(deferred: Deferred[Any]) -> Any:
    return await deferred


async def _fails(error: Exception) -> Any:
    raise error


def _raise(error: Exception) -> Any:
    raise error


# Answers.


@pytest.mark.parametrize(
    ("hook", "form"),
    [
        (hook, form)
        for hook in HOOKS
        for form in ("fired", "coroutine", "late", "late coroutine")
        # A Portal hands on what a realm answers, and knows nothing of coroutines.
        if hook != "login" or "coroutine" not in form
    ],
)
def test_every_answer_may_be_a_deferred_or_a_coroutine_now_or_later(hook: str, form: str) -> None:
    plain, notebook = Notebook(), Notebook()
    greeted(plain).say(*MESSAGE)
    late, answer = Late(), usual(notebook, hook)
    notebook.answers[hook] = {
        "fired": lambda *args: succeed(answer(*args)),
        "coroutine": lambda *args: _coroutine(answer(*args)),
        "late": lambda *args: late(answer(*args)),
        "late coroutine": lambda *args: _waits(late(answer(*args))),
    }[form]
    client = greeted(notebook)
    client.heard()
    said = client.say(*MESSAGE)
    if form.startswith("late"):
        assert codes(said) == [250, 250, 354][: min(HOOKS[hook], 3)]
        late.fire()
        said += client.heard()
    assert codes(said) == [250, 250, 354, 250]
    assert [call for call in notebook.calls() if call != hook] == [
        call for call in plain.calls() if call != hook
    ]


ERRORS: list[tuple[Any, str]] = [
    (lambda: smtp.SMTPServerError(451, b"Not now"), "451 4.0.0 Not now\r\n"),
    (lambda: smtp.SMTPServerError(554, "Never"), "554 5.0.0 Never\r\n"),
    (lambda: smtp.SMTPBadSender(b"a@b"), "550 5.0.0 Sender not acceptable\r\n"),
    (lambda: smtp.SMTPBadRcpt(b"a@b", 450, "Later"), "450 4.0.0 Later\r\n"),
    (lambda: smtp.SMTPServerError(250, b"OK"), INTERNAL_ERROR),
    (lambda: ValueError("secret"), INTERNAL_ERROR),
    (lambda: smtp.AddressError("secret"), INTERNAL_ERROR),
    (lambda: smtp.SMTPClientError(550, b"secret"), INTERNAL_ERROR),
]


@pytest.mark.parametrize(
    ("hook", "form"),
    [
        (hook, form)
        for hook in HOOKS
        for form in ("raised", "failed", "coroutine")
        if (hook, form) != ("login", "coroutine")
    ],
)
@pytest.mark.parametrize(("error", "said"), ERRORS)
def test_what_is_raised_refuses_with_its_code_and_text_or_is_451(
    hook: str, form: str, error: Callable[[], Exception], said: str
) -> None:
    raise_it = {"raised": _raise, "failed": fail, "coroutine": _fails}[form]
    notebook = Notebook(**{hook: lambda *args: raise_it(error())})
    client = greeted(notebook)
    client.say(*MESSAGE[: HOOKS[hook]])
    assert client.say(MESSAGE[HOOKS[hook]]) == said
    assert client.guard.factory.statistics.failures == (said == INTERNAL_ERROR)
    client.disconnect()
    made, ended = notebook.calls().count("make_message"), {"make_message", "eomReceived"}
    assert notebook.calls().count("lost") == (made if hook not in ended else 0)
    assert notebook.calls().count("logout") == (hook != "login")


@each_hook
def test_what_is_pending_is_cancelled_when_the_client_leaves_but_not_what_needs_an_end(hook: str) -> None:
    late = Late()
    notebook = Notebook(**{hook: lambda *args: late(None)})
    client = greeted(notebook)
    client.say(*MESSAGE)
    client.disconnect()
    ending = hook == "eomReceived"
    assert late.cancelled == (not ending and hook not in KEPT)
    assert notebook.calls().count("logout") == (hook not in {"login", "eomReceived"})
    if hook not in KEPT:
        late.fire()
    assert notebook.calls().count("lost") == (hook == "receivedHeader")
    assert notebook.calls().count("logout") == (hook != "login")
    assert notebook.calls()[-1] == "logout" or hook == "login"
    assert client.guard.factory.statistics.failures == 0


@each_hook
def test_at_the_time_limit_what_is_pending_is_cancelled(hook: str) -> None:
    late = Late()
    notebook = Notebook(**{hook: lambda *args: late(None)})
    client = greeted(notebook, delivery_timeout=30)
    client.say(*MESSAGE[:-1] if hook != "eomReceived" else MESSAGE)
    client.guard.clock.advance(29)
    assert late.cancelled == 0
    client.heard()
    client.guard.clock.advance(2)
    assert late.cancelled == (hook not in KEPT)
    assert client.heard().startswith("451 4.3.0 Delivery timed out, try again later\r\n")


TEXTS: list[tuple[Any, str]] = [
    (b"one\ntwo\r\nthree", "550-5.0.0 one\r\n550-5.0.0 two\r\n550 5.0.0 three\r\n"),
    ("one\ntwo\n", "550-5.0.0 one\r\n550 5.0.0 two\r\n"),
    ("j\xf6rg", "550 5.0.0 j\\xf6rg\r\n"),
    ("j\xf6rg".encode(), "550 5.0.0 j\\xf6rg\r\n"),
    (b"\0\x1b\xff\xfe", "550 5.0.0 \\x00\\x1b\\xff\\xfe\r\n"),
    (b"", "550 5.0.0 Refused\r\n"),
    ("", "550 5.0.0 Refused\r\n"),
    (None, "550 5.0.0 Refused\r\n"),
    ("\n", "550 5.0.0 Refused\r\n"),
    ("one\n\ntwo", "550-5.0.0 one\r\n550 5.0.0 two\r\n"),
    (b"5.1.1 No such user", "550 5.1.1 No such user\r\n"),
    ("5.1.1 No\n5.1.1 such user\nhere", "550-5.1.1 No\r\n550-5.1.1 such user\r\n550 5.1.1 here\r\n"),
    ("4.2.1 Another class", "550 5.0.0 Another class\r\n"),
    ("5.1.1", "550 5.1.1 Refused\r\n"),
    ("5.1.1\nNo such user", "550 5.1.1 No such user\r\n"),
    ("5.1.1 No\n5.1.10 such", "550-5.1.1 No\r\n550 5.1.1 5.1.10 such\r\n"),
    ("5.1.1x", "550 5.0.0 5.1.1x\r\n"),
    ("x" * 600, f"550 5.0.0 {'x' * 500}\r\n"),
]


@pytest.mark.parametrize(("text", "said"), TEXTS)
def test_a_text_is_octets_or_text_of_any_kind_and_length(text: Any, said: str) -> None:
    client = greeted(Notebook(validateTo=lambda user: _raise(smtp.SMTPServerError(550, text))))
    client.say(ENVELOPE[0])
    assert client.say(ENVELOPE[1]) == said


def test_a_421_ends_the_session() -> None:
    client = greeted(Notebook(validateTo=lambda user: _raise(smtp.SMTPServerError(421, b"Away"))))
    assert codes(client.say(*ENVELOPE, "NOOP"))[-1] == 421
    assert client.closed


@pytest.mark.parametrize("nothing", [None, b"", False])
def test_a_sender_that_is_answered_with_nothing_is_not_accepted(nothing: Any) -> None:
    client = greeted(Notebook(validateFrom=lambda helo, origin: nothing))
    client.heard()
    assert client.say(ENVELOPE[0]) == INTERNAL_ERROR


def test_a_factory_without_a_delivery_accepts_no_sender() -> None:
    client = greeted(Notebook(getMessageDelivery=lambda: None), "factory")
    client.heard()
    assert client.say(ENVELOPE[0]) == "550 5.0.0 Sender not acceptable\r\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("MAIL FROM:<a@[192.0.2.1]>", "501 5.1.7 Bad sender address syntax\r\n"),
        ('MAIL FROM:<"a\\"b"@c>', "501 5.1.7 Bad sender address syntax\r\n"),
        ("RCPT TO:<a@[IPv6:2001:db8::1]>", "501 5.1.3 Bad recipient address syntax\r\n"),
        ('RCPT TO:<"a\\"b"@c>', "501 5.1.3 Bad recipient address syntax\r\n"),
    ],
)
def test_an_address_that_twisted_mail_does_not_know_is_refused(line: str, said: str) -> None:
    client = greeted(Notebook())
    client.say(*([ENVELOPE[0]] if line.startswith("RCPT") else []))
    client.heard()
    assert client.say(line) == said


# Logging in and out.


def test_there_is_one_login_a_session_and_one_logout_at_its_end() -> None:
    notebook = Notebook()
    client = greeted(notebook)
    assert notebook.calls() == []
    client.say(*MESSAGE, *MESSAGE, HELLO, *ENVELOPE, "RSET", ENVELOPE[0])
    calls = notebook.calls()
    assert [calls.count(call) for call in ("login", "getMessageDelivery", "logout")] == [1, 4, 0]
    client.say("QUIT")
    assert notebook.calls()[len(calls) :] == ["logout"]


def test_a_session_without_a_message_has_no_login() -> None:
    notebook = Notebook()
    greeted(notebook).say("NOOP", "QUIT")
    assert notebook.seen == []


def test_each_session_has_its_own_login() -> None:
    notebook = Notebook()
    first = greeted(notebook)
    second = first.guard.greeted()
    for client in (first, second):
        client.say(ENVELOPE[0])
    first.disconnect()
    assert [call for call in notebook.calls() if call.startswith("log")] == ["login", "login", "logout"]
    second.disconnect()
    assert notebook.calls()[-1] == "logout"
    assert first.guard.delivery._sessions == {}


@pytest.mark.parametrize("leave", ["disconnect", "shut_down"])
def test_the_logout_follows_a_pending_end_of_a_message(leave: str) -> None:
    late = Late()
    notebook = Notebook(eomReceived=lambda number: late(b""))
    client = greeted(notebook)
    client.say(*MESSAGE)
    if leave == "disconnect":
        client.disconnect()
    else:
        client.protocol.engine.shut_down(now=True)
    assert "logout" not in notebook.calls()
    late.fire()
    assert notebook.calls()[-2:] == ["eom", "logout"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda: _raise(UnauthorizedLogin("secret")), "550 5.0.0 Sender not acceptable\r\n"),
        (lambda: fail(UnauthorizedLogin("secret")), "550 5.0.0 Sender not acceptable\r\n"),
        (lambda: fail(ValueError("secret")), INTERNAL_ERROR),
        (lambda: (smtp.IMessage, object(), lambda: None), INTERNAL_ERROR),
    ],
)
def test_a_login_that_fails_refuses_the_sender_and_the_next_mail_tries_again(answer: Any, said: str) -> None:
    notebook = Notebook(login=answer)
    client = greeted(notebook)
    client.heard()
    assert client.say(ENVELOPE[0]) == said
    notebook.answers = {}
    assert client.codes(*MESSAGE, "QUIT") == [250, 250, 354, 250, 221]
    assert [call for call in notebook.calls() if call.startswith("log")] == ["login", "login", "logout"]


def test_a_portal_that_lets_no_user_in_says_so() -> None:
    notebook = Notebook()
    client = guarded(notebook)
    context = client.guard.factory.context
    context.delivery = TwistedMailDelivery(Portal(Realm(notebook, factories=True)), HOST)
    context.begin = context.delivery.begin
    client.say(HELLO)
    assert client.say(ENVELOPE[0]) == "550 5.0.0 Unauthenticated senders not allowed\r\n"


AUTH = auth("secret")
USER = b"bob"


def test_a_user_who_has_logged_in_has_one_login_for_all_messages() -> None:
    notebook = Notebook()
    greeted(notebook).say(AUTH, *MESSAGE, *MESSAGE, HELLO, *MESSAGE, "QUIT")
    logins = [entry for entry in notebook.seen if entry[0].startswith("log")]
    interfaces = (smtp.IMessageDeliveryFactory, smtp.IMessageDelivery)
    assert logins == [("login", USER, None, interfaces), ("logout",)]


def test_a_realm_that_refuses_a_user_does_not_let_the_client_go_on_anonymously() -> None:
    notebook = Notebook()
    client = greeted(notebook)
    client.say(*MESSAGE, AUTH)
    client.heard()
    notebook.answers["login"] = lambda: _raise(UnauthorizedLogin("secret"))
    for _ in range(2):
        assert client.say(ENVELOPE[0]) == "550 5.0.0 Sender not acceptable\r\n"
    notebook.answers = {}
    client.say(ENVELOPE[0], "QUIT")
    logins = [entry[:2] for entry in notebook.seen if entry[0].startswith("log")]
    assert logins == [("login", ()), ("logout",), *[("login", USER)] * 3, ("logout",)]


def test_a_portal_without_anonymous_logins_lets_users_in() -> None:
    notebook = Notebook()
    client = guarded(notebook)
    realm = Realm(notebook, factories=True)
    context = client.guard.factory.context
    context.delivery = TwistedMailDelivery(Portal(realm, [users()]), HOST)
    context.begin = context.delivery.begin
    client.say(HELLO)
    assert client.codes(ENVELOPE[0], AUTH, *ENVELOPE) == [550, 235, 250, 250]


@pytest.mark.parametrize(
    ("then", "logins"),
    [
        ({}, [USER]),
        ({"identity": None, "avatar_id": None}, [USER, ()]),
        ({"identity": "ann", "avatar_id": b"ann"}, [USER, b"ann"]),
        ({"avatar_id": bytearray(USER)}, [USER, USER]),
        ({"session": "1-2"}, [USER, USER]),
    ],
)
def test_no_client_has_the_login_of_another(then: dict[str, Any], logins: list[Any]) -> None:
    """Under TLS the session of a user is nobody's, or that of another."""
    notebook = Notebook()
    delivery = TwistedMailDelivery(deliverer("portal of deliveries", notebook), HOST)
    peer = Peer(None, None, None, None, tls=False, proxied=False)
    client = Client(peer, "1-1", "x", "ESMTPA", identity="bob", trusted=False, avatar_id=USER)
    for each in (client, attrs.evolve(client, **then)):
        Deferred.fromCoroutine(delivery.begin(each, Path("a@b", {})))
    assert [entry[1] for entry in notebook.seen if entry[0] == "login"] == logins


def test_the_logout_of_another_user_waits_for_a_verdict_that_is_pending_beyond_its_time() -> None:
    stubborn = Stubborn()
    notebook = Notebook(eomReceived=lambda number: stubborn)
    client = greeted(notebook, delivery_timeout=30)
    client.say(*MESSAGE)
    client.guard.clock.advance(31)
    assert client.codes(AUTH, ENVELOPE[0], "QUIT")[-3:] == [235, 250, 221]
    assert [call for call in notebook.calls() if call.startswith("log")] == ["login", "login"]
    stubborn.callback(None)
    assert [call for call in notebook.calls() if call.startswith("log")] == ["login"] * 2 + ["logout"] * 2


class Stubborn(Deferred[Any]):
    """What an end returns that catches its cancellation and goes on."""

    def cancel(self) -> None:
        """It does not care."""


# A plain Deferred, as of a thread or a database: it has no canceller, and is done in its own time.


def logins(count: int) -> tuple[list[Deferred[Any]], Notebook, Callable[[int], None]]:
    """So many logins that are pending, and what lets one succeed."""
    pending: list[Deferred[Any]] = [Deferred() for _ in range(count)]
    answers = iter(pending)
    notebook = Notebook(login=lambda: next(answers))
    realm = Realm(notebook, factories=True)

    def succeed_with(number: int) -> None:
        pending[number].callback((smtp.IMessageDelivery, deliverer("delivery", notebook), realm.logout))

    return pending, notebook, succeed_with


def test_a_login_that_comes_after_the_client_has_left_has_its_logout() -> None:
    _, notebook, log_in = logins(1)
    client = greeted(notebook)
    client.say(ENVELOPE[0])
    client.disconnect()
    assert notebook.calls() == ["login"]
    log_in(0)
    assert notebook.calls() == ["login", "logout"]


def test_a_login_that_comes_after_its_time_has_its_logout_and_the_next_mail_logs_in_again() -> None:
    _, notebook, log_in = logins(2)
    client = greeted(notebook, delivery_timeout=30)
    client.say(ENVELOPE[0])
    client.heard()
    client.guard.clock.advance(31)
    assert client.heard() == "451 4.3.0 Delivery timed out, try again later\r\n"
    client.say(ENVELOPE[0])
    log_in(1)
    assert client.heard().startswith("250 ")
    log_in(0)
    assert [call for call in notebook.calls() if call.startswith("log")] == ["login", "login", "logout"]
    client.say("QUIT")
    assert [call for call in notebook.calls() if call.startswith("log")] == ["login"] * 2 + ["logout"] * 2


def test_a_login_that_fails_after_the_client_has_left_has_no_logout(failures: list[Any]) -> None:
    (login,), notebook, _ = logins(1)
    client = greeted(notebook)
    client.say(ENVELOPE[0])
    client.disconnect()
    login.errback(UnauthorizedLogin())
    assert notebook.calls() == ["login"]
    assert failures == []


@pytest.mark.parametrize("over", ["left", "expired"])
def test_a_message_that_is_made_too_late_is_told_its_end(over: str) -> None:
    made: Deferred[Any] = Deferred()
    notebook = Notebook(make_message=lambda user: made)
    client = greeted(notebook, delivery_timeout=30)
    client.say(*MESSAGE[:3])
    if over == "left":
        client.disconnect()
    else:
        client.guard.clock.advance(31)
    assert "lost" not in notebook.calls()
    made.callback(Message(notebook))
    assert notebook.calls().count("lost") == 1


@pytest.fixture
def failures() -> Any:
    """The kinds of what was logged with a traceback."""
    kinds: list[type[BaseException]] = []

    def observe(event: LogEvent) -> None:
        if "log_failure" in event:
            kinds.append(event["log_failure"].type)

    globalLogPublisher.addObserver(observe)
    yield kinds
    globalLogPublisher.removeObserver(observe)


@pytest.mark.parametrize("form", [_raise, fail, _fails])
def test_a_logout_that_fails_is_logged(form: Any, failures: list[Any]) -> None:
    client = greeted(Notebook(logout=lambda: form(ZeroDivisionError())))
    client.say(*MESSAGE, "QUIT")
    assert client.transport.lost
    assert failures == [ZeroDivisionError]


@pytest.mark.parametrize("wrong", [None, object(), Notebook, "delivery", TwistedMailDelivery])
def test_what_is_none_of_the_three_is_a_type_error(wrong: Any) -> None:
    with pytest.raises(
        TypeError, match=r"^an IMessageDelivery, an IMessageDeliveryFactory or a Portal is expected"
    ):
        TwistedMailDelivery(wrong, HOST)


# Lines.


def told(notebook: Notebook) -> list[bytes]:
    return [entry[2] for entry in notebook.seen if entry[0] == "line"]


BODY = b"Subject: x\r\n\r\n..a\r\n\r\nb \x80\r\n"
LINES = [b"Received: from x\n\tby y", b"Subject: x", b"", b".a", b"", b"b \x80"]


def test_lines_are_whole_however_they_arrive() -> None:
    for first, second in splits(BODY + b".\r\n"):
        notebook = Notebook()
        client = greeted(notebook)
        client.say(*MESSAGE[:3])
        client.send(first)
        assert codes(client.send(second)) == [250]
        assert told(notebook) == LINES


def test_in_chunks_the_last_line_may_have_no_end() -> None:
    notebook = Notebook()
    client = greeted(notebook)
    client.say(*ENVELOPE)
    client.send(b"BDAT 6\r\nSubjec")
    assert codes(client.send(b"BDAT 11 LAST\r\nt: x\r\n\r\nend")) == [250]
    assert told(notebook)[1:] == [b"Subject: x", b"", b"end"]
    assert notebook.calls()[-1] == "eom"


def test_a_last_line_without_an_end_that_is_refused_is_no_message() -> None:
    notebook = Notebook()

    def refuse(number: int, line: bytes) -> None:
        if line == b"end":
            raise smtp.SMTPServerError(550, b"No")

    notebook.answers["lineReceived"] = refuse
    client = greeted(notebook)
    client.say(*ENVELOPE)
    assert client.send(b"BDAT 3 LAST\r\nend") == "550 5.0.0 No\r\n"
    assert notebook.calls()[-1] == "lost"
    assert "eom" not in notebook.calls()


@pytest.mark.parametrize("size", [70_000, 65_536, 4096, 1000])
@pytest.mark.parametrize(("length", "accepted"), [(65_536, True), (65_537, False)])
def test_a_line_above_64_kib_is_refused_however_it_arrives(length: int, accepted: bool, size: int) -> None:
    notebook = Notebook()
    client = greeted(notebook)
    client.say(*MESSAGE[:3])
    data = b"Subject: x\r\n\r\n" + b"y" * length + b"\r\nz\r\n.\r\n"
    for start in range(0, len(data), size):
        client.send(data[start : start + size])
    client.guard.clock.pump([0] * 20)
    assert max(map(len, told(notebook))) == (length if accepted else len(LINES[0]))
    assert notebook.calls()[-1] == ("eom" if accepted else "lost")


def test_a_line_of_64_kib_may_end_in_two_pieces() -> None:
    notebook = Notebook()
    transaction: list[Any] = []
    client = greeted(notebook, "delivery")
    client.say(*MESSAGE[:2])
    Deferred.fromCoroutine(client.protocol.engine.mail.data()).addCallback(transaction.append)
    (sink,) = transaction
    for data in (b"y" * 65_535, b"y", b"\r", b"\n"):
        sink.write(data)
    assert told(notebook)[-1] == b"y" * 65_536


def test_a_refused_line_is_said_so_at_the_end_of_the_data() -> None:
    client = greeted(Notebook())
    client.say(*MESSAGE[:3])
    assert client.send(b"y" * 100_000) == ""
    assert client.send(b"\r\n.\r\n") == "554 5.6.0 Message line too long\r\n"
    assert client.codes(*MESSAGE) == [250, 250, 354, 250]


def test_no_more_than_a_line_of_64_kib_is_held() -> None:
    notebook = Notebook()
    client = greeted(notebook)
    client.say(*MESSAGE[:3])
    client.send(b"Subject: x\r\n\r\n")
    for _ in range(100):
        client.send(b"y" * 60_000)
    assert notebook.calls()[-1] == "lost"


# The verdict.


REFUSED = smtp.SMTPServerError
VERDICTS: dict[str, tuple[list[Any], str]] = {
    "all well": ([None, None, None], "250 2.0.0 Message accepted"),
    "all refuse": ([REFUSED(550, b"A"), REFUSED(551, b"B"), REFUSED(552, b"C")], "550 5.0.0 A"),
    "all refuse, one for now": ([REFUSED(550, b"A"), REFUSED(452, b"B"), REFUSED(552, b"C")], "452 4.0.0 B"),
    "one refuses": ([None, REFUSED(550, b"A"), None], INTERNAL_ERROR.strip()),
    "all but one refuse": ([REFUSED(550, b"A"), REFUSED(550, b"A"), None], INTERNAL_ERROR.strip()),
    "one breaks": ([None, None, ValueError("secret")], INTERNAL_ERROR.strip()),
    "one breaks, the rest refuse": (
        [REFUSED(550, b"A"), ValueError("secret"), REFUSED(550, b"A")],
        INTERNAL_ERROR.strip(),
    ),
    "all break": ([ValueError("secret")] * 3, INTERNAL_ERROR.strip()),
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("outcomes", "said"), VERDICTS.values(), ids=VERDICTS)
def test_a_message_is_accepted_only_when_it_is_safe_for_all_recipients(
    outcomes: list[Any], said: str, late: bool, failures: list[Any]
) -> None:
    answers = Late()

    def end(number: int) -> Any:
        outcome = outcomes[number - 1]
        if late:
            return answers(outcome)
        return fail(outcome) if outcome else None

    notebook = Notebook(eomReceived=end)
    client = greeted(notebook)
    client.say(*ENVELOPE, *ENVELOPE[1:] * 2, "DATA")
    client.heard()
    heard = client.say("x: y", ".")
    if late:
        # In any order, and not before the last.
        for deferred, outcome in reversed(answers.pending):
            assert heard == ""
            if outcome:
                deferred.errback(outcome)
            else:
                deferred.callback(None)
            heard = client.heard()
    assert heard == f"{said}\r\n"
    assert notebook.calls()[-3:] == ["eom"] * 3
    # Every failure that the client does not hear of stands in the log.
    broken = [type(outcome) for outcome in outcomes if outcome] if said.startswith("451") else []
    assert sorted(map(str, failures)) == sorted(map(str, broken))


def test_at_the_time_limit_the_end_of_every_message_is_cancelled(failures: list[Any]) -> None:
    late = Late()
    notebook = Notebook(eomReceived=lambda number: None if number == 1 else late(None))
    client = greeted(notebook, delivery_timeout=30)
    client.say(*ENVELOPE, *ENVELOPE[1:] * 2, "DATA")
    client.heard()
    client.say("x: y", ".")
    client.guard.clock.advance(31)
    assert client.heard() == "451 4.3.0 Delivery timed out, try again later\r\n"
    assert late.cancelled == 2
    assert failures == []


def test_an_end_that_succeeds_in_spite_of_its_cancellation_is_waited_for() -> None:
    stubborn, late = Stubborn(), Late()
    notebook = Notebook(eomReceived=lambda number: stubborn if number == 1 else late(None))
    client = greeted(notebook, delivery_timeout=30)
    client.say(*ENVELOPE, *ENVELOPE[1:], "DATA", "x: y", ".")
    client.heard()
    client.guard.clock.advance(31)
    assert client.heard() == "451 4.3.0 Delivery timed out, try again later\r\n"
    client.say("QUIT")
    assert "logout" not in notebook.calls()
    stubborn.callback(None)
    assert notebook.calls()[-1] == "logout"


def test_a_message_that_fails_to_hear_of_its_end_keeps_no_other_from_hearing(failures: list[Any]) -> None:
    notebook = Notebook(connectionLost=lambda number: _raise(ZeroDivisionError()))
    client = greeted(notebook)
    client.say(*ENVELOPE, *ENVELOPE[1:], "DATA")
    client.disconnect()
    assert notebook.calls().count("lost") == 2
    assert failures == [ZeroDivisionError] * 2


class Unusable:
    """No method of it can be looked up."""

    def __getattr__(self, name: str) -> Any:
        raise ZeroDivisionError


@pytest.mark.parametrize("kind", [type(None), Unusable])
@pytest.mark.parametrize("end", ["lost", "eom"])
def test_what_is_no_message_keeps_no_other_from_its_end(kind: Any, end: str, failures: list[Any]) -> None:
    notebook = Notebook(receivedHeader=lambda recipients: b"")
    made = iter([Message(notebook), kind(), Message(notebook)])
    notebook.answers["make_message"] = lambda user: next(made)
    client = greeted(notebook)
    client.say(*ENVELOPE, *ENVELOPE[1:] * 2, "DATA")
    client.heard()
    if end == "eom":
        assert client.say(".") == INTERNAL_ERROR
    client.disconnect()
    assert [entry for entry in notebook.seen if entry[0] in {"lost", "eom"}] == [(end, 1), (end, 2)]
    error = ZeroDivisionError if kind is Unusable else AttributeError
    # It is told its end, whichever way the others had theirs.
    assert failures == [error] * (1 + (end == "eom"))


def test_a_message_that_has_no_verdict_to_give_is_told_its_end() -> None:
    class Dumb(Message):
        eomReceived = property(lambda self: _raise(ZeroDivisionError()))

    notebook = Notebook()
    notebook.answers["make_message"] = lambda user: Dumb(notebook)
    client = greeted(notebook)
    assert client.say(*MESSAGE).endswith(INTERNAL_ERROR)
    assert notebook.calls()[-1] == "lost"


@pytest.mark.parametrize("limit", [{"max_message_size": 10}, {"bare_newline": "reject"}, {"read_timeout": 5}])
def test_a_message_that_the_guard_refuses_is_told_its_end(limit: dict[str, Any]) -> None:
    notebook = Notebook()
    client = greeted(notebook, **limit)
    client.say(*MESSAGE[:3])
    client.send(b"Subject: x\r\n\r\nbare\nnewline\r\n" + b"." * ("read_timeout" not in limit) + b"\r\n")
    client.guard.clock.advance(6)
    assert notebook.calls().count("lost") == 1
    assert "eom" not in notebook.calls()


# What the objects see.


@pytest.mark.parametrize(
    ("address", "kind", "host"),
    [
        ("192.0.2.1", IPv4Address, b"192.0.2.1"),
        ("2001:db8::1", IPv6Address, b"2001:db8::1"),
        ("fe80::1%eth0", IPv6Address, b"fe80::1%eth0"),
    ],
)
def test_deliveries_see_both_ends_as_twisted_addresses(address: str, kind: Any, host: bytes) -> None:
    peer = Peer(ip_address(address), 4711, ip_address(address), 25, tls=False, proxied=False)
    transport = ProtocolView(peer, b"").transport
    assert transport.getPeer() == kind("TCP", address, 4711)
    assert transport.getHost() == kind("TCP", address, 25)
    assert client_host(peer) == host


def test_a_unix_socket_has_no_host_as_with_twisted_mail() -> None:
    peer = Peer(None, None, None, None, tls=False, proxied=False)
    transport = ProtocolView(peer, b"").transport
    assert (transport.getPeer(), transport.getHost()) == (UNIXAddress(None), UNIXAddress(None))
    stock: Any = smtp.SMTP()
    stock.timeout = None
    stock.makeConnection(StringTransport(peerAddress=UNIXAddress(None)))
    stock.do_HELO(b"x")
    assert client_host(peer) == stock._helo[1]


def test_a_session_has_one_protocol_for_all_its_messages() -> None:
    notebook = Notebook()
    client = greeted(notebook)
    client.say(*MESSAGE, HELLO, *MESSAGE)
    assert len(notebook.protocols) == 1
    client.guard.greeted().say(*MESSAGE)
    assert len(notebook.protocols) == 2


def test_ehlo_offers_8bitmime_and_nothing_that_twisted_mail_cannot_carry() -> None:
    said = guarded(Notebook()).say(HELLO)
    assert "8BITMIME" in said
    assert "SMTPUTF8" not in said
    assert "BINARYMIME" not in said


# As a whole.


@pytest.mark.parametrize("kind", KINDS)
def test_it_keeps_the_contract_of_deliveries(kind: str) -> None:
    accepted: list[int] = []
    notebook = Notebook()
    check_delivery(TwistedMailDelivery(deliverer(kind, notebook), HOST)).addCallback(accepted.append)
    assert accepted[0] > 10
    assert notebook.calls().count("eom") >= accepted[0]
    ends = notebook.calls().count("eom") + notebook.calls().count("lost")
    assert ends == notebook.calls().count("make_message")
    assert notebook.calls().count("login") == notebook.calls().count("logout")
    assert (notebook.calls().count("login") > accepted[0]) is kind.startswith("portal")


def test_it_keeps_the_contract_of_deliveries_with_answers_that_come_later() -> None:
    late = Late()
    notebook = Notebook()
    answers = {hook: usual(notebook, hook) for hook in ("login", "validateFrom", "validateTo", "eomReceived")}
    for hook, answer in answers.items():
        notebook.answers[hook] = lambda *args, answer=answer: late(answer(*args))
    accepted: list[Any] = []
    check_delivery(TwistedMailDelivery(deliverer("portal of factories", notebook), HOST)).addBoth(
        accepted.append
    )
    for _ in range(10_000):
        late.fire()
    assert isinstance(accepted[0], int), accepted
    assert notebook.calls().count("login") == notebook.calls().count("logout") > accepted[0]


def test_a_cancelled_begin_takes_nothing() -> None:
    delivery = TwistedMailDelivery(deliverer("portal of factories", logins(1)[1]), HOST)
    peer = Peer(None, None, None, None, tls=False, proxied=False)
    client = Client(peer, "1-1", "x", "ESMTP", identity=None, trusted=False)
    begun = Deferred.fromCoroutine(delivery.begin(client, Path("a@b", {})))
    begun.cancel()
    outcome: list[Any] = []
    begun.addErrback(lambda failure: outcome.append(failure.type))
    assert outcome == [CancelledError]
    delivery.session_ended("1-1")
    delivery.session_ended("1-1")
    assert delivery._sessions == {}


def test_to_make_one_chooses_no_reactor() -> None:
    code = (
        "import sys; from twisted.cred.portal import Portal; from twisted_smtpguard import TwistedMailDelivery;"
        "TwistedMailDelivery(Portal(None), 'x'); assert 'twisted.internet.reactor' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
