"""The service of a process that has no other purpose: its signals, what it tells systemd, and its end where it cannot
listen."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping, Sequence
from types import FrameType, MappingProxyType
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.logger import Logger

from twisted_smtpguard.endpointfaults import cannot_listen
from twisted_smtpguard.service import SMTPGuardService
from twisted_smtpguard.startwarnings import warnings_of_process
from twisted_smtpguard.systemd import READY, STOPPING, notify, reloading
from twisted_smtpguard.wire.listener import Listener

SIGHUP = getattr(signal, "SIGHUP", None)
"""None where there is no such signal (Windows)."""

_MEAN_NOTHING = [getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
"""They would end the process without a word."""

_THREADS_SECONDS = 3
"""For threads to end what they do, when all has been stopped."""

_log = Logger()


def ignore_signals() -> None:
    """Until the service handles them: SIGHUP while files are read for the first time must not end the process."""
    for number in (SIGHUP, *_MEAN_NOTHING):
        if number is not None:
            signal.signal(number, signal.SIG_IGN)


class StandaloneService(SMTPGuardService):
    """SIGHUP has it read its files anew; SIGUSR1 and SIGUSR2 mean nothing. One that cannot listen ends the process.
    While it stops, a second signal to stop means now, and SIGHUP nothing. When it has stopped the process ends, even if
    a thread hangs. systemd is told when it listens, reloads and stops."""

    _before: Mapping[int, Any] = MappingProxyType({})
    """What was done on each signal before the start."""
    _asked = False
    """The process has been asked to stop."""
    _shutting_down: bool | None = None
    """The reactor is: this stop is the last one. None: it has not been asked to tell."""

    _secrets: tuple[Sequence[str], Sequence[str]] = ((), ())

    def warn_of(self, keys: Sequence[str], passwords: Sequence[str]) -> None:
        """Each start warns where others can read these files, and of other risks of the process."""
        self._secrets = (keys, passwords)

    def startService(self) -> None:  # noqa: N802 - the base class's name
        # Running: it listens again after a drain.
        if not self.running:
            self._asked = False
            self._before = {}
            if self._shutting_down is None:
                self._shutting_down = False
                self._reactor.addSystemEventTrigger("before", "shutdown", self._shuts_down)
            # First, for whoever reads in the log that it listens may send the signal.
            if SIGHUP is not None:
                self._handle(SIGHUP, self._reread)
            for number in _MEAN_NOTHING:
                self._handle(number, signal.SIG_IGN)
            # The reactor sets its own when it runs.
            self._reactor.callWhenRunning(self._watch_stops)
        super().startService()
        for what, problem in warnings_of_process(*self._secrets):
            self.factory.site.events.setup_warning(what, problem)

    def _handle(self, number: int, handler: Any) -> None:
        self._before = {**self._before, number: signal.signal(number, handler)}

    def _watch_stops(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            if callable(signal.getsignal(number)):
                self._handle(number, self._stop)

    def _shuts_down(self) -> None:
        self._shutting_down = True

    def stopService(self) -> Deferred[None]:  # noqa: N802
        notify(STOPPING)
        self._asked = True
        if SIGHUP is not None:
            signal.signal(SIGHUP, signal.SIG_IGN)
        return super().stopService().addBoth(self._stopped)

    def _stopped(self, outcome: Any) -> Any:
        for number, handler in self._before.items():
            # None: a handler that was not set by Python, which cannot set it again either.
            signal.signal(number, handler or signal.SIG_DFL)
        if self._shutting_down:
            self._end_the_process()
        return outcome

    def _end_the_process(self) -> None:
        """Everybody has been answered. The reactor now waits for its threads, for ever if one hangs, and hears no
        signal meanwhile."""
        for number in self._before.keys() & {signal.SIGINT, signal.SIGTERM}:
            signal.signal(number, signal.SIG_DFL)
        deadline = threading.Timer(_THREADS_SECONDS, _end_now)
        # It keeps no process that ends by itself.
        deadline.daemon = True
        deadline.start()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """The first signal is for the reactor, whose handler would log that a stop cannot be stopped."""
        if self._asked:
            self._reactor.callFromThread(self.factory.end_now)
        else:
            self._asked = True
            self._before[number](number, frame)

    def _reread(self, number: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self._reload)

    def _reload(self) -> None:
        notify(reloading())
        self.reload().addCallback(lambda _: self._tell_ready())

    def _tell_ready(self) -> None:
        # Not so where a listener still takes its time, nor after a stop, which takes the listeners away.
        if len(self.ports) == len(self._listeners):
            notify(READY)

    def _listen(self, endpoint: IStreamServerEndpoint, listener: Listener) -> None:
        option = "--listen-tls" if listener.implicit_tls else "--listen"
        try:
            super()._listen(endpoint, listener)
        # OverflowError: a port above 65535.
        except (CannotListenError, OverflowError, OSError) as error:
            others = [
                (other.name, port) for (_, other), port in zip(self._listeners, self.ports, strict=False)
            ]
            raise SystemExit(f"{option}: {cannot_listen(listener.name, error, others)}") from error

    def _listening(self, port: IListeningPort, name: str, ports: list[IListeningPort]) -> None:
        super()._listening(port, name, ports)
        # When a signal to stop is heeded, too.
        self._reactor.callWhenRunning(self._tell_ready)


def _end_now() -> None:
    """Called in a thread of its own: the reactor's waits."""
    _log.critical(
        "the process ends with status 1: a thread still hangs {seconds} seconds after the stop, as on a disk that "
        "does not answer",
        seconds=_THREADS_SECONDS,
    )
    os._exit(1)
