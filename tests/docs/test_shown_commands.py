"""Each command of each document is run as it stands, or is in a table that says why it cannot be.

Pages that need more than what a test environment has are followed elsewhere, see FOLLOWED_ELSEWHERE. All others are
followed here: a command that is added to one of them is run by the next test run.
"""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from clones import track, untracked
from documents import DOCS, LANGUAGES, PAGES, ROOT, Command, commands, name_of
from excepted import MENTIONED, NOT_RUN, to_be_run
from follow import HARMLESS, OTHER_PROGRAMS, SUBSTITUTIONS, Check, Reader, follow, program
from programs import run
from rawclient import RawClient

FOLLOWED_ELSEWHERE = {
    "README.md": "test_shown_installations.py",
    "docs/README.md": "test_docs_site.py",
    "docs/examples/ip_filter_plugin/README.md": "test_shown_installations.py",
    "docs/examples/twist_plugin/README.md": "test_shown_installations.py",
    "docs/how-to/ban-abusers-with-fail2ban.md": "test_fail2ban_page.py",
    "docs/how-to/haproxy-in-front.md": "test_tls_pages.py",
    "docs/how-to/keep-the-log.md": "test_log_page.py",
    "docs/how-to/renew-certificates.md": "test_tls_pages.py",
    "docs/how-to/submission-with-auth.md": "test_tls_pages.py",
    "docs/how-to/run-under-systemd.md": "test_shown_installations.py",
    "docs/how-to/write-an-ip-filter.md": "test_shown_installations.py",
    "docs/tutorial/cut-off-a-first-abuser.md": "tutorial.py",
}
"""Pages whose commands another file runs, all of them and in their order."""

TUNING = DOCS / "how-to" / "tune-for-a-busy-mx.md"

ELSEWHERE = [ROOT / name for name in FOLLOWED_ELSEWHERE]
WITH_COMMANDS = [page for page in PAGES if commands(page) and page.parent != ROOT / "benchmarks"]
HERE = [page for page in WITH_COMMANDS if to_be_run(page) and page not in ELSEWHERE]


# Nothing is left out.


def test_a_command_that_is_excepted_is_still_in_its_document() -> None:
    for name, excepted in NOT_RUN.items():
        assert excepted.keys() - {command.words for command in commands(ROOT / name)} == set(), name
    everywhere = {command.words for page in PAGES for command in commands(page)}
    assert MENTIONED.keys() - everywhere == set()


def test_a_page_that_is_followed_elsewhere_is() -> None:
    for name, file in FOLLOWED_ELSEWHERE.items():
        assert to_be_run(ROOT / name), name
        assert f'ROOT / "{name}")' in Path(__file__).with_name(file).read_text(), name


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name_of)
def test_every_command_is_one_that_a_test_runs_or_is_excepted(page: Path) -> None:
    known = HARMLESS | OTHER_PROGRAMS
    # The tutorial is followed in its own shell.
    known |= {"cat", "echo", "wait"} if page.parent.name == "tutorial" else set()
    assert [command for command in to_be_run(page) if program(command.words) not in known] == []


def test_no_block_is_in_a_language_whose_commands_would_not_be_seen() -> None:
    for page in PAGES:
        # Every second fence closes a block.
        assert set(re.findall(r"^ *```(.*)$", page.read_text(), re.MULTILINE)[::2]) <= LANGUAGES, page


def test_commands_are_found_in_blocks_and_in_sentences() -> None:
    assert len(WITH_COMMANDS) >= 10
    assert Command("twist smtpguard --shutdown-grace 2m") in commands(
        DOCS / "how-to" / "shut-down-gracefully.md"
    )
    assert Command("ulimit -n 9124") in commands(TUNING)


def test_every_substitution_is_needed() -> None:
    shown = [command.words for page in WITH_COMMANDS for command in to_be_run(page)]
    for pattern, _ in SUBSTITUTIONS:
        assert any(re.search(pattern, words) for words in shown), pattern


@pytest.mark.parametrize("name", NOT_RUN)
def test_a_command_that_is_not_run_is_one_to_bash(name: str) -> None:
    for words in NOT_RUN[name]:
        subprocess.run(["bash", "-n", "-c", words], check=True)


UNITS = DOCS / "examples" / "systemd"


