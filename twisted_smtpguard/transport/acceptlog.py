"""What is logged of connections that could not be accepted: inside the limits on log lines, as any refusal is."""

from __future__ import annotations

from typing import Any

from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel
from zope.interface import provider

from twisted_smtpguard.log.events import Events
from twisted_smtpguard.transport.peers import socket_name


def bound_accept_log(port: Any, events: Events) -> None:
    """Twisted logs a line for each connection that it drops because the process has no file descriptor left, and two
    for each turn in which it does so. Have `port` tell `events` of each, and log nothing more of it."""
    # Twisted has no public way to this, and a release without it logs as it likes.
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
