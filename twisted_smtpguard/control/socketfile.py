"""The file of the control socket: where it may be, and how it is taken from a process that is gone."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress

try:
    import fcntl
except ImportError:
    # Windows has neither it nor such sockets.
    fcntl = None  # type: ignore[assignment]

MODE = 0o660
"""The mode of the socket. Whoever may write to it may ask and change everything."""


class ControlSocketError(ValueError):
    """There can be no control socket at this path. The text is a sentence that begins with the path or directory."""


def check_place(path: str) -> None:
    """Check that there may be a socket at `path`. ControlSocketError: there may be none.

    Whoever can write to the directory could put another socket there, and get what is meant for the guard.
    """
    if fcntl is None:
        raise ControlSocketError(f"{path}: this system has no UNIX sockets")
    if not path:
        raise ControlSocketError("a path such as /run/smtpguard/control.sock is expected, not ''")
    folder = os.path.dirname(path) or "."  # noqa: PTH120 - as it was written
    try:
        mode = os.stat(folder).st_mode  # noqa: PTH116
    except (OSError, ValueError) as error:
        raise ControlSocketError(f"{folder}: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISDIR(mode):
        raise ControlSocketError(f"{folder}: it is no directory")
    if mode & stat.S_IWOTH:
        raise ControlSocketError(
            f"{folder}: everybody can write to this directory, and so replace the socket in it"
        )
    if len(os.fsencode(path)) > 107:
        raise ControlSocketError(f"{path}: the path of a socket has at most 107 octets")
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ControlSocketError(f"{path}: there is a file already that is no socket")


class SocketFile:
    """The path of a control socket, held by this process until `release()`.

    A lock on the file beside it says whether a process has the path: the kernel lets go of it when the process ends,
    however it does. ControlSocketError: another process has the path, or there may be no socket.
    """

    def __init__(self, path: str) -> None:
        check_place(path)
        self.path = path
        self._lock_path = f"{path}.lock"
        self._inode: int | None = None
        try:
            self._lock = os.open(
                self._lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise ControlSocketError(f"{self._lock_path}: {error.strerror}") from error
        try:
            self._take()
        except BaseException:
            os.close(self._lock)
            raise

    def _take(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ControlSocketError(f"{self.path}: another process has this socket") from error
        if os.path.lexists(self.path):
            if _is_served(self.path):
                raise ControlSocketError(f"{self.path}: another process listens on this socket")
            # It was left by a process that was killed.
            try:
                os.unlink(self.path)  # noqa: PTH108
            except OSError as error:
                raise ControlSocketError(f"{self.path}: {error.strerror}") from error

    def made(self) -> None:
        """Called when the socket has been made."""
        self._inode = os.lstat(self.path).st_ino

    def release(self) -> None:
        """Remove the socket, unless another file is there now, and let other processes have the path."""
        with suppress(OSError):
            if self._inode is not None and os.lstat(self.path).st_ino == self._inode:
                os.unlink(self.path)  # noqa: PTH108
        with suppress(OSError):
            os.unlink(self._lock_path)  # noqa: PTH108
        os.close(self._lock)


def _is_served(path: str) -> bool:
    """Whether a process listens on the socket at `path`, be it one that does not use the lock. Without an answer it is
    assumed to."""
    with socket.socket(socket.AF_UNIX) as probe:
        # A full backlog of a process that listens must not hold up the start.
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True
