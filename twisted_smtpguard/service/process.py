"""The signals and the systemd notifications of a process that consists of one guard or several."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Protocol

from twisted.application.internet import TimerService
from twisted.application.service import IService, IServiceCollection, MultiService
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.logger import Logger

from twisted_smtpguard.hooks.endpointfaults import why_not
from twisted_smtpguard.hooks.parts import stop_parts
from twisted_smtpguard.inputs.arguments import checked, unfit
from twisted_smtpguard.log.eventfile import EventFile
from twisted_smtpguard.service.reloading import Part
from twisted_smtpguard.service.service import SMTPGuardService
from twisted_smtpguard.service.startwarnings import warnings_of_process
from twisted_smtpguard.service.systemd import READY, STOPPING, WATCHDOG, notify, reloading, watchdog_seconds
from twisted_smtpguard.transport.listener import Listener

SIGHUP = getattr(signal, "SIGHUP", None)
"""None on systems without this signal (Windows)."""

SIGUSR1 = getattr(signal, "SIGUSR1", None)
SIGUSR2 = getattr(signal, "SIGUSR2", None)

_THREADS_SECONDS = 3
"""How long threads may go on after everything has been stopped."""

_log = Logger()


def ignore_signals() -> None:
    """Ignore SIGHUP, SIGUSR1 and SIGUSR2 until the service handles them: a SIGHUP while files are read for the first
    time must not end the process."""
    for number in (SIGHUP, SIGUSR1, SIGUSR2):
        if number is not None:
            signal.signal(number, signal.SIG_IGN)


class Signalled(Protocol):
    """What gets the signals of its process. It is an SMTPGuardService, or supervises some."""

    on_listening: Callable[[], object]

    @property
    def ready(self) -> bool: ...
    def reload(self) -> Deferred[Any]: ...
    def end_grace(self) -> None: ...
    def log_statistics(self) -> None: ...


class ProcessSignals:
    """Handles the signals of a process that consists of `guards`, and tells systemd its state. SIGHUP makes each guard
    reload its files; a second SIGTERM or SIGINT ends the grace of a stop; SIGUSR1 makes each guard log its statistics;
    SIGUSR2 calls `restart`, and is ignored without it."""

    def __init__(
        self, reactor: Any, guards: Sequence[Signalled], restart: Callable[[], object] | None = None
    ) -> None:
        self._reactor = reactor
        self._restart = restart
        self._guards = guards
        for guard in guards:
            guard.on_listening = self.tell_ready_soon
        self._previous_handlers: dict[int, Any] = {}
        """The handler of each signal before the start."""
        self._stop_asked = False
        """Whether the process has been asked to stop."""
        self._came_early = False
        """Whether a SIGTERM came before the reactor ran."""
        self._shutting_down: bool | None = None
        """Whether the reactor is shutting down, so that this stop is the last. None: there is no trigger for that
        yet."""

    def handle(self) -> None:
        """Begin to handle signals. Called before anything listens, since an operator may send a signal as soon as the
        log shows that the guard listens."""
        self._stop_asked = False
        if self._shutting_down is None:
            self._shutting_down = False
            self._reactor.addSystemEventTrigger("before", "shutdown", setattr, self, "_shutting_down", True)
        if SIGHUP is not None:
            self._handle(SIGHUP, self._on_hangup)
        if SIGUSR1 is not None:
            self._handle(SIGUSR1, self._on_question)
        # It would end the process without a log line.
        if SIGUSR2 is not None:
            self._handle(SIGUSR2, signal.SIG_IGN if self._restart is None else self._on_restart)
        # The reactor sets its own handlers when it begins to run. Until then a stop would be lost in a container, since
        # the kernel drops signals that the first process does not handle.
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._on_early_stop)
        self._reactor.callWhenRunning(self._watch_stops)

    def reload(self) -> Deferred[Any]:
        """Make every guard reload its files. Fires when that is done, and never fails."""
        return gatherResults([guard.reload() for guard in self._guards])

    def tell_ready(self) -> None:
        """Tell systemd that the process is ready, if every endpoint listens. That is not so while an endpoint is still
        starting, nor after a stop."""
        if all(guard.ready for guard in self._guards):
            notify(READY)

    def tell_ready_soon(self) -> None:
        """As `tell_ready`, but once the reactor runs: before that it does not handle a signal to stop."""
        self._reactor.callWhenRunning(self.tell_ready)

    def stopping(self) -> None:
        """Called at the beginning of a stop. SIGHUP is ignored from here on."""
        notify(STOPPING)
        self._stop_asked = True
        if SIGHUP is not None:
            signal.signal(SIGHUP, signal.SIG_IGN)

    def stopped(self, outcome: Any) -> Any:
        """Called at the end of a stop, with its outcome. Restores the handlers of before the start."""
        self._handle_no_early_stop()
        for number, handler in self._previous_handlers.items():
            # None is a handler that was not set by Python, and that Python cannot restore.
            signal.signal(number, handler or signal.SIG_DFL)
        handled, self._previous_handlers = self._previous_handlers, {}
        if self._shutting_down:
            # The reactor now waits for its threads, indefinitely if one hangs, and handles no signal meanwhile. So
            # signals end the process, and so does a timer, which must not delay the end itself.
            for number in handled.keys() & {signal.SIGINT, signal.SIGTERM}:
                signal.signal(number, signal.SIG_DFL)
            deadline = threading.Timer(_THREADS_SECONDS, _end_now)
            deadline.daemon = True
            deadline.start()
        return outcome

    def _handle(self, number: int, handler: Any) -> None:
        # At a second start without a stop before it the handler in force is one of this class.
        self._previous_handlers.setdefault(number, signal.signal(number, handler))

    def _watch_stops(self) -> None:
        """Handle the signals that stop the process, unless they are ignored. Called when the reactor runs."""
        self._handle_no_early_stop()
        for number in (signal.SIGINT, signal.SIGTERM):
            if callable(signal.getsignal(number)):
                self._handle(number, self._on_stop_signal)
        if self._came_early:
            self._came_early = False
            os.kill(os.getpid(), signal.SIGTERM)

    def _on_early_stop(self, number: int, frame: FrameType | None) -> None:
        """A SIGTERM before the reactor runs comes again when it does."""
        self._came_early = True

    def _handle_no_early_stop(self) -> None:
        if signal.getsignal(signal.SIGTERM) == self._on_early_stop:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _on_stop_signal(self, number: int, frame: FrameType | None) -> None:
        """The first signal goes to the reactor. A second one does not: the reactor would log that it is stopping
        already."""
        if self._stop_asked:
            for guard in self._guards:
                self._reactor.callFromThread(guard.end_grace)
        else:
            self._stop_asked = True
            self._previous_handlers[number](number, frame)

    def _on_hangup(self, number: int, frame: FrameType | None) -> None:
        def reload() -> None:
            notify(reloading())
            self.reload().addCallback(lambda _: self.tell_ready())

        self._reactor.callFromThread(reload)

    def _on_question(self, number: int, frame: FrameType | None) -> None:
        for guard in self._guards:
            self._reactor.callFromThread(guard.log_statistics)

    def _on_restart(self, number: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self._restart)


class ProcessService(MultiService):
    """The service of a whole process: `guards`, and the `parts` that they need, which are services. Return it from your
    own `makeService`.

    Parts are started first, in their order, then the guards. At a stop every guard is drained before anything else is
    stopped. SIGHUP makes each guard reload its files; a second SIGTERM or SIGINT ends the grace of a stop; SIGUSR1
    makes each guard log its statistics; SIGUSR2 is ignored. systemd is told when all guards listen, reload and stop. If
    a guard cannot listen the process ends with one sentence. The process does not wait at its end for a thread that
    hangs.
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
        self._signals = ProcessSignals(reactor, self.guards)
        for part in (*parts, *guards):
            part.setServiceParent(self)

    def startService(self) -> None:
        """Called by `twist` or `twistd`. SystemExit: a guard cannot listen."""
        self._signals.handle()
        try:
            super().startService()
        # OverflowError: a port above 65535. An OSError may also come from a part.
        except (CannotListenError, OverflowError, OSError) as error:
            name = next(filter(None, (guard.failed_endpoint for guard in self.guards)), "")
            if not name:
                raise
            raise SystemExit(f"cannot listen on {name}: {why_not(name, error, ())}") from error
        for what, problem in warnings_of_process([], []):
            self.guards[0].factory.context.events.setup_warning(what, problem)

    def reload(self) -> Deferred[Any]:
        """Make every guard reload its files, as on SIGHUP. Fires when that is done, and never fails."""
        return self._signals.reload()

    def stopService(self) -> Deferred[Any]:
        """Drain every guard, then stop the guards and the parts. A second call meanwhile does not wait for the same
        stops again."""
        self._signals.stopping()
        drained = gatherResults([guard.drain() for guard in self.guards], consumeErrors=True)
        drained.addBoth(lambda _: stop_parts(self))
        events = self.guards[0].factory.context.events
        drained.addErrback(events.failure, "stopping a part of the process")
        return drained.addBoth(self._signals.stopped)


