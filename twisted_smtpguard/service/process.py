"""What a process does about signals and systemd that has a guard in it, or several, and no other purpose."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from types import FrameType, MappingProxyType
from typing import Any

from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import CannotListenError
from twisted.logger import Logger

from twisted_smtpguard.inputs.arguments import checked, unfit
from twisted_smtpguard.service.service import SMTPGuardService
from twisted_smtpguard.service.startwarnings import warnings_of_process
from twisted_smtpguard.service.systemd import READY, STOPPING, notify, reloading
from twisted_smtpguard.transport.endpointfaults import why_not

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


class ProcessSignals:
    """Signals of a process, and what systemd is told of its state. SIGHUP calls `reload`; a second SIGTERM or SIGINT
    calls `end_now`; SIGUSR1 and SIGUSR2 mean nothing. `ready` says whether everything is listened on."""

    _before: Mapping[int, Any] = MappingProxyType({})
    """What was done on each signal before the start."""
    _asked = False
    """The process has been asked to stop."""
    _shutting_down: bool | None = None
    """The reactor is: this stop is the last one. None: it has not been asked to tell."""

    def __init__(
        self,
        reactor: Any,
        *,
        reload: Callable[[], Deferred[Any]],
        end_now: Callable[[], object],
        ready: Callable[[], bool],
    ) -> None:
        self._reactor = reactor
        self._reload = reload
        self._end_now = end_now
        self._ready = ready

    def handle(self) -> None:
        """Called before anything listens: whoever reads in the log that it listens may send the signal."""
        self._asked = False
        self._before = {}
        if self._shutting_down is None:
            self._shutting_down = False
            self._reactor.addSystemEventTrigger("before", "shutdown", self._shuts_down)
        if SIGHUP is not None:
            self._handle(SIGHUP, self._hung_up)
        for number in _MEAN_NOTHING:
            self._handle(number, signal.SIG_IGN)
        # The reactor sets its own when it runs.
        self._reactor.callWhenRunning(self._watch_stops)

    def tell_ready(self) -> None:
        """Tell systemd that everything is listened on, if it is: not where a listener still takes its time, nor after
        a stop, which takes the listeners away."""
        if self._ready():
            notify(READY)

    def tell_ready_soon(self) -> None:
        """The same when a signal to stop is heeded, too."""
        self._reactor.callWhenRunning(self.tell_ready)

    def stopping(self) -> None:
        """Called at the beginning of a stop. SIGHUP means nothing from here on."""
        notify(STOPPING)
        self._asked = True
        if SIGHUP is not None:
            signal.signal(SIGHUP, signal.SIG_IGN)

    def stopped(self, outcome: Any) -> Any:
        """Called at its end, with what came of it. Signals mean again what they meant before."""
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

    def _handle(self, number: int, handler: Any) -> None:
        self._before = {**self._before, number: signal.signal(number, handler)}

    def _watch_stops(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            if callable(signal.getsignal(number)):
                self._handle(number, self._asked_to_stop)

    def _shuts_down(self) -> None:
        self._shutting_down = True

    def _asked_to_stop(self, number: int, frame: FrameType | None) -> None:
        """The first signal is for the reactor, whose handler would log that a stop cannot be stopped."""
        if self._asked:
            self._reactor.callFromThread(self._end_now)
        else:
            self._asked = True
            self._before[number](number, frame)

    def _hung_up(self, number: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self._reread)

    def _reread(self) -> None:
        notify(reloading())
        self._reload().addCallback(lambda _: self.tell_ready())


class ProcessService(MultiService):
    """All of a process: `guards`, and the `parts` that they need, which are services. For a `makeService` of your own.

    Parts are started first, in their order, then the guards. At a stop every guard is drained before anything else is
    stopped. SIGHUP has each guard read its files anew; a second SIGTERM or SIGINT ends the grace of a stop; SIGUSR1 and
    SIGUSR2 mean nothing. systemd is told when all listen, reload and stop. Where a guard cannot listen the process ends
    with one sentence, and at its end it does not wait for a thread that hangs.
    """

    @checked
    def __init__(
        self, reactor: Any, guards: Sequence[SMTPGuardService], parts: Sequence[IService] = ()
    ) -> None:
        super().__init__()
        if not callable(getattr(reactor, "callWhenRunning", None)):
            raise unfit("reactor", "a reactor", reactor)
        if not guards:
            raise ValueError("guards: one or more are expected")
        self.guards = tuple(guards)
        self._signals = ProcessSignals(
            reactor,
            reload=self.reload,
            end_now=self._end_now,
            ready=lambda: all(guard.ready for guard in self.guards),
        )
        for part in (*parts, *guards):
            part.setServiceParent(self)
        for guard in guards:
            guard.on_listening = self._signals.tell_ready_soon

    def startService(self) -> None:
        """Called by `twist` or `twistd`. SystemExit where a guard cannot listen."""
        self._signals.handle()
        try:
            super().startService()
        # OverflowError: a port above 65535.
        except (CannotListenError, OverflowError) as error:
            raise SystemExit(f"cannot listen: {why_not('', error, ())}") from error
        for what, problem in warnings_of_process([], []):
            self.guards[0].factory.context.events.setup_warning(what, problem)

    def reload(self) -> Deferred[Any]:
        """Have every guard read its files anew, as on SIGHUP. Fires when that is done, and never fails."""
        return gatherResults([guard.reload() for guard in self.guards])

    def stopService(self) -> Deferred[Any]:
        """Drain every guard, then stop all of them and the parts. Called again meanwhile, a MultiService does not wait
        a second time."""
        self._signals.stopping()
        drained = gatherResults([guard.drain() for guard in self.guards], consumeErrors=True)
        drained.addBoth(lambda _: super(ProcessService, self).stopService())
        return drained.addBoth(self._signals.stopped)

    def _end_now(self) -> None:
        for guard in self.guards:
            guard.factory.end_now()


def _end_now() -> None:
    """Called in a thread of its own: the reactor's waits."""
    _log.critical(
        "the process ends with status 1: a thread still hangs {seconds} seconds after the stop, as on a disk that "
        "does not answer",
        seconds=_THREADS_SECONDS,
    )
    os._exit(1)
