"""AUTH in a session: who may log in when, what is asked of a checker, and what never reaches a log."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from typing import Any

import attrs
import pytest
import pytest_twisted
from certificates import CERTIFICATE, certificate
from commandline import mistake, parsed, printed
from fakes import Conversation, FakeDelivery, codes
from logbook import logbook
from logins import PASSWORD, USER, Checker, base64, plain
from loopback import Loopback
from tlsclient import TLSClient
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.credentials import IAnonymous
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogEvent, globalLogPublisher, jsonFileLogObserver, textFileLogObserver

from twisted_smtpguard import Limits, SMTPGuardFactory
from twisted_smtpguard.cli.options import make_service
from twisted_smtpguard.testing import Clients
from twisted_smtpguard.tls.files import CertificateFiles

ENVELOPE = ("MAIL FROM:<a@client.example>", "RCPT TO:<b@guard.example>")
FAILED = "535 5.7.8 Authentication credentials invalid\r\n"
ENOUGH = "421 4.7.0 Too many authentication failures, closing connection\r\n"
LATER = "454 4.7.0 Temporary authentication failure\r\n"
YES = "235 2.7.0 Authentication successful\r\n"


def logged_in(protocol: Any) -> str | None:
    """The name of the user who has logged in."""
    user = protocol.engine.user
    return None if user is None else user.name


def ann() -> InMemoryUsernamePasswordDatabaseDontUse:
    return InMemoryUsernamePasswordDatabaseDontUse(**{USER.decode(): PASSWORD})


def guard_of(*checkers: Any, in_clear: bool = True, require_auth: bool = False, **limits: Any) -> Clients:
    clock = Clock()
    factory = SMTPGuardFactory(
        clock,
        FakeDelivery(),
        limits=Limits(**limits),
        hostname="guard.example",
        checkers=checkers or [ann()],
        auth_without_tls=in_clear,
        require_auth=require_auth,
    )
    return Clients(factory, clock)


def client_of(*checkers: Any, **settings: Any) -> Conversation:
    client = guard_of(*checkers, **settings).greeted()
    client.heard()
    return client


@pytest.fixture(autouse=True)
def logged() -> Iterator[StringIO]:
    """All that is logged, as text and as JSON. No password is in it, however it was written."""
    text = StringIO()
    observers = [textFileLogObserver(text), jsonFileLogObserver(text)]

    def observe(event: LogEvent) -> None:
        for observer in observers:
            observer(dict(event))

    globalLogPublisher.addObserver(observe)
    yield text
    globalLogPublisher.removeObserver(observe)
    for secret in (PASSWORD.decode(), base64(PASSWORD), plain(), repr(PASSWORD)[2:-1]):
        assert secret not in text.getvalue()


# Logging in.


@pytest.mark.parametrize("cut", [3000, 9000])
def test_without_a_limit_a_line_of_auth_may_be_longer_than_any_command(cut: int) -> None:
    response = f"{base64(bytes(6000))}\r\n".encode()
    for before, line, code in (("NOOP", b"AUTH PLAIN " + response, 501), ("AUTH LOGIN", response, 334)):
        client = client_of(max_auth_line=0)
        client.say(before)
        assert codes(client.send(line[:cut]) + client.send(line[cut:])) == [code]


@pytest.mark.parametrize("bytewise", [False, True])
@pytest.mark.parametrize(
    "dialogue",
    [
        [(f"AUTH PLAIN {plain()}", YES)],
        [("AUTH PLAIN", "334 \r\n"), (plain(), YES)],
        [
            ("auth login", "334 VXNlcm5hbWU6\r\n"),
            (base64(USER), "334 UGFzc3dvcmQ6\r\n"),
            (base64(PASSWORD), YES),
        ],
        [(f"AUTH LOGIN {base64(USER)}", "334 UGFzc3dvcmQ6\r\n"), (base64(PASSWORD), YES)],
    ],
    ids=["PLAIN at once", "PLAIN", "LOGIN", "LOGIN with a name"],
)
def test_a_user_logs_in_and_the_delivery_sees_who(dialogue: list[tuple[str, str]], bytewise: bool) -> None:
    client = client_of()
    for said, heard in dialogue:
        assert client.say(said, bytewise=bytewise) == heard
    client.say(*ENVELOPE, "DATA", "x", ".")
    (message,) = client.guard.delivery.messages
    assert message.client.identity == "ann"
    assert message.client.protocol == "ESMTPA"


def test_a_message_before_the_login_is_anonymous_and_one_after_it_is_the_users() -> None:
    client = client_of()
    message = (*ENVELOPE, "DATA", "Subject: x\r\n\r\n.")
    for line in (*message, f"AUTH PLAIN {plain()}", *message):
        client.say(line)
    told = [each.client for each in client.guard.delivery.messages]
    assert [(each.identity, each.protocol) for each in told] == [(None, "ESMTP"), ("ann", "ESMTPA")]
    assert [each.avatar_id for each in told] == [None, b"ann"]


def test_several_exchanges_may_arrive_at_once() -> None:
    client = client_of()
    said = client.say("AUTH LOGIN", base64(USER), base64(b"wrong"), "AUTH PLAIN", plain(), "NOOP")
    assert codes(said) == [334, 334, 535, 334, 235, 250]


def test_checkers_are_asked_in_their_order_until_one_knows_the_user() -> None:
    first, second, third = Checker(UnauthorizedLogin()), Checker(b"ann@example.org"), Checker(b"nobody")
    client = client_of(first, second, third)
    assert client.say(f"AUTH PLAIN {plain()}") == YES
    assert [len(each.asked) for each in (first, second, third)] == [1, 1, 0]
    assert logged_in(client.protocol) == "ann@example.org"


@pytest.mark.parametrize(
    ("avatar", "identity"),
    [(b"\xff", "\\xff"), ("jörg", "jörg"), ((), "ann"), (b"", "ann"), (object(), "ann")],
)
def test_the_name_is_the_checkers_or_else_the_clients(avatar: Any, identity: str) -> None:
    client = client_of(Checker(avatar))
    client.say(f"AUTH PLAIN {plain()}")
    assert logged_in(client.protocol) == identity


@pytest.mark.parametrize("avatar", [b"\xff", "jörg", (), b"", None, object(), []])
def test_a_delivery_gets_what_the_checker_answered_as_it_is(avatar: Any) -> None:
    client = client_of(Checker(avatar))
    client.say(f"AUTH PLAIN {plain()}")
    client.say(*ENVELOPE, "DATA", "x", ".")
    (message,) = client.guard.delivery.messages
    assert message.client.avatar_id is avatar
    assert hash(message.client) == hash(attrs.evolve(message.client, avatar_id=None))


@pytest.mark.parametrize("bytewise", [False, True])
@pytest.mark.parametrize(("before", "behind"), [(" ", ""), ("", " "), ("\t ", " \t")])
def test_blanks_at_either_end_of_a_response_are_ignored(before: str, behind: str, bytewise: bool) -> None:
    def padded(text: str) -> str:
        return f"{before}{text}{behind}"

    client = client_of()
    assert client.say("AUTH PLAIN", bytewise=bytewise) == "334 \r\n"
    assert client.say(padded(plain()), bytewise=bytewise) == YES
    client = client_of()
    client.say("AUTH LOGIN")
    client.say(padded(base64(USER)), bytewise=bytewise)
    assert client.say(padded(base64(PASSWORD)), bytewise=bytewise) == YES
    client = client_of()
    said = client.codes("AUTH PLAIN", padded("*"), "AUTH PLAIN", padded(base64(b"\0ann ")), "NOOP")
    assert said == [334, 501, 334, 501, 250]


@pytest.mark.parametrize(
    ("user", "password", "shown"),
    [(b"ann", b"p\xe4ss", "ann"), (b"j\xf6rg", b"pass", r"j\\xf6rg"), (b"\xff", b"\xfe", r"\\xff")],
)
def test_octets_of_another_encoding_are_wrong_credentials_and_no_bad_syntax(
    user: bytes, password: bytes, shown: str, logged: StringIO
) -> None:
    client = client_of(max_auth_failures=2)
    assert client.say(f"AUTH PLAIN {plain(password, user)}") == FAILED
    client.say("AUTH LOGIN")
    client.say(base64(user))
    assert client.say(base64(password)) == FAILED + ENOUGH
    assert logged.getvalue().isascii()
    assert f" user={shown} " in logged.getvalue()


def test_where_a_checker_has_those_octets_they_are_right() -> None:
    client = client_of(InMemoryUsernamePasswordDatabaseDontUse(ann=b"p\xe4ss"))
    assert client.say(f"AUTH PLAIN {plain(bytes([112, 0xE4, 115, 115]))}") == YES


# Where it is in sequence.


def test_help_names_it_where_it_is_offered() -> None:
    assert " AUTH " in guard_of().connect().say("HELP")
    assert "AUTH" not in guard_of(in_clear=False).connect().say("HELP")


def test_it_is_offered_under_tls_or_where_the_operator_says_so() -> None:
    assert "AUTH" not in guard_of(in_clear=False).connect().say("EHLO a")
    assert "250-AUTH PLAIN LOGIN\r\n" in guard_of().connect().say("EHLO a")


def test_in_clear_it_is_refused() -> None:
    checker = Checker(b"ann")
    client = client_of(checker, in_clear=False)
    assert client.say(f"AUTH PLAIN {plain()}") == (
        "538 5.7.11 Encryption required for requested authentication mechanism\r\n"
    )
    assert checker.asked == []
    assert client.protocol.engine.invalid_commands == 0


def test_without_checkers_it_is_an_unknown_command() -> None:
    clock = Clock()
    client = Clients(SMTPGuardFactory(clock, FakeDelivery()), clock).greeted()
    client.heard()
    assert client.codes("AUTH", "AUTH PLAIN", f"AUTH PLAIN {plain()}") == [500] * 3
    assert client.protocol.engine.invalid_commands == 3


@pytest.mark.parametrize(
    "before", [[], ["HELO a"], ["EHLO a", *ENVELOPE[:1]], ["EHLO a", f"AUTH PLAIN {plain()}"]], ids=str
)
def test_before_ehlo_in_a_transaction_and_after_a_login_it_is_out_of_sequence(before: list[str]) -> None:
    client = guard_of().connect()
    client.say(*before)
    client.heard()
    assert client.say(f"AUTH PLAIN {plain()}") == "503 5.5.1 Bad sequence of commands\r\n"
    assert client.protocol.engine.invalid_commands == 1


def test_a_mechanism_that_is_not_offered_is_a_504_and_a_malformed_command_a_501() -> None:
    client = client_of()
    assert client.say("AUTH CRAM-MD5") == "504 5.5.4 Unrecognized authentication mechanism\r\n"
    assert client.codes("AUTH", "AUTH PLAIN a b", "AUTH PLAIN !") == [501] * 3
    assert client.protocol.engine.invalid_commands == 0


@pytest.mark.parametrize("response", ["*", "!", base64(b"no")])
def test_a_response_that_is_none_ends_the_exchange_and_the_session_goes_on(response: str) -> None:
    client = client_of()
    assert client.codes("AUTH PLAIN", response, "NOOP") == [334, 501, 250]
    assert client.protocol.engine.failures == 0
    assert client.protocol.engine.failures == 0


def test_a_line_that_ends_wrongly_ends_the_exchange_and_counts() -> None:
    client = client_of()
    client.say("AUTH PLAIN")
    assert client.send(plain().encode() + b"\n\r\n").startswith("500 5.5.2 Line must end")
    assert client.codes("NOOP") == [250]
    assert client.protocol.engine.invalid_commands == 1


def test_mail_may_say_whom_the_message_is_from() -> None:
    client = client_of()
    assert client.codes("MAIL FROM:<a@b.example> AUTH=<>") == [250]
    assert client.codes("RSET", "MAIL FROM:<a@b.example> AUTH=e+3Dmc2@example.com") == [250, 250]
    assert client.codes("RSET", "MAIL FROM:<a@b.example> AUTH=a+3", "MAIL FROM:<a@b.example> AUTH") == [
        250,
        501,
        501,
    ]


def test_the_delivery_is_told_whom_in_the_clients_own_letters() -> None:
    client = client_of()
    for line in (
        "MAIL FROM:<a@b.example> AUTH=Ann+3D@Example.org",
        ENVELOPE[1],
        "DATA",
        "Subject: x\r\n\r\n.",
    ):
        client.say(line)
    (message,) = client.guard.delivery.messages
    assert message.sender.parameters == {"AUTH": "Ann+3D@Example.org"}


def test_a_recipient_says_nothing_of_the_kind() -> None:
    client = client_of()
    client.say(ENVELOPE[0])
    assert client.say("RCPT TO:<b@guard.example> AUTH=<>") == "555 5.5.4 Unsupported parameter\r\n"


# Lines of AUTH are longer than others.


@pytest.mark.parametrize("bytewise", [False, True])
def test_a_line_of_auth_may_have_12288_octets(bytewise: bool) -> None:
    client = client_of(Checker(b"ann"))
    room = (12288 - len("AUTH PLAIN \r\n")) // 4 * 3
    message = b"\0ann\0".ljust(room, b"p")
    assert client.say(f"AUTH PLAIN {base64(message)}", bytewise=bytewise) == YES
    assert client.say(f"NOOP {'x' * 2048}").startswith("500 5.5.2 Line too long")


def test_a_response_may_be_as_long() -> None:
    client = client_of(Checker(b"ann"))
    client.say("AUTH PLAIN")
    assert client.say(base64(b"\0ann\0".ljust(9000, b"p"))) == YES


@pytest.mark.parametrize("begin", ["AUTH PLAIN ", ""])
def test_no_line_of_auth_may_be_longer_and_nothing_of_it_is_kept(begin: str) -> None:
    client = client_of(Checker(b"ann"))
    if not begin:
        client.say("AUTH PLAIN")
    assert client.say(begin + "A" * 12288) == "500 5.5.2 Line too long\r\n"
    assert client.protocol.engine.buffer == b""
    assert client.codes("NOOP") == [250]
    assert client.send(b"AUTH PLAIN " + b"A" * 70_000).endswith(
        "421 4.4.0 Too many errors, closing connection\r\n"
    )


def test_where_there_is_no_auth_its_lines_are_no_longer() -> None:
    clock = Clock()
    client = Clients(SMTPGuardFactory(clock, FakeDelivery()), clock).greeted()
    client.heard()
    assert client.say("AUTH PLAIN " + "A" * 2048) == "500 5.5.2 Line too long\r\n"


# Failures.


def test_three_failures_end_the_session() -> None:
    client = client_of()
    assert client.say(f"AUTH PLAIN {plain(b'x')}") == FAILED
    assert client.say("AUTH PLAIN", plain(b"x")) == "334 \r\n" + FAILED
    assert client.say(f"AUTH PLAIN {plain(b'x')}", "NOOP") == FAILED + ENOUGH
    assert client.closed
    assert client.guard.factory.statistics.refusals == {"auth_failed": 3, "max_auth_failures": 1}


def test_what_is_no_535_is_no_failure() -> None:
    client = client_of(max_auth_failures=1)
    said = client.codes("AUTH X", "AUTH PLAIN !", "AUTH PLAIN", "*", f"AUTH PLAIN {plain()}", "AUTH PLAIN x")
    assert said == [504, 501, 334, 501, 235, 503]
    assert not client.closed


def test_the_limit_can_be_switched_off_and_tried() -> None:
    for limits in ({"max_auth_failures": 0}, {"dry_run": ["max_auth_failures"]}):
        client = client_of(**limits)
        assert client.codes(*[f"AUTH PLAIN {plain(b'x')}"] * 5) == [535] * 5
    assert client.guard.factory.statistics.dry_run_refusals == {"max_auth_failures": 1}


@pytest.mark.parametrize("said", [plain(b""), plain(user=b""), plain(acts_for=b"bob")])
def test_an_empty_password_or_name_and_another_user_fail_without_asking(said: str) -> None:
    checker = Checker(b"ann")
    assert client_of(checker).say(f"AUTH PLAIN {said}") == FAILED
    assert checker.asked == []


def test_to_act_for_oneself_is_nothing_special() -> None:
    assert client_of().say(f"AUTH PLAIN {plain(acts_for=USER)}") == YES


def test_a_failure_is_logged_with_the_name_escaped(logged: StringIO) -> None:
    client = client_of()
    hostile = b"a b\r\nreject"
    client.say(f"AUTH PLAIN {plain(user=hostile)}")
    assert r"reason=auth_failed session=" in logged.getvalue()
    assert r"command=AUTH user=a\x20b\x0d\x0areject" in logged.getvalue()
    # Not with what follows it.
    before = len(logged.getvalue())
    client.say("EXPN a")
    assert "user=" not in logged.getvalue()[before:]


def test_what_ends_the_session_is_logged_with_the_failures_and_each_of_them_without() -> None:
    client = client_of(max_auth_failures=2)
    with logbook() as book:
        client.say(*[f"AUTH PLAIN {plain(b'x')}"] * 2)
        lines = [line.partition(" reason=")[2].split() for line in book.take("reject")]
    failed = ["auth_failed", "code=535", "command=AUTH", "user=ann", "helo=client.example"]
    enough = ["max_auth_failures", "limit=2", "value=2", "code=421", "command=AUTH", "user=ann"]
    enough.append("helo=client.example")
    assert [[word for word in line if word[:8] != "session="] for line in lines] == [failed, failed, enough]


def test_a_login_is_logged(logged: StringIO) -> None:
    client = client_of()
    client.say(f"AUTH PLAIN {plain()}", *ENVELOPE, "DATA", "x", ".")
    assert "peer=192.0.2.1 user=ann mechanism=PLAIN\n" in logged.getvalue()
    assert " seconds=0.0 user=ann helo=client.example\n" in logged.getvalue()


# Checkers that fail, or take their time.


@pytest.mark.parametrize("kind", [ValueError, LookupError])
def test_a_checker_that_raises_is_a_454_and_its_message_is_withheld(
    kind: type[Exception], logged: StringIO
) -> None:
    client = client_of(Checker(kind(f"no such user with {PASSWORD!r}")))
    assert client.say(f"AUTH PLAIN {plain()}") == LATER
    assert f"a {kind.__name__}, whose message is withheld" in logged.getvalue()
    assert client.protocol.engine.failures == 0


def test_no_later_command_is_looked_at_while_a_checker_thinks() -> None:
    answer: Deferred[bytes] = Deferred()
    client = client_of(Checker(answer))
    assert client.say(f"AUTH PLAIN {plain()}", "NOOP") == ""
    answer.callback(b"ann")
    assert client.heard() == YES + "250 2.0.0 OK\r\n"


def test_a_checker_may_say_no_later() -> None:
    answer: Deferred[bytes] = Deferred()
    client = client_of(Checker(answer), max_auth_failures=1)
    client.say(f"AUTH PLAIN {plain()}")
    answer.errback(UnauthorizedLogin())
    assert client.heard() == FAILED + ENOUGH


@pytest.mark.parametrize("cancels", [True, False])
def test_a_checker_that_does_not_answer_in_time_is_a_454_whatever_it_says_then(cancels: bool) -> None:
    answer: Deferred[bytes] = Deferred(None if cancels else lambda _: None)
    held = answer if cancels else _stubborn(answer)
    client = client_of(Checker(held), delivery_timeout=20)
    client.say(f"AUTH PLAIN {plain()}")
    with logbook() as book:
        client.guard.clock.advance(20.2)
        (line,) = book.take("checker_failed")
    assert line.endswith(" no answer in 20 seconds")
    assert client.heard() == LATER
    assert logged_in(client.protocol) is None
    if not cancels:
        answer.callback(b"ann")
    assert logged_in(client.protocol) is None
    assert client.codes("NOOP") == [250]


def _stubborn(inner: Deferred[bytes]) -> Deferred[bytes]:
    """Cancelled, it goes on."""
    outer: Deferred[bytes] = Deferred(lambda _: None)
    inner.addCallback(lambda answer: None if outer.called else outer.callback(answer))
    return outer


def late_checker() -> tuple[Checker, Deferred[bytes]]:
    """One that goes on when it is cancelled, and what it answers then."""
    late: Deferred[bytes] = Deferred()
    asked: Deferred[bytes] = Deferred()
    asked.addErrback(lambda _: late)
    return Checker(asked), late


@pytest.mark.parametrize("answer", [b"ann", UnauthorizedLogin(), ValueError("broken")])
def test_an_answer_after_the_checkers_time_limit_is_neither_a_login_nor_a_failure(
    answer: Any, logged: StringIO
) -> None:
    checker, late = late_checker()
    client = client_of(checker, delivery_timeout=20, max_auth_failures=1)
    client.say(f"AUTH PLAIN {plain()}")
    client.guard.clock.advance(20.2)
    assert client.heard() == LATER
    before = logged.getvalue()
    fires: Any = late.callback if isinstance(answer, bytes) else late.errback
    fires(answer)
    assert logged_in(client.protocol) is None
    assert logged.getvalue() == before
    assert client.codes("NOOP") == [250]


def test_nor_is_it_the_answer_to_the_next_question() -> None:
    checker, late = late_checker()
    client = client_of(checker, delivery_timeout=20)
    client.say(f"AUTH PLAIN {plain()}")
    client.guard.clock.advance(20.2)
    client.heard()
    checker._answer = second = Deferred()
    assert client.say(f"AUTH PLAIN {plain(user=b'bob')}") == ""
    late.callback(b"ann")
    assert client.heard() == ""
    assert logged_in(client.protocol) is None
    second.callback(b"bob")
    assert client.heard() == YES
    assert logged_in(client.protocol) == "bob"


def test_what_a_checker_says_of_a_client_that_is_gone_is_not_heard(logged: StringIO) -> None:
    checker, late = late_checker()
    client = client_of(checker)
    client.say(f"AUTH PLAIN {plain()}")
    client.disconnect()
    before = logged.getvalue()
    late.callback(b"ann")
    assert logged_in(client.protocol) is None
    assert logged.getvalue() == before


def test_who_leaves_while_a_checker_thinks_has_it_cancelled() -> None:
    cancelled: list[object] = []
    client = client_of(Checker(Deferred(cancelled.append)))
    client.say(f"AUTH PLAIN {plain()}")
    client.disconnect()
    assert len(cancelled) == 1
    assert client.guard.factory.connections == 0
    assert client.guard.clock.getDelayedCalls() == []


# Pipelining, time, and a stop.


def test_input_after_auth_is_refused_where_the_limit_says_so() -> None:
    refused = "421 4.7.0 Protocol error: unexpected pipelined input\r\n"
    assert client_of(unexpected_pipelining="refuse").say(f"AUTH PLAIN {plain()}", "NOOP") == refused
    client = client_of(unexpected_pipelining="refuse")
    assert client.say("AUTH LOGIN") == "334 VXNlcm5hbWU6\r\n"
    assert client.say(base64(USER), base64(PASSWORD)) == refused


def test_an_exchange_has_the_read_timeout() -> None:
    client = client_of(read_timeout=10)
    client.say("AUTH LOGIN")
    client.guard.clock.advance(10.2)
    assert client.heard() == "421 4.4.2 Timeout waiting for client, closing connection\r\n"


def test_a_stop_ends_an_exchange() -> None:
    client = client_of()
    client.say("AUTH LOGIN")
    client.guard.factory.drain()
    assert client.heard() == "421 4.3.2 Server shutting down\r\n"


# What the operator demands.


def test_a_submission_service_takes_no_mail_before_auth() -> None:
    client = client_of(require_auth=True)
    assert client.say(ENVELOPE[0]) == "530 5.7.0 Authentication required\r\n"
    assert client.codes(f"AUTH PLAIN {plain()}", *ENVELOPE) == [235, 250, 250]


def test_the_demand_for_auth_is_checked_after_syntax_and_sequence() -> None:
    client = guard_of(require_auth=True).connect()
    client.heard()
    assert client.codes("MAIL FROM:<a@b.example>", "EHLO a", "MAIL FROM:a", "MAIL FROM:<a@b.example>") == [
        503,
        250,
        501,
        530,
    ]


@pytest_twisted.ensureDeferred
async def test_mail_in_clear_is_refused_where_tls_is_required() -> None:
    guard = Loopback(options={"tls": CertificateFiles(str(certificate())), "require_tls": True})
    guard.start()
    client = await guard.greeted()
    await client.says(b"MAIL FROM:<a@b.example>\r\n")
    await client.hears(b"530 5.7.0 Must issue a STARTTLS command first\r\n")
    secure = await TLSClient.upgraded(guard)
    await secure.says(b"EHLO a\r\nMAIL FROM:<a@b.example>\r\n")
    await secure.hears(b"250 2.1.0 ")
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_so_it_is_of_a_user_who_has_logged_in_in_clear() -> None:
    options = {
        "tls": CertificateFiles(str(certificate())),
        "require_tls": True,
        "checkers": [ann()],
        "auth_without_tls": True,
    }
    guard = Loopback(options=options)
    guard.start()
    client = await guard.greeted()
    await client.says(f"AUTH PLAIN {plain()}\r\n".encode())
    await client.hears(YES.encode())
    await client.says(b"MAIL FROM:<a@b.example>\r\n")
    await client.hears(b"530 5.7.0 Must issue a STARTTLS command first\r\n")
    assert guard.delivery.calls == []
    await guard.close()


# With TLS.


@pytest_twisted.ensureDeferred
async def test_starttls_forgets_who_has_logged_in_and_keeps_what_failed() -> None:
    options = {"tls": CertificateFiles(str(certificate())), "checkers": [ann()], "auth_without_tls": True}
    guard = Loopback(options=options)
    guard.start()
    client = TLSClient(guard)
    await client.hears(b"220 ")
    await client.says(f"EHLO a\r\nAUTH PLAIN {plain(b'x')}\r\nAUTH PLAIN {plain(b'x')}\r\n".encode())
    await client.says(f"AUTH PLAIN {plain()}\r\n".encode())
    await client.hears(b"235 ")
    (protocol,) = guard.protocols
    assert logged_in(protocol) == "ann"
    await client.says(b"STARTTLS\r\n")
    await client.hears(b"220 2.0.0 ")
    await client.shake_hands()
    await guard.until(lambda: protocol.engine.secure)
    assert logged_in(protocol) is None
    await client.says(f"EHLO a\r\nAUTH PLAIN {plain(b'x')}\r\n".encode())
    await client.hears(ENOUGH.encode())
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_under_tls_it_is_offered_and_the_protocol_is_esmtpsa() -> None:
    options = {"tls": CertificateFiles(str(certificate())), "checkers": [ann()]}
    guard = Loopback(options=options)
    guard.start()
    client = await TLSClient.upgraded(guard)
    await client.says(b"EHLO a\r\n")
    await client.hears(b"250-AUTH PLAIN LOGIN\r\n")
    await client.says(
        f"AUTH PLAIN {plain()}\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<b@c.example>\r\nDATA\r\n".encode()
    )
    await client.hears(b"354 ")
    await client.says(b"x\r\n.\r\n")
    await client.hears(b"250 2.0.0 ")
    (message,) = guard.delivery.messages
    assert (message.client.protocol, message.client.identity) == ("ESMTPSA", "ann")
    await guard.close()


# The command line.


def test_checkers_are_made_of_the_options(tmp_path: Any) -> None:
    users = tmp_path / "users"
    users.write_text("ann:o-so-secret\n")
    words = (
        "--tls-certificate",
        str(CERTIFICATE),
        "--auth",
        f"file:{users}",
        "--auth",
        "memory:bob:x",
        "--require-auth",
    )
    site = make_service(parsed(*words), MemoryReactorClock()).factory.context
    assert len(site.identify.__self__._checkers) == 2
    assert (site.require_auth, site.require_tls, site.auth_without_tls) == (True, False, False)


def test_what_is_wrong_with_the_options_is_told() -> None:
    assert mistake("--auth", "memory:a:b") == "--auth: --tls-certificate is needed, or --auth-without-tls"
    assert mistake("--require-auth") == "--require-auth: --auth is needed"
    assert mistake("--require-tls") == "--require-tls: --tls-certificate is needed"


@pytest.mark.parametrize(
    ("checker", "problem"),
    [
        ("nosuch:o-so-secret", "--auth: one of "),
        ("file:/no/such/file", "--auth: there is no file '/no/such/file'"),
        ("file", "--auth: file: the argument after the colon must be: The path of a file"),
        ("memory:o-so-secret", "--auth: memory: the argument after the colon must be: A colon-sep"),
        ("anonymous", "--auth: anonymous does not check user names with passwords"),
    ],
)
def test_so_is_what_is_wrong_with_a_checker_but_no_password(checker: str, problem: str) -> None:
    from twisted.python.usage import UsageError

    with pytest.raises(UsageError) as error:
        make_service(parsed("--auth-without-tls", "--auth", checker), MemoryReactorClock())
    assert str(error.value).startswith(problem)
    assert "o-so-secret" not in str(error.value)


def test_questions_about_checkers_are_answered(capsys: pytest.CaptureFixture[str]) -> None:
    assert "\nmemory   A colon-separated list" in printed(capsys, "--help-auth")
    assert "`user:password`" in printed(capsys, "--help-auth-type", "file")
    assert mistake("--help-auth-type", "x").startswith("--help-auth-type: one of ")


def test_a_checker_of_anything_but_passwords_is_refused_in_an_application_too() -> None:
    checker = Checker()
    checker.credentialInterfaces = (IAnonymous,)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="does not check user names with passwords"):
        guard_of(checker)
    with pytest.raises(ValueError, match="require_auth needs checkers"):
        SMTPGuardFactory(Clock(), FakeDelivery(), require_auth=True)
