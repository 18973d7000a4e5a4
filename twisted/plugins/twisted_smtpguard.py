"""What `twist` finds: the `smtpguard` subcommand and the reactor `uvloop`. Imports nothing that would choose a reactor,
and little else."""

import gc
import signal
import sys
from contextlib import suppress
from typing import Any

from twisted.application.reactors import Reactor
from twisted.application.service import ServiceMaker


class _Guard(ServiceMaker):
    @property
    def options(self) -> Any:
        """Imports the guard. Hundreds of modules are no garbage: to look through them again and again, while they come,
        would take a fifth of the start, and once they are there each full collection would hold the guard up for as
        long."""
        usual = gc.get_threshold()
        # Classes of attrs leave some garbage, which is found while it is young.
        gc.set_threshold(10_000, 1_000)
        try:
            return super().options
        finally:
            gc.freeze()
            gc.set_threshold(*usual)


smtpguard = _Guard(
    "twisted_smtpguard",
    "twisted_smtpguard.cli.options",
    "An SMTP service that stays up under abuse.",
    "smtpguard",
)


class _OnUVLoop(Reactor):
    def install(self) -> None:
        """Called by `twist --reactor=uvloop`."""
        try:
            super().install()
        except ImportError as error:
            # By itself, `twist` would show a traceback.
            sys.stderr.write(f"{error}\n")
            raise SystemExit(64) from None


uvloop = _OnUVLoop(
    "uvloop",
    "twisted_smtpguard.reactors.uvloopreactor",
    "asyncio's event loop by uvloop, with quicker TCP transports.",
)


def _is_asked_for() -> bool:
    """Whether this is the process of `twist … smtpguard …`, and of no other subcommand."""
    words = iter(sys.argv[1:])
    for word in words:
        if not word.startswith("-"):
            return word == "smtpguard"
        if "=" not in word and not word.startswith(("--h", "--v")):
            # Its value is a word of its own.
            next(words, None)
    return False


# From here on, long before the guard can handle them: by default they end a process without a word. To import the guard
# itself takes longer than everything up to here.
if _is_asked_for():
    for _name in ("SIGHUP", "SIGUSR1", "SIGUSR2"):
        # Not every system has them, and not every thread may say so.
        with suppress(AttributeError, ValueError):
            signal.signal(getattr(signal, _name), signal.SIG_IGN)
