"""docs/explanation/ names what there is, and says of no protection that it is on where it is off."""

from __future__ import annotations

import ast
import re

from documents import DOCS, ROOT
from test_docs import NAMES

from twisted_smtpguard.limits import Limits

ARCHITECTURE = (DOCS / "explanation" / "architecture.md").read_text()
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


def test_every_option_of_the_explanation_of_security_exists() -> None:
    assert set(re.findall(r"`--([a-z0-9-]+)", SECURITY)) - NAMES == set()


def rows() -> list[tuple[str, str]]:
    """Each attack, and what its protection needs."""
    return re.findall(r"^\| ([^|]+) \| [^|]+ \| ([^|]+) \|$", SECURITY, re.MULTILINE)[1:]


def test_what_needs_the_edge_is_what_the_edge_changes() -> None:
    seen = set()
    for attack, needs in rows():
        for option in re.findall(r"`--([a-z-]+)(?: \w+)?`", needs):
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
