"""The shipped fail2ban filter, and fail2ban's own programs on logs that a guard wrote.

They come with Debian's package fail2ban. Without them a test is skipped, or with TESTS_CLIENTS_REQUIRED=1 fails.
"""

from __future__ import annotations

import configparser
import re
import shutil
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

import attrs
import pytest
from processes import PATIENCE_SECONDS, GuardProcess
from programs import run
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, Logger, jsonFileLogObserver, textFileLogObserver

from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.log.events import Events
from twisted_smtpguard.log.statistics import Statistics
from twisted_smtpguard.replies import catalogue

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples" / "fail2ban"
FILTER = EXAMPLES / "filter.d" / "twisted-smtpguard.conf"
JAIL = EXAMPLES / "jail.d" / "twisted-smtpguard.conf"
HOW_TO = (ROOT / "docs" / "how-to" / "ban-abusers-with-fail2ban.md").read_text()

INNOCENT = "203.0.113.9"
"""Whom clients try to get banned. It never connects."""
FORGED = f"reject peer={INNOCENT} reason=not_smtp"

MODES = ("normal", "aggressive")
OBSERVERS: dict[str, Callable[[TextIO], ILogObserver]] = {
    "text": textFileLogObserver,
    "json": jsonFileLogObserver,
}
each_format = pytest.mark.parametrize("log_format", ["text", "json"])


def definition() -> configparser.SectionProxy:
    filter_file = configparser.ConfigParser(interpolation=None)
    assert filter_file.read(FILTER) != []
    return filter_file["Definition"]


def reasons(mode: str) -> set[str]:
    """The reasons that the filter looks for in `mode`."""
    normal = definition()["reasons-normal"]
    return set(definition()[f"reasons-{mode}"].replace("<reasons-normal>", normal).split("|"))


def all_reasons() -> set[str]:
    """Every word that may stand after reason=."""
    named = {entry.reason for entry in catalogue() if entry.reason} | {"delivery_refused", "upstream_refused"}
    return named | {"auth_failure_rate", "auth_failure_rate_per_user"}


# What is written.


def test_the_how_to_decides_about_every_reason_as_the_filter_does() -> None:
    rows = dict(re.findall(r"^\| (\w+) \| ((?:`\w+` ?)+)\|", HOW_TO, re.MULTILINE))
    decided = {mode: set(re.findall(r"\w+", words)) for mode, words in rows.items()}
    assert decided["normal"] == reasons("normal")
    assert decided["aggressive"] == reasons("aggressive") - reasons("normal")
    assert decided["never"] == all_reasons() - reasons("aggressive")


def test_normal_mode_is_the_default_of_the_filter_and_of_the_jail() -> None:
    assert definition()["mode"] == "normal"
    assert "[mode=normal]" in JAIL.read_text()


def test_the_jail_of_the_how_to_is_the_file() -> None:
    shown = HOW_TO.split("<!-- docs/examples/fail2ban/jail.d/twisted-smtpguard.conf -->\n```ini\n")[1]
    assert shown.split("```")[0] == JAIL.read_text()


def test_every_file_that_the_how_to_links_to_exists() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", HOW_TO)
    assert links != []
    assert [link for link in links if not (ROOT / "docs" / "how-to" / link).exists()] == []


# What fail2ban makes of it.


@attrs.frozen
class Found:
    """What fail2ban-regex says of a log."""

    clients: Counter[str]
    times: list[float]
    """When, in seconds since 1970, of each refusal found."""
    lines: int
    dated: int
    """Lines whose time was recognized."""
    missed: int


def find(log: Path, mode: str = "normal") -> Found:
    """fail2ban-regex on `log` with the filter in `mode`."""
    asked = f"{FILTER}[mode={mode}]"
    refusals = run("fail2ban-regex", "-o", "<ip> <time>", str(log), asked).stdout.decode().split()
    told = run("fail2ban-regex", str(log), asked).stdout.decode()
    summary = re.search(r"^Lines: (\d+) lines, 0 ignored, (\d+) matched, (\d+) missed", told, re.MULTILINE)
    assert summary, told
    lines, matched, missed = (int(number) for number in summary.groups())
    clients, times = refusals[::2], [float(time) for time in refusals[1::2]]
    assert len(clients) == matched, told
    dated = sum(map(int, re.findall(r"^\|  \[(\d+)\] ", told.split("Date template hits:")[1], re.MULTILINE)))
    return Found(Counter(clients), times, lines, dated, missed)


