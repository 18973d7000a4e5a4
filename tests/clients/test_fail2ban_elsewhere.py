"""fail2ban where the log is the journal, and where the guard itself is to refuse who is banned."""

from __future__ import annotations

import configparser
import re
import subprocess
import time
from pathlib import Path

import pytest
from processes import TWIST, GuardProcess, eventually
from programs import missing, run
from rawclient import RawClient
from test_fail2ban import EXAMPLES, FILTER, INNOCENT

from twisted_smtpguard.control.requests import DEFAULT_PATH

ACTION = EXAMPLES / "action.d" / "twisted-smtpguard.conf"
CONTROL_ACTION = EXAMPLES / "action.d" / "twisted-smtpguard-control.conf"
IN_JOURNAL = "mx twist[4711]: 2026-11-30T06:23:55+0000 [twisted_smtpguard#info] "


def matched(line: str) -> int:
    told = run("fail2ban-regex", line, f"{FILTER}[mode=normal]").stdout.decode()
    (number,) = re.findall(r"^Lines: 1 lines, 0 ignored, (\d+) matched", told, re.MULTILINE)
    return int(number)


@pytest.mark.clients
@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("reject peer=192.0.2.1 reason=not_smtp code=421 port=4711 listener=tcp:25", 1),
        ("reject peer=192.0.2.1 reason=max_invalid_commands session=1-1 limit=10 value=10 code=421", 1),
        ("reject peer=2001:db8::1 reason=not_smtp", 1),
        ("reject peer=192.0.2.1 reason=not_smtp dry_run=true", 0),
        ("reject peer=192.0.2.1 reason=delivery_refused session=1-1 code=550", 0),
        (f"connect session=1-1 peer=192.0.2.1 helo=reject\\x20peer={INNOCENT}\\x20reason=not_smtp", 0),
    ],
)
def test_a_line_of_the_journal_is_found_as_one_of_a_file_is(words: str, found: int) -> None:
    assert matched(IN_JOURNAL + words) == found


JOURNAL_WRITER = Path("/lib/systemd/systemd-journal-remote")
ENTRY = """\
__REALTIME_TIMESTAMP={microseconds}
__MONOTONIC_TIMESTAMP={number}
_BOOT_ID=0123456789abcdef0123456789abcdef
_HOSTNAME=mx
SYSLOG_IDENTIFIER=twist
_PID=4711
_SYSTEMD_UNIT=twisted-smtpguard.service
MESSAGE={message}

"""


@pytest.mark.clients
def test_a_journal_is_read(tmp_path: Path) -> None:
    lines = ["reject peer=192.0.2.1 reason=not_smtp code=421", "connect session=1-1 peer=192.0.2.1"]
    now = int(time.time() * 1_000_000)
    (tmp_path / "exported").write_text(
        "".join(
            ENTRY.format(
                microseconds=now + number, number=number + 1, message=IN_JOURNAL.partition(": ")[2] + line
            )
            for number, line in enumerate(lines)
        )
    )
    journal = tmp_path / "guard.journal"
    written = run(str(JOURNAL_WRITER), "-o", str(journal), str(tmp_path / "exported"))
    assert written.returncode == 0, written.stderr.decode()
    told = run("fail2ban-regex", f"systemd-journal[journalfiles={journal}]", str(FILTER)).stdout.decode()
    if "systemd" in told and "not" in told and "Lines:" not in told:
        missing("python3-systemd")
    assert "Lines: 2 lines, 0 ignored, 1 matched, 1 missed" in told


@pytest.mark.clients
def test_what_another_program_says_of_a_refusal_is_not_found() -> None:
    assert (
        matched(f"mx other[1]: it said: [twisted_smtpguard#info] reject peer={INNOCENT} reason=not_smtp") == 0
    )


def commands(directory: Path, reload: str) -> dict[str, str]:
    """What fail2ban would run."""
    action = configparser.ConfigParser(interpolation=None)
    assert action.read(ACTION) != []
    values = {"file": str(directory / "banned"), "reload": reload}
    assert values.keys() == {*action["Init"]}
    return {
        name: re.sub(r"<(\w+)>", lambda tag: values.get(tag[1], tag[0]), words)
        for name, words in action["Definition"].items()
    }


def test_who_is_banned_is_refused_by_the_guard_until_unbanned(tmp_path: Path) -> None:
    banned = tmp_path / "banned"
    banned.write_text("")

    def greeting(source: str) -> str:
        with RawClient(guard.address, source) as client:
            return client.greeting

    def reloads() -> int:
        return sum(" reloaded what=banned" in line for line in guard.lines)

    def does(name: str, address: str) -> None:
        before = reloads()
        words = actions[name].replace("<ip>", address)
        subprocess.run(["sh", "-c", words], check=True)
        eventually(lambda: reloads() > before, "it does not read the file again")

    with GuardProcess(tmp_path, "--ip-filter=name=banned:networks:banned") as guard:
        actions = commands(tmp_path, f"kill -HUP {guard.pid}")
        subprocess.run(["sh", "-c", actions["actionstart"]], check=True)
        for address in ("127.0.0.2", "127.0.0.22"):
            does("actionban", address)
            assert greeting(address) == "421 4.7.0 Refused for a while, try again later"
        guard.wait_for(r" filter=banned rule=127\.0\.0\.2/32 ")
        does("actionunban", "127.0.0.2")
        assert greeting("127.0.0.2").startswith("220 ")
        assert greeting("127.0.0.22").startswith("421 ")
        assert banned.read_text().count("\n") == 1
        assert not (tmp_path / "banned.new").exists()


def test_who_is_banned_by_the_command_is_refused_by_the_guard_until_unbanned(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    action = configparser.ConfigParser(interpolation=None)
    assert action.read(CONTROL_ACTION) != []
    program, *words = action["Init"]["smtpguardctl"].split()
    assert (Path(program).name, words) == ("smtpguardctl", ["--socket", DEFAULT_PATH])

    def does(name: str, address: str) -> None:
        command = action["Definition"][name].replace("<ip>", address)
        command = command.replace("<smtpguardctl>", f"{TWIST.with_name('smtpguardctl')} --socket {path}")
        subprocess.run(["sh", "-c", command], check=True)

    def greeting() -> str:
        with RawClient(guard.address, "127.0.0.2") as client:
            return client.greeting[:3]

    with GuardProcess(tmp_path, f"--control={path}") as guard:
        for number in range(2):
            does("actionban", "127.0.0.2")
            assert greeting() == "421", number
            does("actionunban", "127.0.0.2")
            assert greeting() == "220", number
        # fail2ban unbans at its own end, whatever has become of the guard.
        does("actionunban", "127.0.0.2")
