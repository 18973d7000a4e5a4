"""What a policy server's answer means."""

from __future__ import annotations

import pytest

from twisted_smtpguard.policies.answers import MAX_ANSWER_OCTETS, AnswerParser, verdict_of
from twisted_smtpguard.policyvalues import PolicyUnavailable, PolicyVerdict
from twisted_smtpguard.replies import text_of


@pytest.mark.parametrize(
    ("action", "kind", "told"),
    [
        ("DUNNO", "dunno", ""),
        ("dunno  whatever", "dunno", ""),
        ("OK", "ok", ""),
        ("ok text", "ok", ""),
        ("REJECT", "refuse", "554 5.7.1 Access denied"),
        ("reject", "refuse", "554 5.7.1 Access denied"),
        ("REJECT Go away", "refuse", "554 5.7.1 Go away"),
        ("REJECT 5.1.1 Go away", "refuse", "554 5.1.1 Go away"),
        ("REJECT 5.1.1\tGo  away", "refuse", "554 5.1.1 Go  away"),
        ("REJECT 4.1.1 Go away", "refuse", "554 5.1.1 Go away"),
        ("DEFER", "refuse", "450 4.7.1 Service unavailable"),
        ("DEFER 4.2.2 full", "refuse", "450 4.2.2 full"),
        ("DEFER_IF_PERMIT", "defer_if_permit", "450 4.7.1 Service unavailable"),
        ("DEFER_IF_PERMIT Greylisted, see x", "defer_if_permit", "450 4.7.1 Greylisted, see x"),
        ("DEFER_IF_PERMIT 5.2.0 x", "defer_if_permit", "450 4.2.0 x"),
        ("DEFER_IF_REJECT x", "defer_if_reject", "450 4.7.1 x"),
        ("552 5.2.2 Mailbox is full", "refuse", "552 5.2.2 Mailbox is full"),
        ("550", "refuse", "550 5.7.1 Access denied"),
        ("421 4.3.2 bye", "refuse", "421 4.3.2 bye"),
        ("451\tlater", "refuse", "451 4.7.1 later"),
        ("PREPEND X-Seen: yes", "prepend", ""),
        ("WARN look at this", "note", ""),
        ("INFO", "note", ""),
    ],
)
def test_an_action_has_its_verdict(action: str, kind: str, told: str) -> None:
    verdict = verdict_of(action)
    assert verdict.kind == kind
    assert (text_of(verdict.reply) if verdict.reply else "") == told
    if kind != "dunno":
        assert verdict.action == action


@pytest.mark.parametrize(
    "action",
    [
        "",
        "HOLD",
        "PERMIT",
        "DISCARD",
        "FILTER smtp:x",
        "REDIRECT a@b",
        "BCC a@b",
        "permit_mynetworks",
        "250 OK",
        "354",
        "600 x",
        "4500 x",
        "45x",
        "PREPEND",
        "PREPEND no field",
        "PREPEND X:",
        "PREPEND X Y: z",
        "PREPEND : z",
        "PREPEND X: y\rZ: z",
        "PREPEND X: y\0",
    ],
)
def test_any_other_action_is_an_error(action: str) -> None:
    with pytest.raises(PolicyUnavailable) as raised:
        verdict_of(action)
    assert raised.value.misconfigured


def test_the_field_is_as_the_server_wrote_it() -> None:
    verdict = verdict_of("PREPEND Received-SPF: Pass (mailfrom) client-ip=192.0.2.1")
    assert verdict == PolicyVerdict.prepend("Received-SPF: Pass (mailfrom) client-ip=192.0.2.1")


def fed(*pieces: bytes) -> tuple[str | None, bytes]:
    parser = AnswerParser()
    action = None
    for piece in pieces:
        assert action is None
        action = parser.feed(piece)
    return action, parser.rest


@pytest.mark.parametrize(
    "octets", [b"action=OK\n\n", b"action=OK\r\n\r\n", b"reason=x=y\naction=OK\n\n", b"action= OK \n\r\n"]
)
def test_an_answer_is_the_same_however_it_is_split(octets: bytes) -> None:
    assert fed(octets) == ("OK", b"")
    for split in range(1, len(octets)):
        assert fed(octets[:split], octets[split:]) == ("OK", b"")
    assert fed(*(octets[i : i + 1] for i in range(len(octets)))) == ("OK", b"")


def test_octets_after_the_answer_are_left() -> None:
    assert fed(b"action=OK\n\nmore") == ("OK", b"more")


def test_the_longest_answer_and_one_octet_more() -> None:
    def answer(octets: int) -> bytes:
        return b"action=" + b"x" * (octets - 9) + b"\n\n"

    assert len(fed(answer(MAX_ANSWER_OCTETS))[0] or "") == MAX_ANSWER_OCTETS - 9
    with pytest.raises(PolicyUnavailable, match="more than 16384 octets"):
        fed(answer(MAX_ANSWER_OCTETS + 1))


def test_octets_that_are_no_utf_8_are_replaced() -> None:
    assert fed(b"action=REJECT \xff\n\n")[0] == "REJECT \N{REPLACEMENT CHARACTER}"
