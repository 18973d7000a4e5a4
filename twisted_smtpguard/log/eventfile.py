"""`--event-log FILE`: the guard's events in a file, one JSON object on each line.

It is an observer of the log beside that of `twist`, and has the events that are logged there: what the log level, and
the limits on lines, leave out is in neither. A file that cannot be written keeps no mail from being served.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, MutableMapping
from datetime import datetime, timezone
from functools import lru_cache
from threading import RLock
from typing import Any

from twisted.logger import ILogObserver, LogEvent, Logger, LogPublisher, globalLogPublisher
from zope.interface import implementer

from twisted_smtpguard.inputs.arguments import checked
from twisted_smtpguard.interfaces import IReadsFiles, IReloadable
from twisted_smtpguard.log.eventlog import NAMESPACE, EventLog, word
from twisted_smtpguard.log.file import value_as_json

_OPTION = "event-log"
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
_MODE = 0o640
_APART = frozenset({"event", "text"})


class EventFileNotices:
    """Logs what becomes of the file."""

    def __init__(self, file: str, seconds: Callable[[], float], logger: Logger | None = None) -> None:
        self._file = word(file)
        self._log = EventLog(seconds, logger=logger)

    def failed(self, problem: str) -> None:
        """The file of `--event-log` cannot be written, or opened again after it was moved. It is tried again every
        second. Logged once until all is well again."""
        self._log.warn("event_log_failed", {"file": self._file}, problem)

    def restored(self, lost: int) -> None:
        """The file of `--event-log` is written again. `lost` events are in the other log alone."""
        self._log.warn("event_log_restored", {"file": self._file, "lost": lost})


def check_event_file(path: str) -> None:
    """Raise the OSError that an EventFile would raise, and write nothing."""
    try:
        os.close(os.open(path, _FLAGS & ~os.O_CREAT))
    except FileNotFoundError:
        folder = os.path.dirname(path) or "."  # noqa: PTH120 - as it was given
        if not os.access(folder, os.W_OK | os.X_OK):
            os.stat(folder)  # noqa: PTH116
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path) from None


@implementer(ILogObserver, IReloadable, IReadsFiles)
class EventFile:
    """Writes the guard's events into the file at `path`, each as one line of JSON with the fields `time`, `level`,
    `event` and those of the event. Add it to `twisted.logger.globalLogPublisher`.

    `path` is followed: a file that was moved or deleted is opened anew within a second, and at a reload. If that fails,
    or a write, it is logged once, by an event; each second it is tried again, and what cannot be written is counted.
    Nothing is kept. OSError: the file cannot be opened now.
    """

    @checked
    def __init__(self, path: str) -> None:
        self._path = path
        self._file: int | None = os.open(path, _FLAGS, _MODE)
        self._notices = EventFileNotices(path, lambda: self._now)
        # An event may be logged in a thread. A notice is an event too, which comes back to this observer.
        self._lock = RLock()
        self._now = 0.0
        """The time of the last event."""
        self._second = -1
        self._not_followed: OSError | None = None
        """Why the file at the path could not be opened in this second, if it is another one."""
        self._waits = False
        """Whether nothing more is written in this second, since a write has failed."""
        self._torn = False
        """Whether the last line was cut, as on a full disk."""
        self._told = False
        """Whether a problem was logged, and has not ended."""
        self._lost = 0
        """How many events could not be written since."""

    @property
    def files(self) -> Mapping[str, str]:
        """The file that a reload opens anew."""
        return {self._path: _OPTION}

    def reload(self) -> None:
        """Open the file anew. OSError: it cannot be opened, and the old one is still written to."""
        with self._lock:
            self._open()

    def close(self) -> None:
        """Close the file. Remove this observer from the publisher first."""
        with self._lock:
            file, self._file = self._file, None
            if file is not None:
                os.close(file)

    def __call__(self, event: LogEvent) -> None:
        if event.get("log_namespace") != NAMESPACE or "event" not in event:
            return
        line = as_line(event)
        with self._lock:
            self._now = event["log_time"]
            if int(self._now) != self._second:
                self._second = int(self._now)
                self._waits = False
                self._follow()
            problem = self._not_followed
            if self._file is None or self._waits:
                self._lost += 1
            else:
                try:
                    self._write(self._file, line)
                except OSError as error:
                    problem = error
                    self._lost += 1
                    self._waits = True
                else:
                    if self._told and problem is None:
                        lost, self._lost = self._lost, 0
                        self._told = False
                        self._notices.restored(lost)
            if problem is not None and not self._told:
                self._told = True
                self._notices.failed(problem.strerror or str(problem))

    def _follow(self) -> None:
        """Open the file anew if another one, or none, is at the path."""
        try:
            if self._file is None or _identity(os.fstat(self._file)) != self._identity_at_path():
                self._open()
            self._not_followed = None
        except OSError as error:
            self._not_followed = error
            # A file that was moved is still a log. In one that was deleted nobody would find anything.
            if self._file is not None and not os.fstat(self._file).st_nlink:
                self.close()

    def _identity_at_path(self) -> tuple[int, int] | None:
        try:
            return _identity(os.stat(self._path))  # noqa: PTH116 - as it was given
        except FileNotFoundError:
            return None

    def _open(self) -> None:
        new = os.open(self._path, _FLAGS, _MODE)
        self.close()
        self._file, self._not_followed = new, None
        self._waits = self._torn = False

    def _write(self, file: int, line: bytes) -> None:
        if self._torn:
            line = b"\n" + line
        written = os.write(file, line)
        if written < len(line):
            self._torn = line[written - 1 : written] != b"\n" if written else self._torn
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._torn = False


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def as_line(event: LogEvent) -> bytes:
    """One of the guard's events as a line of JSON. A failure has its `text` too, which says what was being done."""
    now = event["log_time"]
    fields = {
        name: value for name, value in event.items() if name not in _APART and not name.startswith("log_")
    }
    if "log_failure" in event:
        fields["text"] = event["text"]
    words = [f", {value_as_json(name)}: {value_as_json(value)}" for name, value in fields.items()]
    return (
        f'{{"time": "{_shown(int(now))}.{int(now % 1 * 1000):03}Z", "level": "{event["log_level"].name}", '
        f'"event": {value_as_json(event["event"])}{"".join(words)}}}\n'
    ).encode()


@lru_cache(maxsize=1)
def _shown(second: int) -> str:
    return f"{datetime.fromtimestamp(second, timezone.utc):%Y-%m-%dT%H:%M:%S}"


def observe_too(twist: MutableMapping[str, Any], observer: ILogObserver) -> None:
    """Make `observer` see every event that the log of `twist` gets. `twist` has the parsed options of the program
    `twist`, which has not begun to log. Without that program it is empty, and `observer` sees what is logged from now
    on."""
    factory = twist.get("fileLogObserverFactory")
    if factory is None:
        globalLogPublisher.addObserver(observer)
    else:
        # Added to the publisher, it would see twice what is logged before logging begins.
        twist["fileLogObserverFactory"] = lambda file: LogPublisher(factory(file), observer)
