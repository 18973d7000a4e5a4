"""The message of a session's transaction: from DATA or the first BDAT to the delivery's verdict."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from twisted_smtpguard.smtp import replies
from twisted_smtpguard.smtp.commands import Phase
from twisted_smtpguard.smtp.maildata import MessageCheck
from twisted_smtpguard.smtp.reception import Reception, message_check
from twisted_smtpguard.smtp.replies import Reply
from twisted_smtpguard.smtp.transaction import Answer, then

if TYPE_CHECKING:
    from twisted_smtpguard.smtp.session import Session


class Incoming:
    """What a session does with message data. It moves the session's phase, and ends its transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.reception: Reception | None = None
        """There is one between DATA or the first BDAT and the verdict."""
        self._chunk_octets = 0

    def receive_data(self) -> Answer:
        """DATA with a recipient: the delivery's sink, then the 354."""
        if self._session.binary:
            return self._session.misplaced()
        assert self._session.transaction is not None
        return then(self._session.transaction.data(), self._data_answered)

    def _data_answered(self, refusal: Reply | None) -> Reply:
        if refusal is not None:
            self._session.reset()
            return refusal
        self.reception = Reception(self._check(), self._session.transaction, chunked=False)
        return replies.START_DATA

    def receive_chunk(self, octets: int, last: bool) -> Answer:
        """BDAT in sequence: with the first chunk the delivery's sink is asked for."""
        if self.reception is not None:
            return self._start_chunk(octets, last)
        assert self._session.transaction is not None
        return then(self._session.transaction.data(), partial(self._first_chunk, octets, last))

    def _first_chunk(self, octets: int, last: bool, refusal: Reply | None) -> Answer:
        if refusal is not None:
            return self.refuse_chunk(octets, last, refusal)
        self.reception = Reception(self._check(), self._session.transaction, chunked=True)
        self._session.phase = Phase.CHUNKS
        return self._start_chunk(octets, last)

    def refuse_chunk(self, octets: int, last: bool, reply: Reply) -> Answer:
        """A BDAT that cannot be taken: its octets are swallowed, then comes the reply (RFC 3030 2)."""
        if self.reception is None:
            if reply is replies.BAD_SEQUENCE:
                self._session.conduct.invalid_commands += 1
            self.reception = Reception(self._check(), None, chunked=True, refusal=reply)
        if self._session.in_transaction:
            self._session.phase = Phase.CHUNKS
        return self._start_chunk(octets, last)

    def _start_chunk(self, octets: int, last: bool) -> Answer:
        assert self.reception is not None
        self.reception.start_chunk(octets, last)
        self._chunk_octets = octets
        # BDAT 0 is complete as it stands.
        return None if self.reception.open else self.receive(b"")[1]

    def receive(self, data: bytes) -> tuple[int, Answer]:
        """Take message data: (octets that belonged to the message, answer). None as answer: go on."""
        assert self.reception is not None
        taken, waiting = self.reception.feed(data)
        if waiting is None:
            return taken, self._received(None)
        return taken, waiting.addCallback(self._received)

    # Inside.

    def _check(self) -> MessageCheck:
        return message_check(
            self._session.site.limits, self._session.site.max_octets, binary=self._session.binary
        )

    def _received(self, _: object) -> Answer:
        reception, session = self.reception, self._session
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
                return replies.chunk_received(self._chunk_octets)
            reception.keep_refusal(problem)
            return problem
        if problem is not None:
            session.reset()
            return problem
        for tried in reception.tried_problems:
            octets = reception.octets if tried is replies.MESSAGE_TOO_LARGE else None
            session.conduct.trips(replies.reason_of(tried), octets)
        assert session.transaction is not None
        accepted = partial(
            self._accepted,
            session.began_at,
            reception.octets,
            session.sender.address,
            session.recipients,
        )
        finished = session.transaction.finish(accepted)
        if type(finished) is Reply:
            return self._verdict(accepted, finished)
        return then(finished, partial(self._verdict, accepted))

    def _verdict(self, accepted: Callable[[bool], None], reply: Reply) -> Reply:
        session = self._session
        if reply.code < 300:
            session.messages += 1
            session.conduct.message_accepted()
            accepted(False)
        session.reset()
        if session.ended:
            if reply.code >= 400:
                session.conduct.log(replies.reason_of(reply), reply, client_gone=True)
            session.site.orphans -= 1
            session.site.orphan_settled()
        return reply

    def _accepted(
        self, began_at: float, octets: int, sender: str, recipients: list[str], late: bool
    ) -> None:
        site = self._session.site
        site.events.accept(
            self._session.name,
            self._session.visitor.name,
            sender=sender,
            recipients=recipients,
            octets=octets,
            seconds=site.seconds() - began_at,
            client_gone=self._session.ended,
            late=late,
        )
