"""What holds for each template of a plug-in that anybody can copy, and for the how-to around it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from documents import ROOT
from plugintemplate import EXAMPLES, copied, python

CONTRACTS = {"ip_filter_plugin": "await check_filter(self.filter)", "policy_plugin": "await check_policy("}
HOW_TOS = {"ip_filter_plugin": "write-an-ip-filter.md", "policy_plugin": "write-a-session-policy.md"}

each = pytest.mark.parametrize("name", sorted(HOW_TOS))


def how_to(name: str) -> Path:
    return ROOT / "docs" / "how-to" / HOW_TOS[name]


@each
def test_its_own_tests_pass(name: str, tmp_path: Path) -> None:
    template = copied(name, tmp_path)
    told = python(template, "-m", "twisted.trial", *map(str, (template / "tests").glob("test_*.py")))
    assert re.search(r"^PASSED \(successes=[1-9]", told, re.MULTILINE), told


@each
def test_its_tests_hold_it_to_the_contract(name: str) -> None:
    (test,) = (EXAMPLES / name / "tests").glob("test_*.py")
    assert CONTRACTS[name] in test.read_text()


@each
def test_importing_its_plugin_chooses_no_reactor(name: str, tmp_path: Path) -> None:
    # Importing one that does would take --reactor out of the operator's hands.
    template = copied(name, tmp_path)
    (plugin,) = (template / "src" / "twisted" / "plugins").glob("*.py")
    check = f"import runpy, sys; runpy.run_path({str(plugin)!r}); print('twisted.internet.reactor' in sys.modules)"
    assert python(template, "-c", check) == "False\n"


@each
def test_the_folders_that_belong_to_twisted_have_no_init(name: str) -> None:
    source = EXAMPLES / name / "src"
    folders = [source / "twisted", source / "twisted" / "plugins"]
    assert [folder for folder in folders if not folder.is_dir() or (folder / "__init__.py").exists()] == []


@each
def test_the_code_of_the_how_to_is_that_of_the_files(name: str) -> None:
    shown = re.findall(r"<!-- docs/(\S+) -->\n```\w+\n(.*?)```", how_to(name).read_text(), re.DOTALL)
    assert len(shown) == 3
    for path, text in shown:
        assert text == (ROOT / "docs" / path).read_text(), path


@each
def test_every_file_that_the_how_to_links_to_exists(name: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", how_to(name).read_text())
    assert links != []
    assert [link for link in links if not (how_to(name).parent / link).exists()] == []
