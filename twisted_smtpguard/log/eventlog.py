"""The form of every event in the log.

An event has fields with fixed names, and a field `text`: a line of `name=value` words made of the same fields, with a
sentence at its end for some events. The guard's events are in events.py and serviceevents.py, those about an upstream
server in upstream/notices.py; a test checks docs/reference/events.md against all three.

Text that a client or a server chose is escaped before it becomes a field, so that nobody can forge a line or a field.
A value never becomes part of a format string.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from twisted.python.reflect import safe_str

from twisted_smtpguard.inputs.escaping import escape_text, escape_word
from twisted_smtpguard.replies import Reply, words_of

if TYPE_CHECKING:
    from constantly import NamedConstant  # type: ignore[import-untyped]

NAMESPACE = "twisted_smtpguard"

LINE = "{text}"
"""The format of every event."""

MAX_VALUE_CHARACTERS = 320
"""How much is logged of one value that a client sent. An address has at most 254 octets (RFC 5321 4.5.3.1.3)."""

MAX_SHORT_CHARACTERS = 32
"""How much is logged of a verb or a parameter name, which a client may have made up."""

MAX_WORDS_OCTETS = 200
"""How much is logged, after escaping, of a reply that an upstream server or a delivery chose."""

MAX_PROBLEM_CHARACTERS = 1_000
"""How much is logged of a sentence about a problem, which may contain any text of an upstream server."""

MAX_ERROR_CHARACTERS = 2_000
"""How much is logged of an exception's message, which may contain anything that a client sent."""


_OBSERVER_SECONDS = 60
"""How often it is logged that an observer of the log raises."""

_log = Logger()


class EventLog:
    """Logs events from `level` on. A caller for which an event is costly to build asks `debugs`, `informs` or `warns`
    first. `seconds` returns the time."""

    everywhere: ClassVar[Mapping[str, object]] = {}
    """Fields of every event of this process, such as the number of a worker."""

    def __init__(
        self,
        seconds: Callable[[], float],
        level: NamedConstant = LogLevel.info,
        logger: Logger | None = None,
    ) -> None:
        self.debugs: bool = level <= LogLevel.debug
        self.informs: bool = level <= LogLevel.info
        self.warns: bool = level <= LogLevel.warn
        self._seconds = seconds
        self._logger = logger or Logger(namespace=NAMESPACE)
        self._tell_again_at = -math.inf

    def debug(self, event: str, fields: Mapping[str, object]) -> None:
        if self.debugs:
            if self.everywhere:
                fields = {**fields, **self.everywhere}
            self._log(LogLevel.debug, event, _line(event, fields), fields)

    def info(self, event: str, fields: Mapping[str, object], remark: str = "") -> None:
        """Log at info. `remark` comes at the end of the line, and is no field."""
        if self.informs:
            if self.everywhere:
                fields = {**fields, **self.everywhere}
            line = _line(event, fields)
            self._log(LogLevel.info, event, f"{line} {remark}" if remark else line, fields)

    def warn(self, event: str, fields: Mapping[str, object], problem: str = "", *, remark: str = "") -> None:
        """Log at warn. `problem` may be any text: it is escaped and cut, and becomes a field and the end of the line.
        `remark` comes at the end of the line too, and is no field."""
        if not self.warns:
            return
        if self.everywhere:
            fields = {**fields, **self.everywhere}
        line = _line(event, fields)
        if problem:
            problem = sentence(problem)
            fields = {**fields, "problem": problem}
        self._log(LogLevel.warn, event, " ".join(filter(None, [line, problem, remark])), fields)

    def failure(self, event: str, failure: Failure, fields: Mapping[str, Any], remark: str) -> None:
        """Log `failure` with its traceback, in which its message is escaped."""
        fields = {**fields, **self.everywhere}
        line = f"{_line(event, fields)} {escape_text(remark)}"
        # A message may repeat what a client sent; everything else in a traceback comes from source files.
        raw = safe_str(failure.value)
        message = escape_text(raw[:MAX_ERROR_CHARACTERS])
        error = f"{type(failure.value).__name__}: {message}"
        if message != raw:
            # The message is replaced in a copy, which keeps the type and the frames.
            failure = Failure(failure)
            failure.value = Exception(message)
        try:
            self._logger.failure(LINE, failure, text=line, event=event, **fields, error=error)
        except Exception:  # noqa: BLE001 - an observer is foreign code
            self._observer_raised()

    def _log(self, level: NamedConstant, event: str, line: str, fields: Mapping[str, object]) -> None:
        """Do what `Logger.emit` does, without copying all fields twice and sorting all levels for each event."""
        logger = self._logger
        try:
            logger.observer(
                {
                    "text": line,
                    "event": event,
                    **fields,
                    "log_logger": logger,
                    "log_level": level,
                    "log_namespace": logger.namespace,
                    "log_source": logger.source,
                    "log_format": LINE,
                    "log_time": self._seconds(),
                }
            )
        except Exception:  # noqa: BLE001 - an observer is foreign code
            self._observer_raised()

    def _observer_raised(self) -> None:
        """Log at most once a minute that an application's observer has raised, which must not keep a connection from
        ending."""
        now = self._seconds()
        if now >= self._tell_again_at:
            self._tell_again_at = now + _OBSERVER_SECONDS
            _log.failure("an observer of the log raised")


