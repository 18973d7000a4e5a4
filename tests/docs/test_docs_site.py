"""The docs site builds with the command that the documents give, in a fresh environment, and hangs together."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import attrs
import pytest
from documents import ROOT, commands
from zope.interface.interface import InterfaceClass

import twisted_smtpguard
from twisted_smtpguard import interfaces, testing

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(600)]

NOT_SOURCE = shutil.ignore_patterns(
    ".*", "*.egg-info", "__pycache__", "dropin.cache", "build", "dist", "Maildir", "node_modules"
)
API = Path("docs", "reference", "api")


@attrs.define
class Page(HTMLParser):
    """The links and the anchors of a page."""

    links: list[str] = attrs.field(factory=list)
    anchors: set[str] = attrs.field(factory=set)

    def __attrs_pre_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if tag in ("a", "link", "img", "script"):
            self.links += [link for name in ("href", "src") if (link := found.get(name))]
        self.anchors |= {name for key in ("id", "name") if (name := found.get(key))}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the site is. The command fails on any warning."""
    clone = Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("site") / "clone", ignore=NOT_SOURCE))
    (command,) = commands(ROOT / "docs/README.md")
    done = subprocess.run(
        ["bash", "-c", command.words],
        cwd=clone,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return clone / "build" / "docs"


def pages(site: Path) -> Iterator[tuple[Path, Page]]:
    for path in sorted(site.rglob("*.html")):
        # What Sphinx made in the place of the API reference.
        if "api.sphinx_files" not in path.parts:
            page = Page()
            page.feed(path.read_text())
            yield path, page


def test_every_document_is_a_page(site: Path) -> None:
    documents = [path for path in (ROOT / "docs").rglob("*.md") if "api" not in path.parts]
    documents += [*ROOT.glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
    missing = [
        path for path in documents if not (site / path.relative_to(ROOT)).with_suffix(".html").exists()
    ]
    assert missing == []
    assert len(documents) >= 20


def test_every_link_of_every_page_leads_somewhere(site: Path) -> None:
    found = dict(pages(site))
    broken = []
    for path, page in found.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            known = found[there].anchors if there in found else {anchor}
            if not there.is_file() or (anchor and anchor not in known):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []
    assert sum(len(page.links) for page in found.values()) > 1000


def test_every_public_name_is_in_the_api_reference(site: Path) -> None:
    # The package takes them from there, which its own page says.
    names = {f"twisted_smtpguard.public.{name}" for name in twisted_smtpguard.__all__}
    names |= {f"twisted_smtpguard.testing.{name}" for name in testing.__all__}
    names |= {
        f"twisted_smtpguard.interfaces.{name}"
        for name, value in vars(interfaces).items()
        if isinstance(value, InterfaceClass) and name != "Interface"
    }
    assert len(names) > 30
    for name in names:
        module, _, last = name.rpartition(".")
        own = site / API / f"{name}.html"
        inside = site / API / f"{module}.html"
        if not own.exists():
            page = Page()
            page.feed(inside.read_text())
            assert last in page.anchors, name
