"""What holds for all tests."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Iterator

import pytest
import pytest_twisted
from hypothesis import settings

# How long an example takes says what else the machine does. Time is for benchmarks/.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def _on_uvloop() -> None:
    from twisted_smtpguard.reactors import uvloopreactor

    pytest_twisted._install_reactor(
        reactor_installer=uvloopreactor.install, reactor_type=uvloopreactor.UVLoopReactor
    )


# With this in the environment all tests run on the reactor on uvloop, and so do the guards that they start.
if os.environ.get("TESTS_REACTOR") == "uvloop":
    pytest_twisted.reactor_installers["default"] = _on_uvloop


@pytest.hookimpl(hookwrapper=True)
def pytest_collection() -> Iterator[None]:
    """Thousands of tests are no garbage: each collection of garbage, while they are made and later in a test, of which
    many make one, would look through them."""
    gc.disable()
    yield
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Restore the signals that a guard ignores which a test makes in this process: a process that a later test starts
    would inherit that.

    Hide the reactor's event loop, if it has one, from a test that does not use the reactor: with a clock, a test knows
    when a coroutine takes its next step only if no loop runs.
    """
    loop = asyncio._get_running_loop()
    if not hasattr(getattr(item, "obj", None), "_pytest_twisted_mark"):
        asyncio._set_running_loop(None)
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)}
    yield
    asyncio._set_running_loop(loop)
    for number, handler in before.items():
        if signal.getsignal(number) != handler:
            signal.signal(number, handler)
