"""--ip-filter, --deny and --trust: who is asked, in which order, and what a mistake is told."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from commandline import mistake, parsed, printed, twist, written
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs
from twisted.python.usage import UsageError
from zope.interface import implementer

from twisted_smtpguard.admission.chain import FilterEntry
from twisted_smtpguard.cli.options import Options, make_service
from twisted_smtpguard.interfaces import PASS, TRUST, IIPFilter, IIPFilterFactory, Peer, Verdict, refuse

REACTOR = MemoryReactorClock()


@implementer(IIPFilter)
class PassFilter:
    """Remembers what it was made of."""

    def __init__(self, argument: str) -> None:
        self.argument = argument

    def check(self, peer: Peer) -> Verdict:
        return PASS


@implementer(IIPFilterFactory)
class Plugin:
    summary = "For tests."
    argument_format = "Anything but `wrong`."

    def __init__(self, name: Any = "plugin") -> None:
        self.name = name

    def make_filter(self, argument: str, reactor: object) -> Any:
        assert reactor is REACTOR
        if argument == "wrong":
            raise ValueError("anything but wrong is expected")
        if argument == "fault":
            raise KeyError("fault")
        return argument if argument == "rubbish" else PassFilter(argument)


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The IP filters of other distributions. A test may change them."""
    found: list[Any] = [Plugin()]

    def get_plugins(interface: Any) -> list[Any]:
        return found if interface is IIPFilterFactory else []

    monkeypatch.setattr("twisted.plugin.getPlugins", get_plugins)
    return found


def made(options: Options) -> list[tuple[str, str, bool]]:
    """Argument, name and fail_open of the filters that `options` ask for, all of them Plugin's."""
    entries = options.ip_filters(REACTOR)
    return [(getattr(entry.filter, "argument", ""), entry.name, entry.fail_open) for entry in entries]


def asked(*words: str) -> Sequence[FilterEntry]:
    """What a guard with these options asks about a client, in order."""
    return make_service(parsed("--deliver=discard", *words), REACTOR).factory.admission.chain.entries


def says(entry: FilterEntry, address: str) -> object:
    """The verdict about a client at `address`."""
    return entry.filter.check(Peer(ip_address(address), 1025, ip_address("127.0.0.1"), 25, False, False))


def start_mistake(*words: str) -> str:
    """What is told by a start with options that can be parsed."""
    with pytest.raises(UsageError) as error:
        make_service(parsed(*words), REACTOR)
    return str(error.value)


# IP filters.


def test_without_options_there_is_no_filter() -> None:
    assert parsed().ip_filters(REACTOR) == []


def test_filters_are_asked_in_the_order_of_their_options() -> None:
    options = parsed("--ip-filter", "plugin:b:c", "--ip-filter=plugin", "--ip-filter", "plugin:a")
    assert made(options) == [
        ("b:c", "plugin", False),
        ("", "plugin", False),
        ("a", "plugin", False),
    ]


def test_fail_open_before_its_name_marks_a_filter_and_is_not_part_of_its_name() -> None:
    options = parsed("--ip-filter", "fail-open:plugin:a:b", "--ip-filter", "plugin:fail-open:")
    assert made(options) == [("a:b", "plugin", True), ("fail-open:", "plugin", False)]


def test_a_file_may_have_filters_and_the_command_line_replaces_them_all(tmp_path: Path) -> None:
    path = written(tmp_path, "ip-filter = plugin:a\nip-filter = fail-open:plugin:b\n")
    assert made(parsed("--config", path)) == [("a", "plugin", False), ("b", "plugin", True)]
    assert made(parsed("--ip-filter", "plugin:c", "--config", path)) == [("c", "plugin", False)]


def test_a_faulty_plugin_that_is_not_used_is_no_reason_not_to_start(installed: list[Any]) -> None:
    installed[:] = [Plugin("No Name")]
    assert [entry.name for entry in asked("--deny", "192.0.2.1")] == ["deny/trust"]


UNKNOWN = "there is no IP filter called {!r}; known are dnsbl, networks, plugin"
ORDER = "NAME:ARGS is expected, or in this order name=WORD:fail-open:NAME:ARGS"


