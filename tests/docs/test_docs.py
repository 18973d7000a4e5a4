"""The documents: examples that run, links that lead somewhere, a how-to with every limit.

Their commands are run in test_shown_commands.py, all of their Python in test_shown_python.py.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import attrs
import pytest
from certificates import CERTIFICATE
from commandline import parsed
from documents import DOCS, PAGES, ROOT, blocks, name_of, options, section
from examples import run_examples
from twisted.internet.testing import MemoryReactorClock

import twisted_smtpguard
from twisted_smtpguard import (
    PASS,
    TRUST,
    Client,
    DiscardDelivery,
    Envelope,
    FilterEntry,
    Limits,
    Peer,
    Rate,
    refuse,
    replies,
)
from twisted_smtpguard.cli.helptext import OPTIONS
from twisted_smtpguard.cli.options import make_service
from twisted_smtpguard.filters.networklist import read_table
from twisted_smtpguard.interfaces import IIPFilter
from twisted_smtpguard.limits.limits import LimitSpec, dry_runnable

HOW_TO = DOCS / "how-to" / "limit-connections-and-abuse.md"
EMBEDDING = DOCS / "how-to" / "embed-in-a-twisted-application.md"
LIMITS = DOCS / "reference" / "limits.md"
FILTERS = DOCS / "reference" / "filters.md"
LIST = "/etc/smtpguard/networks"
"""Where the documents say that a list of networks lies."""

SPECS = list(Limits.specs())
NAMES = {*OPTIONS, *(spec.option for spec in SPECS)}


each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


# Links.


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub makes anchors of them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@each_page
def test_every_link_leads_to_a_file_of_the_project_and_a_heading_of_it(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        there = (page.parent / path).resolve() if path else page
        if ROOT not in there.parents or not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(link)
    assert broken == []


@each_page
def test_a_page_leads_nowhere_that_can_go_away_without_the_project(page: Path) -> None:
    # Of RFCs and other projects the names say enough. In code an address is an example.
    prose = re.sub(r"^```.*?^```$|`[^`\n]+`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"\b\w+://\S+|\bwww\.\S+", prose) == []


def test_the_map_of_the_documents_leaves_none_out() -> None:
    linked = {
        (DOCS / link).resolve() for link in re.findall(r"\]\(([^)#]+)\)", (DOCS / "README.md").read_text())
    }
    pages = {page for page in DOCS.rglob("*.md") if "examples" not in page.parts} - {DOCS / "README.md"}
    assert pages - linked == set()


# Commands.


@each_page
def test_options_of_a_command_are_spelled_in_full(page: Path) -> None:
    # An abbreviation is understood, too.
    shown = {word[2:].split("=")[0] for words in options(page) for word in words if word.startswith("--")}
    assert shown <= NAMES


@each_page
def test_a_config_file_that_is_shown_is_understood(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "ini"):
        if not re.search(r"^\[", block, re.MULTILINE):
            path = tmp_path / "guard.conf"
            path.write_text(block)
            parsed("--config", str(path))


@each_page
def test_a_list_of_networks_that_is_shown_is_understood(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "text"):
        if re.search(r"^(trust|deny|allow) ", block, re.MULTILINE):
            path = tmp_path / "networks"
            path.write_text(block)
            read_table(path)


# Python.


def test_the_profile_is_shown_as_a_command_a_file_and_an_application_that_ask_for_the_same(
    tmp_path: Path,
) -> None:
    _, services = run_examples(HOW_TO, tmp_path)
    path = tmp_path / "guard.conf"
    path.write_text(blocks(HOW_TO, "ini")[0])
    (command,) = (words for words in options(HOW_TO) if "--show-limits" in words)
    command.remove("--show-limits")
    assert services[0].factory.context.limits == parsed(*command).limits
    assert services[0].factory.context.limits == parsed("--config", str(path)).limits


def test_known_networks_are_shown_as_commands_and_as_an_application_that_ask_for_the_same(
    tmp_path: Path,
) -> None:
    _, services = run_examples(HOW_TO, tmp_path)
    fixed, listed = (entry.filter for entry in services[1].factory.filters)
    (command,) = (parsed(*words) for words in options(HOW_TO) if "--deny" in words)
    command["deliver"] = "discard"
    command.postOptions()
    (asked,) = make_service(command, MemoryReactorClock()).factory.admission.chain.entries
    addresses = ["203.0.113.1", "203.0.113.25", "2001:db8:1::1", "192.0.2.1"]
    peers = [Peer(ip_address(each), 1, None, None, tls=False, proxied=False) for each in addresses]
    verdicts = [fixed.check(peer) for peer in peers]
    assert verdicts == [asked.filter.check(peer) for peer in peers] == [refuse(), TRUST, TRUST, PASS]
    assert listed.check(peers[3]) == refuse()


def test_the_filter_for_unix_sockets_trusts_their_peers_and_no_others(tmp_path: Path) -> None:
    names, _ = run_examples(HOW_TO, tmp_path)
    trust_local = names["TrustLocal"]()
    assert IIPFilter.providedBy(trust_local)
    unix = Peer(None, None, None, None, tls=False, proxied=False)
    assert trust_local.check(unix) == TRUST
    assert trust_local.check(attrs.evolve(unix, address=ip_address("127.0.0.1"))) == PASS


# Every limit.


def rows() -> dict[str, tuple[str, str, str]]:
    """Of each limit in the how-to: its option with a value, its library form, and what the client hears."""
    found = {}
    for option, library, hears in re.findall(
        r"^\| `(--[^`]+)` \| `(Limits\([^`]+\))` \| (.+) \|$", HOW_TO.read_text(), re.MULTILINE
    ):
        name = option.removeprefix("--").split()[0]
        assert name not in found, f"{name} stands twice"
        found[name] = (option, library, hears)
    return found


def test_the_how_to_has_every_limit_once() -> None:
    assert set(rows()) == {spec.option for spec in SPECS}
    lines = [line for line in HOW_TO.read_text().splitlines() if line.startswith("| `")]
    assert len(lines) == len(SPECS)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_the_how_to_gives_a_limit_the_same_value_on_the_command_line_and_in_an_application(
    spec: LimitSpec,
) -> None:
    option, library, _ = rows()[spec.option]
    assert re.findall(r"\w+(?==)", library) == [spec.name]
    asked: Limits = eval(library, {"Limits": Limits, "Rate": Rate})
    assert getattr(asked, spec.name)
    assert parsed(*option.split()).limits == asked


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_the_how_to_says_what_the_client_hears(spec: LimitSpec) -> None:
    texts = [getattr(replies, name).wire.decode().strip() for name in spec.replies]
    _, _, hears = rows()[spec.option]
    assert hears == ("<br>".join(f"`{text}`" for text in texts) or "nothing")


def test_an_option_that_is_named_in_a_document_exists() -> None:
    for page in [HOW_TO, LIMITS, FILTERS]:
        named = set(re.findall(r"`--([a-z0-9-]+)", page.read_text()))
        assert named - NAMES - {"log-level", "log-file", "log-format"} == set(), name_of(page)


def test_the_limits_that_can_be_in_dry_run_are_listed() -> None:
    listed = section(LIMITS, "Trying a limit").split("\n\n")[1]
    words = re.findall(r"`([a-z0-9-]+)`", listed)
    assert sorted(words) == sorted(name.replace("_", "-") for name in dry_runnable())


def test_the_limits_that_do_not_hold_for_trusted_clients_are_the_same_in_both_documents() -> None:
    exempt = re.findall(r"`--([a-z-]+)`", section(LIMITS, "Trusted clients").split("\n\n")[1])
    told = re.findall(
        r"`--([a-z-]+)`",
        HOW_TO.read_text()
        .partition("**Whom you trust** is exempt from")[2]
        .partition("and from nothing else")[0],
    )
    assert exempt == told
    assert len(exempt) == 13


# What a filter is told.


def test_the_reference_of_filters_has_every_field_of_a_peer_and_of_an_entry() -> None:
    for title, kind in (("What a filter is told", Peer), ("In an application", FilterEntry)):
        fields = re.findall(r"^\| `(\w+)` \|", section(FILTERS, title), re.MULTILINE)
        assert fields == [field.name for field in attrs.fields(kind)]


def test_the_how_to_of_filters_has_every_field_of_a_peer() -> None:
    contract = section(DOCS / "how-to" / "write-an-ip-filter.md", "The contract")
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \|", contract, re.MULTILINE)
    assert re.findall(r"`(\w+)`", "".join(rows)) == [field.name for field in attrs.fields(Peer)]


def test_the_how_to_has_every_field_of_an_envelope() -> None:
    rows = re.findall(
        r"^\| `(?:envelope\.)?(\w+)` \|", section(EMBEDDING, "What an Envelope tells"), re.MULTILINE
    )
    fields = [
        field.name for kind in (Envelope, twisted_smtpguard.Path, Client) for field in attrs.fields(kind)
    ]
    # What one begins with stands first in the page.
    assert sorted(rows) == sorted(fields)


@pytest.mark.parametrize("page", sorted((DOCS / "how-to").glob("*.md")), ids=name_of)
def test_a_how_to_begins_with_what_to_type_and_explains_after_that(page: Path) -> None:
    before, block, _ = page.read_text().partition("```")
    assert block
    # Not what says where commands are typed, nor headings and what no reader sees.
    before = re.sub(r"(?s)Commands are typed in a clone .*?activate`\.|<!--.*?-->|\]\(\S+\)", "", before)
    assert len(re.sub(r"(?m)^#.*$", "", before).split()) <= 60


# TLS and AUTH.


def test_the_example_of_tls_and_auth_is_a_submission_service(tmp_path: Path) -> None:
    (block,) = blocks_of(EMBEDDING, "TLS and AUTH")
    (tmp_path / "users").write_text("ann:secret\n")
    names: dict[str, Any] = {"reactor": MemoryReactorClock(), "delivery": DiscardDelivery()}
    exec(
        block.replace("/etc/smtpguard/guard.pem", str(CERTIFICATE)).replace("/etc/smtpguard", str(tmp_path)),
        names,
    )
    site = names["service"].factory.context
    assert (site.starttls, site.require_tls, site.require_auth) == (True, True, True)
    names["service"].startService()
    assert [port for port, *_ in names["reactor"].tcpServers] == [587, 465]


def blocks_of(page: Path, title: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", section(page, title), re.MULTILINE | re.DOTALL)
