"""What pages tell to install is installed in an environment that has nothing, and then used, both as they say.

Needs a package index.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from clones import NOT_SOURCE, track, untracked
from documents import ROOT
from excepted import to_be_run
from follow import Check, Reader, follow
from rawclient import RawClient
from shell import Shell
from stored import stored

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(600)]


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Path]:
    """What `git clone` gives: nothing is installed. Git has nothing to say of what a page leaves in it."""
    clone = Path(shutil.copytree(ROOT, tmp_path / "clone", ignore=NOT_SOURCE))
    track(clone)
    yield clone
    assert untracked(clone) == ""


@pytest.fixture
def networks(tmp_path: Path) -> Path:
    """The list of networks that the README has its guard read."""
    path = tmp_path / "etc" / "smtpguard" / "networks"
    path.parent.mkdir(parents=True)
    path.write_text("deny 127.0.0.2\n")
    return path


def client(reader: Reader, source: str = "127.0.0.1") -> RawClient:
    """A client of the guard that runs."""
    return RawClient(("127.0.0.1", reader.port), source)


def test_the_readme_from_the_installation_on(clone: Path, networks: Path, tmp_path: Path) -> None:
    def arrived(_: Reader, printed: str) -> None:
        (mail,) = stored(clone / "Maildir")
        assert (printed, mail.recipients) == ("", ("you@example.org",))
        assert mail.message == b"Subject: Hello\n\nWorld\n"

    def takes_mail_on_both_ports(reader: Reader, _: str) -> None:
        assert len(reader.addresses) == 2
        with client(reader) as sender:
            for words in ("EHLO c", "MAIL FROM:<a@example.com>", "RCPT TO:<b@example.org>", "DATA"):
                assert sender.ask(words)[0] in "23"
            assert sender.ask(".").startswith("250 ")
        assert len(stored(tmp_path / "guard")) == 1

    def refuses_the_list(reader: Reader, _: str) -> None:
        with client(reader, "127.0.0.2") as refused:
            assert refused.greeting == "421 4.7.0 Connection refused"

    checks: dict[str, Check] = {
        "import smtplib": arrived,
        "--max-connections 500": takes_mail_on_both_ports,
        "--ip-filter networks:": refuses_the_list,
    }
    follow(Reader(clone, tmp_path), to_be_run(ROOT / "README.md"), checks)


def asks_the_database(reader: Reader, _: str) -> None:
    """A test cannot come from an address that the database has; it is asked about any other, too."""
    with client(reader) as passed:
        assert passed.greeting.startswith("220 ")


def test_the_readme_of_the_ip_filter_to_copy(clone: Path, tmp_path: Path) -> None:
    def have_passed(_: Reader, printed: str) -> None:
        assert "\nPASSED (successes=" in printed

    checks: dict[str, Check] = {"--ip-filter known-clients:": asks_the_database, "twisted.trial": have_passed}
    page = to_be_run(ROOT / "docs/examples/ip_filter_plugin/README.md")
    follow(Reader(clone / "docs/examples/ip_filter_plugin", tmp_path), page, checks)


def test_the_readme_of_the_twist_plugin(clone: Path, tmp_path: Path) -> None:
    def has_its_mailbox(reader: Reader, _: str) -> None:
        with client(reader) as sender:
            for words in ("EHLO c", "MAIL FROM:<a@example.com>", "RCPT TO:<desk@example.org>", "DATA"):
                assert sender.ask(words)[0] in "23"
            assert sender.ask(".").startswith("250 ")

    checks: dict[str, Check] = {"--mailbox": has_its_mailbox}
    page = to_be_run(ROOT / "docs/examples/twist_plugin/README.md")
    follow(Reader(clone / "docs/examples/twist_plugin", tmp_path), page, checks)


def test_the_how_to_of_ip_filters_beside_the_guard(clone: Path, tmp_path: Path) -> None:
    """In the environment of the guard that the page speaks of."""
    database = tmp_path / "etc" / "smtpguard" / "clients.db"
    database.parent.mkdir(parents=True)

    def is_listed(_: Reader, printed: str) -> None:
        assert "Trusts or refuses the clients that an SQLite database knows." in printed

    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE clients (address TEXT PRIMARY KEY, verdict TEXT, text TEXT)")
    with Shell(clone) as shell:
        shell.succeeds("python3 -m venv .venv && .venv/bin/pip install .")
    checks: dict[str, Check] = {
        "--help-ip-filters": is_listed,
        "--ip-filter known-clients:": asks_the_database,
    }
    page = to_be_run(ROOT / "docs/how-to/write-an-ip-filter.md")
    follow(Reader(clone, tmp_path), page, checks)


def test_the_how_to_of_systemd_up_to_the_units(clone: Path, tmp_path: Path) -> None:
    def has_written_the_cache(_: Reader, printed: str) -> None:
        assert printed.strip()
        (plugins,) = (tmp_path / "opt" / "guard").rglob("site-packages/twisted/plugins")
        assert (plugins / "dropin.cache").exists()

    page = to_be_run(ROOT / "docs/how-to/run-under-systemd.md")
    follow(Reader(clone, tmp_path), page, {"--version": has_written_the_cache})
