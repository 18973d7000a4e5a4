"""`twist --reactor=uvloop`: Twisted's asyncio reactor on the event loop of uvloop, for all protocols of the process.

Descriptors are not added to the loop one by one. The reactor has its own epoll, which the loop polls as one
descriptor, and delivers what it reports itself. Twisted's transports therefore stay what they are on the default
reactor, with TLS, half-close, back-pressure and abort, and the loop holds nothing for a connection. A transport with a
true `without_log_context` gets its input by one call, without Twisted's context for the log.
docs/explanation/performance.md compares this with uvloop's own transports.
"""

# ruff: noqa: A002, N802, N803, N815 - Twisted's own names

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.main import installReactor
from twisted.internet.process import reapAllProcesses
from twisted.python import log

from twisted_smtpguard.reactors.quicktcp import QuickPort

_EVENTS_A_TURN = 256
"""The most events that are delivered before the loop goes on with its timers. The kernel reports the others again."""


class UVLoopReactor(AsyncioSelectorReactor, EPollReactor):
    """An asyncio reactor on `eventloop`; None: on a new loop of uvloop.

    ImportError says in one sentence that uvloop is not installed.
    """

    # Of AsyncioSelectorReactor, which does not say what they are.
    _scheduledAt: Any
    _timerHandle: Any

    def __init__(self, eventloop: asyncio.AbstractEventLoop | None = None) -> None:
        loop = _new_loop() if eventloop is None else eventloop
        self._delivering = False
        super().__init__(loop)
        loop.add_reader(self._poller.fileno(), self._deliver)

    # The descriptors are those of the epoll.
    addReader = EPollReactor.addReader
    addWriter = EPollReactor.addWriter
    removeReader = EPollReactor.removeReader
    removeAll = EPollReactor.removeAll
    getReaders = EPollReactor.getReaders
    getWriters = EPollReactor.getWriters

    def removeWriter(self, writer: Any) -> None:
        # Every connection that ends asks for this, and hardly any waits to write.
        if self._writes or self._continuousPolling.getWriters():
            EPollReactor.removeWriter(self, writer)

    def _deliver(self) -> None:
        """Called by the loop when the epoll has events: a turn of the reactor. Calls that are due end it."""
        self._delivering = True
        try:
            selectables = self._selectables
            for descriptor, event in self._poller.poll(0, _EVENTS_A_TURN):
                selectable = selectables.get(descriptor)
                if selectable is None:
                    continue  # it was removed in this turn
                if event == self._POLL_IN and getattr(selectable, "without_log_context", False):
                    self._read(selectable)
                else:
                    log.callWithLogger(selectable, self._doReadOrWrite, selectable, descriptor, event)
        finally:
            self._delivering = False
            self._call_what_is_due()

    def _read(self, selectable: Any) -> None:
        """As `_doReadOrWrite` for input and nothing else, which is what nearly every event is."""
        try:
            why = selectable.doRead()
        except BaseException as error:  # noqa: BLE001 - as Twisted does
            why = error
            log.callWithLogger(selectable, log.err)
        if why:
            try:
                self._disconnectSelectable(selectable, why, True)
            except BaseException:  # noqa: BLE001 - of the protocol, which is told that its connection is lost
                log.callWithLogger(selectable, log.err)

    def _call_what_is_due(self) -> None:
        wait = self.timeout()
        if wait == 0:
            self.runUntilCurrent()
            wait = self.timeout()
        if wait is not None and (
            self._scheduledAt is None or self._asyncioEventloop.time() + wait < self._scheduledAt
        ):
            self._reschedule()

    def _reschedule(self) -> None:
        if self._delivering:
            return  # at the end of the turn this is done once for all calls
        wait = self.timeout()
        if wait is None:
            return
        if self._timerHandle is not None:
            self._timerHandle.cancel()
        self._scheduledAt = self._asyncioEventloop.time() + wait
        # uvloop counts whole milliseconds, from the last one that is over. It would come too early otherwise, find
        # nothing to do, and come again at once and many times.
        self._timerHandle = self._asyncioEventloop.call_later(wait and wait + 0.0015, self._onTimer)

    def callLater(self, delay: float, callable: Callable[..., object], *args: Any, **kwargs: Any) -> Any:
        if self._delivering:
            return EPollReactor.callLater(self, delay, callable, *args, **kwargs)
        return super().callLater(delay, callable, *args, **kwargs)

    def startRunning(self, installSignalHandlers: bool = True) -> None:
        super().startRunning(installSignalHandlers)
        if installSignalHandlers:
            # The loop takes the descriptor through which Twisted would hear that a child process has ended.
            signal.signal(signal.SIGCHLD, lambda *_: self.callFromThread(reapAllProcesses))

    def spawnProcess(self, *args: Any, **kwargs: Any) -> Any:
        process = super().spawnProcess(*args, **kwargs)
        # With the first process that asyncio starts the loop takes the signal, too. A system without pidfd, or without
        # a free descriptor, is left with the signal.
        if process.pid is not None:  # else it has ended already
            with suppress(AttributeError, OSError):
                ended = os.pidfd_open(process.pid)
                self._asyncioEventloop.add_reader(ended, self._reap, ended)
        return process

    def _reap(self, ended: int) -> None:
        self._asyncioEventloop.remove_reader(ended)
        os.close(ended)
        self.callLater(0, reapAllProcesses)

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> QuickPort:
        listening = QuickPort(port, factory, backlog, interface, self)
        listening.startListening()
        return listening

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: int, factory: Any) -> Any:
        if addressFamily not in (socket.AF_INET, socket.AF_INET6):
            return super().adoptStreamPort(fileDescriptor, addressFamily, factory)
        port = QuickPort._fromListeningDescriptor(self, fileDescriptor, addressFamily, factory)
        port.startListening()
        return port


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # noqa: PLC0415 - an extra
    except ImportError:
        raise ImportError(
            "--reactor=uvloop needs uvloop, which is not installed: pip install 'twisted_smtpguard[uvloop]'"
        ) from None
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    return loop


def install(eventloop: asyncio.AbstractEventLoop | None = None) -> UVLoopReactor:
    """Make a UVLoopReactor the reactor of the process. Called before anything imports `twisted.internet.reactor`.

    `eventloop` is the loop that it works in, such as the running one of an asyncio program; None: a new one of uvloop.
    """
    reactor = UVLoopReactor(eventloop)
    installReactor(reactor)
    return reactor
