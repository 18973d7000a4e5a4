"""What holds for all tests."""

from __future__ import annotations

from hypothesis import settings

# How long an example takes says what else the machine does. Time is for benchmarks/.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
