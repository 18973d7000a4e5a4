"""Command lines: where one ends and the next begins, whatever a stranger sends in between, and what each is.

Only CRLF ends a command. A line ended by LF alone, or with a bare CR in it, is refused at once, and what comes after it
up to the next CRLF is thrown away: executing any of it would let one server see a command where another sees none. An
over-long line is skipped to its CRLF without being kept. The result is the same however the octets were split.
"""

from __future__ import annotations

import re

from twisted_smtpguard import replies
from twisted_smtpguard.engine import counts, grammar
from twisted_smtpguard.engine.commands import COMMANDS, auth_response, carry_out, invalid_line
from twisted_smtpguard.engine.engine import Engine
from twisted_smtpguard.engine.proxyheader import LONGEST_BEGINNING, begins_header, may_begin_header
from twisted_smtpguard.engine.stages import Stage
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.values import Refused, plain_path

_TLS_HELLO = b"\x16\x03"
_is_hello = re.compile(rb"(?:EHLO|HELO) [!-~]{1,255}\r\n").match

_LINE_OCTETS_OF_A_COMMAND = 64
"""A long line counts as one command more for so many octets: 2 KiB take thirty times as long to parse as a NOOP."""


def take_commands(engine: Engine) -> bool:
    """The commands that have come, until one needs another stage or waits."""
    buffer, start = engine.buffer, engine.offset
    size, row = len(buffer), engine.row
    context = engine.context
    plain_line, max_unwritten = context.plain_line, context.max_unwritten
    for left in range(engine.share - 1, -1, -1):
        plain = plain_line(buffer, start)
        if plain is None:
            engine.share = left + 1
            return take_line(engine)
        stop = engine.offset = plain.end()
        verb, address, word = plain.groups()
        reply = carry_out(engine, COMMANDS[verb], word or b"" if address is None else plain_path(address))
        engine.progress = True
        if reply is not None:
            if reply.is_accounted or engine.account_next:
                engine.account(reply)
            else:
                engine.unwritten += reply.wire
        if stop == size:
            # All has been taken, and STARTTLS alone begins something before more comes.
            engine.buffer, engine.offset = b"", 0
            return engine.stage is Stage.STARTING_TLS
        if engine.row is not row:
            engine.share = left
            return True
        if len(engine.unwritten) >= max_unwritten:
            engine.flush()
            if engine.held:
                return False
        start = stop
    engine.wait_for_turn()
    return False


def take_first_line(engine: Engine) -> bool:
    """The first line of a session, which shows whether the client speaks SMTP at all."""
    buffer, start = engine.buffer, engine.offset
    if start >= len(buffer):
        return False
    if engine.silent:
        # The proxy's own connection says something: from here on it is logged like any other.
        engine.silent = False
        counts.log_greeting(engine, counted=True)
    if _is_hello(buffer, start) is not None:
        # As nearly all do: it can be nothing else.
        engine.enter(Stage.COMMAND)
        return True
    if buffer.startswith(_TLS_HELLO, start):
        engine.reply(replies.NOT_SMTP)
        return False
    octets = engine.beginning + buffer[start : start + LONGEST_BEGINNING]
    if not engine.behind_proxy and begins_header(octets):
        engine.reply(replies.UNEXPECTED_PROXY_HEADER)
        return False
    max_line = engine.context.max_line
    stop = min(len(buffer), start + max_line) if max_line else len(buffer)
    end = buffer.find(b"\n", start, stop)
    carriage_return = buffer.find(b"\r", start, stop)
    if end < 0 and not 0 <= carriage_return < stop - 1:
        # Not whole, or over-long.
        return take_line(engine)
    line = engine.beginning + buffer[start : end + 1 if end >= 0 else stop]
    if grammar.is_not_smtp(line):
        engine.reply(replies.NOT_SMTP)
        return False
    engine.enter(Stage.COMMAND)
    if may_begin_header(line) and buffer.startswith(b"\r\n", start):
        # A header of version 2 begins with empty lines, which are answered like any others.
        engine.offset = start + 2
        engine.beginning = line
        _say(engine, execute(engine, b""))
        if engine.stage is Stage.COMMAND:
            engine.enter(Stage.FIRST_LINE)
    return True


