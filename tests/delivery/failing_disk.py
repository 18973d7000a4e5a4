"""A disk that fails, simulated."""

from __future__ import annotations

import os


def failing(monkeypatch, name, number, after=0):
    """Make os.`name` raise, once it has worked `after` times. A close closes before it raises."""
    real = getattr(os, name)
    left = [after]

    def fail(*args, **kwargs):
        if left[0]:
            left[0] -= 1
            return real(*args, **kwargs)
        if name == "close":
            real(*args)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, name, fail)
