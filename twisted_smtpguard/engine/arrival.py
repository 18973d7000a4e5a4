"""The stages from accept to the greeting: PROXY header, TLS handshake, admission, early talkers, greet delay."""

from __future__ import annotations

from functools import partial
from typing import Any

import attrs

from twisted_smtpguard import replies
from twisted_smtpguard.engine import counts, policies
from twisted_smtpguard.engine.engine import Engine
from twisted_smtpguard.engine.hooks import wait_for
from twisted_smtpguard.engine.port import Close
from twisted_smtpguard.engine.proxyheader import LONGEST_BEGINNING, HeaderError, begins_header, parse_header
from twisted_smtpguard.engine.refusal import refusal_of
from twisted_smtpguard.engine.stages import ENDED, Stage
from twisted_smtpguard.values import Peer

_YOUNG_SECONDS = 1
"""A handshake that is younger is not aborted for another. An honest client has ended it by then, and a crowd that
abandons its handshakes makes the guard compute at most `max_tls_handshakes` of them in that time."""


def begin(engine: Engine, *, behind_proxy: bool = False, tls_has_begun: bool = False) -> None:
    """Called when the connection has been accepted. `behind_proxy`: it comes from a trusted proxy and begins with a
    PROXY header. `tls_has_begun`: the endpoint has begun the handshake."""
    engine.input(_begin, engine, behind_proxy, tls_has_begun)


def _begin(engine: Engine, behind_proxy: bool, tls_has_begun: bool) -> None:
    if tls_has_begun:
        engine.implicit_tls = True
        if not _begin_handshake(engine):
            return
    if behind_proxy:
        engine.behind_proxy = True
        engine.enter(Stage.PROXY_HEADER)
        engine.advance()
    else:
        _identified(engine)
        if engine.stage not in ENDED:
            engine.advance()


# The PROXY header.


def take_proxy_header(engine: Engine) -> bool:
    """Take the PROXY header of a trusted proxy. Returns whether all of it has come and was valid."""
    try:
        header = parse_header(engine.buffer, tls=engine.context.proxy_tls)
    except HeaderError:
        proxy_failed(engine, "bad_proxy_header")
        return False
    if header is None:
        return False
    engine.buffer = engine.buffer[header.octets :]
    engine.silent = not engine.buffer and engine.host.is_own(header)
    if header.client is not None and header.server is not None:
        engine.tls = header.tls
        tls = engine.implicit_tls or header.tls != ""
        peer = engine.known_peer = Peer(*header.client, *header.server, tls=tls, proxied=True)
        engine.peer_name, engine.port = str(peer.address), peer.port
        # Somebody may have asked for that of the proxy meanwhile.
        engine.known_key = engine.known_network = ""
    _identified(engine)
    return True


def proxy_failed(engine: Engine, reason: str = "proxy_header_timeout") -> None:
    """Abort a connection whose PROXY header is malformed or, by default, has not come in time. No reply is sent."""
    counts.log_without_reply(engine, reason)
    engine.abort()


# TLS.


def _identified(engine: Engine) -> None:
    """Go on to the TLS handshake or to admission, once the client's address is known."""
    if engine.implicit_tls and not engine.handshaking and engine.context.asks_for_certificates:
        begin_tls(engine)
    else:
        _ask_admission(engine)


def begin_tls(engine: Engine) -> None:
    """Begin the TLS handshake. Octets that have come already belong to it."""
    engine.enter(Stage.TLS_HANDSHAKE)
    engine.progress = False
    if engine.handshaking:
        # The endpoint has begun the handshake, and its deadline runs already.
        return
    octets = engine.buffer[engine.offset :]
    engine.buffer, engine.offset = b"", 0
    engine.resume()
    if not _begin_handshake(engine):
        return
    try:
        engine.host.start_tls(octets)
    except Exception as error:  # noqa: BLE001 - no reply can be sent any more, and nothing else would end the session
        engine.log_failure(error, "TLS could not be begun")
        handshake_failed(engine, "tls_failed")
        engine.abort()


def _begin_handshake(engine: Engine) -> bool:
    """Count a handshake that begins, and start its time limit. Returns False if the connection was ended instead.

    Above `max_tls_handshakes` one connection is ended, without a reply. The oldest is, so that clients that leave their
    handshakes unfinished keep nobody out.
    """
    context = engine.context
    under_way, most, now = context.handshakes, context.limits.max_tls_handshakes, context.seconds()
    engine.handshaking = True
    if 0 < most <= len(under_way):
        oldest, began_at = next(iter(under_way.items()))
        ends = oldest if now - began_at >= _YOUNG_SECONDS else engine
        ends.value = len(under_way) + 1
        if ends is engine:
            _give_up_handshake(engine)
            return False
        ends.input(_give_up_handshake, ends)
    under_way[engine] = now
    engine.set_deadline("tls_handshake")
    return True


def _give_up_handshake(engine: Engine) -> None:
    handshake_failed(engine, "max_tls_handshakes")
    engine.abort()


def start_tls(engine: Engine) -> bool:
    """Begin TLS after STARTTLS, as soon as the client has read the 220. Input that came in clear after STARTTLS ends
    the session, since it may have been injected by an attacker. Returns False: no input is taken here."""
    if engine.offset < len(engine.buffer):
        engine.hang_up(replies.INPUT_AFTER_STARTTLS)
        return False
    if engine.unwritten:
        engine.flush()
    if engine.input_ended:
        # The client has half-closed the connection, and its ClientHello cannot come any more.
        engine.end_reason = "half_closed"
        engine.close(Close.PLAIN)
    elif engine.host.idle:
        begin_tls(engine)
    return False


