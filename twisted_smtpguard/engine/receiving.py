"""The receiving of a message: DATA and BDAT, the octets that go to the delivery's sink, and the verdict."""

from __future__ import annotations

from functools import partial
from typing import Any

from twisted_smtpguard import replies
from twisted_smtpguard.engine import counts, policies
from twisted_smtpguard.engine.datarate import DataRate
from twisted_smtpguard.engine.engine import Engine
from twisted_smtpguard.engine.hooks import (
    answered_in_call,
    hook_failed,
    missing_abort,
    wait_for,
)
from twisted_smtpguard.engine.message import ChunkDecoder, DataDecoder
from twisted_smtpguard.engine.port import Expired
from twisted_smtpguard.engine.stages import IN_TRANSACTION, Phase, Stage
from twisted_smtpguard.engine.verdict import finish, message_refused
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.values import FAULTS, is_awaitable

MAX_WRITE_OCTETS = 64 * 1024
"""The most octets that one write() of a sink gets."""

_PIECE_OCTETS = 16 * 1024
"""Message data is copied out of the middle of the buffer in pieces of at most this size."""

_SLOW_PIECE_OCTETS = 4 * 1024
"""The largest piece while `slow_to_read` is set: in the header, and where newlines are made CRLF."""

_DATA_OCTETS_OF_A_COMMAND, _SLOW_DATA_OCTETS_OF_A_COMMAND = 1024, 128
"""The octets of message data that cost as much of a share as one command: of bulk data, and of slow data."""

_PROGRESS_OCTETS = 1024
"""The octets of message data that extend the read timeout. The end of a line extends it too."""

Chunk = tuple[int, bool]
"""The octets that a BDAT announces, and whether its chunk is the last."""


# Commands.


def data(engine: Engine, _: None) -> Reply | None:
    """Carry out DATA: call the delivery's `data()`, and reply 354 when it has returned the sink."""
    if engine.phase is Phase.REFUSED:
        return replies.NO_VALID_RECIPIENTS
    parameters = engine.sender.parameters
    if parameters and parameters.get("BODY") == "BINARYMIME":
        return counts.invalid(engine, replies.BAD_SEQUENCE)
    if engine.policed is not None:
        return policies.ask(engine, "data", _prepend_and_ask, _refuse_data)
    return _ask_for_sink(engine, None)


def _refuse_data(engine: Engine, reply: Reply) -> Reply:
    engine.reset()
    return reply


def bdat(engine: Engine, chunk: Chunk) -> Reply | None:
    """Carry out BDAT in sequence. The first one of a message asks the delivery for the sink."""
    if engine.phase is Phase.REFUSED:
        return _refuse_chunk(engine, chunk, replies.NO_VALID_RECIPIENTS)
    if engine.message is not None:
        return _start_chunk(engine, chunk)
    if engine.policed is not None:

        def refuse(engine: Engine, reply: Reply) -> Reply | None:
            engine.abort_mail()
            return _refuse_chunk(engine, chunk, reply)

        return policies.ask(engine, "data", partial(_prepend_and_ask, chunk=chunk), refuse)
    return _ask_for_sink(engine, chunk)


def bdat_out_of_sequence(engine: Engine, chunk: Chunk) -> Reply | None:
    """Refuse a BDAT out of sequence. Its octets are discarded, since they are not commands."""
    return _refuse_chunk(engine, chunk, replies.BAD_SEQUENCE)


def _prepend_and_ask(engine: Engine, chunk: Chunk | None = None) -> Reply | None:
    """Give the delivery the header fields of the policies, and ask it for the sink."""
    fields, mail = engine.policed.prepended(), engine.mail
    if fields:
        try:
            if hasattr(mail, "prepend"):
                mail.prepend(fields)
            else:
                problem = "the delivery prepends none"
                engine.context.events.field_left_out(engine.name, engine.peer_name, problem)
        except FAULTS as error:
            engine.mail = None
            return _no_sink(mail, chunk, engine, error)
    return _ask_for_sink(engine, chunk)


