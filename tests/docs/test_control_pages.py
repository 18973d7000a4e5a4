"""The pages about smtpguardctl and the control protocol have every verb, argument and bound, as the code has them."""

from __future__ import annotations

import itertools
import re

from reference_pages import REFERENCE, assert_rows

from twisted_smtpguard.control import answering, requests, server
from twisted_smtpguard.control.command import VARIABLE, make_parser
from twisted_smtpguard.operations.verbs import VERBS, Verb

COMMAND, PROTOCOL = "smtpguardctl.md", "control-protocol.md"


def usage(verb: Verb) -> str:
    """The verb with its arguments, as on a command line."""
    words = [verb.name]
    for argument in verb.arguments:
        word = f"--{argument.name} {argument.value}" if argument.option else argument.value
        words.append(word if argument.required else f"[{word}]")
    return " ".join(words)


def verb_rows() -> list[str]:
    return [
        f"| `{in_a_table(usage(verb))}` | {verb.help} | {'yes' if verb.changes else 'no'} |"
        for verb in VERBS.values()
    ]


def argument_rows() -> list[str]:
    found = [(verb, argument) for verb in VERBS.values() for argument in verb.arguments]
    shown = [in_a_table(f"--{each.name} " * each.option + each.value) for _, each in found]
    return [
        f"| `{verb.name}` | `{words}` | {argument.help} |"
        for (verb, argument), words in zip(found, shown, strict=True)
    ]


def in_a_table(words: str) -> str:
    return words.replace("|", "\\|")


def table_after(heading: str) -> list[str]:
    """The rows of the page's table whose first line begins with `heading`."""
    _, _, rest = (REFERENCE / COMMAND).read_text().partition(heading)
    return list(itertools.takewhile(lambda line: line.startswith("|"), rest.splitlines()[2:]))


def test_the_page_has_every_verb_and_whether_it_changes_something() -> None:
    rows = verb_rows()
    assert table_after("| Verb | What") == rows, "\n".join(["", f"in docs/reference/{COMMAND}:", *rows])


def test_the_page_has_every_argument() -> None:
    rows = argument_rows()
    assert table_after("| Argument of |") == rows, "\n".join(["", f"in docs/reference/{COMMAND}:", *rows])


def test_the_page_has_the_options_of_the_command() -> None:
    shown = {
        option
        for action in make_parser()._actions
        for option in action.option_strings
        if option.startswith("--")
    }
    written = re.findall(
        r"(?m)^\| `(--[a-z]+)", (REFERENCE / COMMAND).read_text().partition("## The verbs")[0]
    )
    assert {*written} == shown
    text = (REFERENCE / COMMAND).read_text()
    assert f"`${VARIABLE}`" in text
    assert f"`{requests.DEFAULT_PATH}`" in text


def test_the_help_of_a_verb_has_its_words() -> None:
    of_verbs = next(each for each in make_parser()._actions if each.dest == "verb").choices
    assert of_verbs is not None
    for name, verb in VERBS.items():
        shown = " ".join(of_verbs[name].format_help().split())  # type: ignore[call-overload]
        for words in (verb.help, *(argument.help for argument in verb.arguments)):
            assert words in shown


def test_the_page_of_the_protocol_has_its_bounds() -> None:
    assert_rows(
        PROTOCOL,
        "| Connections |",
        [
            f"| Connections | {server.MAX_CONNECTIONS}. One more takes the seat of the one that has asked nothing for "
            "longest, of one that does not read its answer, or of one that sends requests before it has answers; "
            "where all wait for one answer it is told so and closed. |"
        ],
    )
    text = (REFERENCE / PROTOCOL).read_text()
    assert f"Its version is {requests.VERSION}." in text
    assert f"| The line of a request | {requests.MAX_REQUEST_OCTETS // 1024} KiB." in text
    assert f"| A connection that asks nothing | {answering.IDLE_SECONDS} seconds. |" in text
    assert f"| A client that does not read its answer | {answering.READ_SECONDS} seconds." in text
    assert f"| Rows in a line | {answering.ROWS_A_TURN}, " in text
    assert f"at most {requests.MAX_ID_CHARACTERS} characters" in text