def secured(engine: Engine, tls: str, certificate: bytes | None) -> None:
    """Called when the handshake is complete. `tls` is version and cipher, `certificate` the client's (DER) or None."""
    engine.input(_secured, engine, tls, certificate)


def _secured(engine: Engine, tls: str, certificate: bytes | None) -> None:
    if not engine.handshaking:
        return
    engine.secure = True
    engine.tls = tls
    _end_handshake(engine, "completed")
    if certificate is not None:
        engine.known_peer = attrs.evolve(engine.peer, certificate=certificate)
    if engine.stage is not Stage.TLS_HANDSHAKE:
        if engine.stage not in ENDED:
            engine.set_deadline("")
        return
    if engine.name:
        # What the client sent in clear is forgotten (RFC 3207 4.2), but the counts of the session stay.
        engine.user = engine.known_client = None
        engine.helo = ""
        engine.offered = frozenset()
        engine.reset()
        engine.enter(Stage.COMMAND)
        if engine.context.draining:
            # The service stopped within the handshake, when no reply could be sent.
            engine.hang_up(replies.SHUTTING_DOWN)
    elif engine.admitted:
        _greet(engine)
    else:
        _ask_admission(engine)
    if engine.stage not in ENDED:
        engine.advance()


def handshake_timed_out(engine: Engine) -> None:
    """Called when the handshake has not been completed within its time limit."""
    handshake_failed(engine, "tls_handshake_timeout")
    engine.abort()


def handshake_failed(engine: Engine, reason: str) -> None:
    """Log a handshake that has failed. The caller ends the connection, and no reply can be sent."""
    _end_handshake(engine, reason)
    engine.end_reason = reason
    if engine.name:
        counts.log(engine, reason)
    elif not engine.refused:
        counts.log_without_reply(engine, reason)


def _end_handshake(engine: Engine, outcome: str) -> None:
    engine.handshaking = False
    engine.context.handshake_over(engine, outcome)


# Admission and the greeting.


def _ask_admission(engine: Engine) -> None:
    at_once = engine.stage is Stage.ACCEPTED
    engine.enter(Stage.ADMISSION)
    admission = engine.context.admission
    try:
        refusal = None if admission.asks_nothing and engine.seated else admission.decide(engine)
    except BaseException as error:  # noqa: BLE001 - a bug of ours must not admit anybody
        _not_decided(engine, error, at_once=at_once)
        return
    if refusal is None or hasattr(refusal, "reply"):
        _decided(engine, refusal, at_once=at_once)
    else:
        wait_for(engine, refusal, _decided, _not_decided, stage=Stage.ADMISSION, seconds=0)


def _decided(engine: Engine, refusal: Any, *, at_once: bool = False, judged: bool = False) -> None:
    """Go on when admission has decided. `judged`: policies have been asked too."""
    if refusal is not None:
        engine.refuse(refusal, at_once=at_once)
        return
    context = engine.context
    engine.admitted = True
    if context.policies and not judged:
        policies.ask(engine, "connect", partial(_decided, refusal=None, at_once=at_once, judged=True))
        return
    if not engine.trusted:
        if _refuses_early_talker(engine, at_once=at_once):
            return
        delay = context.guard.greet_delay()
        if delay:
            engine.enter(Stage.GREET_DELAY)
            engine.delay = context.call_later(delay, partial(_end_delay, engine))
            return
    _let_in(engine)


def _end_delay(engine: Engine) -> None:
    engine.delay = None
    engine.input(_delay_over, engine)


def _delay_over(engine: Engine) -> None:
    if engine.stage is Stage.GREET_DELAY and not _refuses_early_talker(engine):
        _let_in(engine)
        engine.advance()


def take_early_input(engine: Engine) -> bool:
    """Refuse a client that sends input during the greet delay. Returns False: the input stays in the buffer."""
    if engine.buffer:
        _refuses_early_talker(engine)
    return False


def _refuses_early_talker(engine: Engine, *, at_once: bool = False) -> bool:
    """Refuse a client that sent input before its greeting. Returns whether it was refused. Where that is only logged,
    it is logged once. With implicit TLS the client has to send first, and is not refused."""
    octets = engine.buffer or engine.host.waiting_octets(LONGEST_BEGINNING)
    if not octets or engine.implicit_tls or "early_talker" in engine.dry_run_logged:
        return False
    engine.dry_run_logged |= {"early_talker"}
    context = engine.context
    if not engine.behind_proxy and begins_header(octets):
        # This is a misconfigured proxy and no abuser. If it is greeted, its first line gets the same reply.
        if context.limits.early_talker == "log":
            return False
        engine.refuse(refusal_of(replies.UNEXPECTED_PROXY_HEADER), at_once=at_once)
        return True
    refusal = refusal_of(replies.EARLY_TALKER)
    if context.limits.early_talker == "log" or "early_talker" in context.limits.dry_run:
        refusal.log(engine, context.events, context.limits, dry_run=True)
        return False
    engine.refuse(refusal, at_once=at_once)
    return True


def _not_decided(engine: Engine, error: BaseException, *, at_once: bool = False) -> None:
    engine.log_failure(error, "admission failed")
    engine.refuse(refusal_of(replies.LOCAL_ERROR_CLOSING), at_once=at_once)


def _let_in(engine: Engine) -> None:
    if engine.implicit_tls and not engine.secure:
        begin_tls(engine)
    else:
        _greet(engine)


def _greet(engine: Engine) -> None:
    context = engine.context
    engine.enter(Stage.FIRST_LINE)
    guard = context.guard
    engine.name = guard.next_session_name()
    engine.account_next = engine.account_all
    if engine.silent:
        engine.silent = not engine.buffer
    counts.log_greeting(engine)
    guard.session_times.add(engine)
    engine.unwritten += context.greeting.wire
