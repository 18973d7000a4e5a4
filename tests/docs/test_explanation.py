"""docs/explanation/ names what there is, and says of no protection that it is on where it is off."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import DOCS, PAGES, ROOT, section
from test_docs import NAMES

from twisted_smtpguard.engine.commands import COMMANDS
from twisted_smtpguard.engine.grammar import plain_line
from twisted_smtpguard.engine.stages import Phase, Stage
from twisted_smtpguard.engine.table import STAGES
from twisted_smtpguard.limits.limits import Limits

ARCHITECTURE_PAGE = DOCS / "explanation" / "architecture.md"
ARCHITECTURE = ARCHITECTURE_PAGE.read_text()
SECURITY = (DOCS / "explanation" / "security.md").read_text()
PACKAGE = ROOT / "twisted_smtpguard"
SPECS = {spec.option: spec for spec in Limits.specs()}


def test_the_architecture_names_classes_that_there_are() -> None:
    named = set(re.findall(r"`([A-Z]\w*[a-z]\w*)`", ARCHITECTURE))
    trees = [ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")]
    there = {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    assert len(named) >= 15
    assert named - there == set()


def test_the_architecture_names_every_folder() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    linked = set(re.findall(r"twisted_smtpguard/(\w+)/__init__\.py", ARCHITECTURE))
    assert linked == folders


ROOMS = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
GROUND = {"interfaces", "authinterfaces", "storeinterfaces", "values", "policyvalues", "replies"}


def imported(path: Path) -> Iterator[str]:
    """The parts of the package that a file imports anywhere: rooms, and modules at the top."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith("twisted_smtpguard."):
                yield name.split(".")[1]


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_imports_no_more_than_the_architecture_says(room: str) -> None:
    (said,) = re.findall(rf"^\| \[{room}\]\([^)]+\) \| [^|]+ \| ([^|]+) \|$", ARCHITECTURE, re.MULTILINE)
    words = set(re.findall(r"\w+", said)) & (ROOMS | GROUND)
    allowed = (ROOMS | GROUND) - words if said.startswith("everything but") else words
    assert {part for path in (PACKAGE / room).rglob("*.py") for part in imported(path)} - allowed <= {room}


def test_the_engine_imports_nothing_of_twisted_and_neither_a_clock_nor_a_logger() -> None:
    trees = [ast.parse(path.read_text()) for path in (PACKAGE / "engine").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    tops = {str(name).partition(".")[0] for name in names}
    assert tops & {"twisted", "zope", "constantly", "time", "datetime", "logging"} == set()


def names_of_rows(title: str) -> list[str]:
    return re.findall(r"^\| `([A-Z_]+)` \|", section(ARCHITECTURE_PAGE, title), re.MULTILINE)


def test_the_architecture_has_every_stage_and_every_phase_in_their_order() -> None:
    assert names_of_rows("Stages") == [each.name for kind in (Stage, Phase) for each in kind]


def test_the_architecture_names_the_time_limit_of_every_stage_that_has_one_in_the_table() -> None:
    told = dict(
        re.findall(r"^\| `([A-Z_]+)` \| [^|]+ \| `--([a-z-]+)-timeout` \|$", ARCHITECTURE, re.MULTILINE)
    )
    timed = {
        stage.name: row.timeout.replace("_", "-")
        for stage, row in STAGES.items()
        # Where a hook is awaited, that of the client goes on without an effect.
        if row.timeout and not row.awaits_hook
    }
    assert timed.items() <= told.items()


def test_the_walk_of_a_newcomer_leads_to_what_it_names() -> None:
    walk = section(ARCHITECTURE_PAGE, "A newcomer's walk: where would I add a limit on HELO names?")
    steps = re.findall(r"`([\w/.]+):(\d+)`,[^`]*`([^`]+)`", walk)
    assert len(steps) == 5
    for path, number, name in steps:
        lines = (ROOT / path).read_text().splitlines()
        assert any(name in line for line in lines[max(0, int(number) - 40) : int(number) + 40]), (path, name)


def test_the_page_on_performance_names_the_verbs_of_a_plain_line() -> None:
    page = (DOCS / "explanation" / "performance.md").read_text()
    (said,) = re.findall(r"`grammar\.plain_line`\): ([^.]+)\.", page)
    verbs = {verb.decode() for verb in COMMANDS if plain_line(b"%b\r\n" % verb, 0) is not None}
    assert set(re.findall(r"\b[A-Z]{4}\b", said)) == verbs


def test_the_documents_name_modules_and_files_of_the_package_that_there_are() -> None:
    missing = []
    for page in PAGES:
        text = page.read_text()
        for name in re.findall(r"\b(twisted_smtpguard(?:\.[a-z]\w*)+)", text):
            parts = name.split(".")[1:]
            # What stands last may be a name in a module, or the ending of a file.
            if not any(
                (PACKAGE / Path(*some)).with_suffix(".py").exists() or (PACKAGE / Path(*some)).is_dir()
                for some in (parts, parts[:-1])
                if some
            ):
                missing.append((page.name, name))
        if page.parent.name == "explanation":
            for name in re.findall(r"`([a-z]+/[a-z]+\.py)`", text):
                if not (PACKAGE / name).exists():
                    missing.append((page.name, name))
    assert missing == []


def test_every_option_of_the_explanation_of_security_exists() -> None:
    assert set(re.findall(r"`--([a-z0-9-]+)", SECURITY)) - NAMES == set()


def rows() -> list[tuple[str, str]]:
    """Each attack, and what its protection needs."""
    return re.findall(r"^\| ([^|]+) \| [^|]+ \| ([^|]+) \|$", SECURITY, re.MULTILINE)[1:]


def test_what_needs_the_edge_is_what_the_edge_changes() -> None:
    seen = set()
    for attack, needs in rows():
        for option in re.findall(r"`--([a-z0-9-]+)(?: \w+)?`", needs):
            spec = SPECS[option]
            if f"`--{option}` is on" in needs:
                assert spec.default, attack
            else:
                assert needs.endswith(", edge"), attack
                assert spec.edge != spec.default, attack
                seen.add(option)
    assert len(rows()) >= 20
    # Of the edge's protections those that refuse somebody; a junk command is an error.
    quiet = {"greet-delay", "max-junk-commands"}
    assert {option for option, spec in SPECS.items() if spec.edge != spec.default} - quiet == seen
