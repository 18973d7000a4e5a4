"""The mail transaction: MAIL and RCPT are checked against the guard's limits first, then passed to the delivery."""

from __future__ import annotations

from functools import partial
from typing import Any

from twisted_smtpguard import replies
from twisted_smtpguard.engine import counts, policies
from twisted_smtpguard.engine.engine import Engine
from twisted_smtpguard.engine.hooks import (
    answer_checked,
    answered_in_call,
    hook_failed,
    missing_abort,
    wait_for,
)
from twisted_smtpguard.engine.port import Expired
from twisted_smtpguard.engine.stages import Phase
from twisted_smtpguard.engine.upcoming import upcoming
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.values import FAULTS, Client, Path, is_awaitable, is_later


def mail(engine: Engine, sender: Path) -> Reply | None:
    """Carry out MAIL: check the limits in the documented order, then call the delivery's `begin()`."""
    context = engine.context
    if context.demands:
        if context.deferral is not None:
            engine.sender, engine.phase_before = sender, Phase.SENDER
            return context.deferral
        if context.require_tls and not engine.tls:
            return replies.TLS_REQUIRED
        if context.require_auth and engine.user is None:
            return replies.AUTH_REQUIRED
    engine.sender = sender
    # A refusal of this command is logged with its reverse-path, as if the transaction had begun.
    engine.phase_before = Phase.SENDER
    if sender.parameters:
        declared, max_octets = int(sender.parameters.get("SIZE") or 0), context.max_octets
        if 0 < max_octets < declared:
            engine.value = declared
            return replies.MESSAGE_TOO_LARGE
    if engine.transactions >= context.max_messages and counts.enforces(
        engine, "max_messages", engine.transactions + 1
    ):
        return replies.TOO_MANY_MESSAGES
    if context.pending_deliveries >= context.max_pending_deliveries:
        engine.value = context.pending_deliveries + 1
        return replies.TOO_MANY_PENDING
    rate = context.message_rate
    if rate is not None and not engine.trusted:
        count = rate.count(engine.known_key or engine.key)
        if type(count) is not int or count > rate.most or count in rate.noted:
            return _judge_count(engine, rate, replies.MESSAGE_RATE_EXCEEDED, count, _judge_sender, sender)
    if context.policies:
        return _judge_sender(engine, sender)
    return _begin(engine, sender)


def _judge_sender(engine: Engine, sender: Path) -> Reply | None:
    """Ask the policies, if there are any, and then the delivery."""
    if not engine.context.policies:
        return _begin(engine, sender)
    return policies.ask(engine, "mail", lambda engine: _begin(engine, sender))


def _begin(engine: Engine, sender: Path) -> Reply | None:
    context = engine.context
    if context.session_ended is not None:
        engine.owes_session_ended = True
    utf8 = "SMTPUTF8" in sender.parameters
    client = engine.known_client
    if client is None or utf8:
        client = client_of(engine, utf8)
    try:
        given = context.begin(client, sender)
        if not is_awaitable(type(given)):
            return _begun(sender, utf8, engine, given)
        look_ahead = getattr(given, "look_ahead", None)
        if look_ahead is not None:
            # Only a delivery that hands every RCPT on as it comes has this, and no plug-in needs it.
            look_ahead(partial(upcoming, engine))
    except FAULTS as error:
        answered_in_call(engine, "begin", None, error)
        return hook_failed(engine, error)
    return wait_for(engine, given, partial(_begun, sender, utf8), hook_failed, late=_abort_late, hook="begin")


def _begun(sender: Path, utf8: bool, engine: Engine, given: Any) -> Reply:
    context, reply = engine.context, replies.SENDER_OK
    try:
        if not hasattr(given, "abort"):
            raise missing_abort(given)
        if context.is_relay(given):
            reply = answer_checked(engine, given.begun)
            if reply.code >= 300:
                engine.abort_given(given)
                return reply
    except FAULTS as error:
        return hook_failed(engine, error)
    engine.mail = given
    engine.transactions += 1
    engine.mail_began_at = context.seconds()
    engine.utf8 = utf8
    engine.recipients = []
    # A BDAT out of sequence has left its message here.
    engine.message = None
    engine.phase = Phase.SENDER
    return reply


def _abort_late(engine: Engine, given: Any, error: BaseException | None) -> None:
    """Called when `begin()` has answered too late: abort the object that it has returned."""
    if hasattr(given, "abort"):
        engine.abort_given(given)


