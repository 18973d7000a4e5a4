"""A Maildir on the disk (https://cr.yp.to/proto/maildir.html): its directories, its names, its files.

Everything here may wait for the disk. It is called before anything listens, or in threads.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def prepare_maildir(path: Path) -> None:
    """Make sure that mail can be put into `path`. A directory that is missing, empty or half made becomes a
    Maildir; its parent must exist, so that a misspelt path makes no tree and a missing disk is noticed.

    ValueError says in one sentence why not. Called before anything listens, never later: at run time a
    directory that has gone may be a disk that is not mounted.
    """
    parts = [path / name for name in ("tmp", "new", "cur")]
    try:
        if not path.exists():
            if not path.parent.is_dir():
                raise ValueError(f"{path} cannot be used as a Maildir: {path.parent} is not a directory")
            path.mkdir(mode=0o700)
            sync_directory(path.parent)
        present = set(path.iterdir())
        missing = [part for part in parts if part not in present]
        if missing and present.difference(parts):
            raise ValueError(f"{path} is not a Maildir, and not empty")
        for part in missing:
            part.mkdir(mode=0o700)
        sync_directory(path)
        tmp, new, _ = (part.stat().st_dev for part in parts)
    except OSError as error:
        raise ValueError(f"{path} cannot be used as a Maildir: {error.strerror}") from error
    if tmp != new:
        raise ValueError(f"{path} cannot be used as a Maildir: tmp and new are on different disks")
    for part in parts[:2]:
        if not part.is_dir() or not os.access(part, os.R_OK | os.W_OK | os.X_OK):
            raise ValueError(f"{path} cannot be used as a Maildir: {part.name} is not a writable directory")


def unique_names(hostname: str, now: Callable[[], float]) -> Callable[[], str]:
    """A function that makes file names that no other message in a Maildir has, on this machine or another.
    Any thread may call it, several at once.

    A name has seconds, random octets (two containers may share process ids and a disk), microseconds, process
    id and count. In the host name everything but letters, digits, dots and hyphens becomes `\\ooo`, since `/`
    and `:` mean something there.
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
    """Make safe which names stand in it. What was renamed into it before survives a crash."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class NotTakenBack(Exception):  # noqa: N818 - it is an outcome
    """The message stands in new/, but not safely, or a reader has taken it already."""


class MessageFile:
    """One message on its way through tmp/ into new/. Used in a thread, one call at a time."""

    def __init__(self, maildir: Path, name: str, header: bytes) -> None:
        self._tmp = maildir / "tmp" / name
        self._new = maildir / "new" / name
        # What is to be written before the next octets: the header, later a CR whose LF may yet come.
        self._before = header.replace(b"\r\n", b"\n")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor: int | None = os.open(self._tmp, flags, 0o600)

    def write(self, data: bytearray) -> None:
        """Append `data`, with LF line ends for CRLF."""
        data[:0] = self._before
        self._before = b""
        if data.endswith(b"\r"):
            self._before = b"\r"
            data.pop()
        self._put(data.replace(b"\r\n", b"\n"))

    def deliver(self, keep: Callable[[], None], *, sync: bool) -> None:
        """The message is whole: make it safe, and put it into new/. `keep()` raises where it is no longer wanted.

        It may be accepted when new/ is synchronised: here, with `sync`; else by the caller, who takes it back where
        that fails.
        """
        self._put(self._before)
        assert self._descriptor is not None
        os.fsync(self._descriptor)
        # A network disk may tell only here that it is full.
        self._close()
        keep()
        os.rename(self._tmp, self._new)  # noqa: PTH104 - one of the system calls above
        if sync:
            try:
                sync_directory(self._new.parent)
            except OSError:
                self.take_back()
                raise

    def take_back(self) -> None:
        """It is in new/, and must not be. `NotTakenBack` where it stays."""
        try:
            self._new.unlink()
        except OSError as error:
            raise NotTakenBack from error

    def remove(self) -> None:
        with suppress(OSError):
            self._close()
        with suppress(OSError):
            self._tmp.unlink()

    def _put(self, data: bytes | bytearray) -> None:
        assert self._descriptor is not None
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def _close(self) -> None:
        # A close that fails has closed nevertheless; a second one might hit somebody else's file.
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
