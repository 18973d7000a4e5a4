"""The --config file of a running guard at a reload: what changes, what cannot, and what wins over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commandline import parsed
from fakes import codes
from logbook import Logbook, logbook
from manual_threads import ManualThreads
from twisted.internet.testing import MemoryReactorClock

from twisted_smtpguard.cli.options import make_service
from twisted_smtpguard.testing import Clients

ENVELOPE = ("MAIL FROM:<a@client.example>", "RCPT TO:<b@one.example>", "RCPT TO:<b@two.example>")


class Reactor(MemoryReactorClock):
    def __init__(self) -> None:
        super().__init__()
        self.threads = ManualThreads()

    def getThreadPool(self) -> ManualThreads:
        return self.threads

    def callFromThread(self, function: Any, *args: Any) -> None:
        function(*args)


class Configured(Clients):
    """A guard that was started with a file of these lines, and these further options."""

    def __init__(self, directory: Path, text: str, *words: str) -> None:
        self.file = directory / "guard.conf"
        self.file.write_text(text)
        self.reactor = Reactor()
        options = parsed("--config", str(self.file), "--deliver=discard", *words)
        self.service = make_service(options, self.reactor)
        super().__init__(self.service.factory, self.reactor)

    def reload(self, text: str | None = None) -> Logbook:
        """What is logged of a reload of the file, which has these lines then."""
        if text is not None:
            self.file.write_text(text)
        with logbook() as log:
            done = self.service.reload()
            self.reactor.threads.work()
            assert done.called
        return log

    def row(self, limit: str) -> tuple[str, str]:
        """Value and origin of a limit."""
        (row,) = [row for row in self.service.operator.limits() if row["limit"] == limit]
        return row["value"], row["from"]

    def state(self) -> list[object]:
        """Everything that a file changes."""
        operator, delivery = self.service.operator, self.factory.context.delivery
        return [*operator.limits(), *operator.rules(), getattr(delivery, "_domains", None)]

    def tries(self, host: str) -> int:
        return codes(self.connect(host).heard())[0]


OLD = "max-errors = 5\ndeny = 192.0.2.1\naccept-domain = one.example\n"
NEW = """\
# Twenty lines that are good.
max-connections = 500
max-errors = 7
max-messages = 9
max-message-size = 25M
connection-rate = 60/60
read-timeout = 2m
bare-newline = normalize
strict-enhanced-codes = yes
profile = edge
dry-run = max-messages
deny = 192.0.2.2
deny = 198.51.100.0/24
trust = 192.0.2.3
trust = 2001:db8::/32
accept-domain = two.example
accept-domain = three.example
max-recipients = 50
max-log-lines = 100
greet-delay = 0
"""


def test_limits_networks_domains_dry_run_and_profile_change_in_the_running_guard(tmp_path: Path) -> None:
    guard = Configured(tmp_path, OLD)
    client = guard.greeted("192.0.2.7")
    assert client.codes(*ENVELOPE)[-3:] == [250, 250, 550]
    log = guard.reload(NEW)
    assert log.take("reloaded")[-1] == f"reloaded what=configuration option=--config file={guard.file}"
    assert log.take("dry_run") == ["dry_run limits=max_messages"]
    assert log.take("restart_needed") == log.take("reload_failed") == []
    assert guard.row("max-errors") == ("7", f"file {guard.file} line 3")
    assert guard.row("max-junk-commands") == ("20", "profile edge")
    assert guard.row("max-command-line") == ("2k", "default")
    assert guard.factory.limits.dry_run == {"max_messages"}
    assert [guard.tries(f"192.0.2.{n}") for n in (1, 2, 3)] == [220, 421, 220]
    assert next(row["from"] for row in guard.service.operator.rules()) == f"file {guard.file} line 12"
    # The session goes on, and its next commands meet the new domains.
    assert client.codes("RSET", *ENVELOPE) == [250, 250, 550, 250]


MISTAKES = [
    (
        "max-junk-commands = many",
        "line 21: max-junk-commands: a whole number such as 20 is expected, not 'many'",
    ),
    (
        "max-erors = 5",
        "line 21: there is no option 'max-erors' for a configuration file, did you mean 'max-errors'?",
    ),
    ("max-errors = 8", "line 21: max-errors: it is on line 3 already"),
    ("deny 192.0.2.4", "line 21: 'option = value' is expected, not 'deny 192.0.2.4'"),
    (
        "deny = 192.0.2.4/24",
        "line 21: deny: '192.0.2.4/24' has bits set after its prefix; 192.0.2.0/24 is expected",
    ),
    (
        "trust = client.example",
        "line 21: trust: 'client.example' is not a network; one such as 192.0.2.0/24, ",
    ),
    ("accept-domain = -", "line 21: accept-domain: "),
    ("dry-run = read-timeout", "line 21: dry-run: all, or some of "),
    ("require-auth = yes", "line 21: require-auth: --auth is needed"),
    ("require-tls = maybe", "line 21: require-tls: yes or no is expected, not 'maybe'"),
    ("listen = tcp", "line 21: listen: "),
    ("hostname = a b", "line 21: hostname: "),
]


@pytest.mark.parametrize(("line", "problem"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_file_with_one_mistake_among_twenty_good_lines_changes_nothing(
    tmp_path: Path, line: str, problem: str
) -> None:
    guard = Configured(tmp_path, OLD)
    before = guard.state()
    (event,) = guard.reload(f"{NEW}{line}\n").take("reload_failed")
    first = f"reload_failed what=configuration option=--config file={guard.file} {problem}"
    assert event.startswith(first)
    assert guard.state() == before
    # It is no worse afterwards.
    assert guard.reload(NEW).take("reload_failed") == []
    assert guard.row("max-errors")[0] == "7"


def test_a_file_of_domains_with_a_mistake_keeps_all_else_from_changing_too(tmp_path: Path) -> None:
    guard = Configured(tmp_path, OLD)
    before = guard.state()
    (tmp_path / "domains").write_text("two.example\n-\n")
    (event,) = guard.reload(f"{NEW}accept-domain = {tmp_path}/domains\n").take("reload_failed")
    assert event.startswith(
        f"reload_failed what=configuration option=--accept-domain file={tmp_path}/domains line 2: "
    )
    assert guard.state() == before
    (tmp_path / "domains").write_text("four.example\n")
    assert guard.reload().take("reload_failed") == []
    client = guard.greeted("192.0.2.7")
    assert client.codes(ENVELOPE[0], "RCPT TO:<b@four.example>")[-1] == 250


def test_a_file_that_is_gone_changes_nothing(tmp_path: Path) -> None:
    guard = Configured(tmp_path, OLD)
    before = guard.state()
    guard.file.unlink()
    assert guard.reload().take("reload_failed") == [
        f"reload_failed what=configuration option=--config file={guard.file} No such file or directory"
    ]
    assert guard.state() == before


def test_the_file_changes_after_the_files_of_the_other_parts_have_been_read(tmp_path: Path) -> None:
    networks = tmp_path / "networks"
    networks.write_text("deny 192.0.2.8\n")
    guard = Configured(tmp_path, OLD, f"--ip-filter=networks:{networks}")
    networks.write_text("deny 192.0.2.9\n")
    guard.reload(NEW)
    assert [guard.tries(f"192.0.2.{n}") for n in (2, 8, 9)] == [421, 220, 421]


# What wins over the file.


def test_the_command_line_and_the_environment_win_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMTPGUARD_MAX_MESSAGES", "33")
    guard = Configured(tmp_path, OLD, "--max-errors=44", "--deny=192.0.2.5")
    guard.reload(NEW)
    assert guard.row("max-errors") == ("44", "command line")
    assert guard.row("max-messages") == ("33", "environment")
    assert guard.row("max-recipients")[0] == "50"
    assert [guard.tries(f"192.0.2.{n}") for n in (2, 5)] == [220, 421]


def test_what_an_operator_has_set_or_ruled_stays_until_it_is_taken_back(tmp_path: Path) -> None:
    guard = Configured(tmp_path, OLD)
    operator = guard.service.operator
    operator.set("max-errors", "99", by="uid:0")
    operator.deny("192.0.2.9")
    guard.reload(NEW)
    assert guard.row("max-errors") == ("99", "set by uid:0 at 1970-01-01T00:00:00Z")
    assert [guard.tries(f"192.0.2.{n}") for n in (2, 9)] == [421, 421]
    assert operator.unset("max-errors")["value"] == "7"


# What does not change.


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("listen", "listen = tcp:2626"),
        ("hostname", "hostname = mx.example"),
        ("ip-filter", "ip-filter = networks:/nonexistent"),
        ("min-free-space", "min-free-space = 1G"),
        ("proxy-protocol-from", "proxy-protocol-from = 192.0.2.0/24"),
    ],
)
def test_an_option_that_cannot_change_names_itself_and_the_others_change(
    tmp_path: Path, option: str, line: str
) -> None:
    guard = Configured(tmp_path, OLD)
    for _ in range(2):
        log = guard.reload(f"{line}\n{NEW}")
        assert log.take("restart_needed") == [
            f"restart_needed option=--{option} origin=file\\x20{guard.file}\\x20line\\x201 "
            "the option holds from a restart"
        ]
        assert log.take("reload_failed") == []
    assert guard.row("max-errors")[0] == "7"
    assert guard.row("min-free-space") == ("100M", "default")
    assert guard.reload(NEW).take("restart_needed") == []


def test_one_that_is_gone_from_the_file_names_itself_too(tmp_path: Path) -> None:
    guard = Configured(tmp_path, f"{OLD}hostname = mx.example\n")
    (line,) = guard.reload(OLD).take("restart_needed")
    assert line.startswith("restart_needed option=--hostname origin=default ")
    assert guard.factory.context.hostname == "mx.example"


def test_a_guard_does_not_become_an_open_relay_by_a_line_that_is_gone(tmp_path: Path) -> None:
    guard = Configured(tmp_path, OLD)
    (line,) = guard.reload("max-errors = 6\n").take("restart_needed")
    assert line.startswith("restart_needed option=--accept-domain ")
    assert guard.row("max-errors")[0] == "6"
    client = guard.greeted("192.0.2.7")
    assert client.codes(*ENVELOPE)[-3:] == [250, 250, 550]


def test_a_guard_that_takes_mail_for_all_domains_needs_a_restart_to_take_it_for_some(tmp_path: Path) -> None:
    guard = Configured(tmp_path, "max-errors = 6\n")
    (line,) = guard.reload(OLD).take("restart_needed")
    assert line.startswith("restart_needed option=--accept-domain ")


def test_a_default_that_has_become_another_needs_no_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = Configured(tmp_path, OLD)
    monkeypatch.setattr("socket.getfqdn", lambda: "another.example")
    assert guard.reload(NEW).take("restart_needed") == []


def test_without_a_file_nothing_is_read(tmp_path: Path) -> None:
    service = make_service(parsed("--deliver=discard"), Reactor())
    with logbook() as log:
        assert service.reload().called
    assert log.take("reloaded") == log.take("reload_failed") == []
