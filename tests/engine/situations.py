"""How a connection comes into each stage, what can come in there, and what the engine does then, in a few words."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from purehost import FIN, Later, PureDelivery, PureGuard, PureHost

from twisted_smtpguard.engine import arrival, sasl
from twisted_smtpguard.engine.stages import Stage

PROXY = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 25\r\n"
HELLO = b"EHLO client.example\r\n"
MAIL, RCPT = b"MAIL FROM:<a@b.example>\r\n", b"RCPT TO:<c@d.example>\r\n"
ENVELOPE = HELLO + MAIL + RCPT
BINARY = HELLO + b"MAIL FROM:<a@b.example> BODY=BINARYMIME\r\n" + RCPT


class Situation:
    """A connection in a stage. `pending` is what is waited for there, or was waited for before."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.plan: dict[str, str] = {}
        self.delivery = PureDelivery(lambda hook: self.plan.pop(hook, "now"))
        options: dict[str, Any] = {"starttls": True, "identify": no_login, "auth_without_tls": True}
        self.guard = PureGuard(self.delivery, options=options, delivery_timeout=100, max_session_time=900)
        self.asked: Later | None = None
        self.host: PureHost = SITUATIONS[name][1](self)

    @property
    def stage(self) -> Stage:
        stage: Stage = self.host.engine.stage
        return stage

    @property
    def pending(self) -> Later | None:
        """A hook, or who admits, that has not answered."""
        return self.asked or next(iter(self.delivery.pending), None)

    def admit_later(self, value: object = None) -> None:
        """A client that connects has to wait for its admission."""
        self.asked = Later(value)
        self.guard.admission.answer = lambda: self.asked

    def outcome_of(self, name: str) -> str:
        """What the engine does when this comes in: the hooks that it calls, what it says, how it closes, whether the
        slot is free then, and the stage after it."""
        host, before = self.host, self.stage
        host.heard = b""
        effects, calls, slots = len(host.effects), len(self.delivery.calls), len(self.guard.released)
        failures = len(self.guard.events.failures)
        INPUTS[name](self)
        did = [hook for hook, _ in self.delivery.calls[calls:]]
        for effect, *what in host.effects[effects:]:
            if effect in ("write", "turn_away"):
                did.extend(f"says {line[:9].strip()}" for line in what[0].decode().splitlines())
            elif effect == "close":
                did.append(f"close {what[0].value}")
            else:
                did.append(effect)
        did.extend(["free"] * (len(self.guard.released) - slots))
        did.extend(text for text, _ in self.guard.events.failures[failures:])
        if self.stage is not before:
            did.append(self.stage.name)
        return ", ".join(did)


def no_login(login: sasl.Login) -> Any:
    """In the place of checkers."""
    raise AssertionError("no response is whole here")


# What can come in.


def octets(it: Situation) -> None:
    it.host.send(b"NOOP\r\n")


def end(it: Situation) -> None:
    it.host.send(FIN)


def lost(it: Situation) -> None:
    it.host.lose()


def timed_out(it: Situation) -> None:
    """Where a deadline runs, its time comes; and the time of a hook."""
    it.guard.advance(301)


def answered(it: Situation) -> None:
    if it.pending is not None:
        it.pending.answer()
        it.host.settle()


def failed(it: Situation) -> None:
    if it.pending is not None:
        it.pending.fail(ValueError("secret"))
        it.host.settle()


def drained(it: Situation) -> None:
    it.host.read_all()


def stalled(it: Situation) -> None:
    it.host.engine.stalled()


def time_over(it: Situation) -> None:
    it.host.engine.time_over()


def take_turn(it: Situation) -> None:
    it.host.engine.take_turn()


def secured(it: Situation) -> None:
    arrival.secured(it.host.engine, "TLSv1.3 X", None)


INPUTS: dict[str, Callable[[Situation], None]] = {
    "octets": octets,
    "end": end,
    "lost": lost,
    "timed out": timed_out,
    "answered": answered,
    "failed": failed,
    "drained": drained,
    "stalled": stalled,
    "shut down": lambda it: it.host.shut_down(now=False),
    "shut down now": lambda it: it.host.shut_down(now=True),
    "session time over": time_over,
    "turn": take_turn,
    "secured": secured,
}


# How a connection comes into each stage.


def accepted(it: Situation) -> PureHost:
    return it.guard.accept()


def proxy_header(it: Situation) -> PureHost:
    return it.guard.connect(behind_proxy=True)


def proxied_tls(it: Situation) -> PureHost:
    """TLS comes after the header, and before admission: filters are to see the client's certificate."""
    it.guard.context.asks_for_certificates = True
    host = it.guard.connect(implicit_tls=True, behind_proxy=True)
    host.send(PROXY)
    return host


def implicit_tls(it: Situation) -> PureHost:
    it.guard.context.asks_for_certificates = True
    return it.guard.connect(implicit_tls=True)


def endpoint_tls(it: Situation) -> PureHost:
    """The endpoint has begun the handshake, and admission takes its time meanwhile."""
    it.admit_later()
    return it.guard.connect(implicit_tls=True, tls_has_begun=True)


def tls_after_admission(it: Situation) -> PureHost:
    return it.guard.connect(implicit_tls=True)


def tls_after_greet_delay(it: Situation) -> PureHost:
    it.guard.greet_delay = lambda: 2
    host = it.guard.connect(implicit_tls=True)
    it.guard.advance(2)
    return host