def rcpt(engine: Engine, recipient: Path) -> Reply | None:
    """Carry out RCPT: check the cap and the rate, then call the delivery's `recipient()`."""
    engine.recipient = recipient.address
    context = engine.context
    if len(engine.recipients) >= context.max_recipients and counts.enforces(
        engine, "max_recipients", len(engine.recipients) + 1
    ):
        strict = context.limits.strict_enhanced_codes
        return replies.TOO_MANY_RECIPIENTS_STRICT if strict else replies.TOO_MANY_RECIPIENTS
    rate = context.recipient_rate
    if rate is not None and not engine.trusted:
        count = rate.count(engine.known_key or engine.key)
        if type(count) is not int or count > rate.most or count in rate.noted:
            return _judge_count(
                engine, rate, replies.RECIPIENT_RATE_EXCEEDED, count, _judge_recipient, recipient
            )
    if context.policies:
        return _judge_recipient(engine, recipient)
    return _ask(engine, recipient)


def _judge_recipient(engine: Engine, recipient: Path) -> Reply | None:
    """Ask the policies, if there are any, and then the delivery."""
    if not engine.context.policies:
        return _ask(engine, recipient)
    return policies.ask(engine, "rcpt", lambda engine: _ask(engine, recipient), _refused)


def _ask(engine: Engine, recipient: Path) -> Reply | None:
    try:
        answer = engine.mail.recipient(recipient)
        if answer is None:
            engine.recipients.append(recipient.address)
            engine.phase = Phase.RECIPIENTS
            return replies.RECIPIENT_OK
        if not is_awaitable(type(answer)):
            answered_in_call(engine, "recipient", answer)
            return _answered(recipient, engine, answer)
    except FAULTS as error:
        answered_in_call(engine, "recipient", None, error)
        return _failed(engine, error)
    return wait_for(engine, answer, partial(_answered, recipient), _failed, hook="recipient")


def _answered(recipient: Path, engine: Engine, answer: Any) -> Reply:
    reply = replies.RECIPIENT_OK if answer is None else answer_checked(engine, answer)
    if reply.code >= 300:
        return _refused(engine, reply)
    engine.phase = Phase.RECIPIENTS
    engine.recipients.append(recipient.address)
    return reply


def _failed(engine: Engine, error: BaseException) -> Reply:
    reply = hook_failed(engine, error)
    if isinstance(error, Expired):
        engine.reset()
        return reply
    return _refused(engine, reply)


def _refused(engine: Engine, reply: Reply) -> Reply:
    """Refuse a MAIL or RCPT with `reply`. After a refused first RCPT the phase is REFUSED, in which a pipelined DATA
    gets a 554 and is no invalid command (RFC 2920 3.1)."""
    if engine.policed is not None:
        reply = policies.softened(engine, reply)
    if reply.code >= 500:
        engine.rejected_recipients += 1
    if engine.phase is Phase.SENDER:
        engine.phase = Phase.REFUSED
    return reply


def _judge_count(
    engine: Engine, rate: Any, exceeded: Reply, count: Any, go_on: Any, path: Path
) -> Reply | None:
    """Refuse the command with `exceeded` if the client is above its rate over all sessions, else call `go_on`.

    `count` is the answer of `ClientRate.count()`, which may come later. Returns the reply, or None if it comes later.
    """
    if is_later(count):
        then = partial(_counted, rate, exceeded, go_on, path)
        # The store has its own time limit.
        return wait_for(engine, count, then, seconds=0)
    return _counted(rate, exceeded, go_on, path, engine, count)


def _counted(rate: Any, exceeded: Reply, go_on: Any, path: Path, engine: Engine, count: Any) -> Reply | None:
    network = ""
    if type(count) is not int:
        count, network = count
    else:
        rate.note(engine.known_key or engine.key, count)
    if count > rate.most and counts.enforces(engine, rate.name, count, network=network):
        return _refused(engine, exceeded)
    return go_on(engine, path)  # type: ignore[no-any-return]


def client_of(engine: Engine, utf8: bool) -> Client:
    """The `Client` value that the delivery gets, for a message with (`utf8`) or without SMTPUTF8."""
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
        known=engine.is_known,
    )
    if not utf8:
        engine.known_client = client
    return client


def _protocol_word(engine: Engine, utf8: bool) -> str:
    """The protocol word after "with" in a Received field (RFC 3848, RFC 6531 4.3)."""
    marks = "S" * (engine.tls != "") + "A" * (engine.user is not None)
    if utf8:
        return f"UTF8SMTP{marks}"
    return f"ESMTP{marks}" if engine.offered else "SMTP"
