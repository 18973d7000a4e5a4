"""What stands in the documents: their blocks, sections, and the commands that a reader is told to type."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import attrs

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")]

LANGUAGES = {"sh", "console", "python", "ini", "text"}
"""Of blocks. Only the first two have commands in them."""

PROGRAMS = (
    "bash|cat|cp|curl|fail2ban-\\w+|grep|haproxy|journalctl|kill|mkdir|openssl|pip3?|pytest|python3?|source|sqlite3|swaks|sysctl|"
    "systemctl|systemd-[\\w-]+|touch|trial|twistd?|ulimit"
)
"""A line of prose or of an indented block that begins with one of them and goes on is a command."""

_PLACES = re.compile(
    rf"""
    ^```(?P<language>\S*)\n(?P<block>.*?)^```$
    | ^[ ]{{4}}(?:\$[ ])?(?P<indented>(?:{PROGRAMS})[ ].*)$
    | `(?P<inline>(?:[\w./-]*/)?(?:{PROGRAMS})[ ][^`\n]+)`
    """,
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)


@attrs.frozen
class Command:
    """One command of a page, and the lines that a console shows below it."""

    words: str
    output: str = ""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def section(page: Path, title: str) -> str:
    """What stands below a heading."""
    return re.split(r"^#+ ", page.read_text().split(f"# {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def commands(page: Path) -> list[Command]:
    """All commands of a page, in their order: those in its shell blocks and those in its sentences."""
    found: list[Command] = []
    for place in _PLACES.finditer(page.read_text()):
        if place["block"] is None:
            # In a table a | is escaped.
            found.append(Command((place["indented"] or place["inline"]).replace("\\|", "|")))
        elif place["language"] == "console":
            found += _of_console(place["block"])
        elif place["language"] == "sh":
            lines = place["block"].replace("\\\n", " ").splitlines()
            found += [Command(line) for line in lines if line.strip() and not line.startswith("#")]
    return found


def _of_console(block: str) -> Iterator[Command]:
    assert block.startswith("$ ")
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        words, _, output = part.partition("\n")
        yield Command(words, output)


def options(page: Path) -> list[list[str]]:
    """The options of every `twist … smtpguard …` in the page's shell blocks."""
    found = []
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            guard = re.search(r"\btwist (?:-\S+ )*smtpguard\b(.*)", line)
            if guard:
                found.append([word for word in shlex.split(guard[1], comments=True) if word != "…"])
    return found
