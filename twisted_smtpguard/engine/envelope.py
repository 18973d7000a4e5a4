"""The envelope: what MAIL and RCPT have to pass, the guard's own limits first, then the delivery."""

from __future__ import annotations

from functools import partial
from typing import Any

from twisted_smtpguard import replies
from twisted_smtpguard.engine import counts
from twisted_smtpguard.engine.engine import Engine
from twisted_smtpguard.engine.hooks import answer_checked, hook_failed, owes_an_end
from twisted_smtpguard.engine.stages import ENDED, Phase
from twisted_smtpguard.engine.waiting import Expired, wait_for
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.values import FAULTS, Client, Path, is_later


def mail(engine: Engine, sender: Path) -> Reply | None:
    """MAIL: the limits in their order, then the delivery."""
    context = engine.context
    if context.demands:
        if context.require_tls and not engine.tls:
            return replies.TLS_REQUIRED
        if context.require_auth and engine.user is None:
            return replies.AUTH_REQUIRED
    engine.sender = sender
    # What is logged of this command is about the transaction.
    engine.phase_before = Phase.SENDER
    if sender.parameters:
        declared, max_octets = int(sender.parameters.get("SIZE") or 0), context.max_octets
        if 0 < max_octets < declared:
            engine.value = declared
            return replies.MESSAGE_TOO_LARGE
    limits = context.limits
    number = engine.transactions + 1
    if 0 < limits.max_messages < number and counts.trips(engine, "max_messages", number):
        return replies.TOO_MANY_MESSAGES
    if 0 < limits.max_pending_deliveries <= context.orphans:
        engine.value = context.orphans + 1
        return replies.TOO_MANY_PENDING
    most = limits.message_rate.events
    if most and not engine.trusted:
        count = context.clients.count("message_rate", engine.known_key or engine.key)
        if type(count) is not int or count > most:
            return _over_rate(engine, "message_rate", replies.MESSAGE_RATE_EXCEEDED, count, _begin, sender)
    return _begin(engine, sender)


def _begin(engine: Engine, sender: Path) -> Reply | None:
    context = engine.context
    engine.owes_farewell = context.session_ended is not None
    utf8 = bool(sender.parameters) and "SMTPUTF8" in sender.parameters
    try:
        given = context.begin(client_of(engine, utf8), sender)
        if not is_later(given):
            return _begun(engine, sender, utf8, given)
    except FAULTS as error:
        return hook_failed(engine, error)
    return wait_for(engine, given, partial(_begun_later, sender, utf8), late=abort_late)


def _begun_later(sender: Path, utf8: bool, engine: Engine, given: Any, error: BaseException | None) -> Reply:
    if error is None:
        try:
            return _begun(engine, sender, utf8, given)
        except FAULTS as raised:
            return hook_failed(engine, raised)
    return hook_failed(engine, error)


def _begun(engine: Engine, sender: Path, utf8: bool, given: Any) -> Reply:
    owes_an_end(given)
    if engine.context.is_relay(given):
        reply = answer_checked(engine, given.begun)
        if reply.code >= 300:
            engine.abort_given(given)
            return reply
    else:
        reply = replies.SENDER_OK
    engine.mail = given
    engine.transactions += 1
    engine.mail_began_at = engine.context.seconds()
    engine.utf8 = utf8
    engine.recipients = []
    engine.message = None
    engine.phase = Phase.SENDER
    return reply


def abort_late(engine: Engine, given: Any, error: BaseException | None) -> None:
    """Called when a hook has answered too late: abort what it has handed over, or log what it has raised."""
    if error is not None:
        hook_failed(engine, error, over=True)
    elif hasattr(given, "abort"):
        engine.abort_given(given)


