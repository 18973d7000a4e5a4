"""--profile and --dry-run: which limits are in force, which are only tried, and what --show-limits says of it."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest
from commandline import mistake, parsed, printed, written

from twisted_smtpguard.limits.limits import Limits, dry_runnable

SPECS = list(Limits.specs())
EDGE = Limits.for_profile("edge")


def rows(text: str) -> list[list[str]]:
    """The cells of --show-limits by line."""
    return [re.split(r"  +", line) for line in text.splitlines()]


# The profile.


def test_the_profile_is_base_unless_edge_is_asked_for() -> None:
    assert parsed().limits == parsed("--profile", "base").limits == Limits()
    assert parsed("--profile", "edge").limits == EDGE != Limits()


EXPLICIT = {"max_connections": 0, "max_errors": 7}
EXPLICIT_TEXTS = {"max-connections": "0", "max-errors": "7"}


@pytest.mark.parametrize("profile_in_file", [True, False])
@pytest.mark.parametrize("options_in_file", [True, False])
def test_an_explicit_option_wins_over_the_profile_and_an_explicit_0_too_wherever_they_stand(
    profile_in_file: bool, options_in_file: bool, tmp_path: Path
) -> None:
    lines, words = [], []
    for option, text in EXPLICIT_TEXTS.items():
        if options_in_file:
            lines.append(f"{option} = {text}\n")
        else:
            words += [f"--{option}", text]
    # Last, for whether an option or the profile comes first must not matter.
    if profile_in_file:
        lines.append("profile = edge\n")
    else:
        words.append("--profile=edge")
    limits = parsed("--config", written(tmp_path, "".join(lines)), *words).limits
    assert limits == attrs.evolve(EDGE, **EXPLICIT)


def test_an_explicit_default_wins_over_the_profile() -> None:
    assert parsed("--profile=edge", "--early-talker=log", "--connection-rate=0").limits == attrs.evolve(
        EDGE, early_talker="log", connection_rate=0
    )


def test_the_profile_of_the_command_line_wins_over_that_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "profile = edge\nmax-errors = 0\nmax-messages = 5\n")
    assert parsed("--config", path, "--profile", "base").limits == Limits(max_errors=0, max_messages=5)


@pytest.mark.parametrize("name", ["", "Edge", "strict", "base,edge"])
def test_there_is_no_other_profile(name: str) -> None:
    assert mistake("--profile", name) == f"--profile: one of base, edge is expected, not {name!r}"


def test_a_wrong_profile_in_a_file_is_told_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, "\nprofile = Edge\n")
    assert mistake("--config", path) == (
        f"--config {path} line 2: profile: one of base, edge is expected, not 'Edge'"
    )


def test_show_limits_says_profile_edge_of_exactly_the_values_that_come_from_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = written(tmp_path, "max-errors = 0\nprofile = edge\n")
    shown = rows(printed(capsys, "--show-limits", "--config", path, "--max-messages", "100"))
    origins = {row[0]: row[-1] for row in shown[1:]}
    assert origins.pop("max-errors") == f"file {path} line 1"
    assert origins.pop("max-messages") == "command line"
    for option, origin in origins.items():
        name = option.replace("-", "_")
        differs = getattr(EDGE, name) != getattr(Limits(), name)
        assert origin == ("profile edge" if differs else "default"), option
    assert ["max-connections", "2000", "a count", "profile edge"] in shown


def test_show_limits_says_default_where_the_profile_is_base(capsys: pytest.CaptureFixture[str]) -> None:
    shown = rows(printed(capsys, "--show-limits", "--profile", "base"))
    assert {row[-1] for row in shown[1:]} == {"default"}


# Dry run.


def test_without_the_option_every_limit_is_enforced() -> None:
    assert parsed().limits.dry_run == frozenset()


def test_limits_to_try_are_listed_with_commas_or_in_several_options() -> None:
    limits = parsed("--dry-run", "max-errors,connection-rate", "--dry-run", "ip-filter").limits
    assert limits == Limits(dry_run={"max_errors", "connection_rate", "ip_filter"})


def test_all_is_every_limit_that_can_be_in_dry_run() -> None:
    assert parsed("--dry-run", "max-errors", "--dry-run", "all").limits.dry_run == dry_runnable()


def test_limits_in_dry_run_have_the_values_of_the_profile() -> None:
    limits = parsed("--profile=edge", "--dry-run=max-errors", "--max-messages=3").limits
    assert limits == attrs.evolve(EDGE, max_messages=3, dry_run={"max_errors"})


def test_a_file_may_name_limits_to_try_on_several_lines(tmp_path: Path) -> None:
    path = written(tmp_path, "dry-run = max-errors, ip-filter\ndry-run = message-rate # for now\n")
    assert parsed("--config", path).limits.dry_run == {"max_errors", "ip_filter", "message_rate"}


def test_the_command_line_replaces_every_limit_to_try_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "dry-run = max-errors\ndry-run = max-messages\n")
    assert parsed("--config", path, "--dry-run", "ip-filter").limits.dry_run == {"ip_filter"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "max-errors,",
        "all,max-errors",
        "frobnicate",
        *(spec.option for spec in SPECS if not spec.dry_run),
    ],
)
def test_a_limit_without_dry_run_is_refused_with_a_list_of_those_that_have_one(
    text: str, tmp_path: Path
) -> None:
    can = ", ".join(sorted(name.replace("_", "-") for name in dry_runnable()))
    told = f"all, or some of {can} with commas between them, is expected, not {text!r}"
    assert mistake("--dry-run", text) == f"--dry-run: {told}"
    if text:
        path = written(tmp_path, f"dry-run = {text}\n")
        assert mistake("--config", path) == f"--config {path} line 1: dry-run: {told}"


def test_show_limits_marks_exactly_the_limits_in_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "--show-limits", "--max-errors=7", "--dry-run", "max-errors,max-messages")
    shown = rows(text)
    assert ["max-errors", "7 (dry run)", "a count", "command line"] in shown
    assert ["max-messages", "0 (dry run)", "a count", "default"] in shown
    assert text.count("dry run") == 2


def test_show_limits_says_that_ip_filters_are_in_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "--show-limits", "--dry-run", "ip-filter")
    assert text.endswith("\n\nIP filters: their refusals are logged and not enforced (dry run).\n")
