"""The message of a session's transaction: from DATA or the first BDAT to the delivery's verdict.

What a session does with message data. It moves the session's phase, and ends its transaction.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from twisted_smtpguard.interfaces import Path
from twisted_smtpguard.smtp import replies
from twisted_smtpguard.smtp.maildata import MessageCheck
from twisted_smtpguard.smtp.phases import Phase
from twisted_smtpguard.smtp.reception import Reception
from twisted_smtpguard.smtp.replies import Reply
from twisted_smtpguard.smtp.transaction import Answer, then

if TYPE_CHECKING:
    from twisted_smtpguard.smtp.session import Session


def receive_data(session: Session) -> Answer:
    """DATA with a recipient: the delivery's sink, then the 354."""
    if session.binary:
        return session.misplaced()
    assert session.transaction is not None
    return then(session.transaction.data(), partial(_data_answered, session))


def _data_answered(session: Session, refusal: Reply | None) -> Reply:
    if refusal is not None:
        session.reset()
        return refusal
    session.reception = Reception(_check(session), session.transaction, chunked=False)
    return replies.START_DATA


def receive_chunk(session: Session, octets: int, last: bool) -> Answer:
    """BDAT in sequence: with the first chunk the delivery's sink is asked for."""
    if session.reception is not None:
        return _start_chunk(session, octets, last)
    assert session.transaction is not None
    return then(session.transaction.data(chunked=True), partial(_first_chunk, session, octets, last))


def _first_chunk(session: Session, octets: int, last: bool, refusal: Reply | None) -> Answer:
    if refusal is not None:
        return refuse_chunk(session, octets, last, refusal)
    session.reception = Reception(_check(session), session.transaction, chunked=True)
    session.phase = Phase.CHUNKS
    return _start_chunk(session, octets, last)


def refuse_chunk(session: Session, octets: int, last: bool, reply: Reply) -> Answer:
    """A BDAT that cannot be taken: its octets are swallowed, then comes the reply (RFC 3030 2)."""
    if session.reception is None:
        if reply is replies.BAD_SEQUENCE:
            session.conduct.invalid_commands += 1
        session.reception = Reception(_check(session), None, chunked=True, refusal=reply)
    if session.in_transaction:
        session.phase = Phase.CHUNKS
    return _start_chunk(session, octets, last)


def _start_chunk(session: Session, octets: int, last: bool) -> Answer:
    assert session.reception is not None
    session.reception.start_chunk(octets, last)
    # BDAT 0 is complete as it stands.
    return None if session.reception.open else receive(session, b"")[1]


def receive(session: Session, data: bytes) -> tuple[int, Answer]:
    """Take message data: (octets that belonged to the message, answer). None as answer: go on."""
    assert session.reception is not None
    taken, waiting = session.reception.feed(data)
    if waiting is None:
        return taken, _received(session, None)
    return taken, waiting.addCallback(partial(_received, session))


# Inside.


def _check(session: Session) -> MessageCheck:
    return MessageCheck(session.site.rules(binary=session.binary))


def _received(session: Session, _: object) -> Answer:
    reception = session.reception
    assert reception is not None
    if session.ended:
        return None
    problem = reception.settle()
    if problem is not None and reception.exhausted:
        session.conduct.value = reception.octets
        return replies.DATA_NEVER_ENDS
    if reception.open:
        return None
    if problem is not None:
        session.conduct.value = reception.octets if problem is replies.MESSAGE_TOO_LARGE else None
    if not reception.last:
        if problem is None:
            return replies.chunk_received(reception.chunk_octets)
        reception.keep_refusal(problem)
        return problem
    if problem is not None:
        session.reset()
        return problem
    for tried in reception.tried_problems:
        octets = reception.octets if tried is replies.MESSAGE_TOO_LARGE else None
        session.conduct.trips(replies.reason_of(tried), octets)
    transaction = session.transaction
    assert transaction is not None
    octets = reception.octets
    finished = transaction.finish()
    if type(finished) is Reply:
        return _verdict(session, octets, finished)
    # Kept for then: the session may be at its next message.
    transaction.accepted_late = partial(
        _accepted, session, session.began_at, octets, session.sender, session.recipients, late=True
    )
    return then(finished, partial(_verdict, session, octets))


def _verdict(session: Session, octets: int, reply: Reply) -> Reply:
    if reply.code < 300:
        session.messages += 1
        session.conduct.message_accepted()
        _accepted(session, session.began_at, octets, session.sender, session.recipients, reply)
    session.reset()
    if session.ended:
        if reply.code >= 400:
            session.conduct.log(replies.reason_of(reply), reply, client_gone=True)
        session.site.orphans -= 1
        session.site.orphan_settled()
    return reply


def _accepted(
    session: Session,
    began_at: float,
    octets: int,
    sender: Path,
    recipients: list[str],
    reply: Reply,
    late: bool = False,
) -> None:
    site = session.site
    site.events.accept(
        session.name,
        session.visitor.name,
        sender=sender.address,
        recipients=recipients,
        octets=octets,
        seconds=site.seconds() - began_at,
        reply=reply,
        helo=session.visitor.helo,
        tls=session.tls,
        client_gone=session.ended,
        late=late,
        user=session.identity,
    )
