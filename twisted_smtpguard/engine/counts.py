"""The counts of a session: errors, junk and the like, their log lines, and the limits that end the session.

A limit N trips at the N-th event. Every function gets the engine, whose slots hold the counts.
"""

from __future__ import annotations

from twisted_smtpguard import replies
from twisted_smtpguard.engine.connection import Connection
from twisted_smtpguard.engine.stages import IN_TRANSACTION
from twisted_smtpguard.limits.points import REJECTED_RECIPIENT
from twisted_smtpguard.limits.units import no_limit
from twisted_smtpguard.replies import Reply

_OF_DELIVERY = ("delivery_refused", "upstream_refused")
"""The reasons of refusals that are not the guard's."""


def invalid(engine: Connection, reply: Reply) -> Reply:
    """Count an invalid command and return `reply`, its reply."""
    engine.invalid_commands += 1
    return reply


def count_reply(engine: Connection, reply: Reply) -> None:
    """Count a reply by the last command."""
    command = engine.command
    engine.context.replies_sent["none" if command is None else command.verb, reply.code] += 1


def account(engine: Connection, reply: Reply, reason: str) -> Reply | None:
    """Count and log a reply. Returns the reply that has to follow it and end the session, or None.

    Each reply counts once, by its class, whether the guard or the delivery made it. A closing reply is not counted.
    """
    deferred = reply is engine.context.deferral
    reason, engine.reason = reason or engine.reason, ""
    if reply.code >= 400:
        policed, by = engine.policed, ("", "")
        if policed is not None and policed.decision is not None:
            decision, policed.decision = policed.decision, None
            if decision.reply is reply:
                reason, by = decision.reason, (decision.policy, decision.action)
        # The operator may have chosen the words of a deferral.
        log(engine, reason or ("deferred" if deferred else replies.reason_of(reply)), reply, by=by)
    if reply.closes:
        # RFC 5321 3.8: within a session only a 421 announces that the server closes the connection.
        if reply.code == 421:
            return None
        count_reply(engine, replies.SESSION_REFUSED)
        return replies.SESSION_REFUSED
    engine.account_next = engine.account_all
    is_junk, engine.is_junk = engine.is_junk, False
    engine.junk += is_junk
    # A checker that cannot judge credentials is not the client's error, and neither is an operator who defers all mail.
    excused = deferred or (reply is replies.AUTH_UNAVAILABLE and not reason)
    is_error = reply.code >= 400 and not excused
    if is_error or (is_junk and _too_much_junk(engine)):
        engine.errors += 1
    engine.value, engine.network = None, ""
    after = _closing_reply(engine)
    if after is not None:
        log(engine, replies.reason_of(after), after)
        count_reply(engine, after)
    return after


def _closing_reply(engine: Connection) -> Reply | None:
    """The reply of the limit that ends the session now, or None. The first in the order below wins."""
    if engine.closing_reply is not None:
        if engine.closing_reply is replies.TOO_MANY_AUTH_FAILURES:
            engine.value = engine.failures
        return engine.closing_reply
    if not engine.trusted:
        limits = engine.limits
        for limit, count, reply in (
            ("max_invalid_commands", engine.invalid_commands, replies.TOO_MANY_INVALID_COMMANDS),
            ("max_rejected_recipients", engine.rejected_recipients, replies.TOO_MANY_REJECTED_RECIPIENTS),
            ("max_errors", engine.errors, replies.TOO_MANY_ERRORS),
        ):
            if 0 < getattr(limits, limit) <= count and enforces(engine, limit, count, once=True):
                return reply
    if engine.account_all and engine.phase not in IN_TRANSACTION:
        if engine.context.draining:
            return replies.SHUTTING_DOWN
        if enforces(engine, "max_session_time", once=True):
            return replies.SESSION_TOO_LONG
    return None


def _too_much_junk(engine: Connection) -> bool:
    limit = engine.limits.max_junk_commands
    over = 0 < limit < engine.junk and not engine.trusted
    return over and enforces(engine, "max_junk_commands", engine.junk, once=True)


def enforces(
    engine: Connection, limit: str, value: float | None = None, *, network: str = "", once: bool = False
) -> bool:
    """Whether `limit`, which `value` has exceeded, is enforced. If it is in dry run, False, and that is logged: only
    the first time in a session with `once`, for limits that would have ended it. `network`: that of the client has
    exceeded it, and not the client itself."""
    engine.value, engine.network = value, network
    if limit not in engine.context.limits.dry_run:
        return True
    if not (once and limit in engine.dry_run_logged):
        engine.dry_run_logged |= {limit}
        log(engine, limit, dry_run=True)
    engine.value, engine.network = None, ""
    return False


