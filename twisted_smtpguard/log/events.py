"""The guard's own events: everything that it counts and logs. Nothing else logs at info.

An event is counted, and then logged if the operator's log level lets it through. What it looks like there stands in
eventlog.py; docs/reference/events.md is checked against this file.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from twisted_smtpguard.hooks.later import explained
from twisted_smtpguard.inputs.arguments import checked
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.log.budget import LineBudget
from twisted_smtpguard.log.form import EventLog, of_file, short_word, word, words
from twisted_smtpguard.log.statistics import Statistics
from twisted_smtpguard.replies import Reply, words_of
from twisted_smtpguard.tls.doubts import MAX_NAMES_SHOWN, Doubt

if TYPE_CHECKING:
    from constantly import NamedConstant  # type: ignore[import-untyped]

MAX_RECIPIENTS_SHOWN = 5
"""Of an accepted message. Their number is always logged."""


class Events:
    """Counts what happens and logs it. One for a guard and all its listeners.

    `level` is the lowest level that the operator wants to see: an event below it is counted, but not built.
    `session` is the id of a session, `peer` the client's IP address or `unix`, a reason one of our own.
    """

    @checked
    def __init__(
        self,
        statistics: Statistics,
        clock: IReactorTime,
        limits: Limits,
        level: NamedConstant = LogLevel.info,
        logger: Logger | None = None,
    ) -> None:
        if level not in LogLevel.iterconstants():
            raise ValueError(f"level must be one of twisted.logger.LogLevel, not {level!r}")
        self.statistics = statistics
        self._clock = clock
        self._log = EventLog(clock.seconds, level, logger)
        self._refusals = LineBudget(limits.max_log_lines, limits.max_log_lines_per_client)
        # Of its own, so that no flood of refusals hides a fault.
        self._failures = LineBudget(limits.max_log_lines, limits.max_log_lines_per_client)

    # The service.

    def listening(self, endpoint: str, address: str) -> None:
        """A listener takes connections. `endpoint` is the operator's string, `address` what it came to."""
        self._log.info("listening", {"endpoint": word(endpoint), "address": word(address)})

    def ssl_endpoint(self, endpoint: str) -> None:
        """A listener whose TLS is begun by the endpoint: it knows no PROXY header, and keeps its certificate."""
        problem = "no PROXY header is understood there, and its certificate is not read again"
        self._log.warn("ssl_endpoint", {"endpoint": word(endpoint)}, problem)

    def delivering(self, delivery: str) -> None:
        """Where messages will go, in the operator's words. Once, at start-up."""
        self._log.info("delivering", {"delivery": word(delivery)})

    def filtering(self, ip_filter: str) -> None:
        """An IP filter is asked about every connection, in the order of these lines. Once each, at start-up."""
        self._log.info("filtering", {"filter": word(ip_filter)})

    def trying(self, limits: Collection[str]) -> None:
        """Limits are decided and logged, but hold nobody back. Once, at start-up."""
        self._log.warn("trying", {"limits": ",".join(sorted(limits))})

    def reloaded(self, what: str, option: str, file: str = "") -> None:
        """A filter, the delivery, the certificates or a password file have been read anew. Once for each file. `option`
        is the one that names it."""
        self._log.info("reloaded", of_file(what, option, file))

    def reload_failed(self, what: str, option: str, problem: str, file: str = "") -> None:
        """A filter, the delivery, a certificate or a password file could not be read anew, and what it had goes on."""
        self._log.warn("reload_failed", of_file(what, option, file), problem)

    def doubtful_certificate(self, doubt: Doubt) -> None:
        """A certificate is served with which clients will not be content. At each start and reload, once for each
        thing that is wrong."""
        fields: dict[str, object] = {"reason": doubt.reason, "option": f"--{doubt.option}"}
        fields |= {"file": word(doubt.file), "subject": word(doubt.subject)}
        names = ",".join([_item(each) for each in doubt.names[:MAX_NAMES_SHOWN]])
        fields |= {"names": names, "ends": f"{doubt.ends:%Y-%m-%dT%H:%M:%SZ}"}
        self._log.warn("doubtful_certificate", fields, doubt.problem)

    def no_connection_cap(self, descriptors: int) -> None:
        """No cap on connections is set: the file descriptors that the process may have are the only one."""
        self._log.warn("no_connection_cap", {"descriptors": descriptors})

    def descriptors_below_cap(self, descriptors: int, cap: int, lingering: int, upstream: int) -> None:
        """The process may not have the file descriptors that it would need for as many connections as may be let in
        (`cap`), may linger when they have ended, and may be held to the server behind."""
        fields = {"descriptors": descriptors, "cap": cap, "lingering": lingering, "upstream": upstream}
        self._log.warn("descriptors_below_cap", fields)

    def open_relay(self, delivery: str) -> None:
        """Anybody's mail for every domain goes to a server that takes every client for the guard: if it trusts the
        guard, all can send to anywhere through it. At every start."""
        problem = (
            "the server behind takes every client for the guard: if it trusts the guard, anybody can send to "
            "anywhere through it; name your domains with --accept-domain, or, where the guard does not log in, "
            "let the server see the client with announce=xclient or announce=proxy"
        )
        self._log.warn("open_relay", {"delivery": word(delivery)}, problem)

    def draining(self, sessions: int, verdicts: int) -> None:
        """The guard lets nobody in and waits for what has not ended. At once, and every 10 seconds.

        `sessions` are all connections that are still there. `verdicts` are those of the delivery that are pending, also
        where the client is gone.
        """
        self._log.info(
            "draining",
            {"sessions": sessions, "verdicts": verdicts},
            f"waiting for {_number(sessions, 'session')}, {_number(verdicts, 'verdict')}",
        )

    def setup_warning(self, what: str, problem: str) -> None:
        """How the guard was set up is risky, and no reason not to start. Once each, at every start."""
        self._log.warn("setup_warning", {"what": what}, problem)

    def stopped(self) -> None:
        """The last session has ended and the last verdict has come. Logged with all statistics."""
        fields: dict[str, object] = {**self.statistics.snapshot()}
        suppressed = self._refusals.take_suppressed() + self._failures.take_suppressed()
        if suppressed:
            fields["suppressed"] = suppressed
        self._log.info("stopped", fields)

    # A connection.

    def connect(
        self,
        session: str,
        peer: str,
        *,
        port: int | None = None,
        listener: str = "",
        tls: str = "",
        trusted: bool = False,
        silent: bool = False,
        counted: bool = False,
    ) -> None:
        """A connection was let in: it is greeted now. `trusted`: an IP filter said so.

        `silent`: it is the proxy's own, such as a health check, which is logged at debug unless it says something. Then
        this is called again, and it has been `counted`.
        """
        if not counted:
            counts = self.statistics
            counts.connections_accepted += 1
            counts.live_connections += 1
            counts.peak_live_connections = max(counts.peak_live_connections, counts.live_connections)
        if self._logs(silent):
            fields: dict[str, object] = {"session": session, "peer": peer}
            if trusted:
                fields["trusted"] = True
            fields.update(_said(tls=_encryption(tls)), **_place(port, listener))
            self._inform("connect", fields, silent)

    def hangup(
        self, peer: str, seconds: float, *, port: int | None = None, listener: str = "", silent: bool = False
    ) -> None:
        """A client left, `seconds` after it came, before it was let in or refused, whatever it had sent by then.
        Limited as refusals are.

        `silent`: the proxy's own connection has said nothing, which is logged at debug."""
        self.statistics.hangups += 1
        if self._logs(silent) and self._refusals.allows(peer, "hangup", self._clock.seconds()):
            fields: dict[str, object] = {"peer": peer, "seconds": round(seconds, 3), **_place(port, listener)}
            self._inform("hangup", self._with_suppressed(fields), silent)

    def accept_failed(self, problem: str) -> None:
        """The system did not let a connection be accepted. `problem` is its word, such as ENFILE. Limited as failures
        are."""
        if self._log.warns and self._failures.allows("", "accept_failed", self._clock.seconds()):
            fields: dict[str, object] = {"problem": word(problem)}
            suppressed = self._failures.take_suppressed()
            if suppressed:
                fields["suppressed"] = suppressed
            self._log.warn("accept_failed", fields)

    def filter_failed(self, ip_filter: str, peer: str, problem: str, *, let_in: bool) -> None:
        """An IP filter raised, did not answer in time, or answered with what is no verdict.

        `let_in`: the operator wrote fail-open for it, so the next one is asked. Limited as failures are.
        """
        if self._log.warns and self._failures.allows(peer, "filter_failed", self._clock.seconds()):
            fields: dict[str, object] = {"peer": peer, "filter": word(ip_filter), "problem": word(problem)}
            fields["outcome"] = "passed" if let_in else "refused"
            suppressed = self._failures.take_suppressed()
            if suppressed:
                fields["suppressed"] = suppressed
            self._log.warn("filter_failed", fields)

    def login(self, session: str, peer: str, user: str, mechanism: str) -> None:
        """A client has logged in. A failure is a `reject`."""
        if self._log.informs:
            fields: dict[str, object] = {"session": session, "peer": peer, "user": word(user)}
            self._log.info("login", {**fields, "mechanism": mechanism})

    def checker_failed(self, session: str, peer: str, problem: str) -> None:
        """A checker cannot judge credentials, which is no failure of the client's: it is told to try again.

        Counted and limited as failures are.
        """
        self.statistics.failures += 1
        if self._log.warns and self._failures.allows(peer, "checker_failed", self._clock.seconds()):
            fields: dict[str, object] = {"session": session, "peer": peer}
            suppressed = self._failures.take_suppressed()
            if suppressed:
                fields["suppressed"] = suppressed
            self._log.warn("checker_failed", fields, problem)

    def disconnect(
        self, session: str, peer: str, reason: str, seconds: float, messages: int, *, silent: bool = False
    ) -> None:
        """A connection that was let in has ended, after `seconds` and `messages` accepted. Exactly once.

        `silent`: the proxy's own connection has said nothing, which is logged at debug."""
        counts = self.statistics
        counts.live_connections -= 1
        counts.sessions_ended += 1
        if self._logs(silent):
            fields: dict[str, object] = {"session": session, "peer": peer, "reason": reason}
            fields.update(seconds=round(seconds, 3), messages=messages)
            self._inform("disconnect", fields, silent)

    def reject(
        self,
        peer: str,
        reason: str,
        *,
        session: str = "",
        dry_run: bool = False,
        port: int | None = None,
        listener: str = "",
        helo: str = "",
        tls: str = "",
        ip_filter: str = "",
        rule: str = "",
        reply: Reply | None = None,
        limit: float | str | None = None,
        value: float | None = None,
        command: str = "",
        parameter: str = "",
        sender: str | None = None,
        recipient: str | None = None,
        user: str | None = None,
        client_gone: bool = False,
        hint: str = "",
    ) -> None:
        """Something was refused: a connection (the only refusal without a session), a command, a message.

        `limit` is what it went against and `value` what there was. `dry_run`: it was not refused, since the
        limit is only tried. `ip_filter`: which one refused, by which `rule`.
        `client_gone`: a delivery refused a message when there was nobody left to tell. `hint`: what the operator may
        have to set.
        """
        counts = self.statistics
        refusals = counts.dry_run_refusals if dry_run else counts.refusals
        refusals[reason] = refusals.get(reason, 0) + 1
        if not session and not dry_run:
            counts.connections_refused += 1
        # Under a flood this is where most refusals end, before anything is built.
        if not self._log.informs or not self._refusals.allows(peer, reason, self._clock.seconds()):
            return
        fields: dict[str, object] = {"peer": peer, "reason": reason}
        if dry_run:
            fields["dry_run"] = True
        if session:
            fields["session"] = session
        fields.update(_said(filter=ip_filter, rule=rule))
        for name, number in (("limit", limit), ("value", value), ("code", reply and reply.code)):
            if number is not None:
                fields[name] = number
        fields |= _words(reply)
        for name, given in (("command", command), ("parameter", parameter)):
            if given:
                fields[name] = short_word(given)
        for name, said in (("sender", sender), ("recipient", recipient), ("user", user)):
            if said is not None:
                fields[name] = word(said)
        if client_gone:
            fields["client_gone"] = True
        fields.update(_said(helo=helo, tls=_encryption(tls)), **_place(port, listener), **_said(hint=hint))
        self._log.info("reject", self._with_suppressed(fields))

    def accept(
        self,
        session: str,
        peer: str,
        *,
        sender: str,
        recipients: Sequence[str],
        octets: int,
        seconds: float,
        reply: Reply | None = None,
        helo: str = "",
        tls: str = "",
        client_gone: bool = False,
        late: bool = False,
        user: str | None = None,
    ) -> None:
        """The delivery took a message, `seconds` after its MAIL.

        `reply` answers it. `client_gone`: the client has not seen the 250. `late`: it has seen a 451 before, for the
        delivery's time was up. Either way it will probably send the message again.
        """
        counts = self.statistics
        counts.messages_accepted += 1
        counts.octets_accepted += octets
        counts.recipients_accepted += len(recipients)
        if not self._log.informs:
            return
        fields: dict[str, object] = {
            "session": session,
            "peer": peer,
            "sender": word(sender),
            "recipients": len(recipients),
            "first_recipients": ",".join([_item(each) for each in recipients[:MAX_RECIPIENTS_SHOWN]]),
            "octets": octets,
            "seconds": round(seconds, 3),
        }
        fields |= _words(reply)
        if user is not None:
            fields["user"] = word(user)
        if client_gone:
            fields["client_gone"] = True
        if late:
            fields["late"] = True
        fields.update(_said(helo=helo, tls=_encryption(tls)))
        self._log.info("accept", fields)

    def failure(self, failure: Failure | BaseException, text: str, session: str = "", peer: str = "") -> None:
        """Something raised that should not have: our fault, or a delivery's. Logged with its traceback.

        `text` says what was being done. Limited as refusals are: a client that finds a fault of ours must not
        fill the disk with it.
        """
        self.statistics.failures += 1
        if not self._failures.allows(peer, "failure", self._clock.seconds()):
            return
        fields: dict[str, object] = {}
        if session:
            fields["session"] = session
        if peer:
            fields["peer"] = peer
        suppressed = self._failures.take_suppressed()
        if suppressed:
            fields["suppressed"] = suppressed
        if not isinstance(failure, Failure):
            failure = Failure(failure)
        self._log.failure("failure", explained(failure), fields, text)

    def _logs(self, silent: bool) -> bool:
        return self._log.debugs if silent else self._log.informs

    def _inform(self, event: str, fields: dict[str, object], silent: bool) -> None:
        if silent:
            self._log.debug(event, fields)
        else:
            self._log.info(event, fields)

    def _with_suppressed(self, fields: dict[str, object]) -> dict[str, object]:
        suppressed = self._refusals.take_suppressed()
        if suppressed:
            fields["suppressed"] = suppressed
        return fields


def _words(reply: Reply | None) -> dict[str, object]:
    """The field for the words of a reply that somebody else chose; none for one of ours."""
    said = "" if reply is None else words_of(reply)
    return {"reply": words(said)} if said else {}


def _place(port: int | None, listener: str) -> dict[str, object]:
    """Where a connection came from and arrived, as far as it is known."""
    place: dict[str, object] = {}
    if port is not None:
        place["port"] = port
    if listener:
        place["listener"] = word(listener)
    return place


def _encryption(tls: str) -> str:
    """Version and cipher without a space between."""
    return tls.replace(" ", ":")


def _said(**texts: str) -> dict[str, object]:
    """Those that are not empty, as fields."""
    return {name: word(text) for name, text in texts.items() if text}


def _item(text: str) -> str:
    """A word in a list of words. A quoted local part may hold a comma (RFC 5321 4.1.2)."""
    return word(text).replace(",", "\\x2c")


def _number(count: int, thing: str) -> str:
    return f"{count} {thing}{'s' * (count != 1)}"
