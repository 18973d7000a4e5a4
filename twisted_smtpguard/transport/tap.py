"""A tap on one connection: its dialogue, line by line, as it happens.

Other connections pay nothing for it: the tapped one gets another class of engine, whose table of stages tells what each
stage has taken of the input, and its own methods. What is told holds no message data and no credentials.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import attrs

from twisted_smtpguard.engine import grammar, sasl
from twisted_smtpguard.engine.commands import COMMANDS
from twisted_smtpguard.engine.engine import Engine
from twisted_smtpguard.engine.stages import Stage, StageRow
from twisted_smtpguard.engine.table import STAGES
from twisted_smtpguard.inputs.escaping import escape_text
from twisted_smtpguard.transport.protocol import SMTPGuardProtocol
from twisted_smtpguard.values import Refused

MAX_CHARACTERS = 1000
"""How much is told of one line."""

_MAX_VERB_CHARACTERS = 32
_MESSAGE = frozenset({Stage.DATA, Stage.CHUNK})
_SILENT = frozenset({*_MESSAGE, Stage.SINK})
_COUNTED = {
    Stage.PROXY_HEADER: "PROXY header",
    Stage.SKIPPED_LINE: "rest of a malformed line",
    Stage.AUTH_RESPONSE: "response",
}
"""The stages whose input is told as a count only, with its name."""

CLIENT, GUARD = "client", "guard"
"""Who said a line."""

Tell = Callable[[str, str], object]
"""Called with CLIENT or GUARD, and what was said: printable ASCII. What stands in brackets was not said in these
words."""


class Tap:
    """A tap on `protocol`, until `remove()` or the end of the connection, after which `ended` is called. `began`: the
    connection has begun before, so that it is unknown whether an exchange of AUTH is going on."""

    def __init__(
        self, protocol: SMTPGuardProtocol, tell: Tell, ended: Callable[[], object], *, began: bool
    ) -> None:
        self._protocol = protocol
        self._tell = tell
        self._ended = ended
        self._secret = began
        """Whether a line that is no known command may be part of a login."""
        self._data = 0
        """The octets of message data that have not been told."""
        self._taking = False
        self._gone = False
        self._said: list[bytes] = []
        """What the guard has said while the client's line, which comes before it, is being taken."""
        kind = type(protocol)
        for name, method in (("write", self._write), ("turn_away", self._turn_away), ("lost", self._lost)):
            # A method of the object hides that of its class.
            setattr(protocol, name, partial(method, partial(getattr(kind, name), protocol)))
        protocol.tap = self  # type: ignore[attr-defined]
        engine = protocol.engine
        engine.__class__ = TappedEngine
        engine.row = _TAPPED[engine.stage]

    def remove(self) -> None:
        """Leave the connection as it was. May be called twice."""
        own = vars(self._protocol)
        for name in ("write", "turn_away", "lost", "tap"):
            own.pop(name, None)
        engine = self._protocol.engine
        engine.__class__ = Engine
        engine.row = STAGES[engine.stage]

    # In place of methods of the protocol.

    def _write(self, method: Callable[[bytes], bool], octets: bytes) -> bool:
        self._guard_says(octets)
        return method(octets)

    def _turn_away(self, method: Callable[[bytes], None], line: bytes) -> None:
        self._guard_says(line)
        method(line)

    def _lost(self, method: Callable[[Any], None], reason: Any = None) -> None:
        self.remove()
        method(reason)
        self._gone = True
        if not self._taking:
            self._end()

    def _end(self) -> None:
        self._tell_data()
        self._tell(GUARD, "[the connection has ended]")
        self._ended()

    def _guard_says(self, octets: bytes) -> None:
        if self._taking:
            self._said.append(octets)
            return
        self._tell_data()
        for line in octets.removesuffix(b"\r\n").split(b"\r\n"):
            # The challenge belongs to a login.
            self._tell(GUARD, "334 [challenge]" if line.startswith(b"334") else _shown(line))

    # Called by the tapped engine.

    def entered(self, stage: Stage) -> None:
        """The connection has entered a stage."""
        if stage is Stage.TLS_HANDSHAKE:
            self._tell(GUARD, "[TLS handshake]")

    def take(self, take: Callable[[Engine], bool], engine: Engine) -> bool:
        """Let a stage take some of the input, and tell what it has taken."""
        stage, buffer, offset = engine.stage, engine.buffer, engine.offset
        self._taking = True
        try:
            return take(engine)
        finally:
            self._taking = False
            left = len(engine.buffer) - engine.offset
            self._client_says(stage, buffer[offset : max(offset, len(buffer) - left)])
            if engine.stage not in _SILENT:
                self._tell_data()
            said, self._said = self._said, []
            if said:
                self._guard_says(b"".join(said))
            if self._gone:
                self._end()

    def _client_says(self, stage: Stage, octets: bytes) -> None:
        if not octets:
            return
        if stage in _MESSAGE:
            self._data += len(octets)
        elif stage in _COUNTED:
            self._tell(CLIENT, f"[{_COUNTED[stage]}, {len(octets)} octets]")
        else:
            for line in octets.removesuffix(b"\r\n").split(b"\r\n"):
                self._tell(CLIENT, self._command(line))

    def _command(self, line: bytes) -> str:
        """What is told of a line. Credentials may stand after any AUTH, however it is misspelt, and in each line after
        one up to the next command that the guard knows."""
        hidden = f"[{len(line)} octets]"
        try:
            verb, argument = grammar.parse_command(line)
        except Refused:
            self._secret = True
            return hidden
        if verb in COMMANDS and verb != b"AUTH":
            self._secret = False
            return _shown(line)
        secret, self._secret = self._secret, True
        if verb == b"AUTH":
            return _auth(argument)
        if secret or b"AUTH" in verb:
            return hidden
        shown = _shown(verb[:_MAX_VERB_CHARACTERS])
        return f"{shown} [{len(argument)} octets]" if argument else shown

    def _tell_data(self) -> None:
        octets, self._data = self._data, 0
        if octets:
            self._tell(CLIENT, f"[message data, {octets} octets]")


class TappedEngine(Engine):
    """An engine whose stages tell its tap what they take."""

    __slots__ = ()

    def enter(self, stage: Stage) -> None:
        super().enter(stage)
        self.row = _TAPPED[stage]
        tap = getattr(self.host, "tap", None)
        if tap is not None:
            tap.entered(stage)


def _take(take: Callable[[Engine], bool], engine: Engine) -> bool:
    tap = getattr(engine.host, "tap", None)
    return take(engine) if tap is None else tap.take(take, engine)


def _tapped(row: StageRow) -> StageRow:
    return attrs.evolve(row, take=partial(_take, row.take))


_TAPPED = {
    stage: _tapped(row) if stage in {*_MESSAGE, *_COUNTED, Stage.FIRST_LINE, Stage.COMMAND} else row
    for stage, row in STAGES.items()
}


def _auth(argument: bytes) -> str:
    try:
        mechanism, response = sasl.parse_auth(argument)
    except Refused:
        return f"AUTH [{len(argument)} octets]"
    if mechanism not in sasl.MECHANISMS:
        return f"AUTH [{len(argument)} octets]"
    return f"AUTH {mechanism}" if response is None else f"AUTH {mechanism} [response]"


def _shown(line: bytes) -> str:
    text = escape_text(line[: MAX_CHARACTERS + 1].decode("utf-8", "backslashreplace"))
    return text if len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - 3]}..."
