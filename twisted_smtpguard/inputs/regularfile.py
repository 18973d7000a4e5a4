"""The opening of files that are read again while the guard runs. Only regular files are allowed: they have an end, and
can be read twice."""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO

_NEVER_WAIT = getattr(os, "O_NONBLOCK", 0)
"""The flag with which opening a pipe does not block. Otherwise a reload would block until the pipe is opened for
writing."""


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file, or a symbolic link to one, for reading. OSError: there is none, or it is not a regular
    file."""
    # The kind is checked on the open file, since the name may come to mean another file after a check.
    return open(path, "rb", opener=_opened)


def _opened(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | _NEVER_WAIT)
    mode = os.fstat(descriptor).st_mode
    # For a directory open() has its own error.
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "Not a regular file", path)


class FaultyFileError(ValueError):
    """A file is faulty. The exception has the file, the command-line option that names it, and the problem."""

    def __init__(self, option: str, file: str, problem: str, text: str = "") -> None:
        super().__init__(text or f"{file}: {problem}")
        self.option = option
        """The option, without dashes; "" if it has none."""
        self.file = file
        self.problem = problem
