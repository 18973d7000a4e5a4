"""The watch on connections that are not read: the kernel reports their end even if unread octets precede it."""

from __future__ import annotations

import select
from contextlib import suppress
from typing import Any

from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

_log = Logger()


@implementer(IReadDescriptor)
class EndWatcher:
    """Watches sockets that the reactor does not poll, because they are neither read nor written.

    It uses a separate epoll, which the reactor polls as one descriptor: the kernel reports each end once, and idle
    sockets cost nothing. Without epoll an end is noticed only when reading is resumed.
    """

    def __init__(self) -> None:
        self._poll: Any = None
        self._reactor: Any = None
        self._descriptors: dict[Any, int] = {}
        self._watched: dict[int, Any] = {}

    def prepare(self) -> None:
        """Open the epoll. Called when listening begins, before connections can use up all file descriptors."""
        if self._poll is None and hasattr(select, "epoll"):
            self._poll = select.epoll()

    def watch(self, transport: Any, owner: Any, *, input_over: bool = False) -> None:
        """Watch the socket of `transport` for `owner`, until `forget(owner)`.

        Its `input_end_announced()` is called when the client has half-closed the connection; octets that it sent before
        may still be unread. Its `connection_broken()` is called when the connection is gone in both directions.
        `input_over`: the half-close is known already, so only the latter is reported.
        """
        reactor = getattr(transport, "reactor", None)
        if not (hasattr(select, "epoll") and IReactorFDSet.providedBy(reactor)):
            return
        self.forget(owner)
        self.prepare()
        descriptor = transport.fileno()
        # EPOLLERR and EPOLLHUP are always reported.
        self._poll.register(descriptor, 0 if input_over else select.EPOLLRDHUP)
        if not self._watched:
            self._reactor = reactor
            reactor.addReader(self)
        self._descriptors[owner] = descriptor
        self._watched[descriptor] = owner

    def forget(self, owner: Any) -> None:
        """Stop watching: reading is resumed, or the connection is gone. May be called when it is not watched."""
        descriptor = self._descriptors.pop(owner, None)
        if descriptor is None:
            return
        del self._watched[descriptor]
        # A closed descriptor has left the epoll already.
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
        """Tell the owners of all sockets whose end the kernel has reported."""
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
            except Exception:  # noqa: BLE001 - the other owners must still be told
                _log.failure("The end of a connection that is not read could not be handled")

    def connectionLost(self, reason: Failure) -> None:
        """Called by the reactor when it stops. Nothing needs to be done."""
