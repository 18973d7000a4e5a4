"""The table of commands, with a row for each verb.

A row has the parser of the argument, the phases in which the command is in sequence, its handler, and its flags.
Handlers return the reply, or None if it comes later, or raise Refused; they never write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from twisted_smtpguard import replies
from twisted_smtpguard.engine import (
    authentication,
    counts,
    ending,
    grammar,
    lenient,
    policies,
    receiving,
    transaction,
)
from twisted_smtpguard.engine.connection import NOTHING
from twisted_smtpguard.engine.engine import Engine
from twisted_smtpguard.engine.stages import ANY, Phase, Stage
from twisted_smtpguard.inputs.arguments import derived
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.values import Path, Refused


@attrs.frozen
class Command:
    """A row of the table of commands."""

    verb: str
    parse: Callable[[bytes, frozenset[str], bool], Any]
    """Called with the argument, the MAIL parameters that the session was offered, and whether its transaction has
    SMTPUTF8. Returns the value for `run`; raises Refused if the argument is malformed."""
    phases: frozenset[Phase]
    """The phases in which the command is in sequence."""
    run: Callable[[Engine, Any], Reply | None]
    """Carries out the command with the value from `parse`. Returns the reply, or None if it comes later."""
    junk: bool = False
    """Whether the command counts as junk."""
    junk_again: bool = False
    """Whether the command counts as junk after the first HELO or EHLO."""
    ends_group: bool = False
    """Whether the command has to be the last of a pipelined group (RFC 2920 3.1)."""
    has_path: bool = False
    """Whether the argument begins with an address, to which --lenient-addresses applies."""
    malformed: Reply | None = None
    """The reply that ends the session after the reply to a malformed argument; None: the session goes on."""
    phases_while_draining: frozenset[Phase] = frozenset()
    """The phases in which the command is still carried out while the service stops."""
    out_of_sequence: Callable[[Engine, Any], Reply | None] | None = None
    """Replaces `run` if the command comes out of sequence; None: the command is refused with a 503."""
    special: bool = derived(lambda self: self.junk or self.junk_again or self.ends_group)
    """Whether one of `junk`, `junk_again` and `ends_group` is set."""


def carry_out(engine: Engine, command: Command, argument: bytes | Path) -> Reply | None:
    """Carry out a command. `argument` has the octets after the verb, or the path if that has been parsed already.
    Returns the reply, or None if it comes later."""
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
    """Mark a junk command. Returns the reply that refuses the command if the service stops or if input follows a
    command that has to end its pipelined group; else None."""
    if command.junk or (command.junk_again and engine.helo):
        engine.is_junk = engine.account_next = True
    if engine.context.draining and engine.phase not in command.phases_while_draining:
        return replies.SHUTTING_DOWN
    if engine.offset < len(engine.buffer) and counts.refuses_pipelining(engine):
        return replies.UNEXPECTED_PIPELINING
    return None


def invalid_line(engine: Engine, reply: Reply, verb: bytes = b"", line: bytes = b"") -> Reply:
    """Count a line that is no command, and return its reply. `verb` is its unknown verb, if it has the form of one;
    else `line` is the line, if it was kept."""
    command = engine.command
    after_auth = command.verb == "AUTH" if command is not None else engine.after_auth
    # `AUTH=` and the like may have a password in them, and so may the next lines.
    engine.after_auth = after_auth or b"AUTH" in (verb or line.upper())
    ending.drop_exchange(engine)
    engine.command = None
    engine.unknown = verb
    engine.phase_before = Phase.CONNECTED
    if engine.context.draining:
        return replies.SHUTTING_DOWN
    return counts.invalid(engine, reply)


def auth_response(engine: Engine, line: bytes) -> Reply | None:
    """Carry out the line after a challenge of AUTH. Returns the reply, or None if it comes later."""
    refusal = _before(engine, engine.command)
    if refusal is not None:
        ending.drop_exchange(engine)
        return refusal
    return authentication.respond(engine, line)


# Parsers of arguments.


def _nothing(argument: bytes, *_: object) -> None:
    if argument:
        raise Refused(replies.BAD_ARGUMENTS)


def _something(argument: bytes, *_: object) -> None:
    if not argument:
        raise Refused(replies.BAD_ARGUMENTS)


def _anything(argument: bytes, *_: object) -> bytes:
    return argument


# Handlers.


def _helo(engine: Engine, name: str, *, judged: bool = False) -> Reply | None:
    """Carry out HELO. Like EHLO it also resets the mail transaction (RFC 5321 4.1.4). `judged`: policies have been
    asked, or need not be."""
    if not judged and engine.context.policies:
        return policies.ask(engine, "helo", lambda engine: _helo(engine, name, judged=True), helo=name)
    engine.helo = name
    engine.known_client = None
    engine.offered = NOTHING
    engine.reset()
    return engine.context.hello


def _ehlo(engine: Engine, name: str, *, judged: bool = False) -> Reply | None:
    context = engine.context
    if context.policies and not judged:
        return policies.ask(engine, "helo", lambda engine: _ehlo(engine, name, judged=True), helo=name)
    _helo(engine, name, judged=True)
    offer = context.offer(engine.tls != "", authentication.is_certified(engine))
    engine.offered = offer.mail_parameters
    return offer.reply


def _starttls(engine: Engine, argument: bytes) -> Reply:
    """Carry out STARTTLS (RFC 3207). The new stage begins the handshake when the client has read the reply."""
    if not engine.context.starttls:
        return counts.invalid(engine, replies.UNRECOGNIZED_COMMAND)
    if argument:
        raise Refused(replies.BAD_ARGUMENTS)
    if engine.tls:
        return counts.invalid(engine, replies.BAD_SEQUENCE)
    engine.reset()
    if engine.offset < len(engine.buffer) or engine.host.waiting_octets(1):
        return replies.INPUT_AFTER_STARTTLS
    engine.enter(Stage.STARTING_TLS)
    return replies.READY_FOR_TLS


def _help(engine: Engine, _: bytes) -> Reply:
    offers, tls = engine.context.offers_command, engine.tls != ""
    return replies.commands(*(row.verb for row in COMMANDS.values() if offers(row.verb, tls)))


def _says(reply: Reply) -> Callable[[Engine, Any], Reply]:
    """The handler of a command that does nothing but reply."""
    return lambda engine, argument: reply


def _resets(reply: Reply) -> Callable[[Engine, Any], Reply]:
    """The handler of a command that ends the mail transaction and replies."""

    def run(engine: Engine, argument: Any) -> Reply:
        engine.reset()
        return reply

    return run


_ENVELOPE = frozenset({Phase.SENDER, Phase.REFUSED, Phase.RECIPIENTS})

COMMANDS: dict[bytes, Command] = {
    row.verb.encode("ascii"): row
    for row in (
        Command("EHLO", grammar.parse_hello, ANY, _ehlo, junk_again=True, ends_group=True),
        Command("HELO", grammar.parse_hello, ANY, _helo, junk_again=True, ends_group=True),
        # STARTTLS checks its argument itself: without a certificate the verb is unknown, whatever its argument.
        Command("STARTTLS", _anything, ANY, _starttls),
        # Whether AUTH is in sequence depends on more than the phase.
        Command("AUTH", _anything, ANY, authentication.auth, ends_group=True),
        Command("MAIL", grammar.parse_mail, frozenset({Phase.READY}), transaction.mail, has_path=True),
        Command("RCPT", grammar.parse_rcpt, _ENVELOPE, transaction.rcpt, has_path=True),
        Command("DATA", _nothing, _ENVELOPE - {Phase.SENDER}, receiving.data, ends_group=True),
        Command(
            "BDAT",
            grammar.parse_bdat,
            frozenset({Phase.REFUSED, Phase.RECIPIENTS, Phase.CHUNKS}),
            receiving.bdat,
            # A malformed BDAT does not tell where its chunk ends. One out of sequence does, and its chunk is discarded.
            malformed=replies.MALFORMED_BDAT,
            phases_while_draining=frozenset({Phase.CHUNKS}),
            out_of_sequence=receiving.bdat_out_of_sequence,
        ),
        Command("RSET", _nothing, ANY, _resets(replies.OK), junk=True),
        Command("NOOP", _anything, ANY, _says(replies.OK), junk=True),
        Command("VRFY", _something, ANY, _says(replies.CANNOT_VERIFY), junk=True),
        Command("EXPN", _anything, ANY, _says(replies.EXPN_NOT_IMPLEMENTED), junk=True),
        Command("HELP", _anything, ANY, _help, junk=True),
        Command("QUIT", _nothing, ANY, _resets(replies.GOODBYE), phases_while_draining=ANY),
    )
}
"""The rows by their verbs, in the order in which HELP names them."""