def admission(it: Situation) -> PureHost:
    it.admit_later()
    return it.guard.connect()


def greet_delay(it: Situation) -> PureHost:
    it.guard.greet_delay = lambda: 2
    return it.guard.connect()


def first_line(it: Situation) -> PureHost:
    return it.guard.connect()


def spoken(octets: bytes, it: Situation) -> PureHost:
    host = it.guard.connect()
    host.send(octets)
    return host


def waiting(hook: str, octets: bytes, it: Situation, outcome: str = "later") -> PureHost:
    it.plan[hook] = outcome
    return spoken(octets, it)


def deaf(octets: bytes, it: Situation) -> PureHost:
    """The client does not read what is said to these."""
    host = it.guard.connect()
    host.reads = False
    host.send(octets)
    return host


def too_late(hook: str, octets: bytes, it: Situation) -> PureHost:
    """The hook has had its time, and goes on in spite of its cancellation."""
    host = waiting(hook, octets, it, "stubborn")
    it.guard.advance(100)
    return host


def tls(it: Situation) -> PureHost:
    return spoken(HELLO + b"STARTTLS\r\n", it)


def left(it: Situation) -> PureHost:
    """While its message is decided upon."""
    host = waiting("finish", ENVELOPE + b"DATA\r\n.\r\n", it)
    host.lose()
    return host


SITUATIONS: dict[str, tuple[Stage, Callable[[Situation], PureHost]]] = {
    "accepted": (Stage.ACCEPTED, accepted),
    "the PROXY header is due": (Stage.PROXY_HEADER, proxy_header),
    "an implicit TLS handshake": (Stage.TLS_HANDSHAKE, implicit_tls),
    "an implicit TLS handshake after a PROXY header": (Stage.TLS_HANDSHAKE, proxied_tls),
    "an implicit TLS handshake after admission": (Stage.TLS_HANDSHAKE, tls_after_admission),
    "an implicit TLS handshake after the greet delay": (Stage.TLS_HANDSHAKE, tls_after_greet_delay),
    "admission while the endpoint shakes hands": (Stage.ADMISSION, endpoint_tls),
    "admission": (Stage.ADMISSION, admission),
    "greet delay": (Stage.GREET_DELAY, greet_delay),
    "greeted": (Stage.FIRST_LINE, first_line),
    "between commands": (Stage.COMMAND, partial(spoken, HELLO)),
    "in a transaction": (Stage.COMMAND, partial(spoken, ENVELOPE)),
    "between two chunks": (Stage.COMMAND, partial(spoken, ENVELOPE + b"BDAT 2\r\nab")),
    "a line is skipped": (Stage.SKIPPED_LINE, partial(spoken, HELLO + b"x" * 3000)),
    "an over-long first line is skipped": (Stage.SKIPPED_LINE, partial(spoken, b"x" * 3000)),
    "AUTH awaits a response": (Stage.AUTH_RESPONSE, partial(spoken, HELLO + b"AUTH LOGIN\r\n")),
    "message data": (Stage.DATA, partial(spoken, ENVELOPE + b"DATA\r\n")),
    "a chunk": (Stage.CHUNK, partial(spoken, ENVELOPE + b"BDAT 100\r\n")),
    "begin() is asked": (Stage.ANSWER, partial(waiting, "begin", HELLO + MAIL)),
    "recipient() is asked": (Stage.ANSWER, partial(waiting, "recipient", ENVELOPE)),
    "data() is asked": (Stage.ANSWER, partial(waiting, "data", ENVELOPE + b"DATA\r\n")),
    "finish() is asked": (Stage.ANSWER, partial(waiting, "finish", ENVELOPE + b"DATA\r\n.\r\n")),
    "write() is asked": (Stage.SINK, partial(waiting, "write", ENVELOPE + b"DATA\r\nx\r\n")),
    "write() is asked of a chunk": (
        Stage.SINK,
        partial(waiting, "write", ENVELOPE + b"BDAT 9\r\nab"),
    ),
    "write() is asked of an empty chunk": (
        Stage.SINK,
        partial(waiting, "write", BINARY + b"BDAT 1\r\n\rBDAT 0 LAST\r\n"),
    ),
    "begin() was too late": (Stage.COMMAND, partial(too_late, "begin", HELLO + MAIL)),
    "recipient() was too late": (Stage.COMMAND, partial(too_late, "recipient", ENVELOPE)),
    "data() was too late": (Stage.COMMAND, partial(too_late, "data", ENVELOPE + b"DATA\r\n")),
    "write() was too late": (Stage.DATA, partial(too_late, "write", ENVELOPE + b"DATA\r\nx\r\n")),
    "finish() was too late": (Stage.COMMAND, partial(too_late, "finish", ENVELOPE + b"DATA\r\n.\r\n")),
    "STARTTLS is granted": (Stage.STARTING_TLS, partial(deaf, HELLO + b"STARTTLS\r\n")),
    "a TLS handshake": (Stage.TLS_HANDSHAKE, tls),
    "the last line waits": (Stage.CLOSING, partial(deaf, HELLO + b"QUIT\r\n")),
    "lingering": (Stage.LINGERING, partial(spoken, b"GET / HTTP/1.1\r\n")),
    "closed": (Stage.CLOSED, partial(spoken, b"QUIT\r\n")),
    "closed while finish() is asked": (Stage.CLOSED, left),
}