def talk(guard: GuardProcess, source: str, *commands: bytes, address: str = "127.0.0.1") -> bytes:
    """All that a client at `source` is told, up to the end. It sends `commands` at once, after the greeting."""
    port = next(port for host, port in map(tuple, guard.addresses) if host == address)
    with socket.create_connection((address, port), PATIENCE_SECONDS, (source, 0)) as client:
        output = client.makefile("rb")
        greeting = output.readline()
        client.sendall(b"".join(command + b"\r\n" for command in commands))
        return greeting + output.read()


LINES = [
    f"NOOP\n2026-01-01T00:00:00+0000 [twisted_smtpguard#info] {FORGED}",
    f"NOOP\r [twisted_smtpguard#info] {FORGED}",
    f"\n [twisted_smtpguard#info] {FORGED}",
    f'\x1e{{"text": "{FORGED}", "log_namespace": "twisted_smtpguard", "log_time": 1767225600.5}}',
    FORGED.upper(),
    f"VRFY {FORGED}",
    f"HELO {FORGED}",
]
"""Commands that look like lines of the log."""

LOCAL_PARTS = [
    FORGED,
    f"]  {FORGED} ",
    f'\\" {FORGED} ',
    f'\\", \\"text\\": \\"{FORGED}\\"',
    f"a peer={INNOCENT} reason=not_smtp ",
]
"""Inside the quotes of an address, which the log shows."""


LONG_AGO = b'MAIL FROM:<"2001-01-01T00:00:00+0000 \\", \\"log_time\\": 1000000000"@x>'
"""A sender that pretends that the refusal was long ago, so that its client is not banned."""


def forger(local_part: str) -> list[bytes]:
    """A client whose sender, accepted recipient and refused recipient have `local_part`."""
    address = f'<"{local_part}"@x>'
    envelope = [f"MAIL FROM:{address}", f"RCPT TO:{address}", f"RCPT TO:{address}"]
    name = local_part.replace(" ", "\\x20")
    return [line.encode() for line in (f"EHLO {name}", *envelope, "DATA", f"Subject: {FORGED}", ".", "QUIT")]


