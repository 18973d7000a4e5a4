"""Command lines: the input is split into lines, and each line is carried out, refused or skipped.

Only CRLF ends a command. A line that ends with LF alone, or has a bare CR in it, is refused at once, and the octets up
to the next CRLF are thrown away: if any of them were executed, one server would see a command where another sees none.
An over-long line is skipped to its CRLF without being kept. The result does not depend on how the octets were split.
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
"""A line costs one more command of the share for each 64 octets: 2 KiB take thirty times as long to parse as a NOOP."""


def take_commands(engine: Engine) -> bool:
    """Carry out the commands in the buffer until one changes the stage or waits. Returns whether to go on."""
    buffer = engine.buffer
    start = engine.offset
    size = len(buffer)
    if start == size:
        # As mostly after the answer of a hook.
        return False
    row = engine.row
    context = engine.context
    plain_line = context.plain_line
    for left in range(engine.share - 1, -1, -1):
        plain = plain_line(buffer, start)
        if plain is None:
            engine.share = left + 1
            return take_line(engine)
        stop = engine.offset = plain.end()
        verb, address, word = plain.groups()
        argument = word or b"" if address is None else plain_path(address)
        engine.reply(carry_out(engine, COMMANDS[verb], argument))
        engine.progress = True
        if stop == size:
            engine.buffer, engine.offset = b"", 0
            return False
        if engine.row is not row:
            engine.share = left
            return True
        if len(engine.unwritten) >= context.max_unwritten:
            engine.flush()
            if engine.held:
                return False
        start = stop
    engine.wait_for_turn()
    return False


def take_first_line(engine: Engine) -> bool:
    """Take the first line of a session, which shows whether the client speaks SMTP. Returns whether to go on."""
    buffer, start = engine.buffer, engine.offset
    if start >= len(buffer):
        return False
    if engine.silent:
        # The proxy's own connection sends input, so from here on it is logged like any other.
        engine.silent = False
        counts.log_greeting(engine, counted=True)
    if _is_hello(buffer, start) is not None:
        # Nearly every first line is a plain HELO or EHLO, which can be no other protocol.
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
        # The line is incomplete or over-long.
        return take_line(engine)
    line = engine.beginning + buffer[start : end + 1 if end >= 0 else stop]
    if grammar.is_not_smtp(line):
        engine.reply(replies.NOT_SMTP)
        return False
    engine.enter(Stage.COMMAND)
    if may_begin_header(line) and buffer.startswith(b"\r\n", start):
        # A PROXY header of version 2 begins with empty lines, which are answered like any other empty line.
        engine.offset = start + 2
        engine.beginning = line
        engine.reply(execute(engine, b""))
        if engine.stage is Stage.COMMAND:
            engine.enter(Stage.FIRST_LINE)
    return True


def take_line(engine: Engine, max_line: int | None = None) -> bool:
    """Take one line: a command, a response to a challenge of AUTH, or a malformed line. Returns whether to go on.
    `max_line` is its longest length in octets, by default that of a command line."""
    buffer, start = engine.buffer, engine.offset
    if max_line is None:
        max_line = engine.context.max_line
    stop = start + max_line if max_line else len(buffer) + 1
    end = buffer.find(b"\n", start, stop)
    carriage_return = buffer.find(b"\r", start, stop if end < 0 else end)
    if end >= 0:
        if start <= carriage_return == end - 1:
            engine.offset = end + 1
            engine.progress = True
            line = buffer[start:carriage_return]
            if engine.stage is Stage.AUTH_RESPONSE:
                engine.enter(Stage.COMMAND)
                engine.reply(auth_response(engine, line))
            else:
                engine.reply(execute(engine, line))
            return engine.has_share_left(1 + len(line) // _LINE_OCTETS_OF_A_COMMAND)
        # The line is refused at its first bare CR or LF, as if the octets had arrived one by one.
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
    """Skip the rest of a malformed or over-long line. Each bare LF in it counts as one more malformed line. Returns
    whether to go on."""
    buffer, start = engine.buffer, engine.offset
    # The next LF is searched for, not the next CRLF: that search, repeated at every LF, would take quadratic time.
    end = buffer.find(b"\n", start)
    # A CR at the end of the buffer may be the first half of the CRLF and is kept.
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
        engine.reply(invalid_line(engine, reply))
    if endless and engine.stage is engine.stage_before:
        engine.reply(replies.TOO_MANY_INVALID_COMMANDS, "max_endless_line")
    return engine.has_share_left(1 + (stop - start) // _LINE_OCTETS_OF_A_COMMAND)


def _refuse_line(engine: Engine, stop: int) -> None:
    octets, engine.offset = stop - engine.offset, stop
    _skip(engine, octets, None)
    engine.reply(invalid_line(engine, replies.BAD_LINE_END))


def _skip(engine: Engine, octets: int, reply: Reply | None) -> None:
    """Skip the rest of a line, of which `octets` are gone already. `reply` is given at its end; None: it has been."""
    # An over-long first line is not kept, so whether it was SMTP is unknown. The next line is checked as the first.
    of_first = engine.stage is Stage.FIRST_LINE and reply is not None
    engine.stage_before = Stage.FIRST_LINE if of_first else Stage.COMMAND
    engine.skipped, engine.skipped_for = octets, reply
    engine.enter(Stage.SKIPPED_LINE)


def execute(engine: Engine, line: bytes) -> Reply | None:
    """Carry out one command line, which comes without its CRLF. Returns the reply, or None if it comes later."""
    try:
        verb, argument = grammar.parse_command(line)
    except Refused as refused:
        return invalid_line(engine, refused.reply, line=line)
    command = COMMANDS.get(verb)
    if command is None:
        return invalid_line(engine, replies.UNRECOGNIZED_COMMAND, verb)
    return carry_out(engine, command, argument)
