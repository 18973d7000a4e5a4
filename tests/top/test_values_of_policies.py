"""What a session policy is told and may answer is checked when it is made."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from twisted_smtpguard import Peer, Reply
from twisted_smtpguard.policyvalues import PolicyRequest, PolicyVerdict
from twisted_smtpguard.replies import POLICY_DEFERRED, POLICY_REFUSED

PEER = Peer(ip_address("192.0.2.1"), 1, None, None)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PolicyVerdict("maybe"),
        lambda: PolicyVerdict("dunno", POLICY_REFUSED),
        lambda: PolicyVerdict("dunno", text=1),
        lambda: PolicyVerdict("refuse"),
        lambda: PolicyVerdict.refuse("554 no"),  # type: ignore[arg-type]
        lambda: PolicyVerdict.refuse(Reply(250, "2.0.0", ("OK",))),
        lambda: PolicyVerdict.refuse(Reply(600, "", ("OK",))),
        lambda: PolicyVerdict.refuse(Reply(550, "", ("x",) * 11)),
        lambda: PolicyVerdict.defer_if_permit(POLICY_REFUSED),
        lambda: PolicyVerdict.defer_if_reject(POLICY_REFUSED),
        lambda: PolicyVerdict.note("x", action=1),  # type: ignore[arg-type]
    ],
)
def test_a_verdict_that_is_none_is_a_value_error(make: Any) -> None:
    with pytest.raises(ValueError):
        make()


@pytest.mark.parametrize(
    "field",
    [
        "",
        "X",
        "X:",
        "X: ",
        ": y",
        "X y: z",
        "X: y\n",
        "X: y\r\nZ: z",
        "X: y\rz",
        "X: \0",
        "é: x",
        "X\t: y",
        f"{'x' * 77}: y",
    ],
)
def test_what_is_no_header_field_is_prepended_by_nobody(field: str) -> None:
    with pytest.raises(ValueError, match="one header field"):
        PolicyVerdict.prepend(field)


@pytest.mark.parametrize("field", ["X: y", "X:y", "X-Seen: a\tb", "X: grün", f"{'x' * 76}: {'y ' * 5000}"])
def test_a_header_field_is_one(field: str) -> None:
    assert PolicyVerdict.prepend(field).text == field


def test_verdicts_that_differ_in_the_words_for_the_log_are_equal() -> None:
    assert PolicyVerdict.refuse(POLICY_REFUSED, "REJECT") == PolicyVerdict.refuse(POLICY_REFUSED, "reject")
    assert PolicyVerdict.defer_if_permit(POLICY_DEFERRED) != PolicyVerdict.defer_if_reject(POLICY_DEFERRED)


def test_a_request_has_one_of_the_stages() -> None:
    with pytest.raises(ValueError, match="stage must be one of connect, helo"):
        PolicyRequest(stage="RCPT", peer=PEER, instance="1")
    with pytest.raises(TypeError, match="instance must be a str"):
        PolicyRequest(stage="rcpt", peer=PEER, instance=1)  # type: ignore[arg-type]
