"""The envelope of a session's message: what MAIL and RCPT have to pass, our own limits first, then the delivery.

It moves the session's phase, and begins its transaction.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from twisted_smtpguard.interfaces import Path
from twisted_smtpguard.smtp import replies
from twisted_smtpguard.smtp.farewell import Farewell
from twisted_smtpguard.smtp.phases import Phase
from twisted_smtpguard.smtp.replies import Reply
from twisted_smtpguard.smtp.transaction import Answer, Transaction, then

if TYPE_CHECKING:
    from twisted_smtpguard.smtp.session import Session


def begin(session: Session, sender: Path) -> Answer:
    """MAIL: our own limits in their order, then the delivery."""
    site, conduct = session.site, session.conduct
    limits = site.limits
    if site.demands:
        if site.require_tls and not session.tls:
            return replies.TLS_REQUIRED
        if site.require_auth and session.identity is None:
            return replies.AUTH_REQUIRED
    conduct.sender = sender.address
    if sender.parameters:
        declared, max_octets = int(sender.parameters.get("SIZE") or 0), site.max_octets
        if 0 < max_octets < declared:
            conduct.value = declared
            return replies.MESSAGE_TOO_LARGE
    number = session.transactions + 1
    if 0 < limits.max_messages < number and conduct.trips("max_messages", number):
        return replies.TOO_MANY_MESSAGES
    if 0 < limits.max_pending_deliveries <= site.orphans:
        conduct.value = site.orphans + 1
        return replies.TOO_MANY_PENDING
    most = limits.message_rate.events
    if most and not session.visitor.trusted:
        count = site.clients.count("message_rate", session.visitor.key)
        if type(count) is not int or count > most:
            beyond = partial(_beyond, session, "message_rate", replies.MESSAGE_RATE_EXCEEDED)
            return then(count, partial(beyond, _ask_delivery, sender))
    return _ask_delivery(session, sender)


def _ask_delivery(session: Session, sender: Path) -> Answer:
    site = session.site
    utf8 = bool(sender.parameters) and "SMTPUTF8" in sender.parameters
    if session.farewell is None and site.says_farewell:
        session.farewell = Farewell(session.say_farewell)
    transaction = session.transaction = Transaction(site.delivery, session.delivery_failed, session.farewell)
    answer = transaction.begin(session.client(utf8), sender)
    if type(answer) is Reply:
        return _began(session, sender, utf8, answer)
    return then(answer, partial(_began, session, sender, utf8))


def _began(session: Session, sender: Path, utf8: bool, reply: Reply) -> Reply:
    if reply.code >= 300:
        session.transaction = None
        return reply
    session.transactions += 1
    session.began_at = session.site.seconds()
    session.sender, session.utf8 = sender, utf8
    session.recipients = []
    session.reception = None
    session.phase = Phase.SENDER
    return reply


def add_recipient(session: Session, recipient: Path) -> Answer:
    """RCPT: the cap, then the delivery."""
    site = session.site
    limits, number = site.limits, len(session.recipients) + 1
    session.conduct.recipient = recipient.address
    if 0 < limits.max_recipients < number and session.conduct.trips("max_recipients", number):
        strict = limits.strict_enhanced_codes
        return replies.TOO_MANY_RECIPIENTS_STRICT if strict else replies.TOO_MANY_RECIPIENTS
    most = limits.recipient_rate.events
    if most and not session.visitor.trusted:
        count = site.clients.count("recipient_rate", session.visitor.key)
        if type(count) is not int or count > most:
            beyond = partial(_beyond, session, "recipient_rate", replies.RECIPIENT_RATE_EXCEEDED)
            return then(count, partial(beyond, _ask_about, recipient))
    return _ask_about(session, recipient)


def _ask_about(session: Session, recipient: Path) -> Answer:
    assert session.transaction is not None
    answer = session.transaction.recipient(recipient)
    if type(answer) is Reply:
        return _recipient_answered(session, recipient, answer)
    return then(answer, partial(_recipient_answered, session, recipient))


def _recipient_answered(session: Session, recipient: Path, reply: Reply) -> Reply:
    transaction = session.transaction
    if transaction is None or transaction.over:
        session.reset()
    elif reply.code < 300:
        session.phase = Phase.RECIPIENTS
        session.recipients.append(recipient.address)
    else:
        if reply.code >= 500:
            session.conduct.rejected_recipients += 1
        if session.phase is Phase.SENDER:
            session.phase = Phase.REFUSED
    return reply


def _beyond(
    session: Session,
    limit: str,
    exceeded: Reply,
    go_on: Callable[[Session, Path], Answer],
    path: Path,
    count: int | None,
) -> Answer:
    """What `go_on(session, path)` answers, unless the client's `limit`, counted in all its sessions, is reached.

    `count` may have come late, and is None where the store has failed.
    """
    if session.ended:
        return None
    limits, conduct = session.site.limits, session.conduct
    if count is None:
        if limit not in limits.dry_run:
            return replies.LOCAL_ERROR
        conduct.log("internal_error", dry_run=True)
    elif count > getattr(limits, limit).events and conduct.trips(limit, count):
        return exceeded
    return go_on(session, path)
