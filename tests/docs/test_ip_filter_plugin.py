"""The template of an IP filter that anybody can copy, and the how-to around it.

Whether `twist` finds it once it is installed is a test in test_packaging.py.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from twisted_smtpguard import DiscardDelivery, NetworksFilter

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "docs" / "examples" / "ip_filter_plugin"
HOW_TO = ROOT / "docs" / "how-to" / "write-an-ip-filter.md"


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A copy: Twisted writes a cache beside the plugins that it sees."""
    unwanted = shutil.ignore_patterns("__pycache__", "dropin.cache")
    return Path(shutil.copytree(TEMPLATE, tmp_path / "template", ignore=unwanted))


def python(template: Path, *words: str) -> str:
    """What a Python that sees the source of `template` says. It has to succeed."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=template,
        env={**os.environ, "PYTHONPATH": str(template / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_own_tests_pass(template: Path) -> None:
    tests = [str(path) for path in (template / "tests").glob("test_*.py")]
    told = python(template, "-m", "twisted.trial", *tests)
    assert re.search(r"^PASSED \(successes=[1-9]", told, re.MULTILINE), told


def test_its_tests_hold_the_filter_to_the_contract() -> None:
    (test,) = (TEMPLATE / "tests").glob("test_*.py")
    assert "await check_filter(self.filter)" in test.read_text()


def test_importing_its_plugin_chooses_no_reactor(template: Path) -> None:
    # Importing one that does would take --reactor out of the operator's hands.
    (plugin,) = (template / "src" / "twisted" / "plugins").glob("*.py")
    check = f"import runpy, sys; runpy.run_path({str(plugin)!r}); print('twisted.internet.reactor' in sys.modules)"
    assert python(template, "-c", check) == "False\n"


def test_the_folders_that_belong_to_twisted_have_no_init() -> None:
    folders = [TEMPLATE / "src" / "twisted", TEMPLATE / "src" / "twisted" / "plugins"]
    assert [folder for folder in folders if not folder.is_dir() or (folder / "__init__.py").exists()] == []


def test_the_code_of_the_how_to_is_that_of_the_files() -> None:
    shown = re.findall(r"<!-- docs/(\S+) -->\n```\w+\n(.*?)```", HOW_TO.read_text(), re.DOTALL)
    assert len(shown) == 3
    for path, text in shown:
        assert text == (ROOT / "docs" / path).read_text(), path


def test_an_application_gives_its_filters_to_the_service_as_the_how_to_says() -> None:
    (code,) = re.findall(r"```python\n(from twisted_smtpguard import .*?)```", HOW_TO.read_text(), re.DOTALL)
    names: dict[str, Any] = {
        "reactor": Clock(),
        "endpoints": [],
        "delivery": DiscardDelivery(),
        "MyFilter": NetworksFilter,
        "AnotherFilter": NetworksFilter,
    }
    exec(code, names)
    entries = names["service"].factory.filters
    assert [entry.fail_open for entry in entries] == [True, False]


def test_every_file_that_the_how_to_links_to_exists() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", HOW_TO.read_text())
    assert links != []
    assert [link for link in links if not (HOW_TO.parent / link).exists()] == []
