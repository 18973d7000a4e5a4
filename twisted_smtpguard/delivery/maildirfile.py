"""The directories, names and files of a Maildir on the disk (https://cr.yp.to/proto/maildir.html).

Everything here may block on the disk. It is called before anything listens, or in threads.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_PARTS = ("tmp", "new", "cur")


def prepare_maildir(path: Path) -> None:
    """Make sure that messages can be stored in `path`. A directory that is missing, empty or incomplete becomes a
    Maildir. Its parent must exist, so that a misspelt path makes no tree and a missing disk is noticed.

    ValueError says in one sentence why `path` cannot be used. Called before anything listens, and never later: at run
    time a missing directory may be on a disk that is not mounted.
    """
    missing = _missing(path)
    try:
        for directory in missing:
            directory.mkdir(mode=0o700)
            if directory == path:
                sync_directory(path.parent)
        sync_directory(path)
    except OSError as error:
        raise _unusable(path, error.strerror) from error
    _check_parts(path)


def check_maildir(path: Path) -> None:
    """Raise the ValueError of `prepare_maildir`, and write nothing."""
    missing = _missing(path)
    if not missing:
        _check_parts(path)
    elif not os.access(missing[0].parent, os.W_OK | os.X_OK):
        raise _unusable(path, f"{missing[0].parent} is not a writable directory")


def _missing(path: Path) -> list[Path]:
    """The directories that have to be made, in their order."""
    parts = [path / name for name in _PARTS]
    try:
        if not path.exists():
            if not path.parent.is_dir():
                raise _unusable(path, f"{path.parent} is not a directory")
            return [path, *parts]
        present = set(path.iterdir())
    except OSError as error:
        raise _unusable(path, error.strerror) from error
    missing = [part for part in parts if part not in present]
    if missing and present.difference(parts):
        raise ValueError(f"{path} is not a Maildir, and not empty")
    return missing


def _check_parts(path: Path) -> None:
    parts = [path / name for name in _PARTS]
    try:
        tmp, new, _ = (part.stat().st_dev for part in parts)
    except OSError as error:
        raise _unusable(path, error.strerror) from error
    if tmp != new:
        raise _unusable(path, "tmp and new are on different disks")
    for part in parts[:2]:
        if not part.is_dir() or not os.access(part, os.R_OK | os.W_OK | os.X_OK):
            raise _unusable(path, f"{part.name} is not a writable directory")


def _unusable(path: Path, why: str | None) -> ValueError:
    return ValueError(f"{path} cannot be used as a Maildir: {why}")


def unique_names(hostname: str, now: Callable[[], float]) -> Callable[[], str]:
    """A function that makes unique file names for a Maildir, also if several machines store messages in it. Any thread
    may call it, several at once.

    A name has the seconds, random octets (two containers may share process ids and a disk), the microseconds, the
    process id and a count. In the host name everything but letters, digits, dots and hyphens becomes `\\ooo`, since
    `/` and `:` have a meaning in these names.
    """
    host = re.sub(rb"[^A-Za-z0-9.-]", lambda match: b"\\%03o" % ord(match[0]), hostname.encode()).decode()
    token = os.urandom(4).hex()
    numbers = itertools.count(1)

    def name() -> str:
        when = now()
        micros = int(when % 1 * 1_000_000)
        # 255 octets is the longest name that a file may have.
        return f"{int(when)}.R{token}M{micros}P{os.getpid()}Q{next(numbers)}.{host[:128]}"

    return name


def sync_directory(path: Path) -> None:
    """Synchronise a directory to disk, so that files renamed into it before survive a crash."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class NotTakenBack(Exception):  # noqa: N818 - it is an outcome
    """A message that was refused could not be removed from new/. Perhaps a reader has taken it already."""


class MessageFile:
    """One message on its way through tmp/ into new/. Used in a thread, one call at a time."""

    def __init__(self, maildir: Path, name: str, header: bytes) -> None:
        # Each message makes these two, and a Path costs ten times as much.
        self._tmp = f"{maildir}/tmp/{name}"  # noqa: S108 - it is the Maildir's own
        self._new = f"{maildir}/new/{name}"
        # Written before the next octets: the header, and later a CR whose LF may still come.
        self._before = header.replace(b"\r\n", b"\n")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor: int | None = os.open(self._tmp, flags, 0o600)

    def write(self, data: bytearray) -> None:
        """Append `data`, with LF line ends instead of CRLF."""
        data[:0] = self._before
        self._before = b""
        if data.endswith(b"\r"):
            self._before = b"\r"
            data.pop()
        self._put(data.replace(b"\r\n", b"\n"))

    def start_writeback(self) -> None:
        """Let the system begin to put on the disk what was written, while other files are written: so their `deliver`
        shares what it waits for. Where the system cannot do that, nothing happens."""
        if self._descriptor is not None and hasattr(os, "posix_fadvise"):
            # Its other meaning, that the file is not read soon, is true as well. A failure shows in `deliver`.
            with suppress(OSError):
                os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def deliver(self, keep: Callable[[], None]) -> None:
        """Called when the message is complete: synchronise the file and rename it into new/. `keep()` raises if the
        message is no longer wanted.

        The message may be accepted when new/ is synchronised, which the caller does. It calls `take_back()` if that
        fails.
        """
        self._put(self._before)
        assert self._descriptor is not None
        os.fsync(self._descriptor)
        # A network disk may report only at the close that it is full.
        self._close()
        keep()
        os.rename(self._tmp, self._new)  # noqa: PTH104 - one of the system calls above

    def take_back(self) -> None:
        """Remove the message from new/ again. `NotTakenBack`: it could not be removed."""
        try:
            os.unlink(self._new)  # noqa: PTH108
        except OSError as error:
            raise NotTakenBack from error

    def remove(self) -> None:
        """Close the file, and remove it from tmp/ if it is still there. Never raises an OSError."""
        with suppress(OSError):
            self._close()
        with suppress(OSError):
            os.unlink(self._tmp)  # noqa: PTH108

    def _put(self, data: bytes | bytearray) -> None:
        assert self._descriptor is not None
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def _close(self) -> None:
        # A close that fails has closed the descriptor nevertheless; a second close might hit another file.
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