@pytest.mark.parametrize(
    ("specification", "told"),
    [
        ("", ORDER),
        ("pigeon:x", UNKNOWN.format("pigeon")),
        ("PLUGIN", UNKNOWN.format("PLUGIN")),
        ("fail-open", UNKNOWN.format("fail-open")),
        ("fail-open:", ORDER),
        ("fail-open:fail-open:plugin", UNKNOWN.format("fail-open")),
        ("plugin:wrong", "anything but wrong is expected"),
        (
            "name=a b:plugin",
            "1 to 64 letters, digits, dots, hyphens or underscores are expected after name=, not 'a b'",
        ),
        ("name=a", ORDER),
        ("fail-open:name=a:plugin", ORDER),
        ("fail-open:plugin:wrong", "anything but wrong is expected"),
        ("plugin:fault", "test_filter_options.Plugin failed with KeyError: 'fault'"),
        ("plugin:rubbish", "test_filter_options.Plugin made 'rubbish', which does not provide IIPFilter"),
    ],
)
def test_a_wrong_filter_is_reported_with_its_option_and_leaves_no_maildir(
    specification: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert start_mistake("--ip-filter", "plugin", "--ip-filter", specification) == f"--ip-filter: {told}"
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_filter_in_a_file_is_told_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, "ip-filter = plugin:right\nip-filter = plugin:wrong\n")
    assert start_mistake("--config", path) == (
        f"--config {path} line 2: ip-filter: anything but wrong is expected"
    )


@pytest.mark.parametrize(
    ("plugins", "told"),
    [
        (
            [Plugin("fail-open")],
            "the plugin test_filter_options.Plugin has the name 'fail-open', which is reserved for filters "
            "that fail open",
        ),
        (
            [Plugin("No Name")],
            "the plugin test_filter_options.Plugin has the name 'No Name'; lower-case letters, digits and hyphens "
            "are expected, a letter first",
        ),
        (
            [Plugin("same"), Plugin("same")],
            "test_filter_options.Plugin and test_filter_options.Plugin both have the name 'same'",
        ),
        (
            [Plugin("networks")],
            "twisted_smtpguard.filters.networks.NetworksFactory and test_filter_options.Plugin both have the name "
            "'networks'",
        ),
    ],
)
@pytest.mark.parametrize(
    "words", [("--ip-filter", "plugin"), ("--help-ip-filters",), ("--help-ip-filter", "plugin")]
)
def test_a_faulty_plugin_is_told_by_the_option_that_asked(
    words: tuple[str, ...], plugins: list[Any], told: str, installed: list[Any]
) -> None:
    installed[:] = plugins
    assert start_mistake(*words) == f"{words[0]}: {told}"


# Networks to deny and to trust.


def test_all_deny_and_trust_are_one_filter_that_is_asked_first() -> None:
    words = ("--ip-filter=plugin", "--trust=192.0.2.7", "--deny=192.0.2.0/24", "--deny=2001:db8::/32")
    first, second = asked(*words)
    assert (first.name, first.fail_open, second.name) == ("deny/trust", False, "plugin")
    assert says(first, "192.0.2.7") == TRUST
    assert says(first, "192.0.2.8") == says(first, "2001:db8::1") == refuse()
    assert says(first, "198.51.100.1") == PASS


def test_deny_wins_over_trust_of_the_same_network() -> None:
    (entry,) = asked("--trust", "192.0.2.0/24", "--deny", "192.0.2.0/24")
    assert says(entry, "192.0.2.1") == refuse()


def test_trust_needs_no_deny() -> None:
    (entry,) = asked("--trust", "::1")
    assert (says(entry, "::1"), says(entry, "::2")) == (TRUST, PASS)


def test_a_file_may_deny_and_trust_and_the_command_line_replaces_each_of_them(tmp_path: Path) -> None:
    path = written(tmp_path, "deny = 192.0.2.1 # a pest\ndeny = 192.0.2.2\ntrust = 192.0.2.3\n")
    (entry,) = asked("--config", path)
    assert [says(entry, f"192.0.2.{last}") for last in (1, 2, 3)] == [refuse(), refuse(), TRUST]
    (entry,) = asked("--config", path, "--deny", "192.0.2.4")
    assert [says(entry, f"192.0.2.{last}") for last in (1, 2, 3, 4)] == [PASS, PASS, TRUST, refuse()]


