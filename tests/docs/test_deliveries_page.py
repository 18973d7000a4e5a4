"""docs/reference/deliveries.md and the help of smtp: and lmtp: have every key, and the replies that there are."""

from __future__ import annotations

import re
from typing import Any

import pytest
from documents import DOCS, blocks, section
from examples import run_examples
from mailserver import MailServer
from twisted.internet.task import Clock

from twisted_smtpguard import AcceptedDomains, replies
from twisted_smtpguard.cli.plugins import builtin_deliveries
from twisted_smtpguard.delivery.lmtp import LmtpFactory
from twisted_smtpguard.delivery.smtp import SmtpFactory
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.upstream.parameters import _KEYS, ANNOUNCE, UpstreamOptions

PAGE = DOCS / "reference" / "deliveries.md"


def test_the_page_has_every_delivery() -> None:
    shown = re.findall(r"^\| `([a-z]+)(?::[^`]*)?` \|", PAGE.read_text().partition("\n## ")[0], re.MULTILINE)
    assert shown == [factory.name for factory in builtin_deliveries("h", Limits())]


def test_the_page_has_every_key_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| (.+?) \|", section(PAGE, "Keys"), re.MULTILINE))
    assert list(rows) == list(_KEYS)
    for key, field in _KEYS.items():
        default = getattr(UpstreamOptions(), field.name)
        if isinstance(default, int | float):
            assert rows[key] == f"{default:g}", key


def test_the_page_has_every_way_to_tell_of_the_client() -> None:
    shown = re.findall(r"^\| `([a-z0-9-]+)` \|", section(PAGE, "Who the client is"), re.MULTILINE)
    # The first is the head of the column.
    assert sorted(shown[1:]) == sorted(ANNOUNCE)


@pytest.mark.parametrize("factory", [SmtpFactory("h"), LmtpFactory("h")])
def test_the_help_has_every_key(factory: Any) -> None:
    told = set(re.findall(r"^([a-z-]+)=", factory.argument_format, re.MULTILINE))
    assert told == set(_KEYS) - ({"recipients"} if factory.name == "smtp" else set())
    assert r"\," in factory.argument_format
    assert r"\\," not in factory.argument_format
    assert max(map(len, factory.argument_format.splitlines())) <= 120


@pytest.mark.parametrize("factory", [SmtpFactory("h"), LmtpFactory("h")])
def test_the_help_tells_what_is_read_again(factory: Any) -> None:
    sentence = re.search(r"On SIGHUP ([^.]+)\.", factory.argument_format.replace("\n", " "))
    assert sentence is not None
    again, _, never = sentence[1].partition(";")
    assert set(re.findall(r"([a-z-]+)=", again)) == {"tls-ca", "auth"}
    assert "trustRoots=" in never


def test_the_page_has_every_failure_of_a_server() -> None:
    shown = set(re.findall(r"\| `(451 [^`]+)` \|", section(PAGE, "Connections")))
    there = {
        entry.reply.wire.decode().strip()
        for entry in replies.catalogue()
        if entry.name.startswith("UPSTREAM")
    }
    assert there - shown == {replies.UPSTREAM_CHANGED.wire.decode().strip()}
    assert shown <= there


def test_the_example_makes_a_guard_with_an_upstream_server(tmp_path: Any) -> None:
    assert len(blocks(PAGE, "python")) == 1
    _, (service,) = run_examples(PAGE, tmp_path)
    assert isinstance(service.factory.context.delivery, AcceptedDomains)


def test_what_is_no_endpoint_is_said_in_one_sentence() -> None:
    with pytest.raises(
        ValueError, match=r"^'nonsense:1' is no client endpoint such as tcp:127\.0\.0\.1:25 \("
    ):
        SmtpFactory("h").make_delivery("nonsense:1", Clock())
    assert MailServer().reachable