def _ask_for_sink(engine: Engine, chunk: Chunk | None) -> Reply | None:
    mail, engine.mail = engine.mail, None
    try:
        chunked = chunk is not None and engine.context.is_relay(mail)
        given = mail.data_in_chunks() if chunked else mail.data()
        if not is_awaitable(type(given)):
            return _sink_given(mail, chunk, engine, given)
    except FAULTS as error:
        answered_in_call(engine, "data", None, error)
        return _no_sink(mail, chunk, engine, error)
    then, failed = partial(_sink_given, mail, chunk), partial(_no_sink, mail, chunk)
    return wait_for(engine, given, then, failed, late=partial(_sink_late, mail), hook="data")


def _sink_late(mail: Any, engine: Engine, given: Any, error: BaseException | None) -> None:
    """Called when `data()` has answered after the end of its transaction: abort the sink, or, if `data()` raised, the
    IMailTransaction."""
    engine.abort_given(mail if error is not None else given)


def _sink_given(mail: Any, chunk: Chunk | None, engine: Engine, sink: Any) -> Reply | None:
    try:
        if not hasattr(sink, "abort"):
            raise missing_abort(sink)
    except FAULTS as error:
        return _no_sink(mail, chunk, engine, error)
    engine.mail = sink
    if chunk is None:
        engine.message = DataDecoder(engine.context.rules(False))
        _watch_rate(engine)
        engine.enter(Stage.DATA)
        return replies.START_DATA
    engine.message = _chunks(engine)
    engine.phase = Phase.CHUNKS
    engine.context.measured.chunked_messages += 1
    return _start_chunk(engine, chunk)


def _chunks(engine: Engine) -> ChunkDecoder:
    """Make the decoder of a message that comes by BDAT, which may be BODY=BINARYMIME (RFC 3030)."""
    _watch_rate(engine)
    # A BDAT 0 changes no stage and, out of sequence, not the phase either: the data rate has to be settled here.
    engine.unsettled = True
    binary = engine.phase in IN_TRANSACTION and engine.sender.parameters.get("BODY") == "BINARYMIME"
    return ChunkDecoder(engine.context.rules(binary))


def _no_sink(mail: Any, chunk: Chunk | None, engine: Engine, error: BaseException) -> Reply | None:
    reply = hook_failed(engine, error)
    if not (isinstance(error, Expired) and error.at_work):
        engine.abort_given(mail)
    if chunk is None:
        engine.reset()
        return reply
    return _refuse_chunk(engine, chunk, reply)


def _refuse_chunk(engine: Engine, chunk: Chunk, reply: Reply) -> Reply | None:
    """Refuse a BDAT: discard its octets, then reply (RFC 3030 2)."""
    if engine.message is None:
        if reply is replies.BAD_SEQUENCE:
            engine.invalid_commands += 1
        engine.message = _chunks(engine)
        engine.message.keep_refusal(reply)
    if engine.phase in IN_TRANSACTION:
        engine.phase = Phase.CHUNKS
    return _start_chunk(engine, chunk)


def _start_chunk(engine: Engine, chunk: Chunk) -> Reply | None:
    engine.message.start(*chunk)
    if not engine.message.ended:
        engine.enter(Stage.CHUNK)
        return None
    # The chunk of BDAT 0 is complete without further input.
    octets, _ = engine.message.feed(b"")
    return _pass_on(engine, octets)


def _watch_rate(engine: Engine) -> None:
    """Begin to measure the data rate of a message, if it is limited."""
    rate = engine.rate
    if rate is None or rate.outdated:
        rate = engine.rate = _new_rate(engine)
    if rate is not None:
        rate.run()


def _new_rate(engine: Engine) -> DataRate | None:
    if engine.rate is not None:
        engine.rate.stop()
    context = engine.context
    octets, seconds = context.limits.min_data_rate, context.limits.data_rate_window
    return DataRate(context, octets, seconds, engine.data_too_slow) if octets and seconds else None


# Octets.


