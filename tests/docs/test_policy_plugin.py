"""The template of a session policy that anybody can copy, and the how-tos around it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from commandline import parsed
from documents import ROOT, blocks
from plugintemplate import copied, python
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock

from twisted_smtpguard import DiscardDelivery
from twisted_smtpguard.cli.policyoptions import policies_of
from twisted_smtpguard.testing import FakePolicy, Guard

HOW_TO = ROOT / "docs" / "how-to" / "write-a-session-policy.md"
SERVERS = ROOT / "docs" / "how-to" / "use-policy-servers.md"


def test_twist_finds_describes_and_makes_it(tmp_path: Path) -> None:
    template = copied("policy_plugin", tmp_path)
    twist = ("-m", "twisted", "smtpguard")
    assert "user-quota  Limit the recipients of each user" in python(template, *twist, "--help-policies")
    assert "RECIPIENTS/SECONDS, such as 500/3600." in python(template, *twist, "--help-policy=user-quota")
    told = python(template, *twist, "--policy-plugin=user-quota:x", "--deliver=discard", status=64)
    assert told == "--policy-plugin: user-quota needs RECIPIENTS/SECONDS, such as 500/3600, not 'x'\n"
    told = python(template, *twist, "--policy-plugin=greylist:x", "--deliver=discard", status=64)
    assert told == "--policy-plugin: there is no session policy called 'greylist'; known are user-quota\n"
    told = python(
        template, *twist, "--policy-plugin=name=q:fail-open:user-quota:5/60", "--deliver=discard", "--check"
    )
    assert "no mistake" in told
    # Its argument may have a key in it.
    assert "name=q:fail-open:user-quota" in told
    assert "5/60" not in told


def test_the_shortest_policy_does_what_the_page_says() -> None:
    names: dict[str, Any] = {}
    exec(blocks(HOW_TO, "python")[0], names)
    client = Guard(policies=[names["NoBounces"]()]).greeted()
    assert client.codes("MAIL FROM:<>") == [550]
    assert client.codes("MAIL FROM:<a@b.example>") == [250]


def test_an_application_gives_its_policies_to_the_service_as_the_how_to_says() -> None:
    clock = Clock()
    names: dict[str, Any] = {
        "reactor": clock,
        "endpoints": [],
        "delivery": DiscardDelivery(),
        "MyPolicy": FakePolicy,
        "policy_endpoint": HostnameEndpoint(MemoryReactorClock(), "localhost", 1),
    }
    exec(blocks(HOW_TO, "python")[1], names)
    entries = names["service"].factory.policies
    assert [(entry.fail_open, entry.timeout, entry.strangers_only) for entry in entries] == [
        (True, 2, True),
        (False, None, False),
    ]


def test_the_command_lines_of_the_how_to_for_servers_are_understood() -> None:
    shown = [
        line.partition("smtpguard ")[2].split()
        for block in blocks(SERVERS, "text")
        for line in block.splitlines()
        if line.startswith("twist ")
    ]
    assert len(shown) == 4
    for words in shown:
        options = parsed(*words)
        (entry,) = policies_of(options.given, options.limits, MemoryReactorClock())
        assert entry.stages == {"rcpt"}
        assert entry.name in ("greylist", "spf", "quota")


def test_postgrey_listens_as_installed_where_the_how_to_has_the_guard_ask() -> None:
    options = Path("/etc/default/postgrey")
    if not options.exists():
        pytest.skip("postgrey is not installed")
    (port,) = re.findall(r'^POSTGREY_OPTS="--inet=(\d+)"$', options.read_text(), re.MULTILINE)
    assert f"rcpt=tcp:127.0.0.1:{port},strangers-only=yes" in SERVERS.read_text()
