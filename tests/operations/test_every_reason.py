"""Every reason for a refusal, provoked: the log, the history and `why` say the same of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from fakes import FakeDelivery, FakeFilter, SlowFilter, refusal
from logins import Checker, plain
from operated import Operated
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs

from twisted_smtpguard import replies
from twisted_smtpguard.limits.units import Rate
from twisted_smtpguard.policyvalues import PolicyUnavailable, PolicyVerdict
from twisted_smtpguard.replies import Reply, catalogue
from twisted_smtpguard.testing import FakePolicy
from twisted_smtpguard.values import CheckerUnavailable, Refused, refuse

ADDRESS = "192.0.2.1"
MAIL, RCPT = "MAIL FROM:<a@b>", "RCPT TO:<c@d>"
DATA = (MAIL, RCPT, "DATA")

Provocation = Callable[[], Operated]


def dialogue(*lines: str, **limits: Any) -> Provocation:
    """A session in which these lines are said."""

    def provoke() -> Operated:
        guard = Operated(**limits)
        guard.greeted().say(*lines)
        return guard

    return provoke


def delivery(reply: Reply, hook: str = "begin") -> Provocation:
    """A delivery that answers a hook with a refusal."""

    def raises(*_: object) -> None:
        raise Refused(reply)

    def provoke() -> Operated:
        guard = Operated()
        guard.delivery.answers[hook] = raises
        guard.greeted().say(MAIL, RCPT)
        return guard

    return provoke


def policy(answer: Any, seconds: float = 0) -> Provocation:
    """A session policy that gives or raises this, or whose answer does not come for so long."""

    def check(_: object) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer() if seconds else answer

    def provoke() -> Operated:
        guard = Operated(policies=[FakePolicy(check)])
        guard.greeted().say(MAIL, RCPT)
        guard.clock.advance(seconds)
        return guard

    return provoke


def login(*lines: str, answer: Any = b"ann", **arguments: Any) -> Provocation:
    def provoke() -> Operated:
        guard = Operated(checkers=[Checker(answer)], **arguments)
        guard.greeted().say(*lines)
        return guard

    return provoke


def prepared(prepare: Callable[[Operated], object], *lines: str, **arguments: Any) -> Provocation:
    """A session with a guard to which something was done before."""

    def provoke() -> Operated:
        guard = Operated(**arguments)
        prepare(guard)
        client = guard.connect()
        if not client.closed:
            client.say("EHLO client.example", *lines)
        return guard

    return provoke


def connected(times: int, **arguments: Any) -> Provocation:
    """So many connections of the client."""

    def provoke() -> Operated:
        guard = Operated(**arguments)
        for _ in range(times):
            guard.connect()
        return guard

    return provoke


def waited(seconds: float, *lines: str, octets: bytes = b"", **arguments: Any) -> Provocation:
    """A session in which nothing follows the lines for so long."""

    def provoke() -> Operated:
        guard = Operated(**arguments)
        client = guard.greeted()
        client.say(*lines)
        client.send(octets)
        guard.clock.pump([10] * int(seconds / 10))
        return guard

    return provoke


def first(octets: bytes, **arguments: Any) -> Provocation:
    """A client that begins with these octets."""

    def provoke() -> Operated:
        guard = Operated(**arguments)
        guard.connect().send(octets)
        return guard

    return provoke


def _attributes(**values: Any) -> Callable[[Operated], object]:
    def prepare(guard: Operated) -> None:
        for name, value in values.items():
            setattr(guard.factory.context, name, value)

    return prepare


def _never(guard: Operated) -> None:
    guard.delivery.answers["begin"] = lambda *_: Deferred()


def _delivery_timeout() -> Operated:
    guard = Operated(delivery_timeout=10)
    _never(guard)
    guard.greeted().say(MAIL)
    guard.clock.advance(11)
    return guard


def _pending() -> Operated:
    guard = Operated(max_pending_deliveries=1)
    guard.factory.context.pending_deliveries = 1
    guard.greeted().say(MAIL)
    return guard


def _shutdown() -> Operated:
    guard = Operated()
    guard.greeted()
    guard.factory.drain()
    return guard


def _made_room() -> Operated:
    guard = Operated(max_connections=1)
    guard.greeted()
    guard.clock.advance(5)
    guard.greeted("198.51.100.1").disconnect()
    return guard


def _ended_by_operator() -> Operated:
    guard = Operated()
    guard.operator.end(guard.greeted().protocol.engine.name)
    return guard


def _broken() -> Operated:
    guard = Operated()
    guard.delivery.answers["begin"] = lambda *_: "no transaction"
    guard.greeted().say(MAIL)
    return guard


def _early_talker() -> Operated:
    guard = Operated(greet_delay=2, early_talker="refuse")
    guard.connect().send(b"EHLO x\r\n")
    return guard


def _filter_timeout() -> Operated:
    guard = Operated(ip_filters=[SlowFilter()], ip_filter_timeout=10)
    guard.connect()
    guard.clock.advance(11)
    return guard


def _proxy(octets: bytes, seconds: float = 0) -> Provocation:
    def provoke() -> Operated:
        guard = Operated(proxy_protocol_from=[ADDRESS])
        guard.connect().send(octets)
        guard.clock.advance(seconds)
        return guard

    return provoke


def _write_timeout() -> Operated:
    guard = Operated(write_timeout=10)
    client = guard.greeted()
    client.protocol.engine.stalled()
    return guard


PROVOKED: dict[str, Provocation] = {
    "auth_cancelled": login("AUTH LOGIN", "*"),
    "auth_failed": login(f"AUTH PLAIN {plain()}", answer=UnauthorizedLogin()),
    "auth_failure_rate": login(
        *[f"AUTH PLAIN {plain()}"] * 2,
        answer=UnauthorizedLogin(),
        auth_failure_rate=Rate(1, 60),
        require_auth=True,
    ),
    "auth_failure_rate_per_user": login(
        *[f"AUTH PLAIN {plain()}"] * 2, answer=UnauthorizedLogin(), auth_failure_rate_per_user=Rate(1, 60)
    ),
    "auth_required": prepared(_attributes(require_auth=True, demands=True), MAIL),
    "auth_unavailable": login(f"AUTH PLAIN {plain()}", answer=CheckerUnavailable("down")),
    "bad_arguments": dialogue("HELO"),
    "bad_auth_response": login("AUTH PLAIN !"),
    "bad_line_end": dialogue("NO\nOP"),
    "bad_proxy_header": _proxy(b"EHLO x\r\n"),
    "bad_recipient_address": dialogue(MAIL, "RCPT TO:c"),
    "bad_sender_address": dialogue("MAIL FROM:a"),
    "bad_sequence": dialogue(RCPT),
    "ban_after": prepared(lambda guard: guard.factory.bans.ban(ADDRESS, 9, "x", dry_run=False), ban_after=9),
    "bare_newline": dialogue(*DATA, "\n", "."),
    "connection_rate": connected(2, connection_rate=Rate(1, 60)),
    "deferred": prepared(lambda guard: guard.operator.defer("on"), MAIL),
    "delivery_refused": delivery(refusal(550, "Not \x1b you")),
    "delivery_timeout": _delivery_timeout,
    "early_talker": _early_talker,
    "encryption_required": login(f"AUTH PLAIN {plain()}", auth_without_tls=False),
    "ended_by_operator": _ended_by_operator,
    "expn": dialogue("EXPN x"),
    "insufficient_storage": delivery(replies.INSUFFICIENT_STORAGE),
    "internal_error": _broken,
    "ip_filter": connected(1, ip_filters=[FakeFilter(refuse(refusal(521, "Away"), "list 7"))]),
    "ip_filter_timeout": _filter_timeout,
    "lmtp_recipients": delivery(replies.TOO_MANY_LMTP_RECIPIENTS, "recipient"),
    "policy": policy(PolicyVerdict.refuse(replies.POLICY_REFUSED, "REJECT")),
    "policy_failed": policy(PolicyUnavailable("it is away")),
    "policy_misconfigured": policy(PolicyUnavailable("HOLD", misconfigured=True)),
    "policy_timeout": policy(Deferred, 11),
    "malformed_bdat": dialogue("BDAT"),
    "max_auth_failures": login(f"AUTH PLAIN {plain()}", answer=UnauthorizedLogin(), max_auth_failures=1),
    "max_command_line": dialogue("x" * 30, max_command_line=20),
    "made_room": _made_room,
    "max_connections": connected(2, max_connections=1),
    "max_connections_per_client": connected(2, max_connections_per_client=1),
    "max_endless_line": dialogue("x" * 200, max_command_line=20, max_endless_line=100),
    "max_errors": dialogue("EXPN x", max_errors=1),
    "max_header_size": dialogue(*DATA, "a: bcdefgh", "", ".", max_header_size=9),
    "max_invalid_commands": dialogue("BREW", max_invalid_commands=1),
    "max_junk_commands": dialogue("NOOP", "NOOP", max_junk_commands=1, dry_run={"max_junk_commands"}),
    "max_message_line": delivery(replies.MESSAGE_LINE_TOO_LONG),
    "max_message_size": dialogue("MAIL FROM:<> SIZE=10", max_message_size=9),
    "max_messages": dialogue(MAIL, "RSET", MAIL, max_messages=1),
    "max_pending_deliveries": _pending,
    "max_received_fields": dialogue(*DATA, "Received: x", "Received: y", ".", max_received_fields=1),
    "max_recipients": dialogue(MAIL, RCPT, RCPT, max_recipients=1),
    "max_rejected_recipients": prepared(
        lambda guard: guard.delivery.answers.update(recipient=lambda _: refusal(550, "No")),
        MAIL,
        RCPT,
        max_rejected_recipients=1,
    ),
    "max_session_time": waited(20, max_session_time=10),
    "message_rate": dialogue(MAIL, "RSET", MAIL, message_rate=Rate(1, 60)),
    "min_data_rate": waited(130, *DATA, octets=b"x\r\n", min_data_rate=500),
    "no_valid_recipients": prepared(
        lambda guard: guard.delivery.answers.update(recipient=lambda _: refusal(550, "No")), *DATA
    ),
    "non_ascii_address": dialogue("MAIL FROM:<\xe9@b>"),
    "not_smtp": first(b"GET / HTTP/1.1\r\n"),
    "oversize_drain": dialogue(*DATA, "x" * 19, max_message_size=9, oversize_drain=1),
    "proxy_header_timeout": _proxy(b"PROXY ", 10),
    "read_timeout": waited(400),
    "recipient_rate": dialogue(MAIL, RCPT, RCPT, recipient_rate=Rate(1, 60)),
    "relay_denied": delivery(replies.RELAY_DENIED, "recipient"),
    "shutdown": _shutdown,
    "starttls_injection": prepared(_attributes(starttls=True), "STARTTLS", "NOOP"),
    "syntax_error": dialogue(""),
    "tls_required": prepared(_attributes(require_tls=True, demands=True), MAIL),
    "unexpected_pipelining": dialogue("EHLO x", "NOOP", unexpected_pipelining="refuse"),
    "unexpected_proxy_header": first(b"PROXY TCP4 198.51.100.7 10.0.0.1 4 25\r\n"),
    "unknown_mechanism": login("AUTH NTLM"),
    "unrecognized_command": dialogue("BREW"),
    "unsupported_parameter": dialogue("MAIL FROM:<a@b> X=y"),
    "upstream_busy": delivery(replies.UPSTREAM_BUSY),
    "upstream_changed": delivery(replies.UPSTREAM_CHANGED),
    "upstream_garbled": delivery(replies.UPSTREAM_GARBLED),
    "upstream_lost": delivery(replies.UPSTREAM_LOST),
    "upstream_refused": delivery(Reply(450, "4.7.1", ("Later",), said="450 4.7.1 Greylisted \u202e, see x")),
    "upstream_timeout": delivery(replies.UPSTREAM_TIMED_OUT),
    "upstream_unavailable": delivery(replies.UPSTREAM_UNAVAILABLE),
    "upstream_unsuitable": delivery(replies.UPSTREAM_UNSUITABLE),
    "write_timeout": _write_timeout,
}
BESIDE_THE_CATALOGUE = {
    "auth_failure_rate",
    "auth_failure_rate_per_user",
    "bad_proxy_header",
    "ip_filter_timeout",
    "max_endless_line",
    "max_junk_commands",
    "proxy_header_timeout",
    "policy_timeout",
    "upstream_refused",
    "write_timeout",
}

STAYS = {
    "auth_failure_rate": "deferred",
    "auth_required": "accepted",
    "ban_after": "refused",
    "connection_rate": "refused",
    "deferred": "deferred",
    "ip_filter": "refused",
    "ip_filter_timeout": None,
    "max_connections": "refused",
    "max_connections_per_client": "refused",
    "max_pending_deliveries": "deferred",
    "message_rate": "deferred",
    "recipient_rate": "deferred",
    "shutdown": "refused",
}
"""What would happen to the client afterwards, where it is not let in, or, with None, where the answer takes time."""


def test_every_reason_of_the_catalogue_is_provoked() -> None:
    assert set(PROVOKED) == {each.reason for each in catalogue() if each.reason} | BESIDE_THE_CATALOGUE


def as_logged(value: object) -> object:
    """A value in the log is one word."""
    return value.replace(" ", "\\x20") if isinstance(value, str) else value


@pytest.mark.parametrize("reason", sorted(PROVOKED))
def test_the_log_the_history_and_why_say_the_same_of_a_refusal(reason: str) -> None:
    with capturedLogs() as logged:
        guard = PROVOKED[reason]()
    # What is logged by a delivery or a checker that fails is no matter here.
    event = next(
        each for each in reversed(logged) if each.get("event") == "reject" and each["reason"] == reason
    )
    answers: list[Any] = []
    guard.operator.why(ADDRESS).addCallback(answers.append)
    guard.clock.advance(0 if reason != "ip_filter_timeout" else 11)
    (answer,) = answers
    assert json.loads(json.dumps(answer)) == answer
    row = next(each for each in answer["recent_refusals"] if each["reason"] == reason)
    for name in ("session", "limit", "value", "command", "filter", "policy", "rule"):
        assert as_logged(row.get(name)) == event.get(name), name
    assert row["dry_run"] == event.get("dry_run", False)
    assert row["address"] == event["peer"] == ADDRESS
    if "code" in event and reason != "upstream_refused":
        assert row["reply"].startswith(f"{event['code']} ")
    if "reply" in event:
        assert as_logged(row["reply"]) == event["reply"]
    wanted = STAYS.get(reason, "accepted")
    if wanted is not None:
        assert answer["outcome"] == wanted
    if answer["outcome"] != "accepted" and reason != "shutdown":
        assert (answer["reason"], answer.get("limit")) == (reason, event.get("limit"))
        if reason not in ("max_connections", "recipient_rate"):
            assert answer.get("value", 0) >= event.get("value", 0)


@pytest.mark.parametrize("reason", ["connection_rate", "message_rate", "recipient_rate"])
def test_a_rate_lets_the_client_in_at_the_time_that_why_tells(reason: str) -> None:
    guard = PROVOKED[reason]()
    answers: list[Any] = []
    guard.operator.why(ADDRESS).addCallback(answers.append)
    (counted,) = [each for each in answers[0]["counts"] if each["limit"] == reason.replace("_", "-")]
    assert counted["clears"] == "1970-01-01T00:01:00Z"
    guard.clock.advance(59)
    guard.operator.why(ADDRESS).addCallback(answers.append)
    guard.clock.advance(1)
    guard.operator.why(ADDRESS).addCallback(answers.append)
    assert [each["outcome"] == "accepted" for each in answers] == [False, False, True]
    assert guard.greeted().codes(MAIL, RCPT) == [250, 250]


def test_a_fake_delivery_is_what_refuses() -> None:
    assert isinstance(PROVOKED["delivery_refused"]().delivery, FakeDelivery)