def take_message(engine: Engine) -> bool:
    """Take a piece of message data, at most up to its end. Returns whether to go on."""
    buffer, start = engine.buffer, engine.offset
    if start >= len(buffer):
        engine.buffer, engine.offset = b"", 0
        return False
    message = engine.message
    slow = message.slow_to_read
    if start or slow:
        # An arrival that is bulk message data from its first octet is fed whole, which saves a copy.
        buffer = buffer[start : start + (_SLOW_PIECE_OCTETS if slow else _PIECE_OCTETS)]
    octets, taken = message.feed(buffer)
    engine.offset = start + taken
    if engine.rate is not None:
        engine.rate.octets += taken
    if message.ended:
        engine.progress = True
    elif not engine.progress:
        engine.progress_octets += taken
        if buffer.find(b"\n", 0, taken) >= 0 or engine.progress_octets >= _PROGRESS_OCTETS:
            engine.progress, engine.progress_octets = True, 0
    engine.reply(_pass_on(engine, octets))
    if engine.offset >= len(engine.buffer):
        engine.buffer, engine.offset = b"", 0
        return False
    return engine.has_share_left(
        1 + taken // (_SLOW_DATA_OCTETS_OF_A_COMMAND if slow else _DATA_OCTETS_OF_A_COMMAND)
    )


def _pass_on(engine: Engine, octets: bytes) -> Reply | None:
    """Write `octets` to the sink. Returns the reply if the message or its chunk is complete, else None."""
    while octets and engine.mail is not None:
        # Slicing the whole of `octets` copies nothing.
        piece, octets = octets[:MAX_WRITE_OCTETS], octets[MAX_WRITE_OCTETS:]
        try:
            answer = engine.mail.write(piece)
            if answer is not None and is_awaitable(type(answer)):
                then, failed = partial(_written, octets), partial(_not_written, octets)
                return wait_for(engine, answer, then, failed, stage=Stage.SINK, hook="write")
        except FAULTS as error:
            answered_in_call(engine, "write", None, error)
            _refused_by_sink(engine, error)
    return _received(engine)


def _written(rest: bytes, engine: Engine, _: Any) -> Reply | None:
    if engine.stage is Stage.SINK:
        engine.enter(Stage.CHUNK if engine.message.chunked else Stage.DATA)
    return _pass_on(engine, rest)


def _not_written(rest: bytes, engine: Engine, error: BaseException) -> Reply | None:
    _refused_by_sink(engine, error)
    return _written(rest, engine, None)


def _refused_by_sink(engine: Engine, error: BaseException) -> None:
    engine.message.refuse_for_sink(hook_failed(engine, error))
    engine.abort_mail()


def _received(engine: Engine) -> Reply | None:
    message = engine.message
    problem: Reply | None = message.problem
    if problem is not None:
        problem = message.settle(problem)
        engine.abort_mail()
        if message.exhausted:
            engine.value = message.octets
            engine.context.measured.refused(problem.code)
            return replies.DATA_NEVER_ENDS
    if not message.ended:
        return None
    if engine.stage is not Stage.COMMAND:
        engine.enter(Stage.COMMAND)
    if problem is not None:
        engine.value = message.octets if problem is replies.MESSAGE_TOO_LARGE else None
    if not message.last:
        # After a BDAT out of sequence no message is open, so the data rate has to be settled.
        engine.unsettled = True
        if problem is None:
            return replies.chunk_received(message.chunk_octets)
        message.keep_refusal(problem)
        return problem
    if problem is not None:
        message_refused(engine, problem)
        engine.reset()
        return problem
    for check in message.dry_run_checks:
        if check.problem is not None:
            octets = message.octets if check.problem is replies.MESSAGE_TOO_LARGE else None
            counts.enforces(engine, replies.reason_of(check.problem), octets)
    if engine.policed is not None:
        if engine.rate is not None:
            engine.rate.end()
        return policies.ask(engine, "end-of-data", finish, _refuse_message)
    return finish(engine)


def _refuse_message(engine: Engine, reply: Reply) -> Reply:
    """Refuse a whole message for a policy."""
    engine.abort_mail()
    engine.context.measured.refused(reply.code)
    engine.reset()
    return reply