def rcpt(engine: Engine, recipient: Path) -> Reply | None:
    """RCPT: the cap, then the delivery."""
    engine.recipient = recipient.address
    limits = engine.context.limits
    number = len(engine.recipients) + 1
    if 0 < limits.max_recipients < number and counts.trips(engine, "max_recipients", number):
        strict = limits.strict_enhanced_codes
        return replies.TOO_MANY_RECIPIENTS_STRICT if strict else replies.TOO_MANY_RECIPIENTS
    most = limits.recipient_rate.events
    if most and not engine.trusted:
        count = engine.context.clients.count("recipient_rate", engine.known_key or engine.key)
        if type(count) is not int or count > most:
            return _over_rate(
                engine, "recipient_rate", replies.RECIPIENT_RATE_EXCEEDED, count, _ask, recipient
            )
    return _ask(engine, recipient)


def _ask(engine: Engine, recipient: Path) -> Reply | None:
    try:
        answer = engine.mail.recipient(recipient)
        if answer is None:
            engine.recipients.append(recipient.address)
            engine.phase = Phase.RECIPIENTS
            return replies.RECIPIENT_OK
        if not is_later(answer):
            return _answered(recipient, engine, answer, None)
    except FAULTS as error:
        return _answered(recipient, engine, None, error)
    return wait_for(engine, answer, partial(_answered, recipient), late=report_late)


def _answered(recipient: Path, engine: Engine, answer: Any, error: BaseException | None) -> Reply:
    if error is not None:
        reply = hook_failed(engine, error)
        if isinstance(error, Expired):
            engine.reset()
            return reply
    else:
        reply = replies.RECIPIENT_OK if answer is None else answer_checked(engine, answer)
    if reply.code < 300:
        engine.phase = Phase.RECIPIENTS
        engine.recipients.append(recipient.address)
    else:
        if reply.code >= 500:
            engine.rejected_recipients += 1
        if engine.phase is Phase.SENDER:
            engine.phase = Phase.REFUSED
    return reply


def report_late(engine: Engine, _: Any, error: BaseException | None) -> None:
    """Called when a hook has answered too late: log what it has raised."""
    if error is not None:
        hook_failed(engine, error, over=True)


def _over_rate(
    engine: Engine, limit: str, exceeded: Reply, count: Any, go_on: Any, path: Path
) -> Reply | None:
    """What `go_on(engine, path)` answers, unless the client's `limit`, counted in all its sessions, is reached.

    `count` may come later, and is None where the store has failed.
    """
    if is_later(count):
        then = partial(_counted, limit, exceeded, go_on, path)
        # The store has its own time limit.
        return wait_for(engine, count, then, is_delivery=False, seconds=0)
    return _counted(limit, exceeded, go_on, path, engine, count, None)


def _counted(
    limit: str,
    exceeded: Reply,
    go_on: Any,
    path: Path,
    engine: Engine,
    count: int | None,
    error: BaseException | None,
) -> Reply | None:
    if engine.stage in ENDED:
        return None
    limits = engine.context.limits
    if error is not None:
        raise error
    if count is None:
        if limit not in limits.dry_run:
            return replies.LOCAL_ERROR
        counts.log(engine, "internal_error", dry_run=True)
    elif count > getattr(limits, limit).events and counts.trips(engine, limit, count):
        return exceeded
    return go_on(engine, path)  # type: ignore[no-any-return]


def client_of(engine: Engine, utf8: bool) -> Client:
    """The session as the delivery knows it, for a message with or without SMTPUTF8."""
    if not utf8 and engine.known_client is not None:
        return engine.known_client
    user = engine.user
    client = Client(
        peer=engine.peer,
        session=engine.name,
        helo=engine.helo,
        protocol=_protocol_word(engine, utf8),
        identity=None if user is None else user.name,
        trusted=engine.trusted,
        tls=engine.tls,
        avatar_id=None if user is None else user.avatar_id,
    )
    if not utf8:
        engine.known_client = client
    return client


def _protocol_word(engine: Engine, utf8: bool) -> str:
    """RFC 3848 and RFC 6531 4.3: what stands after "with"."""
    marks = "S" * (engine.tls != "") + "A" * (engine.user is not None)
    if utf8:
        return f"UTF8SMTP{marks}"
    return f"ESMTP{marks}" if engine.offered else "SMTP"
