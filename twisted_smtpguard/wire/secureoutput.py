"""Replies on their way out under TLS, where everything has to pass through the encryption."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from twisted_smtpguard.wire.output import Output, OutputRules, Speaker


@implementer(IPushProducer)
class SecureOutput(Output):
    """The outgoing half of a connection that speaks TLS. Made when TLS has begun, in place of an Output.

    Twisted takes 64 KiB without a word, and then says that more has to wait. How fast the client reads them cannot be
    seen: it has the time limit on writing for all of them.
    """

    __slots__ = ()

    def __init__(self, transport: Any, rules: OutputRules, speaker: Speaker) -> None:
        super().__init__(transport, rules, speaker)
        # Never past the encryption.
        self._socket = None
        transport.registerProducer(self, True)

    def flush(self) -> None:
        """Send what is queued, in one write."""
        octets = self._take_queued()
        if self._producing:
            self._waiting += octets
        elif octets:
            self._transport.write(octets)

    def _close_now(self) -> None:
        # While there is a producer a close waits for it.
        self._transport.unregisterProducer()
        super()._close_now()

    # IPushProducer, called by the transport.

    def pauseProducing(self) -> None:
        """The transport has enough for now."""
        if not self._producing:
            self._producing = self.congested = True
            self._set_deadline()

    def resumeProducing(self) -> None:
        """The transport has sent all that it had."""
        if not self._producing:
            return
        self._producing = self.congested = False
        self._cancel_deadline()
        waiting, self._waiting = self._waiting, b""
        if waiting:
            self._transport.write(waiting)
        if self._producing:
            return
        if self._close is not None:
            self._close_now()
        else:
            self._speaker.output_drained()
