"""The service of `twist smtpguard`: one guard that is the whole process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IStreamServerEndpoint

from twisted_smtpguard.hooks.endpointfaults import why_not
from twisted_smtpguard.service.process import ProcessSignals
from twisted_smtpguard.service.service import SMTPGuardService
from twisted_smtpguard.service.startwarnings import warnings_of_process
from twisted_smtpguard.transport.listener import Listener


class StandaloneService(SMTPGuardService):
    """A guard that handles the signals of its process and tells systemd its state, as a ProcessService does. If it
    cannot listen the process ends with a sentence that names the option."""

    _secrets: tuple[Sequence[str], Sequence[str]] = ((), ())

    def __init__(self, reactor: Any, *args: Any, **options: Any) -> None:
        super().__init__(reactor, *args, **options)
        self._signals = ProcessSignals(
            reactor,
            reload=self.reload,
            end_now=self.factory.end_now,
            ready=lambda: self.ready,
        )
        self.on_listening = self._signals.tell_ready_soon

    def warn_of(self, keys: Sequence[str], passwords: Sequence[str]) -> None:
        """Make each start warn if others can read these files, and of other risks of the process."""
        self._secrets = (keys, passwords)

    def startService(self) -> None:
        # A running service listens again after a drain, and handles the signals already.
        if not self.running:
            self._signals.handle()
        super().startService()
        for what, problem in warnings_of_process(*self._secrets):
            self.factory.context.events.setup_warning(what, problem)

    def stopService(self) -> Deferred[None]:
        self._signals.stopping()
        return super().stopService().addBoth(self._signals.stopped)

    def _listen(self, endpoint: IStreamServerEndpoint, listener: Listener) -> None:
        option = "--listen-tls" if listener.implicit_tls else "--listen"
        try:
            super()._listen(endpoint, listener)
        # OverflowError: a port above 65535.
        except (CannotListenError, OverflowError, OSError) as error:
            others = [
                (other.name, port) for (_, other), port in zip(self._listeners, self.ports, strict=False)
            ]
            reason = why_not(listener.name, error, others)
            raise SystemExit(f"{option}: cannot listen on {listener.name}: {reason}") from error
