"""The verdict of the delivery on a whole message: it is asked for, counted and logged, in time or too late."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted_smtpguard import replies
from twisted_smtpguard.engine import counts
from twisted_smtpguard.engine.engine import Engine
from twisted_smtpguard.engine.hooks import answer_checked, answered_in_call, hook_failed, wait_for
from twisted_smtpguard.engine.stages import ENDED
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.values import FAULTS, is_awaitable


def finish(engine: Engine) -> Reply | None:
    """Ask the delivery for its verdict on the message, which is complete and within the limits. Returns the reply, or
    None if it comes later."""
    sink, engine.mail = engine.mail, None
    try:
        answer = sink.finish()
    except FAULTS as error:
        answered_in_call(engine, "finish", None, error)
        return _verdict_failed(engine, error)
    if answer is None:
        return _verdict(engine, None)
    if not is_awaitable(type(answer)):
        answered_in_call(engine, "finish", answer)
        return _verdict(engine, answer)
    if engine.rate is not None:
        # No more octets of this message are due, however long the verdict takes.
        engine.rate.end()
    late = partial(_finished_late, _acceptance(engine), engine.mail_began_at)
    return wait_for(engine, answer, _verdict, _verdict_failed, late=late, hook="finish")


def _verdict_failed(engine: Engine, error: BaseException) -> Reply:
    return _verdict(engine, hook_failed(engine, error))


def _verdict(engine: Engine, answer: Any) -> Reply:
    reply = replies.MESSAGE_ACCEPTED if answer is None else answer_checked(engine, answer)
    if reply.code < 300:
        # An accepted message resets the counts of errors and junk.
        engine.messages += 1
        engine.recipients_accepted += len(engine.recipients)
        engine.errors = engine.junk = 0
        context, user = engine.context, engine.user
        # As `_acceptance` has it, which would make another object for each mail.
        context.events.accept(
            engine.name,
            engine.peer_name,
            sender=engine.sender.address,
            recipients=engine.recipients,
            octets=engine.message.octets,
            seconds=context.seconds() - engine.mail_began_at,
            reply=reply,
            helo=engine.helo,
            tls=engine.tls,
            client_gone=engine.stage in ENDED,
            late=False,
            user=None if user is None else user.name,
        )
        if not engine.vouched:
            engine.vouched = True
            # A proxy that names no client would make all its clients known.
            if engine.names_client:
                context.known.accepted(engine.key)
                # The delivery is told with the next mail that the client is known.
                engine.known_client = None
                if context.stressed:
                    # It is no stranger any more, and has the time of others.
                    engine.account_all = context.draining or engine.is_over_time
                if not engine.trusted:
                    context.clients.peaks.accepted(engine.key)
    else:
        message_refused(engine, reply)
    engine.reset()
    if engine.stage in ENDED and reply.code >= 400:
        counts.log(engine, replies.reason_of(reply), reply, gone=True)
    return reply


def message_refused(engine: Engine, reply: Reply) -> None:
    """Count a message that was refused. The client of one that is junk is not known any more."""
    engine.context.measured.refused(reply.code)
    if is_junk(reply) and engine.names_client:
        engine.vouched = False
        engine.known_client = None
        engine.context.known.refused(engine.key)


def is_junk(reply: Reply) -> bool:
    """Whether the delivery refuses a message for what it is: by an enhanced code for policy or security (5.7.x of RFC
    3463 3.8), or by a bare 550 or 554, as servers without enhanced codes say it. A full mailbox or an unknown recipient
    is no fault of the sender."""
    return reply.enhanced.startswith("5.7.") or (reply.code in (550, 554) and reply.enhanced == "5.0.0")


def _finished_late(
    accepted: Callable[..., None], began_at: float, engine: Engine, answer: Any, error: BaseException | None
) -> None:
    """Called when `finish()` has answered after its time limit. If it has accepted the message, that is logged: the
    client was told to try again, and the message may come twice."""
    if error is not None:
        return
    reply = replies.MESSAGE_ACCEPTED if answer is None else answer_checked(engine, answer)
    if reply.code < 300:
        seconds = engine.context.seconds() - began_at
        engine.context.measured.late_acceptances += 1
        accepted(seconds=seconds, reply=reply, client_gone=engine.stage in ENDED, late=True)


def _acceptance(engine: Engine) -> Callable[..., None]:
    """Return `Events.accept` bound to the current message. When a late verdict comes, the session may have begun
    another message, and EHLO, STARTTLS or AUTH may have changed its name, its encryption or its user."""
    user = engine.user
    return partial(
        engine.context.events.accept,
        engine.name,
        engine.peer_name,
        sender=engine.sender.address,
        recipients=engine.recipients,
        octets=engine.message.octets,
        helo=engine.helo,
        tls=engine.tls,
        user=None if user is None else user.name,
    )
