"""The `--config` file, with one `option = value` on each line: how it is read, and what is said about mistakes.

    # A line that begins with # is a comment; so is the text from a # that follows a space.
    listen = tcp:25
    listen = tcp:587
    max-message-size = 25M
    strict-enhanced-codes = yes

The names are those of the command line, without or with dashes. An option that may be repeated there may be on several
lines here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import attrs
from twisted.python.usage import UsageError

T = TypeVar("T")

OF_TWIST = ("reactor", "log-level", "log-file", "log-format")
"""Options of `twist` itself."""

_COMMENT = re.compile(r"(^|\s)#.*")


COMMAND_LINE, ENVIRONMENT, DEFAULT, _FILE = "command line", "environment", "default", "file "


def variable(option: str) -> str:
    """The environment variable of an option."""
    return f"SMTPGUARD_{option.upper().replace('-', '_')}"


@attrs.frozen
class Setting:
    """An option that the operator gave, and where."""

    option: str
    """The name, without dashes."""
    text: str
    origin: str = COMMAND_LINE
    """Where it was given, as --show-limits says it: COMMAND_LINE, ENVIRONMENT, `file PATH line N`, or DEFAULT if it was
    not."""

    @property
    def in_file(self) -> bool:
        """Whether it is in the --config file."""
        return self.origin.startswith(_FILE)

    def value(self, parse: Callable[[str], T]) -> T:
        """The text, parsed by `parse`. A ValueError of `parse`, which says what is expected, becomes a usage error."""
        with self.blamed(f", not {self.text!r}"):
            return parse(self.text)

    @contextmanager
    def blamed(self, end: str = "") -> Iterator[None]:
        """Turn a ValueError, which is a sentence but for its `end`, into a usage error about this option."""
        try:
            yield
        except ValueError as error:
            raise self.wrong(f"{error}{end}") from error

    def wrong(self, problem: str) -> UsageError:
        """The usage error for `problem`: one sentence with the option and its place."""
        where = f"--{self.option}"
        if self.in_file:
            where = f"--config {self.origin.removeprefix(_FILE)}: {self.option}"
        elif self.origin == ENVIRONMENT:
            where = variable(self.option)
        return UsageError(f"{where}: {problem}")


def read_configuration(
    path: str, options: Collection[str], repeatable: Collection[str], *, named: str = "--config"
) -> list[Setting]:
    """Every setting of the file at `path`, in order. `options` has every name that the file may contain. `named` is the
    option or variable that names the file.

    UsageError names the file, and the line and the option if there are any. Values are not checked.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{named} {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{named} {path}: the file is not UTF-8 text") from error

    settings: list[Setting] = []
    seen: dict[str, int] = {}
    # splitlines() would also split at characters that do not end a line in an editor.
    for number, line in enumerate(text.split("\n"), 1):
        content = _COMMENT.sub("", line).strip()
        if not content:
            continue
        place = f"{path} line {number}"
        if "\0" in content:
            raise UsageError(f"--config {place}: there is a NUL in the line, as in a file of UTF-16")
        name, equals, value = (part.strip() for part in content.partition("="))
        option = name.removeprefix("--")
        if not equals:
            raise UsageError(f"--config {place}: 'option = value' is expected, not {content!r}")
        if option not in options:
            raise UsageError(f"--config {place}: {_unknown(option, options)}")
        setting = Setting(option, value, f"{_FILE}{place}")
        if not value:
            raise setting.wrong("there is no value after the =")
        if option in seen and option not in repeatable:
            raise setting.wrong(f"it is on line {seen[option]} already")
        seen[option] = number
        settings.append(setting)
    return settings


def _unknown(option: str, options: Collection[str]) -> str:
    if option in OF_TWIST:
        return f"--{option} is an option of twist, and must be given on the command line before smtpguard"
    close = difflib.get_close_matches(option, options, 1)
    hint = f", did you mean {close[0]!r}?" if close else ""
    return f"there is no option {option!r} for a configuration file{hint}"


def explained(problem: str, options: Collection[str]) -> str:
    """The error of `getopt` about the command line, `problem`, with what the operator may have meant."""
    unknown = re.fullmatch(r"option --(.+) not recognized", problem)
    if unknown and unknown[1] in OF_TWIST:
        word = f"--{unknown[1]}"
        return f"{word} is an option of twist: it must come before smtpguard, as in twist {word}=… smtpguard"
    if unknown:
        close = difflib.get_close_matches(unknown[1], options, 1)
        return problem + (f", did you mean --{close[0]}?" if close else "")
    ambiguous = re.fullmatch(r"option --(.+) not a unique prefix", problem)
    if ambiguous:
        meant = [f"--{option}" for option in sorted(options) if option.startswith(ambiguous[1])]
        return f"{problem}: it may be {', '.join(meant[:-1])} or {meant[-1]}"
    return problem
