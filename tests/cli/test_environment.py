"""Options in the environment of `twist smtpguard`: which variables there are, what they say, and what wins."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from commandline import mistake, parsed, printed, twist, written

from twisted_smtpguard.cli.options import _CONFIGURABLE
from twisted_smtpguard.limits.limits import Limits


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], str]:
    """Writes a --config file and returns its path."""
    return partial(written, tmp_path)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Sets a variable."""
    return monkeypatch.setenv


Given = Callable[[str, str], None]


@pytest.mark.parametrize("option", sorted(_CONFIGURABLE))
def test_every_option_has_a_variable(option: str, given: Given) -> None:
    name = f"SMTPGUARD_{option.upper().replace('-', '_')}"
    given(name, " ")
    assert mistake() == f"{name}: there is no value in it"


def test_a_value_is_read_as_in_a_file(given: Given) -> None:
    given("SMTPGUARD_MAX_CONNECTIONS", "500")
    given("SMTPGUARD_MAX_MESSAGE_SIZE", " 25M ")
    given("SMTPGUARD_STRICT_ENHANCED_CODES", "yes")
    given("SMTPGUARD_DELIVER", "maildir:my mail")
    options = parsed()
    assert options.limits == Limits(
        max_connections=500, max_message_size=25 * 1024 * 1024, strict_enhanced_codes=True
    )
    assert options.deliver.text == "maildir:my mail"


def test_the_command_line_wins_and_the_environment_wins_over_the_file(
    given: Given, config: Callable[[str], str]
) -> None:
    path = config("max-errors = 1\nmax-messages = 1\nmax-recipients = 1\nlisten = tcp:1\nlisten = tcp:2\n")
    given("SMTPGUARD_MAX_ERRORS", "2")
    given("SMTPGUARD_MAX_MESSAGES", "2")
    given("SMTPGUARD_LISTEN", "tcp:3")
    options = parsed("--config", path, "--max-errors", "3")
    assert options.limits == Limits(max_errors=3, max_messages=2, max_recipients=1)
    assert options.texts("listen") == ["tcp:3"]
    assert parsed("--config", path, "--listen", "tcp:4").texts("listen") == ["tcp:4"]


def test_0_and_no_win_over_what_the_file_says(given: Given, config: Callable[[str], str]) -> None:
    given("SMTPGUARD_STRICT_ENHANCED_CODES", "no")
    given("SMTPGUARD_MAX_ERRORS", "0")
    path = config("strict-enhanced-codes = yes\nprofile = edge\n")
    limits = parsed("--config", path).limits
    assert (limits.strict_enhanced_codes, limits.max_errors, limits.max_messages) == (False, 0, 100)


def test_it_may_name_the_file_and_the_command_line_another(
    given: Given, config: Callable[[str], str], tmp_path: Path
) -> None:
    given("SMTPGUARD_CONFIG", config("max-errors = 7\n"))
    assert parsed().limits.max_errors == 7
    (tmp_path / "other.conf").write_text("max-messages = 7\n")
    assert parsed("--config", str(tmp_path / "other.conf")).limits == Limits(max_messages=7)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("tcp:1", ["tcp:1"]),
        ("tcp:1 tcp:2\ttcp:3", ["tcp:1", "tcp:2", "tcp:3"]),
        ("\ntcp:1\n  tcp:2\r\n", ["tcp:1", "tcp:2"]),
        (r"tcp6:25:interface=\:\:1 tcp:2", [r"tcp6:25:interface=\:\:1", "tcp:2"]),
        ("'unix:my socket' \"unix:it's mine\" unix:it's", ["unix:my socket", "unix:it's mine", "unix:it's"]),
    ],
)
def test_an_option_that_may_be_repeated_has_its_values_in_one_variable(
    text: str, values: list[str], given: Given
) -> None:
    given("SMTPGUARD_LISTEN", text)
    assert parsed().texts("listen") == values


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("MAX_ERRORS", "abc", "a whole number such as 20 is expected, not 'abc'"),
        ("REQUIRE_TLS", "ja", "yes or no is expected, not 'ja'"),
        ("DENY", "192.0.2.1 192.0.2.1/24", "'192.0.2.1/24' has bits set after its prefix"),
        ("REQUIRE_TLS", "yes", "--tls-certificate is needed"),
        ("METRICS_HOST", "guard", "--metrics is needed"),
        ("CONFIG", "", "there is no value in it"),
        (
            "LISTEN",
            "tcp:1 'tcp:2",
            "values with blanks between them, in quotes if there is a blank in one, are expected, "
            'not "tcp:1 \'tcp:2"',
        ),
        (
            "MAX_CONECTIONS",
            "5",
            "there is no option of that name for the environment, did you mean SMTPGUARD_MAX_CONNECTIONS?",
        ),
        ("PORT", "25", "there is no option of that name for the environment"),
        ("SHOW_LIMITS", "yes", "there is no option of that name for the environment"),
        ("", "yes", "there is no option of that name for the environment"),
    ],
)
def test_a_mistake_names_the_variable(name: str, value: str, told: str, given: Given) -> None:
    given(f"SMTPGUARD_{name}", value)
    assert mistake().startswith(f"SMTPGUARD_{name}: {told}")


def test_a_file_that_it_names_and_that_is_missing_is_told(given: Given) -> None:
    given("SMTPGUARD_CONFIG", "nowhere.conf")
    assert mistake() == "SMTPGUARD_CONFIG nowhere.conf: No such file or directory"


def test_what_kubernetes_sets_for_a_service_of_that_name_is_left_alone(given: Given) -> None:
    for name in ("SMTPGUARD", "SMTPGUARD_METRICS"):
        given(f"{name}_SERVICE_HOST", "10.0.0.11")
        given(f"{name}_SERVICE_PORT", "25")
        given(f"{name}_SERVICE_PORT_SMTP", "25")
        given(f"{name}_PORT", "tcp://10.0.0.11:25")
        given(f"{name}_PORT_25_TCP", "tcp://10.0.0.11:25")
        given(f"{name}_PORT_25_TCP_ADDR", "10.0.0.11")
    assert parsed().limits == Limits()


def test_show_limits_says_where_a_value_comes_from(given: Given, capsys: pytest.CaptureFixture[str]) -> None:
    given("SMTPGUARD_MAX_ERRORS", "7")
    given("SMTPGUARD_MAX_MESSAGES", "7")
    rows = [
        re.split("  +", line) for line in printed(capsys, "--show-limits", "--max-messages=8").splitlines()
    ]
    assert ["max-errors", "7", "a count", "environment"] in rows
    assert ["max-messages", "8", "a count", "command line"] in rows


def test_the_command_reads_it_and_ends_with_one_sentence(given: Given, tmp_path: Path) -> None:
    given("SMTPGUARD_MAX_ERRORS", "\x1b\udcff\n")
    status, out, errors = twist(cwd=tmp_path)
    expected = r"SMTPGUARD_MAX_ERRORS: a whole number such as 20 is expected, not '\x1b\udcff'" + "\n"
    assert (status, out, errors) == (64, "", expected)
