"""The page about changes in a running guard: what it tells to type works, and what it shows is what is seen."""

from __future__ import annotations

import re
import shlex
from typing import Any

from documents import DOCS, blocks
from fakes import FakeDelivery
from logbook import logbook
from twisted.internet.task import Clock

from twisted_smtpguard import Limits, SMTPGuardService
from twisted_smtpguard.control.command import make_parser
from twisted_smtpguard.control.tables import shown
from twisted_smtpguard.operations.verbs import VERBS

PAGE = DOCS / "how-to" / "change-limits-while-it-runs.md"
BY = "uid:1000"


def service() -> SMTPGuardService:
    clock = Clock()
    clock.advance(1796054400)
    return SMTPGuardService(clock, [], FakeDelivery(), limits=Limits(max_connections=2000))


def typed(guard: SMTPGuardService, words: str) -> Any:
    """Do what a command line of smtpguardctl says."""
    program, *rest = shlex.split(words)
    assert program == "smtpguardctl"
    given = vars(make_parser().parse_args(rest))
    verb = VERBS[given["verb"]]
    named = {each.name: given[f"arg {each.name}" if each.option else each.name] for each in verb.arguments}
    arguments = {name: value for name, value in named.items() if value is not None}
    return guard.operator.carry_out(verb.name, arguments, BY)


def test_each_command_does_what_the_page_says_in_its_order() -> None:
    guard = service()
    commands = re.findall(r"`(smtpguardctl [^`]+)`", PAGE.read_text())
    assert {shlex.split(words)[1] for words in commands} >= {
        *("limits", "set", "unset", "deny", "allow", "trust", "rules", "remove", "defer", "reload")
    }
    for words in commands:
        typed(guard, words)
    assert [(row["network"], row["rule"]) for row in guard.operator.rules()] == [
        ("198.51.100.4", "trust"),
        ("203.0.113.7", "allow"),
    ]


def test_what_is_shown_of_a_change_is_what_is_seen_and_logged() -> None:
    guard = service()
    words = "smtpguardctl set max-connections 500"
    with logbook() as log:
        answer = typed(guard, words)
        (line,) = log.take("operator")
    seen = "\n".join([f"$ {words}", *shown(answer, [], 0)]) + "\n"
    assert seen in blocks(PAGE, "text"), seen
    assert f"{line}\n" in blocks(PAGE, "text"), line
