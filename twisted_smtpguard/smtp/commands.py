"""What each command may do: one row a verb. Nobody else looks at verbs.

A row says how the argument is read, in which phases the command is in sequence, what carries it out, and what
kind of command it is. Handlers return an answer and never write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs

from twisted_smtpguard.interfaces import Refused
from twisted_smtpguard.smtp import envelope, grammar, incoming, replies, sasl
from twisted_smtpguard.smtp.phases import ANY, Phase
from twisted_smtpguard.smtp.replies import Reply

if TYPE_CHECKING:
    from twisted_smtpguard.smtp.session import Session
    from twisted_smtpguard.smtp.transaction import Answer


@attrs.frozen
class Command:
    """A row of the table."""

    verb: str
    parse: Callable[[bytes, frozenset[str], bool], Any]
    """Reads the argument, with what the session was offered and whether its transaction has SMTPUTF8. Raises Refused
    where it is malformed."""
    phases: frozenset[Phase]
    """Where the command is in sequence."""
    run: Callable[[Session, Any], Answer]
    """Carries it out with what `parse` returned."""
    junk: bool = False
    """Counts as junk: it brings no message closer."""
    junk_again: bool = False
    """Counts as junk once a HELO or EHLO has been answered."""
    ends_group: bool = False
    """Has to be the last command of a pipelined group (RFC 2920 3.1)."""
    has_path: bool = False
    """Its argument begins with an address, which may be one that only --lenient-addresses takes."""
    malformed: Reply | None = None
    """Ends the session behind the reply to a malformed argument."""
    phases_while_draining: frozenset[Phase] = frozenset()
    """Where the command is still carried out while the service stops."""
    misplaced: Callable[[Session, Any], Answer] | None = None
    """Carries out what has to be done even out of sequence."""


# Reading arguments.


def _nothing(argument: bytes, *_: object) -> None:
    if argument:
        raise Refused(replies.BAD_ARGUMENTS)


def _something(argument: bytes, *_: object) -> None:
    if not argument:
        raise Refused(replies.BAD_ARGUMENTS)


def _anything(argument: bytes, *_: object) -> bytes:
    return argument


# Carrying out.


def _helo(session: Session, name: str) -> Answer:
    return session.greet(name, extended=False)


def _ehlo(session: Session, name: str) -> Answer:
    return session.greet(name, extended=True)


def _starttls(session: Session, argument: bytes) -> Answer:
    if argument and session.site.starttls:
        raise Refused(replies.BAD_ARGUMENTS)
    return session.start_tls()


def _auth(session: Session, argument: bytes) -> Answer:
    if session.site.checkers is None:
        return session.conduct.invalid(replies.UNRECOGNIZED_COMMAND)
    return session.authenticate(*sasl.parse_auth(argument))


def _data(session: Session, _: None) -> Answer:
    if session.phase is Phase.REFUSED:
        return replies.NO_VALID_RECIPIENTS
    return incoming.receive_data(session)


def _bdat(session: Session, chunk: tuple[int, bool]) -> Answer:
    if session.phase is Phase.REFUSED:
        return incoming.refuse_chunk(session, *chunk, replies.NO_VALID_RECIPIENTS)
    return incoming.receive_chunk(session, *chunk)


def _misplaced_bdat(session: Session, chunk: tuple[int, bool]) -> Answer:
    return incoming.refuse_chunk(session, *chunk, replies.BAD_SEQUENCE)


def _rset(session: Session, _: None) -> Answer:
    session.reset()
    return replies.OK


def _noop(session: Session, _: bytes) -> Answer:
    return replies.OK


def _vrfy(session: Session, _: None) -> Answer:
    return replies.CANNOT_VERIFY


def _expn(session: Session, _: bytes) -> Answer:
    return replies.EXPN_NOT_IMPLEMENTED


def _help(session: Session, _: bytes) -> Answer:
    return session.site.commands(session.tls != "")


def _quit(session: Session, _: None) -> Answer:
    session.reset()
    session.quit = True
    session.conduct.unremarkable = False
    return replies.GOODBYE


_ENVELOPE = frozenset({Phase.SENDER, Phase.REFUSED, Phase.RECIPIENTS})

COMMANDS: dict[bytes, Command] = {
    row.verb.encode("ascii"): row
    for row in (
        Command("HELO", grammar.parse_hello, ANY, _helo, junk_again=True, ends_group=True),
        Command("EHLO", grammar.parse_hello, ANY, _ehlo, junk_again=True, ends_group=True),
        # The wire sees to it that nothing follows.
        Command("STARTTLS", _anything, ANY, _starttls),
        # Where it is in sequence depends on more than the phase.
        Command("AUTH", _anything, ANY, _auth, ends_group=True),
        Command("MAIL", grammar.parse_mail, frozenset({Phase.READY}), envelope.begin, has_path=True),
        Command("RCPT", grammar.parse_rcpt, _ENVELOPE, envelope.add_recipient, has_path=True),
        Command("DATA", _nothing, _ENVELOPE - {Phase.SENDER}, _data, ends_group=True),
        Command(
            "BDAT",
            grammar.parse_bdat,
            frozenset({Phase.REFUSED, Phase.RECIPIENTS, Phase.CHUNKS}),
            _bdat,
            # Where the chunk of a malformed one ends cannot be known; that of a misplaced one must be read.
            malformed=replies.MALFORMED_BDAT,
            phases_while_draining=frozenset({Phase.CHUNKS}),
            misplaced=_misplaced_bdat,
        ),
        Command("RSET", _nothing, ANY, _rset, junk=True),
        Command("NOOP", _anything, ANY, _noop, junk=True),
        Command("VRFY", _something, ANY, _vrfy, junk=True),
        Command("EXPN", _anything, ANY, _expn, junk=True),
        Command("HELP", _anything, ANY, _help, junk=True),
        Command("QUIT", _nothing, ANY, _quit, phases_while_draining=ANY),
    )
}
