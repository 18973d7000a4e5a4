"""Delivery status notifications (RFC 3461): their parameters, where they are offered, and that they are handed on."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import FakeDelivery, Guard

from twisted_smtpguard import replies
from twisted_smtpguard.engine.grammar import parse_mail, parse_rcpt
from twisted_smtpguard.interfaces import Refused

DSN = frozenset({"DSN"})


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("RET=FULL", {"RET": "FULL"}),
        ("ret=hdrs", {"RET": "HDRS"}),
        ("ENVID=Ab+2Bc", {"ENVID": "Ab+2Bc"}),
        ("envid=x ret=full", {"ENVID": "x", "RET": "FULL"}),
        (f"ENVID={'e' * 100}", {"ENVID": "e" * 100}),
    ],
)
def test_what_mail_may_have(text: str, parameters: dict[str, str]) -> None:
    assert parse_mail(f"FROM:<a@b> {text}".encode(), DSN).parameters == parameters


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("NOTIFY=NEVER", {"NOTIFY": "NEVER"}),
        ("notify=success,Delay", {"NOTIFY": "SUCCESS,DELAY"}),
        ("NOTIFY=FAILURE", {"NOTIFY": "FAILURE"}),
        # RFC 3461 4.1 wants a list, and NEVER by itself; that each stands in it once it does not say.
        ("NOTIFY=SUCCESS,SUCCESS", {"NOTIFY": "SUCCESS"}),
        ("NOTIFY=delay,SUCCESS,Delay", {"NOTIFY": "DELAY,SUCCESS"}),
        ("ORCPT=rfc822;A+40b", {"ORCPT": "rfc822;A+40b"}),
        (f"ORCPT=rfc822;{'o' * 493}", {"ORCPT": f"rfc822;{'o' * 493}"}),
        (
            "ORCPT=utf-8;x NOTIFY=SUCCESS,FAILURE,DELAY",
            {"ORCPT": "utf-8;x", "NOTIFY": "SUCCESS,FAILURE,DELAY"},
        ),
    ],
)
def test_what_rcpt_may_have(text: str, parameters: dict[str, str]) -> None:
    assert parse_rcpt(f"TO:<a@b> {text}".encode(), DSN, utf8=False).parameters == parameters


@pytest.mark.parametrize(
    "text",
    [
        "RET",
        "RET=",
        "RET=ALL",
        "ENVID",
        "ENVID=a+2",
        "ENVID=a+2b",
        f"ENVID={'e' * 101}",
        "RET=FULL RET=FULL",
        "ENVID=a+0Ab",
        "ENVID=a+7Fb",
        # Upper case makes ASCII of these letters.
        "RET=HDR\u017f",
    ],
)
def test_a_bad_value_at_mail(text: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_mail(f"FROM:<a@b> {text}".encode(), DSN)
    assert refused.value.reply is replies.BAD_ARGUMENTS


@pytest.mark.parametrize(
    "text",
    [
        "NOTIFY",
        "NOTIFY=",
        "NOTIFY=NEVER,DELAY",
        "NOTIFY=DELAY,NEVER",
        "NOTIFY=SUCCESS,FAILURE,NEVER",
        "NOTIFY=NEVER,NEVER",
        "NOTIFY=SUCCESS,",
        "NOTIFY=ALWAYS",
        "ORCPT=a@b",
        "ORCPT=;a",
        "ORCPT=a;",
        f"ORCPT=rfc822;{'o' * 494}",
        f"ORCPT=rfc822;{'+40' * 165}",
        # No list is longer than there are keywords.
        "NOTIFY=SUCCESS,FAILURE,DELAY,SUCCESS",
        # RFC 3461 4: the digits are upper case.
        "ORCPT=rfc822;a+4ab",
        "ORCPT=rfc822;a+0a",
        # What would end a line wherever the address is shown.
        "ORCPT=rfc822;a+0Db",
        "ORCPT=rfc822;a+0Ab",
        "ORCPT=rfc822;a+00b",
        "ORCPT=rfc822;a+7Fb",
        "ORCPT=utf-8;a+0Ab",
        "ORCPT=utf-8;a\\x{A}b",
        "ORCPT=utf-8;a\\x{0A}b",
        "ORCPT=utf-8;a\\x{7F}b",
        "ORCPT=utf-8;a\\x{85}b",
        # No code points, or not in the form of RFC 6533 3.
        "ORCPT=utf-8;a\\x{D800}b",
        "ORCPT=utf-8;a\\x{110000}b",
        "ORCPT=utf-8;a\\x{00E9}b",
        "ORCPT=utf-8;a\\x{E9b",
        "ORCPT=utf-8;a\\b",
        "ORCPT=utf-8;",
        # Without SMTPUTF8.
        "ORCPT=utf-8;j\u00f6rg@b",
        "NOTIFY=\u017fUCCESS",
    ],
)
def test_a_bad_value_at_rcpt(text: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_rcpt(f"TO:<a@b> {text}".encode(), DSN, utf8=False)
    assert refused.value.reply is replies.BAD_ARGUMENTS


@pytest.mark.parametrize(
    "value",
    [
        "utf-8;j\u00f6rg@b\u00fccher.example",
        "UTF-8;\U0001f600@b",
        "utf-8;j\\x{F6}rg@b",
        "utf-8;j\\x{f6}rg+40b",
        "utf-8;\\x{1F600}\\x{10FFFF}\\x{2B}\\x{5C}",
        "utf-8;" + "\u00f6" * 247,
    ],
)
def test_under_smtputf8_an_original_recipient_may_be_utf_8_as_it_is(value: str) -> None:
    assert parse_rcpt(f"TO:<a@b> ORCPT={value}".encode(), DSN, utf8=True).parameters == {"ORCPT": value}


@pytest.mark.parametrize(
    "text",
    [
        "ORCPT=rfc822;j\u00f6rg@b",
        "NOTIFY=\u017fUCCESS",
        "ORCPT=utf-8;a\u0085b",
        "ORCPT=utf-8;a\u2028b",
        "ORCPT=utf-8;" + "\u00f6" * 248,
    ],
)
def test_under_smtputf8_nothing_else_may_be(text: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_rcpt(f"TO:<a@b> {text}".encode(), DSN, utf8=True)
    assert refused.value.reply is replies.BAD_ARGUMENTS


def refusal(extensions: set[str], *lines: str) -> str:
    delivery: Any = FakeDelivery()
    delivery.extensions = frozenset(extensions)
    said: str = Guard(delivery).greeted().say(*lines)
    return said.splitlines()[-1]


@pytest.mark.parametrize(
    ("extensions", "lines"),
    [
        (set(), ["MAIL FROM:<a@b> RET=FULL"]),
        (set(), ["MAIL FROM:<a@b> ENVID=x"]),
        (set(), ["MAIL FROM:<a@b>", "RCPT TO:<a@b> NOTIFY=NEVER"]),
        ({"DSN"}, ["MAIL FROM:<a@b> NOTIFY=NEVER"]),
        ({"DSN"}, ["MAIL FROM:<a@b> DSN"]),
        ({"DSN"}, ["MAIL FROM:<a@b>", "RCPT TO:<a@b> RET=FULL"]),
        ({"DSN"}, ["MAIL FROM:<a@b>", "RCPT TO:<a@b> SIZE=1"]),
        ({"DSN", "8BITMIME"}, ["MAIL FROM:<a@b>", "RCPT TO:<a@b> BODY=7BIT"]),
    ],
)
def test_what_was_not_offered_or_belongs_elsewhere_is_refused(extensions: set[str], lines: list[str]) -> None:
    assert refusal(extensions, *lines) == "555 5.5.4 Unsupported parameter"


def test_a_delivery_that_carries_them_is_given_them() -> None:
    delivery: Any = FakeDelivery()
    delivery.extensions = DSN
    client = Guard(delivery).greeted()
    client.say("MAIL FROM:<a@b> RET=HDRS ENVID=x", "RCPT TO:<a@b> NOTIFY=DELAY ORCPT=rfc822;c", "DATA")
    client.say("x", ".")
    (mail,) = delivery.messages
    assert mail.sender.parameters == {"RET": "HDRS", "ENVID": "x"}
    assert mail.recipients[0].parameters == {"NOTIFY": "DELAY", "ORCPT": "rfc822;c"}
