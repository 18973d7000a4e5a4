"""Files that are read again while the guard runs: those that have an end, and can be read twice."""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO

_NEVER_WAIT = getattr(os, "O_NONBLOCK", 0)
"""A pipe would be waited for, at a reload without end, until somebody opens it to write."""


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file, or a symbolic link to one, to be read. OSError: there is none, or it is something else."""
    # Looked at when it is open: by then the name may stand for another file.
    return open(path, "rb", opener=_opened)


def _opened(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | _NEVER_WAIT)
    mode = os.fstat(descriptor).st_mode
    # A directory has a message of its own, from open().
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "Not a regular file", path)


class FaultyFileError(ValueError):
    """Something is wrong with a file: which, which option of the command line names it, and what is wrong."""

    def __init__(self, option: str, file: str, problem: str, text: str = "") -> None:
        super().__init__(text or f"{file}: {problem}")
        self.option = option
        """Without its dashes."""
        self.file = file
        self.problem = problem
