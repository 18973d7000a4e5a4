"""The service of a process that has no other purpose: its signals, and its end where it cannot listen."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IStreamServerEndpoint

from twisted_smtpguard.service import SMTPGuardService

SIGHUP = getattr(signal, "SIGHUP", None)
"""None where there is no such signal (Windows)."""


def ignore_hangup() -> None:
    """Until the service handles it: SIGHUP while files are read for the first time must not end the process."""
    if SIGHUP is not None:
        signal.signal(SIGHUP, signal.SIG_IGN)


class StandaloneService(SMTPGuardService):
    """SIGHUP has it read its files anew. One that cannot listen ends the process. While it stops, a second
    signal to stop means now, and SIGHUP nothing."""

    _hangup_before: Any = None
    """What was done on SIGHUP before the start."""

    def startService(self) -> None:  # noqa: N802 - the base class's name
        # First, for whoever reads in the log that it listens may send the signal.
        if SIGHUP is not None:
            self._hangup_before = signal.signal(SIGHUP, self._reread)
        super().startService()

    def stopService(self) -> Deferred[None]:  # noqa: N802
        # Twisted's own handler would log that a stop cannot be stopped.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._hurry)
        if SIGHUP is not None:
            signal.signal(SIGHUP, signal.SIG_IGN)
        return super().stopService().addBoth(self._stopped)

    def _stopped(self, outcome: Any) -> Any:
        if SIGHUP is not None:
            # None: a handler that was not set by Python, which cannot set it again either.
            signal.signal(SIGHUP, self._hangup_before or signal.SIG_DFL)
        return outcome

    def _reread(self, number: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self.reload)

    def _hurry(self, number: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self.factory.end_now)

    def _listen(self, name: str, endpoint: IStreamServerEndpoint) -> None:
        try:
            super()._listen(name, endpoint)
        # OverflowError: a port above 65535.
        except (CannotListenError, OverflowError, OSError) as error:
            raise SystemExit(f"--listen: {name} cannot be listened on: {error}") from error