def take_line(engine: Engine, max_line: int | None = None) -> bool:
    """One line, whatever it is: a command, an answer to a challenge of AUTH, or no line at all. `max_line` is the
    longest that it may be, by default that of a command."""
    buffer, start = engine.buffer, engine.offset
    if max_line is None:
        max_line = engine.context.max_line
    stop = start + max_line if max_line else len(buffer) + 1
    end = buffer.find(b"\n", start, stop)
    carriage_return = buffer.find(b"\r", start, stop if end < 0 else end)
    if end >= 0:
        if start <= carriage_return == end - 1:
            # A line of AUTH may be longer than others.
            engine.offset = end + 1
            engine.progress = True
            line = buffer[start:carriage_return]
            if engine.stage is Stage.AUTH_RESPONSE:
                engine.enter(Stage.COMMAND)
                _say(engine, auth_response(engine, line))
            else:
                _say(engine, execute(engine, line))
            return engine.has_share_left(1 + len(line) // _LINE_OCTETS_OF_A_COMMAND)
        # At the first of the two, as if the octets had come one by one.
        _refuse_line(engine, (end if carriage_return < 0 else carriage_return) + 1)
    elif 0 <= carriage_return < min(stop, len(buffer)) - 1:
        _refuse_line(engine, carriage_return + 1)
    elif len(buffer) >= stop:
        max_auth = engine.context.max_auth_line
        of_auth = engine.stage is Stage.AUTH_RESPONSE or buffer[start : start + 5].upper() == b"AUTH "
        if of_auth and (max_line < max_auth or not max_auth):
            return take_line(engine, max_auth)
        _skip(engine, 0, replies.LINE_TOO_LONG)
    else:
        return False
    return True


def take_skipped_line(engine: Engine) -> bool:
    """The rest of a malformed or over-long line. Each LF within it is one more malformed line."""
    buffer, start = engine.buffer, engine.offset
    # Not the next CRLF: to look for that at every LF would take quadratic time.
    end = buffer.find(b"\n", start)
    # A CR at the end may be the first half of the CRLF.
    stop = end + 1 if end >= 0 else len(buffer) - buffer.endswith(b"\r", start)
    engine.offset = stop
    engine.skipped += stop - start
    endless = 0 < engine.context.limits.max_endless_line < engine.skipped
    if end < 0 and not endless:
        return False
    engine.progress = True
    reply, engine.skipped_for = engine.skipped_for, None
    at_crlf = end >= 0 and buffer.endswith(b"\r", start, end)
    if not at_crlf:
        engine.stage_before = Stage.COMMAND
    if reply is None and not (at_crlf or endless):
        reply = replies.BAD_LINE_END
    if at_crlf or endless:
        engine.enter(engine.stage_before)
    if reply is not None:
        _say(engine, invalid_line(engine, reply))
    if endless and engine.stage is engine.stage_before:
        engine.reply(replies.TOO_MANY_INVALID_COMMANDS, "max_endless_line")
    return engine.has_share_left(1 + (stop - start) // _LINE_OCTETS_OF_A_COMMAND)


def _refuse_line(engine: Engine, stop: int) -> None:
    octets, engine.offset = stop - engine.offset, stop
    _skip(engine, octets, None)
    _say(engine, invalid_line(engine, replies.BAD_LINE_END))


def _skip(engine: Engine, octets: int, reply: Reply | None) -> None:
    """Throw the rest of a line away, of which so many octets are gone, and then say `reply`."""
    # An over-long first line is not kept, and so cannot be told from SMTP. The line after it can, if it begins one.
    of_first = engine.stage is Stage.FIRST_LINE and reply is not None
    engine.stage_before = Stage.FIRST_LINE if of_first else Stage.COMMAND
    engine.skipped, engine.skipped_for = octets, reply
    engine.enter(Stage.SKIPPED_LINE)


def _say(engine: Engine, reply: Reply | None) -> None:
    if reply is not None:
        engine.reply(reply)


def execute(engine: Engine, line: bytes) -> Reply | None:
    """Carry out one command line, without its CRLF."""
    try:
        verb, argument = grammar.parse_command(line)
    except Refused as refused:
        return invalid_line(engine, refused.reply)
    command = COMMANDS.get(verb)
    if command is None:
        return invalid_line(engine, replies.UNRECOGNIZED_COMMAND, verb)
    return carry_out(engine, command, argument)