def in_every_event(**fields: object) -> None:
    """Add these fields to every event of this process from now on."""
    EventLog.everywhere = fields


def word(text: str) -> str:
    """`text` as the value of a field and a word in the line: escaped, and cut to MAX_VALUE_CHARACTERS."""
    if len(text) > MAX_VALUE_CHARACTERS:
        return escape_word(text[:MAX_VALUE_CHARACTERS]) + "..."
    return escape_word(text)


def _cut(text: str, most: int, mark: str) -> str:
    """`text` as a field's value of at most `most` characters, with `mark` at its end if it is longer. No escape is cut
    in two."""
    shown = escape_word(text[: most + 1])
    if len(shown) <= most:
        return shown
    end = 0
    for escape in _ESCAPE_OR_OCTET.finditer(shown):
        if escape.end() > most - len(mark):
            break
        end = escape.end()
    return shown[:end] + mark


short_word = partial(_cut, most=MAX_SHORT_CHARACTERS, mark="")
"""A verb or the name of a parameter as a field's value."""

words = partial(_cut, most=MAX_WORDS_OCTETS, mark="...")
"""A reply as a field's value."""

_ESCAPE_OR_OCTET = re.compile(r"\\(?:x..|u.{4}|U.{8}|.)|.")


def of_file(what: str, option: str, file: str) -> dict[str, object]:
    """The fields of an event about a file, which `what` reads and the command-line option `option` names."""
    fields: dict[str, object] = {"what": word(what), "option": f"--{option}"}
    return {**fields, "file": word(file)} if file else fields


def words_of_reply(reply: Reply | None) -> dict[str, object]:
    """The field for the words of a reply that a delivery, a filter or an upstream server chose; empty for a reply of
    the catalogue."""
    chosen = "" if reply is None else words_of(reply)
    return {"reply": words(chosen)} if chosen else {}


def place(port: int | None, listener: str) -> dict[str, object]:
    """The fields for the client's port and the listener, as far as they are known."""
    known: dict[str, object] = {}
    if port is not None:
        known["port"] = port
    if listener:
        known["listener"] = word(listener)
    return known


def encryption(tls: str) -> str:
    """The TLS version and cipher as one word, such as `TLSv1.3:TLS_AES_256_GCM_SHA384`."""
    return tls.replace(" ", ":")


def said(**texts: str) -> dict[str, object]:
    """The texts that are not empty, as fields."""
    return {name: word(text) for name, text in texts.items() if text}


def item(text: str) -> str:
    """`text` as an item of a comma-separated list. A comma in it is escaped: a quoted local part may contain one
    (RFC 5321 4.1.2)."""
    return word(text).replace(",", "\\x2c")


_LAST_SECOND = 253_402_300_799
"""The last one of the year 9999, after which no time can be shown."""


def utc(seconds: float) -> str:
    """A time, in seconds since 1970, as `2026-11-30T15:48:45Z`. One after the year 9999 is shown as the end of that."""
    return f"{datetime.fromtimestamp(min(seconds, _LAST_SECOND), timezone.utc):%Y-%m-%dT%H:%M:%SZ}"


def counted(count: int, thing: str) -> str:
    """`3 sessions`, `1 session`."""
    return f"{count} {thing}{'s' * (count != 1)}"


def sentence(text: str) -> str:
    """`text` as a sentence at the end of a line: escaped, and cut to MAX_PROBLEM_CHARACTERS."""
    shown = escape_text(text[:MAX_PROBLEM_CHARACTERS])
    if len(text) <= MAX_PROBLEM_CHARACTERS >= len(shown):
        return shown
    # An escape may be ten times as long as its character.
    return shown[:MAX_PROBLEM_CHARACTERS] + "..."


def _line(event: str, fields: Mapping[str, object]) -> str:
    """The text of an event: its name, then each field as `name=value`."""
    words = [
        f"{name}={value if type(value) in _SHOWN_AS_THEY_ARE else _shown(value)}"
        for name, value in fields.items()
    ]
    return " ".join([event, *words])


_SHOWN_AS_THEY_ARE = frozenset({str, int, float})


def _shown(value: object) -> object:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return ",".join([f"{key}:{count}" for key, count in value.items()])
    return value