def test_a_command_for_systemd_that_is_not_run_names_units_that_there_are() -> None:
    named = {
        unit
        for words in NOT_RUN["docs/how-to/run-under-systemd.md"]
        for unit in re.findall(r"twisted-smtpguard[\w.-]*", words)
    }
    units = {path.name for path in UNITS.iterdir()}
    # journalctl takes the name without its suffix.
    assert named - {"twisted-smtpguard"} == {"twisted-smtpguard.socket", "twisted-smtpguard.service"} <= units


@pytest.mark.clients
def test_systemctl_enables_the_units_without_a_systemd_that_runs(tmp_path: Path) -> None:
    shutil.copytree(UNITS, tmp_path / "etc" / "systemd" / "system")
    (words,) = (each for each in NOT_RUN["docs/how-to/run-under-systemd.md"] if " enable " in each)
    program, enable, now, *units = words.split()
    assert (program, enable, now) == ("systemctl", "enable", "--now")
    done = run("systemctl", f"--root={tmp_path}", "enable", *units)
    assert done.returncode == 0, done.stderr.decode()
    wanted = {path.name for path in (tmp_path / "etc/systemd/system").glob("*.wants/*")}
    assert wanted == set(units)


def test_the_command_of_the_readme_that_runs_all_tests_is_a_step_of_the_continuous_integration() -> None:
    (words,) = NOT_RUN["README.md"]
    assert f"<!-- test command -->\n```sh\n{words}\n```\n" in (ROOT / "README.md").read_text()
    assert """sed -n '/^<!-- test command -->$/,/^```$/""" in (ROOT / ".ci" / "run").read_text()


# How commands are found.


ACTIVE = "source .venv/bin/activate"
IN_ENVIRONMENT = {"pip", "pytest", "python", "trial", "twist", "twistd"}
"""What a machine may not have, or has of another environment, unless that of the guard is active."""


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name_of)
def test_a_page_says_how_commands_are_found_before_it_has_one_of_an_environment(page: Path) -> None:
    words = [each.words for each in commands(page) if each.words not in MENTIONED]
    inactive = itertools.takewhile(lambda each: each != ACTIVE, words)
    assert IN_ENVIRONMENT.isdisjoint(each.split()[0] for each in inactive)


def test_where_a_page_says_how_commands_are_found_it_says_where_they_are_installed() -> None:
    pages = [page for page in PAGES if f"`{ACTIVE}`" in page.read_text()]
    assert len(pages) >= 10
    for page in pages:
        before, _, _ = page.read_text().partition(f"`{ACTIVE}`")
        assert re.search(r"\[is installed\]\(\S*README\.md#quick-start\)", before.rpartition("\n\n")[2]), page


# The pages.


def abuses(reader: Reader, _printed: str) -> None:
    """A client that errs so often that a limit would have met it."""
    with RawClient(("127.0.0.1", reader.port)) as client:
        for _ in range(20):
            client.ask("EXPN")


def shows_the_limit(_: Reader, printed: str) -> None:
    assert printed.split() == ["1", "reason=max_errors"]


def shows_the_client(_: Reader, printed: str) -> None:
    assert printed.split() == ["1", "peer=127.0.0.1", "reason=max_errors"]


def suffices(reader: Reader, _: str) -> None:
    """The descriptors that the shell now has are as many as the guard of the page wants."""
    (guard,) = (command.words for command in commands(TUNING) if "--max-connections" in command.words)
    reader.types(guard)
    assert "descriptors_below_cap" not in reader.log


CHECKS: dict[str, dict[str, Check]] = {
    "docs/how-to/limit-connections-and-abuse.md": {
        "--dry-run": abuses,
        "grep -o 'reason=[a-z_]*'": shows_the_limit,
        "grep -o 'peer=": shows_the_client,
    },
    name_of(TUNING): {"ulimit": suffices},
}


@pytest.mark.parametrize("page", HERE, ids=name_of)
def test_what_a_page_tells_to_type_works(page: Path, tmp_path: Path) -> None:
    """In a clone whose .venv has what the tests have."""
    clone = tmp_path / "clone"
    clone.mkdir()
    (clone / ".venv").symlink_to(sys.prefix)
    (clone / "docs").symlink_to(DOCS)
    networks = tmp_path / "etc" / "smtpguard" / "networks"
    networks.parent.mkdir(parents=True)
    networks.write_text("deny 192.0.2.1\n")
    (networks.parent / "domains").write_text("example.org\n")
    (networks.parent / "secret").write_text("guard:secret\n")
    track(clone)
    reader = Reader(clone, tmp_path)
    follow(reader, to_be_run(page), CHECKS.get(name_of(page)))
    assert untracked(clone) == ""
