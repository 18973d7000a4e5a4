"""Every pair of a stage and an input: what the engine does, and which stage may follow which."""

from __future__ import annotations

import pytest
from purehost import PureHost
from situations import ENVELOPE, HELLO, INPUTS, PROXY, SITUATIONS, Situation

from twisted_smtpguard.engine.engine import Engine
from twisted_smtpguard.engine.stages import Stage
from twisted_smtpguard.engine.table import STAGES

# What is said, the hooks that are called, how the connection is closed, "free" where its slot is given back, and the
# stage after it. An input that does not stand here has no effect in that situation.
OUTCOMES: dict[str, dict[str, str]] = {
    "accepted": {
        "end": "close plain, free, CLOSED",
        "lost": "free, CLOSED",
        "stalled": "close abort, free, CLOSED",
        "shut down": "says 421 4.3.2, close linger, free, LINGERING",
        "shut down now": "says 421 4.3.2, close linger, close abort, free, CLOSED",
    },
    "the PROXY header is due": {
        "octets": "close abort, free, CLOSED",
        "end": "close plain, free, CLOSED",
        "lost": "free, CLOSED",
        "timed out": "close abort, free, CLOSED",
        "stalled": "close abort, free, CLOSED",
        "shut down": "says 421 4.3.2, close linger, free, LINGERING",
        "shut down now": "says 421 4.3.2, close linger, close abort, free, CLOSED",
    },
    "an implicit TLS handshake": {
        "end": "close plain, free, LINGERING",
        "lost": "free, CLOSED",
        "timed out": "close abort, free, CLOSED",
        "stalled": "close abort, free, CLOSED",
        "shut down": "close abort, free, CLOSED",
        "shut down now": "close abort, free, CLOSED",
        "secured": "says 220 guard, FIRST_LINE",
    },
    "an implicit TLS handshake after a PROXY header": {
        "end": "close plain, free, LINGERING",
        "lost": "free, CLOSED",
        "timed out": "close abort, free, CLOSED",
        "stalled": "close abort, free, CLOSED",
        "shut down": "close abort, free, CLOSED",
        "shut down now": "close abort, free, CLOSED",
        "secured": "says 220 guard, FIRST_LINE",
    },
    "an implicit TLS handshake after admission": {
        "end": "close plain, free, LINGERING",
        "lost": "free, CLOSED",
        "timed out": "close abort, free, CLOSED",
        "stalled": "close abort, free, CLOSED",
        "shut down": "close abort, free, CLOSED",
        "shut down now": "close abort, free, CLOSED",
        "secured": "says 220 guard, FIRST_LINE",
    },
    "an implicit TLS handshake after the greet delay": {
        "end": "close plain, free, LINGERING",
        "lost": "free, CLOSED",
        "timed out": "close abort, free, CLOSED",
        "stalled": "close abort, free, CLOSED",
        "shut down": "close abort, free, CLOSED",
        "shut down now": "close abort, free, CLOSED",
        "secured": "says 220 guard, FIRST_LINE",
    },
    "admission while the endpoint shakes hands": {
        "end": "close plain, free, LINGERING",
        "lost": "free, CLOSED",
        "timed out": "close abort, free, CLOSED",
        "answered": "TLS_HANDSHAKE",
        "failed": "close abort, free, admission failed, CLOSED",
        "stalled": "close abort, free, CLOSED",
        "shut down": "close abort, free, CLOSED",
        "shut down now": "close abort, free, CLOSED",
    },
    "admission": {
        "end": "close plain, free, CLOSED",
        "lost": "free, CLOSED",
        "answered": "says 220 guard, FIRST_LINE",
        "failed": "says 421 4.3.0, close linger, free, admission failed, LINGERING",
        "stalled": "close abort, free, CLOSED",
        "shut down": "says 421 4.3.2, close linger, free, LINGERING",
        "shut down now": "says 421 4.3.2, close linger, close abort, free, CLOSED",
    },
    "greet delay": {
        "end": "close plain, free, CLOSED",
        "lost": "free, CLOSED",
        "timed out": "says 220 guard, FIRST_LINE",
        "stalled": "close abort, free, CLOSED",
        "shut down": "says 421 4.3.2, close linger, free, LINGERING",
        "shut down now": "says 421 4.3.2, close linger, close abort, free, CLOSED",
    },
    "greeted": {
        "octets": "says 250 2.0.0, COMMAND",
        "end": "close plain, free, CLOSED",
        "lost": "free, CLOSED",
        "timed out": "says 421 4.4.2, close linger, free, LINGERING",
        "stalled": "close abort, free, CLOSED",
        "shut down": "says 421 4.3.2, close linger, free, LINGERING",
        "shut down now": "says 421 4.3.2, close linger, close abort, free, CLOSED",
        "session time over": "says 421 4.4.2, close linger, free, LINGERING",
    },
    "between commands": {
        "octets": "says 250 2.0.0",
        "end": "close plain, free, CLOSED",
        "lost": "free, CLOSED",
        "timed out": "says 421 4.4.2, close linger, free, LINGERING",
        "stalled": "close abort, free, CLOSED",
        "shut down": "says 421 4.3.2, close linger, free, LINGERING",
        "shut down now": "says 421 4.3.2, close linger, close abort, free, CLOSED",
        "session time over": "says 421 4.4.2, close linger, free, LINGERING",
    },
    "in a transaction": {
        "octets": "says 250 2.0.0",
        "end": "abort, session_ended, close plain, free, CLOSED",
        "lost": "abort, session_ended, free, CLOSED",
        "timed out": "abort, session_ended, says 421 4.4.2, close linger, free, LINGERING",
        "stalled": "abort, session_ended, close abort, free, CLOSED",
        "shut down now": "abort, session_ended, says 421 4.3.2, close linger, close abort, free, CLOSED",
    },
    "between two chunks": {
        "octets": "says 250 2.0.0",
        "end": "sink.abort, session_ended, close plain, free, CLOSED",
        "lost": "sink.abort, session_ended, free, CLOSED",
        "timed out": "sink.abort, session_ended, says 421 4.4.2, close linger, free, LINGERING",
        "stalled": "sink.abort, session_ended, close abort, free, CLOSED",
        "shut down now": "sink.abort, session_ended, says 421 4.3.2, close linger, close abort, free, CLOSED",
    },
    "a line is skipped": {
        "octets": "says 500 5.5.2, COMMAND",
        "end": "close plain, free, CLOSED",
        "lost": "free, CLOSED",
        "timed out": "says 421 4.4.2, close linger, free, LINGERING",
        "stalled": "close abort, free, CLOSED",
        "shut down": "says 421 4.3.2, close linger, free, LINGERING",
        "shut down now": "says 421 4.3.2, close linger, close abort, free, CLOSED",
        "session time over": "says 421 4.4.2, close linger, free, LINGERING",
    },
    "an over-long first line is skipped": {
        "octets": "says 500 5.5.2, FIRST_LINE",
        "end": "close plain, free, CLOSED",
        "lost": "free, CLOSED",
        "timed out": "says 421 4.4.2, close linger, free, LINGERING",
        "stalled": "close abort, free, CLOSED",
        "shut down": "says 421 4.3.2, close linger, free, LINGERING",
        "shut down now": "says 421 4.3.2, close linger, close abort, free, CLOSED",
        "session time over": "says 421 4.4.2, close linger, free, LINGERING",
    },
    "AUTH awaits a response": {
        "octets": "says 334 UGFzc",
        "end": "close plain, free, CLOSED",
        "lost": "free, CLOSED",
        "timed out": "says 421 4.4.2, close linger, free, LINGERING",
        "stalled": "close abort, free, CLOSED",
        "shut down": "says 421 4.3.2, close linger, free, LINGERING",
        "shut down now": "says 421 4.3.2, close linger, close abort, free, CLOSED",
        "session time over": "says 421 4.4.2, close linger, free, LINGERING",
    },
    "message data": {
        "octets": "write",
        "end": "sink.abort, session_ended, close plain, free, CLOSED",
        "lost": "sink.abort, session_ended, free, CLOSED",
        "timed out": "sink.abort, session_ended, says 421 4.4.2, close linger, free, LINGERING",
        "stalled": "sink.abort, session_ended, close abort, free, CLOSED",
        "shut down now": "sink.abort, session_ended, says 421 4.3.2, close linger, close abort, free, CLOSED",
    },
    "a chunk": {
        "octets": "write",
        "end": "sink.abort, session_ended, close plain, free, CLOSED",
        "lost": "sink.abort, session_ended, free, CLOSED",
        "timed out": "sink.abort, session_ended, says 421 4.4.2, close linger, free, LINGERING",
        "stalled": "sink.abort, session_ended, close abort, free, CLOSED",
        "shut down now": "sink.abort, session_ended, says 421 4.3.2, close linger, close abort, free, CLOSED",
    },
    "begin() is asked": {
        "lost": "session_ended, free, CLOSED",
        "timed out": "says 451 4.3.0, COMMAND",
        "answered": "says 250 2.1.0, COMMAND",
        "failed": "says 451 4.3.0, the delivery failed: a hook raised, COMMAND",
        "stalled": "session_ended, close abort, free, CLOSED",
        "shut down now": "session_ended, says 421 4.3.2, close linger, close abort, free, CLOSED",
    },
    "recipient() is asked": {
        "lost": "abort, session_ended, free, CLOSED",
        "timed out": "abort, says 451 4.3.0, COMMAND",
        "answered": "says 250 2.1.5, COMMAND",
        "failed": "says 451 4.3.0, the delivery failed: a hook raised, COMMAND",
        "stalled": "abort, session_ended, close abort, free, CLOSED",
        "shut down now": "abort, session_ended, says 421 4.3.2, close linger, close abort, free, CLOSED",
    },
    "data() is asked": {
        "lost": "abort, session_ended, free, CLOSED",
        "timed out": "abort, says 451 4.3.0, COMMAND",
        "answered": "says 354 End d, DATA",
        "failed": "abort, says 451 4.3.0, the delivery failed: a hook raised, COMMAND",
        "stalled": "abort, session_ended, close abort, free, CLOSED",
        "shut down now": "abort, session_ended, says 421 4.3.2, close linger, close abort, free, CLOSED",
    },
    "finish() is asked": {
        "lost": "free, CLOSED",
        "timed out": "says 451 4.3.0, COMMAND",
        "answered": "says 250 2.0.0, COMMAND",
        "failed": "says 451 4.3.0, the delivery failed: a hook raised, COMMAND",
        "stalled": "close abort, free, CLOSED",
        "shut down now": "says 421 4.3.2, close linger, close abort, free, CLOSED",
    },
    "write() is asked": {
        "end": "sink.abort, session_ended, resume, close plain, free, CLOSED",
        "lost": "sink.abort, session_ended, free, CLOSED",
        "timed out": "sink.abort, resume, DATA",
        "answered": "resume, DATA",
        "failed": "sink.abort, resume, the delivery failed: a hook raised, DATA",
        "stalled": "sink.abort, session_ended, close abort, free, CLOSED",
        "shut down now": "sink.abort, session_ended, resume, says 421 4.3.2, close linger, close abort, free, CLOSED",
    },
    "write() is asked of a chunk": {
        "end": "sink.abort, session_ended, resume, close plain, free, CLOSED",
        "lost": "sink.abort, session_ended, free, CLOSED",
        "timed out": "sink.abort, resume, CHUNK",
        "answered": "resume, CHUNK",
        "failed": "sink.abort, resume, the delivery failed: a hook raised, CHUNK",
        "stalled": "sink.abort, session_ended, close abort, free, CLOSED",
        "shut down now": "sink.abort, session_ended, resume, says 421 4.3.2, close linger, close abort, free, CLOSED",
    },
    "write() is asked of an empty chunk": {
        "end": "resume",
        "lost": "sink.abort, session_ended, free, CLOSED",
        "timed out": "sink.abort, says 451 4.3.0, resume, COMMAND",
        "answered": "finish, says 250 2.0.0, resume, COMMAND",
        "failed": "sink.abort, says 451 4.3.0, resume, the delivery failed: a hook raised, COMMAND",
        "stalled": "sink.abort, session_ended, close abort, free, CLOSED",
        "shut down now": "sink.abort, session_ended, resume, says 421 4.3.2, close linger, close abort, free, CLOSED",
    },
    "begin() was too late": {
        "octets": "says 250 2.0.0",
        "end": "close plain, free, CLOSED",
        "lost": "free, CLOSED",
        "timed out": "says 421 4.4.2, close linger, free, LINGERING",
        "answered": "abort",
        "failed": "the delivery failed: a hook raised",
        "stalled": "close abort, free, CLOSED",
        "shut down": "says 421 4.3.2, close linger, free, LINGERING",
        "shut down now": "says 421 4.3.2, close linger, close abort, free, CLOSED",
        "session time over": "says 421 4.4.2, close linger, free, LINGERING",
    },
    "recipient() was too late": {
        "octets": "says 250 2.0.0",
        "end": "close plain, free, CLOSED",
        "lost": "free, CLOSED",
        "timed out": "says 421 4.4.2, close linger, free, LINGERING",
        "failed": "the delivery failed: a hook raised",
        "stalled": "close abort, free, CLOSED",
        "shut down": "says 421 4.3.2, close linger, free, LINGERING",
        "shut down now": "says 421 4.3.2, close linger, close abort, free, CLOSED",
        "session time over": "says 421 4.4.2, close linger, free, LINGERING",
    },
    "data() was too late": {
        "octets": "says 250 2.0.0",
        "end": "close plain, free, CLOSED",
        "lost": "free, CLOSED",
        "timed out": "says 421 4.4.2, close linger, free, LINGERING",
        "answered": "sink.abort",
        "failed": "abort, the delivery failed: a hook raised",
        "stalled": "close abort, free, CLOSED",
        "shut down": "says 421 4.3.2, close linger, free, LINGERING",
        "shut down now": "says 421 4.3.2, close linger, close abort, free, CLOSED",
        "session time over": "says 421 4.4.2, close linger, free, LINGERING",
    },
    "write() was too late": {
        "end": "close plain, free, CLOSED",
        "lost": "free, CLOSED",
        "timed out": "says 421 4.4.2, close linger, free, LINGERING",
        "failed": "the delivery failed: a hook raised",
        "stalled": "close abort, free, CLOSED",
        "shut down now": "says 421 4.3.2, close linger, close abort, free, CLOSED",
    },
    "finish() was too late": {
        "octets": "says 250 2.0.0",
        "end": "close plain, free, CLOSED",
        "lost": "free, CLOSED",
        "timed out": "says 421 4.4.2, close linger, free, LINGERING",
        "failed": "the delivery failed: a hook raised",
        "stalled": "close abort, free, CLOSED",
        "shut down": "says 421 4.3.2, close linger, free, LINGERING",
        "shut down now": "says 421 4.3.2, close linger, close abort, free, CLOSED",
        "session time over": "says 421 4.4.2, close linger, free, LINGERING",
    },
    "STARTTLS is granted": {
        "octets": "says 421 4.7.0, close linger, CLOSING",
        "end": "close plain, CLOSING",
        "lost": "free, CLOSED",
        "drained": "start_tls, TLS_HANDSHAKE",
        "stalled": "close abort, free, CLOSED",
        "shut down": "says 421 4.3.2, close linger, CLOSING",
        "shut down now": "says 421 4.3.2, close linger, CLOSING",
        "session time over": "says 421 4.4.2, close linger, CLOSING",
    },
    "a TLS handshake": {
        "end": "close plain, free, LINGERING",
        "lost": "free, CLOSED",
        "timed out": "close abort, free, CLOSED",
        "stalled": "close abort, free, CLOSED",
        "shut down now": "says 421 4.3.2, close linger, free, LINGERING",
        "secured": "COMMAND",
    },
    "the last line waits": {
        "end": "close plain, free, CLOSED",
        "lost": "free, CLOSED",
        "drained": "free, CLOSED",
        "stalled": "close abort, free, CLOSED",
    },
    "lingering": {
        "end": "close plain, CLOSED",
        "lost": "CLOSED",
        "timed out": "close abort, CLOSED",
        "stalled": "close abort, CLOSED",
        "shut down now": "close abort, CLOSED",
    },
    "closed": {},
    "closed while finish() is asked": {
        "timed out": "session_ended",
        "answered": "session_ended",
        "failed": "session_ended, the delivery failed: a hook raised",
    },
}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("situation", SITUATIONS)
def test_what_comes_in_has_the_effects_of_the_table(situation: str, name: str) -> None:
    it = Situation(situation)
    assert it.stage is SITUATIONS[situation][0]
    assert it.outcome_of(name) == OUTCOMES[situation].get(name, "")
    assert it.delivery.broken == []


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("situation", SITUATIONS)
def test_whatever_came_in_everything_is_given_back_when_the_connection_is_gone(
    situation: str, name: str
) -> None:
    it = Situation(situation)
    it.outcome_of(name)
    it.host.lose()
    while it.pending is not None and not it.pending.over:
        it.pending.answer()
    assert it.stage is Stage.CLOSED
    it.guard.check_all_given_back()


