"""A guard with a state directory, whose threads a test lets work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fakes import FakeDelivery
from manual_threads import ManualThreads

from twisted_smtpguard import Limits, SMTPGuardService
from twisted_smtpguard.cli.statedirectory import keep_state
from twisted_smtpguard.testing import Clients

NOW = 1_800_000_000.0


class StatefulGuard(Clients):
    """A guard with a state directory, which has been started at a time."""

    def __init__(self, directory: Path, *, at: float = NOW, **limits: Any) -> None:
        self.threads = ManualThreads()
        self.threads.rightNow = at
        self.service = SMTPGuardService(
            self.threads, [], FakeDelivery(), limits=Limits(**limits), hostname="guard.example"
        )
        super().__init__(self.service.factory, self.threads)
        keep_state(self.service, [str(directory)], self.threads)
        self.service.startService()
        (self.state,) = [part for part in self.service if hasattr(part, "keep")]

    def turn(self, seconds: float = 0) -> int:
        """Let the reactor go on, and the threads work. Returns how many jobs they had."""
        before = self.threads.trips
        self.threads.advance(seconds)
        self.threads.work()
        return self.threads.trips - before

    def stop(self) -> None:
        stopped: list[object] = []
        self.service.stopService().addCallback(stopped.append)
        self.turn(0.1)
        assert stopped == [None]

    def ends(self) -> None:
        """As by kill -9: nothing more is written, and the kernel lets go of the file."""
        self.state._database._connection.close()  # type: ignore[attr-defined]
