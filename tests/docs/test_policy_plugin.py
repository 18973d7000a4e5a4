"""The template of a session policy that anybody can copy, and the how-tos around it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commandline import parsed
from documents import ROOT, blocks
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock

from twisted_smtpguard import DiscardDelivery
from twisted_smtpguard.cli.policyoptions import policies_of
from twisted_smtpguard.testing import FakePolicy, Guard

TEMPLATE = ROOT / "docs" / "examples" / "policy_plugin"
HOW_TO = ROOT / "docs" / "how-to" / "write-a-session-policy.md"
SERVERS = ROOT / "docs" / "how-to" / "use-policy-servers.md"


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A copy: Twisted writes a cache beside the plugins that it sees."""
    unwanted = shutil.ignore_patterns("__pycache__", "dropin.cache")
    return Path(shutil.copytree(TEMPLATE, tmp_path / "template", ignore=unwanted))


def python(template: Path, *words: str, status: int = 0) -> str:
    """What a Python that sees the source of `template` says."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=template,
        env={**os.environ, "PYTHONPATH": str(template / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_its_own_tests_pass(template: Path) -> None:
    told = python(template, "-m", "twisted.trial", *map(str, (template / "tests").glob("test_*.py")))
    assert re.search(r"^PASSED \(successes=[1-9]", told, re.MULTILINE), told


def test_its_tests_hold_the_policy_to_the_contract() -> None:
    (test,) = (TEMPLATE / "tests").glob("test_*.py")
    assert "await check_policy(" in test.read_text()


def test_importing_its_plugin_chooses_no_reactor(template: Path) -> None:
    (plugin,) = (template / "src" / "twisted" / "plugins").glob("*.py")
    check = f"import runpy, sys; runpy.run_path({str(plugin)!r}); print('twisted.internet.reactor' in sys.modules)"
    assert python(template, "-c", check) == "False\n"


def test_twist_finds_describes_and_makes_it(template: Path) -> None:
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


def test_the_folders_that_belong_to_twisted_have_no_init() -> None:
    folders = [TEMPLATE / "src" / "twisted", TEMPLATE / "src" / "twisted" / "plugins"]
    assert [folder for folder in folders if not folder.is_dir() or (folder / "__init__.py").exists()] == []


def test_the_code_of_the_how_to_is_that_of_the_files() -> None:
    shown = re.findall(r"<!-- docs/(\S+) -->\n```\w+\n(.*?)```", HOW_TO.read_text(), re.DOTALL)
    assert len(shown) == 3
    for path, text in shown:
        assert text == (ROOT / "docs" / path).read_text(), path


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
