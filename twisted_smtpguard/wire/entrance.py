"""One connection from accept to its greeting: admission, early talkers, and the greet delay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twisted_smtpguard.admission.refusal import NotAdmitted, Refusal, refusal_of
from twisted_smtpguard.admission.visitor import Visitor
from twisted_smtpguard.faults import cancel
from twisted_smtpguard.later import begun
from twisted_smtpguard.smtp import replies
from twisted_smtpguard.wire.deadlines import Deadline
from twisted_smtpguard.wire.peeking import input_waits

if TYPE_CHECKING:
    from twisted_smtpguard.wire.factory import SMTPGuardFactory


class Door(Protocol):
    """Who lets the visitor in."""

    implicit_tls: bool
    """The visitor speaks first: a TLS hello."""

    def sends_proxy_header(self) -> bool:
        """What has come already is a PROXY header, which is not expected."""

    def greet(self) -> None:
        """The visitor comes in."""

    def refuse(self, refusal: Refusal) -> None:
        """It does not."""

    def abort(self) -> None:
        """Whether it does could not be found out."""


class Entrance:
    """Calls the door's `greet()` or `refuse(refusal)` once, within `begin` or later; neither after `leave`."""

    __slots__ = (
        "_deciding",
        "_delay",
        "_door",
        "_factory",
        "_left",
        "_spoke",
        "_told",
        "_transport",
        "_visitor",
    )

    def __init__(self, factory: SMTPGuardFactory, visitor: Visitor, transport: Any, door: Door) -> None:
        self._factory = factory
        self._visitor = visitor
        self._transport = transport
        self._door = door
        self._deciding: Deferred[None] | None = None
        self._delay: Deadline | None = None
        self._spoke = False
        self._told = False
        self._left = False

    def begin(self) -> None:
        """The connection is there."""
        admission = self._factory.admission
        try:
            try:
                deciding = None if admission.asks_nothing else begun(admission.decide(self._visitor))
            except NotAdmitted as decision:
                self._door.refuse(decision.refusal)
            except Exception:  # noqa: BLE001 - a fault of ours must not let anybody in
                self._not_admitted(Failure())
            else:
                if deciding is None:
                    self._admitted(None)
                else:
                    self._deciding = deciding
                    deciding.addCallbacks(self._admitted, self._not_admitted).addErrback(self._broken)
        except Exception:  # noqa: BLE001 - nobody else would end the connection
            self._broken(Failure())

    def spoke(self) -> None:
        """The client sent something. With implicit TLS it had to."""
        if self._door.implicit_tls:
            return
        self._spoke = True
        if self._delay is not None:
            self._refuses_early_talker()

    def leave(self) -> None:
        """The connection is refused or gone: whatever is pending is cancelled."""
        self._left = True
        self._visitor.leave()
        self._cancel_delay()
        cancel(self._deciding, self._report)

    def _report(self, failure: Failure, what: str) -> None:
        self._factory.site.events.failure(failure, what, peer=self._visitor.name)

    def _cancel_delay(self) -> None:
        if self._delay is not None:
            self._delay.cancel()
            self._delay = None

    def _admitted(self, _: object) -> None:
        if self._left:
            return
        if not self._visitor.trusted:
            if self._refuses_early_talker():
                return
            delay = self._factory.greet_delay
            if delay:
                self._delay = self._factory.deadlines.call_later(delay, self._waited)
                return
        self._door.greet()

    def _waited(self) -> None:
        self._delay = None
        try:
            if not self._refuses_early_talker():
                self._door.greet()
        except Exception:  # noqa: BLE001 - nobody else would end the connection
            self._broken(Failure())

    def _refuses_early_talker(self) -> bool:
        """Whether the client spoke before its greeting and is refused for it. Where that is only logged: once."""
        if self._told or self._door.implicit_tls or not (self._spoke or input_waits(self._transport)):
            return False
        self._told = True
        site = self._factory.site
        if self._door.sends_proxy_header():
            # A misconfigured proxy, and no abuser. Where it is greeted, it is told the same at its first line.
            if site.limits.early_talker == "log":
                return False
            self._door.refuse(refusal_of(replies.UNEXPECTED_PROXY_HEADER))
            return True
        refusal = refusal_of(replies.EARLY_TALKER)
        if site.limits.early_talker == "log" or "early_talker" in site.limits.dry_run:
            refusal.log_of(self._visitor, site.events, site.limits, dry_run=True)
            return False
        self._door.refuse(refusal)
        return True

    def _not_admitted(self, failure: Failure) -> None:
        if self._left:
            return
        if isinstance(failure.value, NotAdmitted):
            self._door.refuse(failure.value.refusal)
            return
        self._factory.site.events.failure(failure, "admission failed", peer=self._visitor.name)
        self._door.refuse(refusal_of(replies.LOCAL_ERROR_CLOSING))

    def _broken(self, failure: Failure) -> None:
        """A fault of ours while it was greeted or refused: nobody else would end the connection."""
        self._factory.site.events.failure(failure, "admission failed", peer=self._visitor.name)
        self._door.abort()
