"""The factory of one listener, whose connections belong to the guard and are logged with the listener's name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import ServerFactory
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel
from zope.interface import provider

from twisted_smtpguard.log.events import Events
from twisted_smtpguard.transport.peers import socket_name

if TYPE_CHECKING:
    from twisted_smtpguard.transport.factory import SMTPGuardFactory


class Listener(ServerFactory):
    """The factory of one endpoint. `name` is the listener's name in the log.

    Its connections belong to `guard` and count there. `implicit_tls` is for plain endpoints: the guard begins TLS,
    after the PROXY header if there is one.
    """

    noisy = False

    def __init__(self, guard: SMTPGuardFactory, name: str, *, implicit_tls: bool = False) -> None:
        if implicit_tls and guard.tls is None:
            raise ValueError("a listener of implicit TLS needs a certificate")
        self._guard = guard
        self.name = name
        self.implicit_tls = implicit_tls

    def startFactory(self) -> None:
        """Called when listening begins. Opens the epoll of the EndWatcher while there are file descriptors."""
        self._guard.ends.prepare()

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Called by the port at accept. A client refused before implicit TLS gets no reply."""
        return self._guard.build(addr, self.name, implicit_tls=self.implicit_tls)


def bound_accept_log(port: Any, events: Events) -> None:
    """Log connections that `port` drops for lack of a file descriptor as refusals, which `max_log_lines` bounds.

    Twisted itself logs one line for each of them, and two more in each turn of the reactor.
    """
    # Twisted has no public API for this. If a release lacks the attribute, Twisted's lines stay.
    theirs = getattr(port, "_logger", None)
    if not isinstance(theirs, Logger):
        return

    @provider(ILogObserver)
    def observe(event: LogEvent) -> None:
        if "address" in event:
            events.reject(socket_name(event["address"]), "out_of_descriptors")
        elif "acceptError" in event:
            events.accept_failed(str(event["acceptError"]))
        elif event["log_level"] > LogLevel.info:
            theirs.observer(event)

    port._logger = Logger(theirs.namespace, observer=observe)
