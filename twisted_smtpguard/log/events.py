"""The guard's own events: everything that it counts and logs. Nothing else logs at info.

An event is counted, and then logged if the operator's log level allows it. Those of the service as a whole, of which
nothing is counted, are in serviceevents.py. eventlog.py gives each its form. A test checks docs/reference/events.md
against both files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from twisted_smtpguard.hooks.later import explained
from twisted_smtpguard.inputs.arguments import checked
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.log.budget import LineBudget
from twisted_smtpguard.log.eventlog import (
    EventLog,
    encryption,
    item,
    place,
    said,
    short_word,
    utc,
    word,
    words_of_reply,
)
from twisted_smtpguard.log.history import KEPT, History
from twisted_smtpguard.log.measurements import Measurements
from twisted_smtpguard.log.serviceevents import ServiceEvents
from twisted_smtpguard.log.statistics import Statistics
from twisted_smtpguard.replies import Reply

if TYPE_CHECKING:
    from constantly import NamedConstant  # type: ignore[import-untyped]

MAX_RECIPIENTS_SHOWN = 5
"""How many recipients of an accepted message are logged. Their number is always logged."""


class Events(ServiceEvents):
    """Counts and logs events. A guard has one for all its listeners.

    `level` is the lowest level that is logged: an event below it is counted, but not built. In the methods `session` is
    the id of a session, `peer` the client's IP address or `unix`, and a reason one of the words in
    docs/reference/replies.md.
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
        self.history = History()
        """The latest refusals and sessions of each client, with those that are not logged."""
        self.measured = Measurements()
        self.seconds = clock.seconds
        self._clock = clock
        self._log = EventLog(clock.seconds, level, logger)
        self._refusals = LineBudget(limits.max_log_lines, limits.max_log_lines_per_client)
        # Failures have their own budget, so that no flood of refusals hides a fault.
        self._failures = LineBudget(limits.max_log_lines, limits.max_log_lines_per_client)
        self.budgets = (self._refusals, self._failures)
        """The limits on log lines, for a factory whose limits change."""

    def statistics_now(self) -> None:
        """The operator has asked for the statistics, by SIGUSR1. Logged with all of them, and what `suppressed` counts
        is still counted for the next line."""
        self._log_statistics("statistics", self._refusals.suppressed + self._failures.suppressed)

    @property
    def suppressed_lines(self) -> int:
        """How many lines the budgets of the log have left out."""
        return self._refusals.suppressed_in_all + self._failures.suppressed_in_all

    def stopped(self) -> None:
        """The last session has ended and the last verdict has come. Logged with all statistics."""
        self._log_statistics("stopped", self._refusals.take_suppressed() + self._failures.take_suppressed())

    def _log_statistics(self, event: str, suppressed: int) -> None:
        counts = self.statistics.snapshot()
        self._log.info(event, {**counts, "suppressed": suppressed} if suppressed else counts)

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
        """A connection was admitted, and is greeted now. `trusted`: an IP filter trusts the client.

        `silent`: the connection is the proxy's own, such as a health check, which is logged at debug until it sends a
        command. Then this is called again, with `counted`, since the connection was counted before.
        """
        if not counted:
            counts = self.statistics
            counts.connections_accepted += 1
            self.measured.connections[listener, "accepted"] += 1
            counts.live_connections += 1
            counts.peak_live_connections = max(counts.peak_live_connections, counts.live_connections)
        if self._log.debugs if silent else self._log.informs:
            fields: dict[str, object] = {"session": session, "peer": peer}
            if trusted:
                fields["trusted"] = True
            fields |= said(tls=encryption(tls)) | place(port, listener)
            inform = self._log.debug if silent else self._log.info
            inform("connect", fields)

    def hangup(
        self, peer: str, seconds: float, *, port: int | None = None, listener: str = "", silent: bool = False
    ) -> None:
        """A client disconnected, `seconds` after it connected, before it was admitted or refused. Limited as refusals
        are.

        `silent`: it was the proxy's own connection and sent no command, which is logged at debug."""
        self.statistics.hangups += 1
        self.measured.connections[listener, "hung_up"] += 1
        if (self._log.debugs if silent else self._log.informs) and self._refusals.allows(
            peer, "hangup", self._clock.seconds()
        ):
            fields: dict[str, object] = {"peer": peer, "seconds": round(seconds, 3), **place(port, listener)}
            fields = self._with_suppressed(fields, self._refusals)
            inform = self._log.debug if silent else self._log.info
            inform("hangup", fields)

    def accept_failed(self, problem: str) -> None:
        """The operating system could not accept a connection. `problem` is its error, such as ENFILE. Limited as
        failures are."""
        self._warn_of_failure("accept_failed", "", {"problem": word(problem)})

    def filter_failed(self, ip_filter: str, peer: str, problem: str, *, let_in: bool) -> None:
        """An IP filter raised an exception, did not answer in time, or gave an answer that is no Verdict.

        `let_in`: it is configured as fail-open, so the next filter is asked. Limited as failures are.
        """
        fields: dict[str, object] = {"peer": peer, "filter": word(ip_filter), "problem": word(problem)}
        fields["outcome"] = "passed" if let_in else "refused"
        self._warn_of_failure("filter_failed", peer, fields)

    def policy_failed(
        self, policy: str, stage: str, peer: str, problem: str, why: str, *, session: str, outcome: str
    ) -> None:
        """A session policy raised an exception, did not answer in time, cannot judge (`why` has its words), or
        gave an answer that is none.

        `outcome`: `refused`, or `passed` if it is configured as fail-open or is in dry run. Limited as failures are.
        """
        fields: dict[str, object] = {"peer": peer, **said(session=session, policy=policy), "stage": stage}
        fields |= {"problem": word(problem), "outcome": outcome, **said(why=why)}
        self._warn_of_failure("policy_failed", peer, fields)

    def policy_note(self, policy: str, stage: str, peer: str, text: str, *, session: str) -> None:
        """A session policy has something for the log, as with WARN or INFO. Limited as refusals are."""
        if self._log.informs and self._refusals.allows(peer, "policy_note", self._clock.seconds()):
            fields: dict[str, object] = {"peer": peer, **said(session=session, policy=policy), "stage": stage}
            self._log.info("policy_note", self._with_suppressed(fields | said(note=text), self._refusals))

    def field_left_out(self, session: str, peer: str, problem: str, *, policy: str = "") -> None:
        """A header field that a session policy has prepended was left out of a message. Limited as failures are."""
        fields: dict[str, object] = {"peer": peer, **said(session=session, policy=policy)}
        self._warn_of_failure("field_left_out", peer, fields, problem)

    def login(self, session: str, peer: str, user: str, mechanism: str) -> None:
        """A client has logged in. A failure is a `reject`."""
        fields = {"session": session, "peer": peer, "user": word(user), "mechanism": mechanism}
        self._log.info("login", fields)

    def checker_failed(self, session: str, peer: str, problem: str) -> None:
        """A checker cannot judge credentials. The client is told to try again, and no failure of it is counted.

        Counted and limited as failures are.
        """
        self.statistics.failures += 1
        self._warn_of_failure("checker_failed", peer, {"session": session, "peer": peer}, problem)

    def disconnect(
        self,
        session: str,
        peer: str,
        reason: str,
        seconds: float,
        messages: int,
        *,
        silent: bool = False,
        recipients: int = 0,
        helo: str = "",
        tls: str = "",
        user: str = "",
    ) -> None:
        """An admitted connection has ended, after `seconds` and `messages` accepted messages. Logged exactly once.

        `silent`: it was the proxy's own connection and sent no command, which is logged at debug. `recipients`, `helo`,
        `tls` and `user` are for the history only: events in the session have them in the log."""
        counts = self.statistics
        counts.live_connections -= 1
        counts.sessions_ended += 1
        self.measured.session_seconds.observe(seconds)
        if not silent:
            row = self._clock.seconds(), seconds, peer, session, reason, messages, helo, user[:KEPT], tls
            self.history.sessions.add(peer, row)
        if messages:
            self.history.tallies.add(peer, messages, recipients, 0)
        if self._log.debugs if silent else self._log.informs:
            fields: dict[str, object] = {"session": session, "peer": peer, "reason": reason}
            fields.update(seconds=round(seconds, 3), messages=messages)
            inform = self._log.debug if silent else self._log.info
            inform("disconnect", fields)

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
        policy: str = "",
        rule: str = "",
        network: str = "",
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
        """A connection, a command or a message was refused. Only the refusal of a connection has no session.

        `limit` is the limit that was reached, and `value` what the client had. `dry_run`: nothing was refused, since
        the limit is in dry run. `network`: that of the client has reached it, and not the client itself. `ip_filter`
        refused by its `rule`, or `policy` by the action in `rule`. `client_gone`: a delivery refused a message after
        the client had disconnected. `hint` is an option that the operator may have to set.
        """
        counts = self.statistics
        refusals = counts.dry_run_refusals if dry_run else counts.refusals
        refusals[reason] = refusals.get(reason, 0) + 1
        if not session and not dry_run:
            counts.connections_refused += 1
            self.measured.connections[listener, "refused"] += 1
        now = self._clock.seconds()
        answer = b"" if reply is None else (reply.said or reply.wire)[:KEPT]
        what = now, peer, session, reason, command, limit, value
        row = *what, network, ip_filter, policy, rule[:KEPT], answer, dry_run
        self.history.refusals.add(peer, row)
        if not dry_run:
            self.history.tallies.add(peer, 0, 0, 1)
        # Under a flood most refusals stop here, before the fields are built.
        if not self._log.informs or not self._refusals.allows(peer, reason, now):
            return
        fields: dict[str, object] = {"peer": peer, "reason": reason}
        if dry_run:
            fields["dry_run"] = True
        if session:
            fields["session"] = session
        fields |= said(filter=ip_filter, policy=policy, rule=rule, network=network)
        for name, number in (("limit", limit), ("value", value), ("code", reply and reply.code)):
            if number is not None:
                fields[name] = number
        fields |= words_of_reply(reply)
        for name, given in (("command", command), ("parameter", parameter)):
            if given:
                fields[name] = short_word(given)
        for name, text in (("sender", sender), ("recipient", recipient), ("user", user)):
            if text is not None:
                fields[name] = word(text)
        if client_gone:
            fields["client_gone"] = True
        fields |= said(helo=helo, tls=encryption(tls)) | place(port, listener) | said(hint=hint)
        self._log.info("reject", self._with_suppressed(fields, self._refusals))

    def banned(self, peer: str, ban: Any) -> None:
        """A client or a network has been banned, for what the client of `peer` has done last. In dry run it refuses
        nobody. Limited as refusals are.

        `ban` is a Ban."""
        kind = "network" if ban.is_of_network else "client"
        self.measured.bans[kind, "true" if ban.dry_run else "false"] += 1
        if not self._log.informs or not self._refusals.allows(peer, "banned", self._clock.seconds()):
            return
        fields: dict[str, object] = {"peer": peer}
        if ban.dry_run:
            fields["dry_run"] = True
        fields |= {"client": ban.key, "points": ban.points, "offences": word(ban.reasons)}
        fields |= {"times": ban.times, "until": utc(ban.until)}
        self._log.info("banned", self._with_suppressed(fields, self._refusals))

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
        """The delivery accepted a message, `seconds` after its MAIL.

        `reply` is the client's. `client_gone`: the client has not got the 250. `late`: the client got a 451 before, at
        the time limit of the delivery. In both cases it will probably send the message again.
        """
        counts = self.statistics
        counts.messages_accepted += 1
        counts.octets_accepted += octets
        counts.recipients_accepted += len(recipients)
        self.measured.message_seconds.observe(seconds)
        if not self._log.informs:
            return
        fields: dict[str, object] = {
            "session": session,
            "peer": peer,
            "sender": word(sender),
            "recipients": len(recipients),
            "first_recipients": ",".join([item(each) for each in recipients[:MAX_RECIPIENTS_SHOWN]]),
            "octets": octets,
            "seconds": round(seconds, 3),
        }
        fields |= words_of_reply(reply)
        if user is not None:
            fields["user"] = word(user)
        if client_gone:
            fields["client_gone"] = True
        if late:
            fields["late"] = True
        fields |= said(helo=helo, tls=encryption(tls))
        self._log.info("accept", fields)

    def failure(self, failure: Failure | BaseException, text: str, session: str = "", peer: str = "") -> None:
        """An unexpected exception was raised, by the guard or by a delivery. Logged with its traceback.

        `text` says what was being done. Limited as refusals are: a client that finds a fault of the guard must not be
        able to fill the disk.
        """
        self.statistics.failures += 1
        if self._failures.allows(peer, "failure", self._clock.seconds()):
            fields = self._with_suppressed(said(session=session, peer=peer), self._failures)
            if not isinstance(failure, Failure):
                failure = Failure(failure)
            self._log.failure("failure", explained(failure), fields, text)

    def _warn_of_failure(self, event: str, peer: str, fields: dict[str, object], problem: str = "") -> None:
        """Log that something has failed, within the budget of failures."""
        if self._log.warns and self._failures.allows(peer, event, self._clock.seconds()):
            self._log.warn(event, self._with_suppressed(fields, self._failures), problem)

    @staticmethod
    def _with_suppressed(fields: dict[str, object], budget: LineBudget) -> dict[str, object]:
        suppressed = budget.take_suppressed()
        if suppressed:
            fields["suppressed"] = suppressed
        return fields