def outside_transaction(engine: Connection) -> bool:
    """Whether the last command came outside a mail transaction. A MAIL always did."""
    command = engine.command
    return engine.phase_before not in IN_TRANSACTION or (command is not None and command.verb == "MAIL")


def refuses_pipelining(engine: Connection) -> bool:
    """Whether input that came before the reply to the last command ends the session (RFC 2920 3.1). The caller has
    checked that there is such input."""
    command = engine.command
    if command is None or not command.ends_group or engine.context.limits.unexpected_pipelining != "refuse":
        return False
    policed = engine.policed
    if policed is not None and policed.stage == "end-of-data" and command.verb == "DATA":
        # What was waited for is the verdict of a policy on the whole message, after which any command may come.
        return False
    return enforces(engine, "unexpected_pipelining", once=True)


def log(
    engine: Connection,
    reason: str,
    reply: Reply | None = None,
    *,
    gone: bool = False,
    dry_run: bool = False,
    by: tuple[str, str] = ("", ""),
) -> None:
    """Log and count a refusal. `reply` is None if none could be sent, or in `dry_run`, where nothing is refused.
    `gone`: the client has disconnected. `by` has the name of the policy that refuses, and its action."""
    command = engine.command
    verb = command.verb if command is not None else ""
    unknown = b"" if engine.after_auth else engine.unknown
    parameter, engine.parameter = engine.parameter, ""
    in_transaction = engine.phase_before in IN_TRANSACTION
    engine.context.events.reject(
        engine.peer_name,
        reason,
        session=engine.name,
        dry_run=dry_run,
        helo=engine.helo,
        tls=engine.tls,
        policy=by[0],
        rule=by[1],
        reply=reply,
        network=engine.network,
        limit=engine.limits.shown(reason, engine.network),
        value=engine.value,
        command=verb or unknown.decode("ascii"),
        parameter=parameter,
        sender=engine.sender.address if in_transaction else None,
        recipient=engine.recipient if verb == "RCPT" else None,
        user=engine.user_tried if verb == "AUTH" else None,
        client_gone=gone,
        hint=replies.hint_of(reason, engine.peer_name),
    )
    if not dry_run:
        # The delivery's own refusal of a recipient may be for any reason; whatever else it refuses is no offence.
        rejected = verb == "RCPT" and reason in _OF_DELIVERY and reply is not None and reply.code >= 500
        offend(engine, REJECTED_RECIPIENT if rejected else reason)


def offend(engine: Connection, offence: str) -> None:
    """Note that a client was refused. Count what it has done wrong, if it is an offence, and not that of all clients in
    its network."""
    # Of one without a key, which a filter refuses, nothing was counted.
    if engine.known_key and not engine.trusted:
        engine.context.clients.peaks.refused(engine.known_key)
    offences, limits = engine.context.offences, engine.context.limits
    if offence == "max_errors" and engine.errors < no_limit(limits.max_errors):
        # It is stress that has ended the session so soon.
        return
    if offences is not None and not engine.network:
        offences.committed(engine, offence)


def log_without_reply(engine: Connection, reason: str) -> None:
    """Log and count a connection that ends before its greeting and to which no reply could be sent."""
    engine.refused = True
    engine.context.events.reject(
        engine.peer_name,
        reason,
        port=engine.port,
        listener=engine.listener,
        limit=engine.limits.shown(reason),
        value=engine.value,
    )
    offend(engine, reason)


def log_greeting(engine: Connection, *, counted: bool = False) -> None:
    """Log the greeting of a session. `counted`: it was logged before as a silent connection, which now sends input."""
    engine.context.events.connect(
        engine.name,
        engine.peer_name,
        port=engine.port,
        listener=engine.listener,
        tls=engine.tls,
        trusted=engine.trusted,
        silent=engine.silent,
        counted=counted,
    )


def log_end(engine: Connection) -> None:
    """Log the end of the connection, when it gives back its slot."""
    context = engine.context
    seconds = context.seconds() - engine.began_at
    if engine.name:
        user = engine.user
        context.events.disconnect(
            engine.name,
            engine.peer_name,
            engine.end_reason,
            seconds,
            engine.messages,
            silent=engine.silent,
            recipients=engine.recipients_accepted,
            helo=engine.helo,
            tls=engine.tls,
            user="" if user is None else user.name,
        )
    elif not engine.refused:
        context.events.hangup(
            engine.peer_name, seconds, port=engine.port, listener=engine.listener, silent=engine.silent
        )
