"""The command line of `twist smtpguard` and its --config file: what is understood, and what a mistake is told."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import attrs
import pytest
from commandline import mistake, parsed, printed, twist, written
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel, capturedLogs
from twisted.python import usage
from twisted.python.usage import UsageError

from twisted_smtpguard.cli.options import Options, make_service
from twisted_smtpguard.limits.limits import Limits, LimitSpec
from twisted_smtpguard.limits.points import OFFENCES, POINTS
from twisted_smtpguard.limits.units import COUNT, FACTOR, FLAG, OCTETS, OCTETS_A_SECOND, PART, RATE, SECONDS

SPECS = list(Limits.specs())
each_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)

OTHER_VALUES = {COUNT: "7", OCTETS: "3M", OCTETS_A_SECOND: "3k", RATE: "7/70", SECONDS: "90", FLAG: "yes"}
WRONG = {
    COUNT: "a whole number such as 20 is expected, not 'abc'",
    OCTETS: "a size such as 10M, 64k or 10485760 is expected, not 'abc'",
    OCTETS_A_SECOND: "a size such as 10M, 64k or 10485760 is expected, not 'abc'",
    RATE: "a rate such as 60/60, which is 60 in 60 seconds, or 0 is expected, not 'abc'",
    SECONDS: "a time such as 300, 1.5 or 5m is expected, not 'abc'",
    FLAG: "yes or no is expected, not 'abc'",
    FACTOR: "a whole number from 1 to 1000 is expected, not 'abc'",
    PART: "a part such as 20%, or a whole number such as 100, is expected, not 'abc'",
}


def other_value(spec: LimitSpec) -> str:
    """The text of a value that is not the default."""
    if spec.unit.choices:
        return next(choice for choice in spec.unit.choices if choice != spec.default)
    return "expn=7" if spec.unit is OFFENCES else OTHER_VALUES.get(spec.unit, "8")


def wrong_value(spec: LimitSpec) -> str:
    """What the operator is told of the value `abc`."""
    if spec.unit.choices:
        return f"one of {', '.join(spec.unit.choices)} is expected, not 'abc'"
    if spec.unit is OFFENCES:
        return f"there is no offence 'abc'; there are {', '.join(sorted(POINTS))}, not 'abc'"
    longest = 32 if spec.name.startswith("ipv4") else 128
    if spec.name in ("ipv4_networks", "ipv6_networks"):
        longest, example = (31, "24,16") if spec.name.startswith("ipv4") else (127, "56,48")
        lengths = (
            f"at most 4 prefix lengths from 1 to {longest}, each below the one before, such as {example}"
        )
        return f"{lengths}, or 0 is expected, not 'abc'"
    of_unit = {unit.name: text for unit, text in WRONG.items()}
    return of_unit.get(spec.unit.name, f"a prefix length from 1 to {longest} is expected, not 'abc'")


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], str]:
    """Writes a --config file and returns its path."""

    return partial(written, tmp_path)


# Values.


def test_with_no_option_it_listens_on_port_2525_of_this_machine_alone_and_delivers_into_maildir() -> None:
    options = parsed()
    assert [setting.text for setting in options.listen] == ["tcp:2525:interface=127.0.0.1"]
    assert options.deliver.text == "maildir:Maildir"
    assert options.limits == Limits()


@each_spec
def test_every_limit_is_an_option_of_its_name(spec: LimitSpec) -> None:
    text = other_value(spec)
    words = [f"--{spec.option}"] if spec.unit is FLAG else [f"--{spec.option}", text]
    value = spec.unit.parse(text)
    assert value != spec.default
    assert parsed(*words).limits == attrs.evolve(Limits(), **{spec.name: value})


@each_spec
def test_every_limit_can_stand_in_a_file(spec: LimitSpec, config: Callable[[str], str]) -> None:
    text = other_value(spec)
    limits = parsed("--config", config(f"{spec.option} = {text}\n")).limits
    assert limits == attrs.evolve(Limits(), **{spec.name: spec.unit.parse(text)})


def test_listen_may_be_given_several_times() -> None:
    options = parsed("--listen", "tcp:1", "--listen", "tcp:2")
    assert [setting.text for setting in options.listen] == ["tcp:1", "tcp:2"]


def test_the_last_of_an_option_that_is_no_list_counts() -> None:
    assert parsed("--max-errors", "5", "--max-errors", "6").limits.max_errors == 6


def test_a_unique_beginning_of_an_option_will_do() -> None:
    assert parsed("--max-hea", "5").limits.max_header_size == 5


@pytest.mark.parametrize(
    "name", ["mx.example.org", "localhost", "[192.0.2.1]", "[IPv6:2001:db8::1]", "a_b.example"]
)
def test_a_hostname_is_a_domain_or_an_address_literal(name: str) -> None:
    assert parsed("--hostname", name).hostname == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a b",
        "a..b",
        ".",
        "-a",
        "x\r\ny",
        "x> SIZE=1",
        "x>",
        "192.0.2.1]",
        "[192.0.2]",
        "caf\u00e9",
        "\udcff",
        "a" * 256,
    ],
)
def test_nothing_else_is_a_hostname(name: str) -> None:
    assert mistake("--hostname", name) == (
        "--hostname: a domain or an address literal such as mx.example.org or [192.0.2.1] is expected, "
        f"not {name!r}"
    )


def test_without_a_hostname_it_is_the_machines_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda: "mx.example.org")
    assert parsed().hostname == "mx.example.org"


def test_a_machine_with_no_proper_name_is_localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda: "not a name")
    assert parsed().hostname == "localhost"


# The file.


def test_a_file_has_comments_blank_lines_dashes_and_any_line_end(config: Callable[[str], str]) -> None:
    path = config(
        "\ufeff# max-errors = 1\n\n   \t\nmax-errors=2\r\n  --max-messages =  3  # at most\ndeliver = maildir:a#b\n"
    )
    options = parsed("--config", path)
    assert options.limits == Limits(max_errors=2, max_messages=3)
    assert options.deliver.text == "maildir:a#b"


def test_a_value_keeps_its_equals_signs(config: Callable[[str], str]) -> None:
    options = parsed("--config", config("listen = tcp:0:interface=127.0.0.1"))
    assert options.listen[0].text == "tcp:0:interface=127.0.0.1"


def test_the_command_line_wins_over_the_file(config: Callable[[str], str]) -> None:
    path = config("max-errors = 5\nmax-messages = 7\ndeliver = discard\n")
    options = parsed("--max-errors", "0", "--config", path, "--deliver", "maildir:x")
    assert options.limits == Limits(max_errors=0, max_messages=7)
    assert options.deliver.text == "maildir:x"


def test_the_command_line_replaces_every_listener_of_the_file(config: Callable[[str], str]) -> None:
    path = config("listen = tcp:1\nlisten = tcp:2\n")
    assert [setting.text for setting in parsed("--config", path).listen] == ["tcp:1", "tcp:2"]
    options = parsed("--listen", "tcp:3", "--config", path)
    assert [setting.text for setting in options.listen] == ["tcp:3"]


def test_a_flag_in_a_file_can_be_off(config: Callable[[str], str]) -> None:
    assert parsed("--config", config("strict-enhanced-codes = no")).limits.strict_enhanced_codes is False


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("\n\nmax-errors 5", "line 3: 'option = value' is expected, not 'max-errors 5'"),
        ("strict-enhanced-codes", "line 1: 'option = value' is expected, not 'strict-enhanced-codes'"),
        ("\ntls-certificate = a\0b", "line 2: there is a NUL in the line, as in a file of UTF-16"),
        ("listen = unix:a\0b", "line 1: there is a NUL in the line, as in a file of UTF-16"),
        ("max-errors =", "line 1: max-errors: there is no value after the ="),
        ("max-errors = # 5", "line 1: max-errors: there is no value after the ="),
        ("max-errors = 5\nmax-errors = 5", "line 2: max-errors: it is on line 1 already"),
        ("= 5", "line 1: there is no option '' for a configuration file"),
        ("frobnicate = 5", "line 1: there is no option 'frobnicate' for a configuration file"),
        ("show-limits = yes", "line 1: there is no option 'show-limits' for a configuration file"),
        ("config = other.conf", "line 1: there is no option 'config' for a configuration file"),
        (
            "max_errors = 5",
            "line 1: there is no option 'max_errors' for a configuration file, did you mean 'max-errors'?",
        ),
        (
            "a\x1b[2J\udcc3\udca4 = 5",
            r"line 1: there is no option 'a\x1b[2J" + "\u00e4' for a configuration file",
        ),
        (
            "hostname = a b",
            "line 1: hostname: a domain or an address literal such as mx.example.org or [192.0.2.1] is expected, "
            "not 'a b'",
        ),
    ],
)
def test_a_mistake_in_a_file_is_told_with_its_line(
    text: str, told: str, config: Callable[[str], str]
) -> None:
    path = config(text)
    assert mistake("--config", path) == f"--config {path} {told}"


@each_spec
def test_a_wrong_value_in_a_file_names_line_and_option(spec: LimitSpec, config: Callable[[str], str]) -> None:
    path = config(f"# mine\n{spec.option} = abc\n")
    assert mistake("--config", path) == f"--config {path} line 2: {spec.option}: {wrong_value(spec)}"


def test_a_file_that_is_missing_is_told() -> None:
    assert mistake("--config", "nowhere.conf") == "--config nowhere.conf: No such file or directory"


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    assert mistake("--config", str(tmp_path)) == f"--config {tmp_path}: Is a directory"


def test_a_file_that_is_not_text_is_told(config: Callable[[str], str]) -> None:
    path = config("\udcff\udcfe\x00")
    assert mistake("--config", path) == f"--config {path}: the file is not UTF-8 text"


@example(text="max-errors = \u0663")
@example(text="hostname = >")
@given(
    text=st.one_of(
        st.text(),
        st.from_regex(r"((max-errors|hostname|listen|read-timeout) *=?.*\n){1,3}", fullmatch=True),
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whatever_a_file_says_it_is_understood_or_told_in_one_line(
    text: str, config: Callable[[str], str]
) -> None:
    path = config(text.encode("utf-8", "replace").decode())
    try:
        options = parsed("--config", path)
    except UsageError as error:
        assert str(error).startswith(f"--config {path}")
        assert "\n" not in str(error)
    else:
        assert isinstance(options.limits, Limits)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "ipv6-networks = 64,48",
            "line 1: ipv6-networks: prefix lengths below 64, which is that of a client, are expected, not '64,48'",
        ),
        (
            "ipv4-networks = 24\nipv4-client-prefix = 20",
            "line 1: ipv4-networks: prefix lengths below 20, which is that of a client, are expected, not '24'",
        ),
    ],
)
def test_a_network_that_is_not_wider_than_a_client_is_a_mistake(
    text: str, told: str, config: Callable[[str], str]
) -> None:
    path = config(text)
    assert mistake("--config", path) == f"--config {path} {told}"


def test_a_network_of_a_profile_that_is_not_wider_than_a_client_is_no_mistake() -> None:
    options = parsed("--profile", "edge", "--ipv6-client-prefix", "56")
    assert options.limits.networks(6) == (48,)


# Mistakes on the command line.


@pytest.mark.parametrize(
    "spec", [spec for spec in SPECS if spec.unit is not FLAG], ids=lambda spec: spec.name
)
def test_a_wrong_value_names_the_option_and_what_is_expected(spec: LimitSpec) -> None:
    assert mistake(f"--{spec.option}", "abc") == f"--{spec.option}: {wrong_value(spec)}"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--frobnicate"], "option --frobnicate not recognized"),
        (["--max-connections"], "option --max-connections requires argument"),
        (["--max", "5"], "option --max not a unique prefix"),
        (["--strict-enhanced-codes=no"], "option --strict-enhanced-codes must not have an argument"),
        (["5"], "'5' is not an option, and nothing but options is expected"),
        (["--config", "a", "--config", "b"], "--config: one file is expected, not two"),
        (
            ["--help-delivery", "pigeon"],
            "--help-delivery: there is no delivery called 'pigeon'; known are ",
        ),
    ],
)
def test_a_mistake_is_told_by_the_name_of_the_option(words: list[str], told: str) -> None:
    assert mistake(*words).startswith(told)


# Questions.


def test_help_explains_every_option_with_default_and_unit(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(printed(capsys, "--help").split())
    for spec in SPECS:
        default, edge = map(spec.unit.format, (spec.default, spec.edge))
        defaults = f"default: {default}" + f"; edge: {edge}" * (spec.edge != spec.default)
        explanation = f"{spec.help} ({spec.unit.name}; {defaults})"
        assert re.search(rf"--{spec.option}(=\S+)? {re.escape(explanation)}", text), spec.option


def test_help_names_every_option_that_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    shown = set(re.findall(r"^  --([a-z0-9-]+)", printed(capsys, "--help"), re.MULTILINE))
    assert shown == {option.rstrip("=") for option in Options().longOpt}


@pytest.mark.parametrize("columns", [60, 80, 132])
def test_help_fits_the_terminal(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert max(map(len, printed(capsys, "--help").splitlines())) <= columns


def test_show_limits_tells_each_value_its_unit_and_where_it_came_from(
    capsys: pytest.CaptureFixture[str], config: Callable[[str], str]
) -> None:
    path = config("max-errors = 5\nmax-message-size = 25600k\n")
    text = printed(capsys, "--show-limits", "--config", path, "--max-errors", "6", "--read-timeout", "5m")
    rows = [re.split(r"  +", line) for line in text.splitlines()]
    assert [row[0] for row in rows] == ["limit", *[spec.option for spec in SPECS]]
    assert ["max-errors", "6", "a count", "command line"] in rows
    assert ["read-timeout", "300", "seconds", "command line"] in rows
    assert ["max-message-size", "25M", "octets", f"file {path} line 2"] in rows
    assert ["write-timeout", "300", "seconds", "default"] in rows


def test_show_limits_refuses_what_a_start_would_refuse() -> None:
    assert mistake("--show-limits", "--max-errors", "abc").startswith("--max-errors: ")


def test_help_deliveries_lists_the_built_in_ones(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "--help-deliveries").splitlines()
    assert {"maildir", "discard"} <= {line.split()[0] for line in lines}


def test_help_delivery_tells_what_may_follow_the_colon(capsys: pytest.CaptureFixture[str]) -> None:
    assert "maildir:/var/mail/guard" in printed(capsys, "--help-delivery", "maildir")


def test_version_is_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert re.fullmatch(r"twisted_smtpguard \d+\.\d+\.\d+\n", printed(capsys, "--version"))


# The service.


def test_the_service_listens_on_every_endpoint_with_the_limits_and_the_name_that_were_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # It is never stopped, and the process of the tests handles no signals for it.
    monkeypatch.setattr("twisted_smtpguard.service.process.SIGHUP", None)
    reactor = MemoryReactorClock()
    options = parsed(
        *("--listen", "tcp:2601", "--listen", "tcp:2602:interface=127.0.0.1"),
        *("--deliver", "discard", "--max-connections", "9", "--hostname", "mx.example.org"),
    )
    service = make_service(options, reactor)
    assert reactor.tcpServers == []
    service.startService()
    assert [(server[0], server[3]) for server in reactor.tcpServers] == [(2601, ""), (2602, "127.0.0.1")]
    assert service.factory.context.limits == Limits(max_connections=9)
    assert service.factory.context.hostname == "mx.example.org"


@pytest.mark.parametrize(("level", "logged"), [("info", True), ("warn", False)])
def test_an_event_below_the_log_level_of_twist_is_not_built(level: str, logged: bool) -> None:
    options = parsed("--deliver", "discard")
    options.parent = usage.Options()
    options.parent["logLevel"] = LogLevel.levelWithName(level)
    with capturedLogs() as events:
        make_service(options, MemoryReactorClock())
    assert [event["text"] for event in events] == ["delivering delivery=discard"] * logged


@pytest.mark.parametrize(
    ("endpoint", "detail"),
    [
        ("", "Unknown endpoint type: ''"),
        ("2525", "Unknown endpoint type: '2525'"),
        ("pigeon:1", "Unknown endpoint type: 'pigeon'"),
        ("tcp", "missing 1 required positional argument: 'port'"),
        ("tcp:smtp", "invalid literal for int() with base 10: 'smtp'"),
        ("tcp:2525:interfce=::1", "got an unexpected keyword argument 'interfce'"),
    ],
)
def test_a_bad_endpoint_names_listen_and_leaves_no_maildir(
    endpoint: str, detail: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = parsed("--listen", endpoint)
    with pytest.raises(UsageError) as error:
        make_service(options, MemoryReactorClock())
    expected = "an endpoint such as tcp:2525:interface=127.0.0.1 is expected"
    # Python 3.13 goes on with a guess at what was meant.
    assert re.sub(r"\. Did you mean .*\?(?=\)$)", "", str(error.value)) == (
        f"--listen: {expected}, not {endpoint!r} ({detail})"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_bad_endpoint_in_a_file_is_told_with_its_line(config: Callable[[str], str]) -> None:
    path = config("listen = tcp:1\nlisten = pigeon:1\n")
    with pytest.raises(UsageError, match="^" + re.escape(f"--config {path} line 2: listen: an endpoint")):
        make_service(parsed("--config", path), MemoryReactorClock())


# Real processes.


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--max-connections", "abc"], "--max-connections: a whole number such as 20 is expected, not 'abc'"),
        (["--frobnicate"], "option --frobnicate not recognized"),
        (["--config", "nowhere.conf"], "--config nowhere.conf: No such file or directory"),
        (
            ["--config", "guard.conf"],
            "--config guard.conf line 2: max-errors: there is no value after the =",
        ),
        (["--deliver", "pigeon:x"], "--deliver: there is no delivery called 'pigeon'; known are "),
        (["--deliver", "maildir:guard.conf/Maildir"], "--deliver: "),
        (
            ["--listen", "pigeon:1"],
            "--listen: an endpoint such as tcp:2525:interface=127.0.0.1 is expected, not ",
        ),
        (["--hostname", "a b"], "--hostname: a domain or an address literal such as "),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_status_64(words: list[str], told: str, tmp_path: Path) -> None:
    (tmp_path / "guard.conf").write_text("# mine\nmax-errors =\n")
    status, out, err = twist(*words, cwd=tmp_path)
    assert (status, out) == (64, "")
    assert re.fullmatch(re.escape(told) + ".*\n", err)


def test_a_busy_port_is_one_sentence_and_exit_status_1(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        status, out, err = twist("--listen", f"tcp:{port}:interface=127.0.0.1", cwd=tmp_path)
    assert (status, out) == (1, "")
    assert re.fullmatch(
        rf"--listen: cannot listen on tcp:{port}:interface=127\.0\.0\.1: "
        rf"Couldn't listen on 127\.0\.0\.1:{port}: .*Address already in use\.\n",
        err,
    )


def test_an_impossible_port_is_one_sentence_and_exit_status_1(tmp_path: Path) -> None:
    words = ("--listen", "tcp:0:interface=127.0.0.1", "--listen", "tcp:99999", "--deliver", "discard")
    status, _, err = twist(*words, cwd=tmp_path)
    assert status == 1
    assert re.fullmatch(r"--listen: cannot listen on tcp:99999: .*0-65535.*\n", err)


@pytest.mark.parametrize("question", ["--help", "--show-limits", "--help-deliveries", "--version"])
def test_a_question_is_answered_and_nothing_is_started(question: str, tmp_path: Path) -> None:
    status, out, err = twist(question, cwd=tmp_path)
    assert (status, err) == (0, "")
    assert out
    assert list(tmp_path.iterdir()) == []


def test_a_name_of_the_metrics_is_one_without_a_port() -> None:
    assert mistake("--metrics=unix:m.sock", "--metrics-host=guard:9525") == (
        "--metrics-host: a domain such as example.org is expected, not 'guard:9525'"
    )
