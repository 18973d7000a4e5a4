"""The table of commands, with a row for each verb. No other file looks at verbs.

A row says how the argument is read, in which phases the command is in sequence, what carries it out, and what kind of
command it is. Handlers return the reply, or None where there is nothing to say yet; they never write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from twisted_smtpguard import replies
from twisted_smtpguard.engine import authentication, counts, envelope, grammar, lenient, receiving
from twisted_smtpguard.engine.engine import Engine
from twisted_smtpguard.engine.stages import ANY, Phase, Stage
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.values import Path, Refused


@attrs.frozen
class Command:
    """A row of the table."""

    verb: str
    parse: Callable[[bytes, frozenset[str], bool], Any]
    """Reads the argument, with what the session was offered and whether its transaction has SMTPUTF8. Raises Refused
    where it is malformed."""
    phases: frozenset[Phase]
    """The phases in which the command is in sequence."""
    run: Callable[[Engine, Any], Reply | None]
    """Carries out the command with the result of `parse`."""
    junk: bool = False
    """Whether the command counts as junk."""
    junk_again: bool = False
    """Whether it counts as junk after the first HELO or EHLO."""
    ends_group: bool = False
    """Whether it has to be the last command of a pipelined group (RFC 2920 3.1)."""
    has_path: bool = False
    """Whether its argument begins with an address, to which --lenient-addresses applies."""
    malformed: Reply | None = None
    """The reply that ends the session after the reply to a malformed argument."""
    phases_while_draining: frozenset[Phase] = frozenset()
    """The phases in which it is still carried out while the service stops."""
    out_of_sequence: Callable[[Engine, Any], Reply | None] | None = None
    """Called if the command comes out of sequence; None: it is only refused."""
    special: bool = attrs.field(init=False)
    """Whether one of `junk`, `junk_again` and `ends_group` is set."""

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "special", self.junk or self.junk_again or self.ends_group)


def carry_out(engine: Engine, command: Command, argument: bytes | Path) -> Reply | None:
    """Carry out a command. `argument` is what was sent after the verb, or the path where that has been read already."""
    phase = engine.phase
    engine.command, engine.phase_before = command, phase
    if command.special or engine.account_all:
        refusal = _before(engine, command)
        if refusal is not None:
            return refusal
    try:
        if type(argument) is not Path:
            argument = _parse(engine, command, argument)  # type: ignore[arg-type]
        if phase in command.phases:
            return command.run(engine, argument)
    except Refused as refused:
        engine.recipient = None
        if refused.reply is replies.BAD_ARGUMENTS:
            engine.closing_reply = command.malformed
        elif isinstance(refused, grammar.UnsupportedParameter):
            engine.parameter = refused.keyword
        return refused.reply
    engine.recipient = None
    if command.out_of_sequence is not None:
        return command.out_of_sequence(engine, argument)
    return counts.invalid(engine, replies.BAD_SEQUENCE)


def _parse(engine: Engine, command: Command, argument: bytes) -> Any:
    try:
        return command.parse(argument, engine.offered, engine.utf8)
    except Refused:
        whom = engine.context.limits.lenient_addresses
        is_lenient = whom == "all" or (whom == "trusted" and engine.trusted)
        proper = lenient.proper_form(argument) if command.has_path and is_lenient else None
        if proper is None:
            raise
        return command.parse(proper, engine.offered, engine.utf8)


def _before(engine: Engine, command: Command) -> Reply | None:
    """What refuses a command of a special kind, or one that comes while the service stops."""
    if command.junk or (command.junk_again and engine.helo):
        engine.is_junk = engine.account_next = True
    if engine.context.draining and engine.phase not in command.phases_while_draining:
        return replies.SHUTTING_DOWN
    if engine.offset < len(engine.buffer) and counts.refuses_pipelining(engine):
        return replies.UNEXPECTED_PIPELINING
    return None


def invalid_line(engine: Engine, reply: Reply, verb: bytes = b"") -> Reply:
    """A line that is no command at all. `verb`: what it looks like one with."""
    command = engine.command
    engine.after_auth = command.verb == "AUTH" if command is not None else engine.after_auth
    engine.auth = engine.command = None
    engine.unknown = verb
    engine.phase_before = Phase.CONNECTED
    if engine.context.draining:
        return replies.SHUTTING_DOWN
    return counts.invalid(engine, reply)


def auth_response(engine: Engine, line: bytes) -> Reply | None:
    """Carry out a line after a challenge of AUTH."""
    pipelined = engine.offset < len(engine.buffer)
    if engine.context.draining or (pipelined and counts.refuses_pipelining(engine)):
        engine.auth = None
        return replies.SHUTTING_DOWN if engine.context.draining else replies.UNEXPECTED_PIPELINING
    return authentication.respond(engine, line)


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


def _helo(engine: Engine, name: str) -> Reply:
    """HELO and EHLO also reset a transaction (RFC 5321 4.1.4)."""
    engine.helo = name
    engine.known_client = None
    engine.offered = frozenset()
    engine.reset()
    return engine.context.hello


def _ehlo(engine: Engine, name: str) -> Reply:
    _helo(engine, name)
    offer = engine.context.offer(engine.tls != "")
    engine.offered = offer.mail_parameters
    return offer.reply


def _starttls(engine: Engine, argument: bytes) -> Reply:
    """RFC 3207. The stage begins the handshake when the client has taken the reply."""
    if not engine.context.starttls:
        return counts.invalid(engine, replies.UNRECOGNIZED_COMMAND)
    if argument:
        raise Refused(replies.BAD_ARGUMENTS)
    if engine.tls:
        return counts.invalid(engine, replies.BAD_SEQUENCE)
    engine.reset()
    if engine.offset < len(engine.buffer) or engine.host.input_waits():
        return replies.INPUT_AFTER_STARTTLS
    engine.enter(Stage.STARTING_TLS)
    return replies.READY_FOR_TLS


def _rset(engine: Engine, _: None) -> Reply:
    engine.reset()
    return replies.OK


def _noop(engine: Engine, _: bytes) -> Reply:
    return replies.OK


def _vrfy(engine: Engine, _: None) -> Reply:
    return replies.CANNOT_VERIFY


def _expn(engine: Engine, _: bytes) -> Reply:
    return replies.EXPN_NOT_IMPLEMENTED


def _help(engine: Engine, _: bytes) -> Reply:
    return engine.context.commands(engine.tls != "")


def _quit(engine: Engine, _: None) -> Reply:
    engine.reset()
    return replies.GOODBYE


_ENVELOPE = frozenset({Phase.SENDER, Phase.REFUSED, Phase.RECIPIENTS})

COMMANDS: dict[bytes, Command] = {
    row.verb.encode("ascii"): row
    for row in (
        Command("HELO", grammar.parse_hello, ANY, _helo, junk_again=True, ends_group=True),
        Command("EHLO", grammar.parse_hello, ANY, _ehlo, junk_again=True, ends_group=True),
        # Nothing at all may follow.
        Command("STARTTLS", _anything, ANY, _starttls),
        # Where it is in sequence depends on more than the phase.
        Command("AUTH", _anything, ANY, authentication.auth, ends_group=True),
        Command("MAIL", grammar.parse_mail, frozenset({Phase.READY}), envelope.mail, has_path=True),
        Command("RCPT", grammar.parse_rcpt, _ENVELOPE, envelope.rcpt, has_path=True),
        Command("DATA", _nothing, _ENVELOPE - {Phase.SENDER}, receiving.data, ends_group=True),
        Command(
            "BDAT",
            grammar.parse_bdat,
            frozenset({Phase.REFUSED, Phase.RECIPIENTS, Phase.CHUNKS}),
            receiving.bdat,
            # Where the chunk of a malformed one ends cannot be known; that of one out of sequence must be read.
            malformed=replies.MALFORMED_BDAT,
            phases_while_draining=frozenset({Phase.CHUNKS}),
            out_of_sequence=receiving.bdat_out_of_sequence,
        ),
        Command("RSET", _nothing, ANY, _rset, junk=True),
        Command("NOOP", _anything, ANY, _noop, junk=True),
        Command("VRFY", _something, ANY, _vrfy, junk=True),
        Command("EXPN", _anything, ANY, _expn, junk=True),
        Command("HELP", _anything, ANY, _help, junk=True),
        Command("QUIT", _nothing, ANY, _quit, phases_while_draining=ANY),
    )
}
