"""docs/reference/options.md has every option, as the command line and --help have it."""

from __future__ import annotations

import re

import pytest
from certificates import CERTIFICATE
from commandline import parsed
from reference_pages import REFERENCE, assert_rows
from twisted.application.twist._options import TwistOptions

from twisted_smtpguard.cli.helptext import OPTIONS
from twisted_smtpguard.cli.options import _CONFIGURABLE, _REPEATABLE, Options
from twisted_smtpguard.limits.limits import Limits, LimitSpec
from twisted_smtpguard.limits.points import OFFENCES
from twisted_smtpguard.limits.units import FLAG, RATE

PAGE = REFERENCE / "options.md"
SPECS = list(Limits.specs())


def code(option: str, value: str) -> str:
    return f"`--{option} {value}`".replace("|", "\\|") if value else f"`--{option}`"


def row(option: str, value: str, text: str) -> str:
    file = "no" if option not in _CONFIGURABLE else "yes, repeated" if option in _REPEATABLE else "yes"
    return f"| {code(option, value)} | {file} | {text} |"


def limit_row(spec: LimitSpec, section: str) -> str:
    values = {RATE: "N/SECONDS", OFFENCES: "OFFENCE=N,..."}
    value = values.get(spec.unit) or "|".join(spec.unit.choices) or "N"
    base, edge = spec.unit.format(spec.default), spec.unit.format(spec.edge)
    anchor = section.lower().replace(" ", "-")
    shown = code(spec.option, "" if spec.unit is FLAG else value)
    return f"| {shown} | {base} | {edge} | [{section}](limits.md#{anchor}) |"


def sections() -> dict[str, str]:
    """Of each limit the heading of limits.md below which it stands."""
    found, heading = {}, ""
    for line in (REFERENCE / "limits.md").read_text().splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        elif option := re.match(r"\| `--([a-z0-9-]+)`", line):
            found[option[1]] = heading
    return found


def test_the_page_has_every_option_in_the_order_of_help() -> None:
    where = sections()
    rows = [row(option, value, text) for option, (value, text) in OPTIONS.items()]
    limits = [limit_row(spec, where[spec.option]) for spec in SPECS]
    assert_rows("options.md", "| `--", rows + limits)


def test_the_command_line_takes_these_options_and_no_other() -> None:
    assert {*OPTIONS, *(spec.option for spec in SPECS)} == {name.rstrip("=") for name in Options().longOpt}


@pytest.mark.parametrize("option", sorted(_REPEATABLE))
def test_what_may_be_repeated_is_kept_in_its_order(option: str) -> None:
    values = {
        "listen": ["tcp:1", "tcp:2"],
        "listen-tls": ["tcp:1", "tcp:2"],
        "tls-certificate": ["a.pem", "b.pem"],
        "tls-key": ["a.key", "b.key"],
        "auth": ["file:a", "file:b"],
        "proxy-protocol-from": ["192.0.2.1", "unix"],
        "accept-domain": ["example.org", "/etc/smtpguard/domains"],
        "ip-filter": ["networks:a", "networks:b"],
        "policy": ["rcpt=unix:a", "mail=tcp:127.0.0.1:1,timeout=5"],
        "policy-plugin": ["quota:a", "fail-open:quota:b"],
        "deny": ["192.0.2.1", "192.0.2.2"],
        "trust": ["192.0.2.1", "192.0.2.2"],
        "metrics": ["tcp:1", "unix:m.sock"],
        "metrics-host": ["status.example.org", "guard"],
        "dry-run": ["max-errors", "max-messages"],
    }[option]
    needs = (f"--tls-certificate={CERTIFICATE}",) if option in ("listen-tls", "auth", "tls-key") else ()
    needs = ("--metrics=tcp:1",) if option == "metrics-host" else needs
    assert parsed(*needs, *(f"--{option}={value}" for value in values))[option] == values


def test_the_options_of_twist_that_the_page_names_exist() -> None:
    named = re.findall(r"^\| `twist --([a-z-]+)", PAGE.read_text(), re.MULTILINE)
    assert len(named) == 4
    assert set(named) <= {name.rstrip("=") for name in TwistOptions().longOpt}
