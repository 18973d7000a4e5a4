"""`smtpguardctl`, which asks and changes a running guard over its control socket.

It is made of the table of verbs and imports no Twisted: it starts in a fraction of the time, and works where only the
guard's package can be read.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import Any, NoReturn

from twisted_smtpguard.control import tables
from twisted_smtpguard.control.requests import DEFAULT_PATH, request_line
from twisted_smtpguard.inputs.escaping import escape_text
from twisted_smtpguard.operations.verbs import VERBS, Verb

DONE, REFUSED, UNREACHABLE = 0, 1, 2
"""The exit statuses."""

VARIABLE = "SMTPGUARD_CONTROL"
"""The environment variable for the path, the same as for the option of `twist smtpguard`."""

_EXIT_STATUS = (
    "Exit status: 0 it is done; 1 it was refused, which is said in a sentence; 2 the guard cannot be reached."
)


class UnreachableError(Exception):
    """There is no guard at the socket, or it gives no answer. The text is a sentence."""


class RefusedError(Exception):
    """The guard refuses. The text is its sentence."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """A wrong command line is refused, as a wrong value is by the guard."""
        self.exit(REFUSED, f"{self.prog}: {message}; see {self.prog} --help\n")


def make_parser() -> _Parser:
    """The command line, made of the table of verbs."""
    common = _Parser(add_help=False)
    common.add_argument(
        "--socket",
        metavar="PATH",
        default=argparse.SUPPRESS,
        help=f"the guard's control socket; without this option ${VARIABLE}, or {DEFAULT_PATH}",
    )
    common.add_argument(
        "--json",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print one line of JSON for each row, or for the whole answer",
    )
    parser = _Parser(
        "smtpguardctl",
        parents=[common],
        description="Ask a running guard, and change it while it runs.",
        epilog=_EXIT_STATUS,
    )
    parser.add_argument(
        "--version", action="version", version=f"twisted_smtpguard {version('twisted_smtpguard')}"
    )
    of_verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in VERBS.values():
        first = verb.help.partition(". ")[0].rstrip(".")
        of_verb = of_verbs.add_parser(
            verb.name, parents=[common], help=first, description=verb.help, epilog=_EXIT_STATUS
        )
        for argument in verb.arguments:
            name = f"--{argument.name}" if argument.option else argument.name
            options: dict[str, Any] = {"dest": f"arg {argument.name}"} if argument.option else {}
            if argument.option:
                options["required"] = argument.required
            elif not argument.required:
                options["nargs"] = "?"
            of_verb.add_argument(
                name,
                metavar=argument.value,
                choices=argument.choices or None,
                help=argument.help,
                **options,
            )
    return parser


def ask(path: str, verb: Verb, arguments: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The lines of the guard's answer, but for their id, the last of which has `done`.

    UnreachableError: there is no guard, or it gives no answer. RefusedError: it refuses.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        # With a time limit of Python's own, a connect() would fail at once while many others wait to be accepted.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", verb.seconds, 0))
        try:
            connection.connect(path)
            connection.settimeout(verb.seconds)
            connection.sendall(request_line(verb.name, arguments))
            if verb.streams:
                connection.settimeout(None)
            with connection.makefile("rb") as lines:
                for line in lines:
                    answer = json.loads(line)
                    if "error" in answer:
                        raise RefusedError(str(answer["error"]))
                    yield answer
                    if "done" in answer:
                        return
        except (TimeoutError, BlockingIOError) as error:
            raise UnreachableError(f"{path}: no answer in {verb.seconds} seconds") from error
        except OSError as error:
            raise UnreachableError(f"{path}: {error.strerror or error}") from error
        except ValueError as error:
            raise UnreachableError(f"{path}: what answers there is no guard") from error
    raise UnreachableError(f"{path}: the guard has closed the connection")


def main(words: Sequence[str] | None = None) -> int:
    """Called as the command. Returns its exit status."""
    parser = make_parser()
    given = vars(parser.parse_args(words))
    verb = VERBS[given["verb"]]
    path = given.get("socket") or os.environ.get(VARIABLE) or DEFAULT_PATH
    found = {each.name: given[f"arg {each.name}" if each.option else each.name] for each in verb.arguments}
    arguments = {name: value for name, value in found.items() if value is not None}
    with suppress(AttributeError):
        # As in any pipe: `smtpguardctl sessions | head` ends with head.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        _show(ask(path, verb, arguments), verb, as_json="json" in given)
    except RefusedError as error:
        _complain(str(error))
        return REFUSED
    except UnreachableError as error:
        _complain(str(error))
        return UNREACHABLE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return DONE


def _complain(problem: str) -> None:
    sys.stderr.write(f"smtpguardctl: {escape_text(problem)}\n")


def _show(answers: Iterator[dict[str, Any]], verb: Verb, *, as_json: bool) -> None:
    rows: list[dict[str, Any]] = []
    for answer in answers:
        lost = answer.get("lost") or answer.get("done", {}).get("lost")
        if lost:
            _complain(f"{lost} rows were lost, since they were not read in time")
        if as_json:
            _print(*map(json.dumps, answer.get("rows", ())))
        elif verb.streams:
            _print(*map(tables.as_line, answer.get("rows", ())))
        else:
            rows += answer.get("rows", ())
        done = answer.get("done")
        if done and as_json:
            _print(json.dumps(done))
        elif done is not None and not as_json:
            width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
            if verb.lines is not None:
                _print(*map(escape_text, verb.lines(rows)))
            else:
                _print(*tables.shown({} if verb.streams else done, rows, width))


def _print(*lines: str) -> None:
    if lines:
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()
