"""Where would I add a limit on the names that HELO and EHLO bring? In four places, and everything else follows.

1. limits/limits.py: a field of Limits, with its unit and its docstring. Its option, `--help`, `--show-limits`, the
   profiles and dry run are made of that.
2. replies.py: the reply, and the reason that the log gives, which is the name of the limit; a docstring says when it is
   sent.
3. engine/: the handler of the command in the table of commands asks `counts.enforces`.
4. docs/reference/: the rows of the limit and of the reply. The tests of the pages say which.

docs/explanation/architecture.md walks a newcomer through them. What is tried here are the lines that it shows.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import Any

import attrs
import pytest
from documents import DOCS, section
from fakes import Guard
from logbook import logbook
from reference_pages import assert_rows, row_of_limit, row_of_reply

from twisted_smtpguard import replies
from twisted_smtpguard.cli import helptext
from twisted_smtpguard.engine import commands
from twisted_smtpguard.engine.commands import COMMANDS
from twisted_smtpguard.limits import limits as limits_of_the_package
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.limits.units import OCTETS
from twisted_smtpguard.testing import conversation

WALK = section(
    DOCS / "explanation" / "architecture.md", "A newcomer's walk: where would I add a limit on HELO names?"
)
FIELD, DECISION, HANDLER_OF_EHLO, REPLY = (
    textwrap.dedent(block) for block in re.findall(r"(?s)```text\n(.*?) *```\n", WALK)
)
"""The lines that the walk shows, in its order."""


@attrs.frozen(kw_only=True)
class NewLimits(Limits):
    """The first place."""

    max_helo_name: int = OCTETS.limit(0, edge=100)
    """The name in HELO or EHLO."""


def new_reply() -> dict[str, Any]:
    """The second place: what the module has with these lines in it."""
    module = dict(vars(replies))
    exec(REPLY, module)
    return module


def new_handlers() -> dict[str, Any]:
    """The third place: the handlers with these lines in the first of them."""
    module = dict(vars(commands))
    kept = "    engine.helo = name\n"
    before, after = inspect.getsource(commands._helo).split(kept)
    exec(before + textwrap.indent(DECISION, "    ") + kept + after, module)
    exec(inspect.getsource(commands._ehlo), module)
    return module


@pytest.fixture(autouse=True)
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts each into its place."""
    for module in (limits_of_the_package, helptext, conversation):
        monkeypatch.setattr(module, "Limits", NewLimits)
    monkeypatch.setattr(replies, "_REASONS", dict(replies._REASONS))
    monkeypatch.setattr(replies, "HELO_NAME_TOO_LONG", new_reply()["HELO_NAME_TOO_LONG"], raising=False)
    handlers = new_handlers()
    for verb in ("HELO", "EHLO"):
        row = attrs.evolve(COMMANDS[verb.encode()], run=handlers[f"_{verb.lower()}"])
        monkeypatch.setitem(COMMANDS, verb.encode(), row)


def test_the_walk_shows_the_field_and_the_handler_of_ehlo_as_they_are() -> None:
    assert textwrap.indent(FIELD, "    ") in inspect.getsource(NewLimits)
    assert inspect.getsource(commands._ehlo).startswith(HANDLER_OF_EHLO)


def test_the_walk_names_this_test() -> None:
    assert "`tests/limits/test_new_limit.py`" in WALK


@pytest.mark.parametrize("verb", ["HELO", "EHLO"])
def test_it_trips_above_its_value_and_not_at_it(verb: str) -> None:
    client = Guard(max_helo_name=8).connect()
    client.heard()
    assert client.say(f"{verb} a.example") == "501 5.5.4 HELO name too long\r\n"
    assert client.codes("MAIL FROM:<a@b.example>") == [503]
    assert client.codes(f"{verb} b.exampl") == [250]


def test_without_a_value_it_is_no_limit() -> None:
    client = Guard().connect()
    client.heard()
    assert client.codes(f"EHLO {'x' * 255}") == [250]


def test_it_is_logged_and_counted_by_its_name() -> None:
    with logbook() as log:
        client = Guard(max_helo_name=8).connect()
        client.say("EHLO a.example")
        (line,) = log.take("reject")
    assert " reason=max_helo_name " in line
    assert " limit=8 value=9" in line
    assert client.guard.factory.statistics.refusals == {"max_helo_name": 1}


def test_it_can_be_in_dry_run() -> None:
    with logbook() as log:
        client = Guard(max_helo_name=8, dry_run={"max_helo_name"}).greeted()
        assert client.codes("MAIL FROM:<a@b.example>")[-1] == 250
        (line,) = log.take("reject")
    assert " reason=max_helo_name " in line
    assert " dry_run=true" in line


def test_it_has_an_option_and_a_default_in_each_profile() -> None:
    assert "--max-helo-name" in helptext.usage_text(80)
    assert "max-helo-name" in helptext.limits_table(NewLimits(), {}, "base")
    assert NewLimits.for_profile("edge").max_helo_name == 100


def test_the_pages_are_wrong_until_its_rows_stand_there() -> None:
    with pytest.raises(
        AssertionError, match=r"in docs/reference/limits\.md\nwrong:\nmissing:\n.*\Z"
    ) as limits:
        assert_rows("limits.md", "| `--", map(row_of_limit, NewLimits.specs()))
    assert str(limits.value).count("max-helo-name") == 1
    with pytest.raises(
        AssertionError, match=r"in docs/reference/replies\.md\nwrong:\nmissing:\n.*\Z"
    ) as page:
        assert_rows("replies.md", "| `", map(row_of_reply, replies.catalogue()))
    assert str(page.value).count("HELO_NAME_TOO_LONG") == 1