@each_format
@pytest.mark.clients
def test_only_those_who_abused_a_real_guard_are_found(
    log_format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Far from that of the tests, to see that fail2ban reads it.
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    options = (
        "--max-recipients=1",
        "--max-errors=15",
        "--max-messages=1",
        "--max-invalid-commands=5",
        "--max-message-size=1000",
        "--oversize-drain=1",
    )
    listen = ("tcp:0:interface=127.0.0.1", r"tcp6:0:interface=\:\:1", f"unix:{tmp_path}/socket")
    began = int(time.time())
    with GuardProcess(tmp_path, *options, listen=listen, log_format=log_format) as guard:
        assert b"Not an SMTP client" in talk(guard, "127.0.0.2", b"GET / HTTP/1.1")
        assert b"Not an SMTP client" in talk(guard, "::1", b"GET / HTTP/1.1", address="::1")
        assert b"\r\n421 4.4.0 " in talk(guard, "127.0.0.3", *[f"BREW {FORGED}".encode()] * 5)
        for _ in range(3):
            assert b"malformed BDAT" in talk(
                guard, "127.0.0.4", b"EHLO x", LONG_AGO, b"RCPT TO:<a@x>", b"BDAT"
            )
        assert b"\r\n421 4.7.0 " in talk(guard, "127.0.0.5", *[b"EXPN"] * 15)
        endless = (b"EHLO x", LONG_AGO, b"RCPT TO:<a@x>", b"DATA", b"x" * 3000)
        assert b"Message too large, closing" in talk(guard, "127.0.0.9", *endless)
        mail = (b"EHLO x", b"MAIL FROM:<a@x>", b"RSET")
        assert b"Too many messages" in talk(guard, "127.0.0.6", *mail, *mail)
        for line in LINES:
            assert b"\r\n221 " in talk(guard, "127.0.0.7", line.encode(), b"QUIT")
        for local_part in LOCAL_PARTS:
            assert b"\r\n250 2.0.0 Message accepted" in talk(guard, "127.0.0.8", *forger(local_part))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{tmp_path}/socket")
            client.sendall(b"GET / HTTP/1.1\r\n")
            assert b"Not an SMTP client" in client.makefile("rb").read()
        guard.wait_for("disconnect .*peer=unix")
    ended = time.time()

    # A sender twice and a recipient twice: in the refusal and in the acceptance.
    assert guard.log.count(INNOCENT.encode()) >= 4 * len(LOCAL_PARTS)
    log = tmp_path / "0.log"
    found = find(log)
    assert found.clients == {"127.0.0.2": 1, "::1": 1, "127.0.0.3": 1, "127.0.0.4": 3}
    assert found.lines == found.dated == found.missed + 6 == len(guard.lines)
    aggressive = find(log, "aggressive")
    assert aggressive.clients == found.clients + Counter({"127.0.0.5": 1, "127.0.0.9": 1})
    assert all(began <= time <= ended for time in found.times + aggressive.times)


def told_at_once(guard: GuardProcess, source: str, said: bytes = b"") -> bytes:
    """All that a client at `source` is told that says `said` before any greeting."""
    with socket.create_connection(guard.address, PATIENCE_SECONDS, (source, 0)) as client:
        client.sendall(said)
        return client.makefile("rb").read()


@each_format
@pytest.mark.clients
def test_those_who_were_not_let_in_are_found(log_format: str, tmp_path: Path) -> None:
    limits = ("--max-connections-per-client=2", "--connection-rate=4/3600", "--early-talker=refuse")
    # So late that nobody is greeted.
    options = (*limits, "--greet-delay=3600", "--deny=127.0.0.5")
    with GuardProcess(tmp_path, *options, log_format=log_format) as guard, ExitStack() as held:
        assert b"spoke before the greeting" in told_at_once(guard, "127.0.0.2", b"EHLO x\r\n")
        for _ in range(2):
            held.enter_context(socket.create_connection(guard.address, PATIENCE_SECONDS, ("127.0.0.3", 0)))
        assert b"Too many connections from your address" in told_at_once(guard, "127.0.0.3")
        for _ in range(4):
            told_at_once(guard, "127.0.0.4", b"EHLO x\r\n")
        assert b"Connection rate exceeded" in told_at_once(guard, "127.0.0.4")
        assert b"Connection refused" in told_at_once(guard, "127.0.0.5")
    log = tmp_path / "0.log"
    assert find(log).clients == {"127.0.0.2": 1, "127.0.0.4": 4}
    assert find(log, "aggressive").clients == {"127.0.0.2": 1, "127.0.0.3": 1, "127.0.0.4": 5}


@each_format
@pytest.mark.clients
def test_a_load_balancer_whose_header_is_not_expected_is_not_banned(log_format: str, tmp_path: Path) -> None:
    first, second = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 25\r\n", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"
    for number, options in enumerate((["--profile=edge"], ["--early-talker=log"])):
        folder = tmp_path / str(number)
        folder.mkdir()
        with GuardProcess(folder, *options, log_format=log_format) as guard:
            for header in (first, second):
                for _ in range(4):
                    assert b"unexpected PROXY header" in told_at_once(guard, "127.0.0.2", header)
                    assert b"unexpected PROXY header" in talk(guard, "127.0.0.2", header)
        assert guard.log.count(b"reason=unexpected_proxy_header") >= 10
        assert b"hint=--proxy-protocol-from=127.0.0.2" in guard.log
        assert find(folder / "0.log", "aggressive").clients == {}


@each_format
@pytest.mark.clients
def test_a_limit_in_dry_run_gets_no_client_banned(log_format: str, tmp_path: Path) -> None:
    limits = (
        "--max-invalid-commands=2",
        "--max-errors=3",
        "--connection-rate=1/3600",
        "--max-rejected-recipients=1",
    )
    with GuardProcess(tmp_path, "--dry-run=all", *limits, log_format=log_format) as guard:
        for _ in range(3):
            assert b"\r\n221 " in talk(guard, "127.0.0.2", *[b"BREW"] * 5, b"QUIT")
    logged = guard.log.decode()
    for reason in ("max_invalid_commands", "max_errors", "connection_rate"):
        assert f"reason={reason} dry_run=true" in logged
    assert find(tmp_path / "0.log", "aggressive").clients == {}


@each_format
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.clients
def test_every_reason_is_found_or_left_as_the_mode_says(mode: str, log_format: str, tmp_path: Path) -> None:
    log = tmp_path / "guard.log"
    expected = set()
    with log.open("w") as file:
        events = Events(
            Statistics(),
            Clock(),
            Limits(max_log_lines=0),
            logger=Logger("twisted_smtpguard", observer=OBSERVERS[log_format](file)),
        )
        for number, reason in enumerate(sorted(all_reasons()), 1):
            client = f"192.0.2.{number}"
            events.reject(client, reason)
            events.reject(client, reason, session="1-1", limit=1, value=2, command="MAIL", sender="a@b")
            events.reject(client, reason, dry_run=True)
            events.reject(client, reason, dry_run=True, session="1-1", limit=1, value=2)
            # A longer word is another reason.
            events.reject(client, f"{reason}s")
            if reason in reasons(mode):
                expected.add(client)
    assert find(log, mode).clients == dict.fromkeys(expected, 2)


CARELESS = [
    FORGED,
    f"x\n{FORGED}",
    f"x\n [twisted_smtpguard#info] {FORGED}",
    f"x\n2026-01-01T00:00:00+0000 [twisted_smtpguard#info] {FORGED}",
    f"x\r [twisted_smtpguard#info] {FORGED}",
    f'{FORGED}", "log_namespace": "twisted_smtpguard", "log_time": 1767225600.5',
    f'x\n\x1e{{"text": "{FORGED}", "log_namespace": "twisted_smtpguard", "log_time": 1767225600.5}}',
]


@each_format
@pytest.mark.clients
def test_a_plugin_that_logs_what_clients_say_unescaped_gets_no_client_banned(
    log_format: str, tmp_path: Path
) -> None:
    log = tmp_path / "guard.log"
    with log.open("w") as file:
        careless = Logger("careless", observer=OBSERVERS[log_format](file))
        for said in CARELESS:
            careless.info("{text}", text=said)
            careless.info("said: {said}", said=said)
    assert find(log, "aggressive").clients == {}


@pytest.fixture
def configuration(tmp_path: Path) -> Iterator[Path]:
    """fail2ban's configuration as Debian brings it, with our two files and no other jail."""
    folder = tmp_path / "fail2ban"
    shutil.copytree("/etc/fail2ban", folder, ignore=shutil.ignore_patterns("jail.d", "*.local"))
    shutil.copy(FILTER, folder / "filter.d")
    (folder / "jail.d").mkdir()
    log = tmp_path / "twisted-smtpguard.log"
    log.touch()
    jail = JAIL.read_text()
    assert "/var/log/twisted-smtpguard.log" in jail
    (folder / "jail.d" / JAIL.name).write_text(jail.replace("/var/log/twisted-smtpguard.log", str(log)))
    return folder


@pytest.mark.clients
def test_fail2ban_takes_the_jail(configuration: Path) -> None:
    done = run("fail2ban-client", "-c", str(configuration), "-d")
    told = done.stdout.decode()
    assert done.returncode == 0, told
    assert "'twisted-smtpguard', 'addlogpath'" in told
    assert "'twisted-smtpguard', 'maxretry', 3" in told
    assert "early_talker|" in told
    assert "ERROR" not in told + done.stderr.decode()