NO_NETWORK = "{!r} is not a network; one such as 192.0.2.0/24, 192.0.2.1 or 2001:db8::/32 is expected"
PREFIX = "{!r} must have a number from 0 to {} after its slash"


@pytest.mark.parametrize("option", ["deny", "trust"])
@pytest.mark.parametrize(
    ("network", "told"),
    [
        *((text, NO_NETWORK.format(text)) for text in ("", "pest.example", "192.0.2", "192.0.2.1,192.0.2.2")),
        ("192.0.2.1/33", PREFIX.format("192.0.2.1/33", 32)),
        ("::/129", PREFIX.format("::/129", 128)),
        ("192.0.2.1/24", "'192.0.2.1/24' has bits set after its prefix; 192.0.2.0/24 is expected"),
    ],
)
def test_what_is_no_network_is_told_by_its_option_and_value(option: str, network: str, told: str) -> None:
    assert mistake(f"--{option}", "192.0.2.1", f"--{option}", network) == f"--{option}: {told}"


def test_a_wrong_network_in_a_file_is_told_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, "deny = 192.0.2.1\n\ndeny = pest.example\n")
    assert mistake("--config", path) == f"--config {path} line 3: deny: {NO_NETWORK.format('pest.example')}"


# Questions.


def test_help_ip_filters_lists_the_built_in_ones_and_those_of_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = printed(capsys, "--help-ip-filters").splitlines()
    assert [line.split()[0] for line in lines] == ["dnsbl", "networks", "plugin"]
    assert lines[2].endswith("  For tests.")


def test_help_ip_filter_tells_what_may_follow_the_colon(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "--help-ip-filter", "plugin") == "plugin: For tests.\n\nAnything but `wrong`.\n"


def test_help_of_a_filter_that_there_is_not_is_told_by_its_option() -> None:
    assert mistake("--help-ip-filter", "pigeon") == f"--help-ip-filter: {UNKNOWN.format('pigeon')}"


# The service.


def test_the_start_logs_each_filter_in_order_by_its_name_and_never_its_argument() -> None:
    words = (
        "--ip-filter",
        "fail-open:plugin:a",
        "--ip-filter",
        "name=zen:plugin:key=b",
        "--deny",
        "192.0.2.1",
    )
    with capturedLogs() as events:
        make_service(parsed("--deliver", "discard", *words), REACTOR)
    assert [event["text"] for event in events] == [
        "delivering delivery=discard",
        "filtering filter=deny/trust",
        "filtering filter=fail-open:plugin",
        "filtering filter=zen",
    ]


# Real processes.


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--ip-filter", "pigeon"], "--ip-filter: there is no IP filter called 'pigeon'; known are "),
        (["--ip-filter", "networks:missing"], "--ip-filter: "),
        (["--ip-filter", "networks:bad"], "--ip-filter: "),
        (["--known", "missing"], "--known: missing cannot be read: No such file or directory"),
        (["--known", "bad"], "--known: bad line 1: one network is expected in a line, and nothing but "),
        (["--deny", "pest.example"], "--deny: "),
        (["--trust", "192.0.2.0/33"], "--trust: "),
        (["--profile", "Edge"], "--profile: one of base, edge is expected, not 'Edge'"),
        (["--dry-run", "read-timeout"], "--dry-run: all, or some of "),
        (["--help-ip-filter", "pigeon"], "--help-ip-filter: there is no IP filter called 'pigeon'"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_status_64(words: list[str], told: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_text("deny 192.0.2.1\nfrobnicate\n")
    status, out, err = twist(*words, cwd=tmp_path)
    assert (status, out) == (64, "")
    assert re.fullmatch(re.escape(told) + ".*\n", err)
    assert list(tmp_path.iterdir()) == [bad]


@pytest.mark.parametrize("words", [["--help-ip-filters"], ["--help-ip-filter", "networks"]])
def test_a_question_is_answered_and_nothing_is_started(words: list[str], tmp_path: Path) -> None:
    status, out, err = twist(*words, cwd=tmp_path)
    assert (status, err) == (0, "")
    assert out.startswith(("dnsbl", "networks"))
    assert list(tmp_path.iterdir()) == []
