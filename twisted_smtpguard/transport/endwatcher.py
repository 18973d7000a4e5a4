"""The end of connections from which nothing is read: the kernel knows of it, though unread data lie before it."""

from __future__ import annotations

import select
from contextlib import suppress
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

_log = Logger()


class Unread(Protocol):
    """A connection from which nothing is read for now."""

    def input_end_announced(self) -> None:
        """The client has shut down its side. What it sent before may be still unread."""

    def connection_broken(self) -> None:
        """The connection is gone, in both directions."""


@implementer(IReadDescriptor)
class EndWatcher:
    """Watches sockets that the reactor does not poll while nothing is to be read or written.

    An epoll of its own, which the reactor polls as one descriptor: the kernel tells each end once, and idle sockets
    cost nothing. Where there is no epoll an end is noticed when reading goes on.
    """

    def __init__(self) -> None:
        self._poll: Any = None
        self._reactor: Any = None
        self._descriptors: dict[Unread, int] = {}
        self._watched: dict[int, Unread] = {}

    def prepare(self) -> None:
        """Called when listening begins, so that the one descriptor is there when a crowd has taken all the others."""
        if self._poll is None and hasattr(select, "epoll"):
            self._poll = select.epoll()

    def watch(self, transport: Any, owner: Unread, *, input_over: bool = False) -> None:
        """Until `forget(owner)`. `input_over`: only the end of the whole connection is news."""
        reactor = getattr(transport, "reactor", None)
        if not (hasattr(select, "epoll") and IReactorFDSet.providedBy(reactor)):
            return
        self.forget(owner)
        self.prepare()
        descriptor = transport.fileno()
        # EPOLLERR and EPOLLHUP are told always.
        self._poll.register(descriptor, 0 if input_over else select.EPOLLRDHUP)
        if not self._watched:
            self._reactor = reactor
            reactor.addReader(self)
        self._descriptors[owner] = descriptor
        self._watched[descriptor] = owner

    def forget(self, owner: Unread) -> None:
        """Reading goes on, or the connection is gone. May be called when it is not watched."""
        descriptor = self._descriptors.pop(owner, None)
        if descriptor is None:
            return
        del self._watched[descriptor]
        # What is closed is gone from an epoll by itself.
        with suppress(OSError):
            self._poll.unregister(descriptor)
        if not self._watched:
            self._reactor.removeReader(self)

    # IReadDescriptor, called by the reactor.

    def fileno(self) -> int:
        descriptor: int = self._poll.fileno()
        return descriptor

    def logPrefix(self) -> str:
        return "EndWatcher"

    def doRead(self) -> None:
        """Some have ended."""
        for descriptor, events in self._poll.poll(0):
            owner = self._watched.get(descriptor)
            if owner is None:
                continue
            try:
                if events & (select.EPOLLERR | select.EPOLLHUP):
                    self.forget(owner)
                    owner.connection_broken()
                else:
                    self._poll.modify(descriptor, 0)
                    owner.input_end_announced()
            except Exception:  # noqa: BLE001 - the others are still to be told
                _log.failure("A connection that has ended could not be told so")

    def connectionLost(self, reason: Failure) -> None:
        """Called by the reactor when it ends."""
