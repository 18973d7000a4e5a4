"""The `--config` file: one `option = value` a line. Reads it, and says what is wrong with it.

    # A line that begins with # is a comment, and so is what stands behind a # that follows a space.
    listen = tcp:25
    listen = tcp:587
    max-message-size = 25M
    strict-enhanced-codes = yes

Names are those of the command line, without or with their dashes. An option that may be repeated there may
stand on several lines here.
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


@attrs.frozen
class Setting:
    """An option that the operator gave, and where."""

    option: str
    """Its name, without dashes."""
    text: str
    line: str = ""
    """`FILE line N` where it stands in a file, "" where it was given on the command line."""

    def value(self, parse: Callable[[str], T]) -> T:
        """What `parse` makes of the text. A ValueError of `parse`, which says what is expected, becomes the
        error for the operator."""
        try:
            return parse(self.text)
        except ValueError as error:
            raise self.wrong(f"{error}, not {self.text!r}") from error

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """A ValueError raised inside, which is a sentence, becomes the error for the operator."""
        try:
            yield
        except ValueError as error:
            raise self.wrong(str(error)) from error

    def wrong(self, problem: str) -> UsageError:
        """The error to raise: one sentence that says which option, and where it was written."""
        where = f"--config {self.line}: {self.option}" if self.line else f"--{self.option}"
        return UsageError(f"{where}: {problem}")


def read_configuration(path: str, options: Collection[str], repeatable: Collection[str]) -> list[Setting]:
    """Every setting of the file at `path` in its order. `options` is every name that may stand in it.

    UsageError names the file, and the line and the option if there are any. Values are not looked at.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--config {path}: the file is not UTF-8 text") from error

    settings: list[Setting] = []
    seen: dict[str, int] = {}
    # Not splitlines(): only a line feed makes a line that an editor would count.
    for number, line in enumerate(text.split("\n"), 1):
        content = _COMMENT.sub("", line).strip()
        if not content:
            continue
        place = f"{path} line {number}"
        name, equals, value = (part.strip() for part in content.partition("="))
        option = name.removeprefix("--")
        if not equals:
            raise UsageError(f"--config {place}: 'option = value' is expected, not {content!r}")
        if option not in options:
            raise UsageError(f"--config {place}: {_unknown(option, options)}")
        setting = Setting(option, value, place)
        if not value:
            raise setting.wrong("a value is missing behind the =")
        if option in seen and option not in repeatable:
            raise setting.wrong(f"it stands on line {seen[option]} already")
        seen[option] = number
        settings.append(setting)
    return settings


def _unknown(option: str, options: Collection[str]) -> str:
    if option in OF_TWIST:
        return f"--{option} is an option of twist, which is given on the command line before smtpguard"
    close = difflib.get_close_matches(option, options, 1)
    hint = f", did you mean {close[0]!r}?" if close else ""
    return f"there is no option {option!r} for a file{hint}"


def explained(problem: str, options: Collection[str]) -> str:
    """What `getopt` says of the command line, `problem`, with what the operator may have meant."""
    unknown = re.fullmatch(r"option --(.+) not recognized", problem)
    if unknown and unknown[1] in OF_TWIST:
        word = f"--{unknown[1]}"
        return f"{word} is an option of twist: it stands before smtpguard, as in twist {word}=… smtpguard"
    if unknown:
        close = difflib.get_close_matches(unknown[1], options, 1)
        return problem + (f", did you mean --{close[0]}?" if close else "")
    ambiguous = re.fullmatch(r"option --(.+) not a unique prefix", problem)
    if ambiguous:
        meant = [f"--{option}" for option in sorted(options) if option.startswith(ambiguous[1])]
        return f"{problem}: it may be {', '.join(meant[:-1])} or {meant[-1]}"
    return problem