class StandaloneService(SMTPGuardService):
    """A guard that handles the signals of its process and tells systemd its state, as a ProcessService does. If it
    cannot listen the process ends with a sentence that names the option. Each start warns if others can read the files
    `secrets`, which are those with private keys and those with passwords. `event_file` is opened anew on SIGHUP."""

    def __init__(
        self,
        reactor: Any,
        *args: Any,
        secrets: Sequence[Sequence[str]] = ((), ()),
        event_file: EventFile | None = None,
        **options: Any,
    ) -> None:
        super().__init__(reactor, *args, **options)
        self._reloader.add(Part("event-log", "event-log", event_file))
        self._secrets = secrets
        self._signals = ProcessSignals(reactor, [self])

    def startService(self) -> None:
        # A running service listens again after a drain, and handles the signals already. During a stop the start is
        # refused.
        if not (self.running or self._ending):
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


def _end_now() -> None:
    """Called in its own thread, since the reactor's thread waits."""
    _log.critical(
        "the process ends with status 1: a thread still hangs {seconds} seconds after the stop, as on a disk that "
        "does not answer",
        seconds=_THREADS_SECONDS,
    )
    os._exit(1)


TRIM_SECONDS = 30
"""How often the heap is trimmed."""


def trim_heap() -> None:
    """Return free memory to the operating system. Without malloc_trim (musl, and systems other than Linux) it does
    nothing."""
    try:
        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):
        # Windows has no library of that kind.
        return
    if malloc_trim is not None:
        malloc_trim(ctypes.c_size_t(0))


def heap_trimmer(clock: Any) -> TimerService:
    """A service that trims the heap every TRIM_SECONDS, by `clock`. `twist smtpguard` has one, since the heap belongs
    to the whole process."""
    service = TimerService(TRIM_SECONDS, trim_heap)
    service.clock = clock
    return service


def keep_house(clock: Any, parent: IServiceCollection) -> None:
    """Give the service of a whole process what its process needs beside it, by `clock`: the heap is trimmed, and
    systemd's watchdog is told that the reactor is alive, if there is one."""
    heap_trimmer(clock).setServiceParent(parent)
    seconds = watchdog_seconds()
    if seconds:
        service = TimerService(seconds, notify, WATCHDOG)
        service.clock = clock
        service.setServiceParent(parent)
