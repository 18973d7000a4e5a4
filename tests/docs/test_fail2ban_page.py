"""The how-to for fail2ban, followed with a guard, an abuser and a fail2ban server that keeps its bans to itself."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from documents import ROOT
from excepted import to_be_run
from follow import Reader, follow
from processes import eventually
from programs import run
from rawclient import RawClient

EXAMPLES = ROOT / "docs" / "examples" / "fail2ban"
JAIL = EXAMPLES / "jail.d" / "twisted-smtpguard.conf"
ABUSER = "127.0.0.2"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Has the guard in /opt/guard, and a fail2ban that has no jail yet."""
    # What an installation brings; that it does is a test in test_packaging.py.
    shutil.copytree(EXAMPLES, tmp_path / "opt/guard/share/twisted_smtpguard/fail2ban")
    (tmp_path / "opt/guard/bin").symlink_to(Path(sys.executable).parent)
    run("fail2ban-client", "--version")
    folder = tmp_path / "etc" / "fail2ban"
    shutil.copytree("/etc/fail2ban", folder, ignore=shutil.ignore_patterns("jail.d", "*.local"))
    (folder / "jail.d").mkdir()
    (tmp_path / "etc" / "smtpguard").mkdir()
    (folder / "jail.local").write_text("[DEFAULT]\naction =\n")
    (folder / "fail2ban.local").write_text(f"[DEFAULT]\nlogtarget = {tmp_path}/fail2ban.log\ndbfile = None\n")
    return tmp_path


@pytest.mark.clients
def test_what_the_how_to_tells_to_type_gets_an_abuser_banned(machine: Path) -> None:
    def abuse(reader: Reader, _printed: str) -> None:
        for _ in range(3):
            with RawClient(("127.0.0.1", reader.port), ABUSER) as client:
                assert "Not an SMTP client" in client.ask("GET / HTTP/1.1")

    def is_found(_: Reader, printed: str) -> None:
        assert "3 matched" in printed

    def writes_the_jail(reader: Reader, _: str) -> None:
        (filter_file,) = (machine / "etc/fail2ban/filter.d").glob("twisted-smtpguard.conf")
        assert filter_file.read_text() == (EXAMPLES / "filter.d" / filter_file.name).read_text()
        (machine / "etc/fail2ban/jail.d" / JAIL.name).write_text(
            JAIL.read_text().replace("/var/", f"{machine}/var/")
        )
        reader.types("fail2ban-client start")

    def is_loaded(_: Reader, printed: str) -> None:
        # Warnings stand before it: none of its jails has an action here.
        assert printed.endswith("\nOK\n")

    def is_banned(reader: Reader, printed: str) -> None:
        def looks() -> bool:
            return ABUSER in reader.types("fail2ban-client status twisted-smtpguard")

        assert "Status for the jail: twisted-smtpguard" in printed
        eventually(looks, "the abuser is not banned")

    reader = Reader(machine, machine)
    checks = {
        "--log-file": abuse,
        "fail2ban/filter.d ": writes_the_jail,
        "fail2ban-regex": is_found,
        "fail2ban-client reload": is_loaded,
        "fail2ban-client status": is_banned,
    }
    try:
        follow(reader, to_be_run(ROOT / "docs/how-to/ban-abusers-with-fail2ban.md"), checks)
    finally:
        run(
            "fail2ban-client",
            "-c",
            str(machine / "etc/fail2ban"),
            "-s",
            f"{machine}/fail2ban.sock",
            "-p",
            f"{machine}/fail2ban.pid",
            "stop",
        )
