"""docs/reference/policies.md has every stage, key, action and attribute, and no other."""

from __future__ import annotations

import re
from ipaddress import ip_address

import pytest
from documents import DOCS, section

from twisted_smtpguard import Peer, PolicyRequest
from twisted_smtpguard.cli.policyoptions import _PARSERS
from twisted_smtpguard.policies.answers import verdict_of
from twisted_smtpguard.policies.attributes import attributes
from twisted_smtpguard.policyvalues import POLICY_STAGES, PolicyUnavailable
from twisted_smtpguard.replies import text_of

PAGE = DOCS / "reference" / "policies.md"
REQUEST = PolicyRequest(stage="rcpt", peer=Peer(ip_address("192.0.2.1"), 1, None, None), instance="1")


def first_column(title: str) -> list[str]:
    rows = re.findall(r"(?m)^\| (`[^|]*`) \|", section(PAGE, title))
    return [word for row in rows for word in re.findall(r"`([^`]*)`", row)]


def test_the_stages() -> None:
    assert first_column("Stages") == [*POLICY_STAGES]


def test_the_keys() -> None:
    assert re.findall(r"(?m)^\| `([a-z-]+)` \|", PAGE.read_text().partition("## Stages")[0]) == [*_PARSERS]


def test_the_attributes_in_their_order() -> None:
    assert first_column("Attributes") == [name for name, _ in attributes(REQUEST)]


ACTIONS = [
    action.replace("[text]", "").replace("xx", "50").replace("Name: value", "X-Name: value").strip()
    for action in first_column("Actions")
]


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_of_the_page_is_one(action: str) -> None:
    verdict_of(action)


def test_the_page_has_every_action() -> None:
    kinds = {verdict_of(action).kind for action in ACTIONS}
    assert kinds == {"dunno", "ok", "refuse", "defer_if_permit", "defer_if_reject", "prepend", "note"}
    with pytest.raises(PolicyUnavailable):
        verdict_of("HOLD")


def test_the_texts_are_those_of_the_catalogue() -> None:
    text = section(PAGE, "Actions")
    for action in ("REJECT", "DEFER"):
        reply = verdict_of(action).reply
        assert reply is not None
        code, enhanced, words = text_of(reply).split(" ", 2)
        assert re.search(rf"`{action} \[text\]` \| `{code} {enhanced}`, with the text or `{words}`", text)