def test_every_situation_of_the_table_is_one_and_every_input_of_it_too() -> None:
    assert OUTCOMES.keys() == SITUATIONS.keys()
    assert {name for outcomes in OUTCOMES.values() for name in outcomes} <= INPUTS.keys()


def test_every_stage_is_reached() -> None:
    assert STAGES.keys() == set(Stage) == {stage for stage, _ in SITUATIONS.values()}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_stage_is_entered_from_where_the_table_says_and_from_nowhere_else(situation: str) -> None:
    for stage, row in STAGES.items():
        engine = Situation(situation).host.engine
        before = engine.stage
        if before in row.follows:
            engine.enter(stage)
            assert engine.stage is stage
        else:
            with pytest.raises(AssertionError, match=f"^{before} -> {stage}$"):
                engine.enter(stage)
            assert engine.stage is before


WALKS = (
    HELLO + b"AUTH LOGIN\r\nwrong\nend\r\nQUIT\r\n",
    b"\r\n" + HELLO + b"wrong\rend\r\nQUIT\r\n",
    ENVELOPE + b"DATA\r\n.\r\nQUIT\r\n",
    ENVELOPE + b"BDAT 1\r\nxBDAT 1 LAST\r\nyQUIT\r\n",
)
"""What leads through stages besides the inputs of the table."""


def test_every_transition_of_the_table_is_taken_by_some_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: set[tuple[Stage, Stage]] = set()
    enter = Engine.enter

    def watched(engine: Engine, stage: Stage) -> None:
        taken.add((engine.stage, stage))
        enter(engine, stage)

    monkeypatch.setattr(Engine, "enter", watched)
    for situation in SITUATIONS:
        for name in INPUTS:
            Situation(situation).outcome_of(name)
    for octets in WALKS:
        host: PureHost = Situation("greeted").host
        host.send(octets)
        assert host.gone
    Situation("the PROXY header is due").host.send(PROXY)
    idle = {(before, stage) for stage, row in STAGES.items() for before in row.follows} - taken
    assert idle == set()
