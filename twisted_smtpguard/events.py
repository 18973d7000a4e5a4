"""Every log event of the guard. Nothing else logs at info.

An event is counted, and then logged if the operator's log level lets it through: once as fields with fixed
names, once as `text`, a line of `name=value` words made of the same fields. docs/reference/events.md is
checked against this file.

Whatever a client chose is escaped before it becomes a field, so neither form holds a control octet, and no
client can forge a line or a field. A value never becomes part of a format string.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from twisted.python.reflect import safe_str

from twisted_smtpguard.escaping import escape_text, escape_word
from twisted_smtpguard.limits import Limits
from twisted_smtpguard.smtp.replies import Reply
from twisted_smtpguard.statistics import Statistics

if TYPE_CHECKING:
    from constantly import NamedConstant  # type: ignore[import-untyped]

NAMESPACE = "twisted_smtpguard"

LINE = "{text}"
"""The format of every event."""

MAX_VALUE_CHARACTERS = 320
"""What is logged of one thing that a client sent. An address has at most 254 octets (RFC 5321 4.5.3.1.3)."""

MAX_ERROR_CHARACTERS = 2_000
"""What is logged of an exception's message, which may hold anything that a client sent."""

MAX_RECIPIENTS_SHOWN = 5
"""Of an accepted message. Their number is always logged."""

MAX_TABLE_KEYS = 10_000
"""What the table of refusals logged this second may hold where there is no limit on all lines."""


class Events:
    """Counts what happens and logs it. One for a guard and all its listeners.

    `level` is the lowest level that the operator wants to see: an event below it is counted, but not built.
    `session` is the id of a session, `peer` the client's IP address or `unix`, a reason one of our own.
    """

    def __init__(
        self,
        statistics: Statistics,
        clock: IReactorTime,
        limits: Limits,
        level: NamedConstant = LogLevel.info,
        logger: Logger | None = None,
    ) -> None:
        self.statistics = statistics
        self._clock = clock
        self._logger = logger or Logger(namespace=NAMESPACE)
        self._logs_info = level <= LogLevel.info
        self._logs_warn = level <= LogLevel.warn
        self._refusals = LineBudget(limits.max_log_lines, limits.max_log_lines_per_client)
        # Of its own, so that no flood of refusals hides a fault.
        self._failures = LineBudget(limits.max_log_lines, limits.max_log_lines_per_client)

    # The service.

    def listening(self, endpoint: str, address: str) -> None:
        """A listener takes connections. `endpoint` is the operator's string, `address` what it came to."""
        self._info("listening", {"endpoint": _word(endpoint), "address": _word(address)})

    def ssl_endpoint(self, endpoint: str) -> None:
        """A listener whose TLS is begun by the endpoint: it knows no PROXY header, and keeps its certificate."""
        problem = "no PROXY header is understood there, and its certificate is not read again"
        self._warn("ssl_endpoint", {"endpoint": _word(endpoint)}, problem=problem)

    def delivering(self, delivery: str) -> None:
        """Where messages will go, in the operator's words. Once, at start-up."""
        self._info("delivering", {"delivery": _word(delivery)})

    def filtering(self, ip_filter: str) -> None:
        """An IP filter is asked about every connection, in the order of these lines. Once each, at start-up."""
        self._info("filtering", {"filter": _word(ip_filter)})

    def trying(self, limits: Collection[str]) -> None:
        """Limits are decided and logged, but hold nobody back. Once, at start-up."""
        self._warn("trying", {"limits": ",".join(sorted(limits))})

    def reloaded(self, what: str) -> None:
        """A filter, the delivery or the certificate has been read anew."""
        self._info("reloaded", {"what": _word(what)})

    def reload_failed(self, what: str, problem: str) -> None:
        """A filter, the delivery or the certificate could not be read anew, and the old one goes on."""
        problem = escape_text(problem[:MAX_ERROR_CHARACTERS])
        self._warn("reload_failed", {"what": _word(what)}, problem=problem)

    def no_connection_cap(self, descriptors: int) -> None:
        """No cap on connections is set: the file descriptors that the process may have are the only one."""
        self._warn("no_connection_cap", {"descriptors": descriptors})

    def descriptors_below_cap(self, descriptors: int, cap: int) -> None:
        """The process may not have the file descriptors that its cap on connections would need."""
        self._warn("descriptors_below_cap", {"descriptors": descriptors, "cap": cap})

    def open_relay(self, delivery: str) -> None:
        """Anybody's mail for every domain goes to a server that takes every client for the guard: if it trusts the
        guard, all can send to anywhere through it. At every start."""
        self._warn("open_relay", {"delivery": _word(delivery)})

    def stopped(self) -> None:
        """The last session has ended and the last verdict has come. Logged with all statistics."""
        fields: dict[str, object] = {**self.statistics.snapshot()}
        suppressed = self._refusals.take_suppressed() + self._failures.take_suppressed()
        if suppressed:
            fields["suppressed"] = suppressed
        self._info("stopped", fields)

    # A connection.

    def connect(self, session: str, peer: str, *, trusted: bool = False) -> None:
        """A connection was let in: it is greeted now. `trusted`: an IP filter said so."""
        counts = self.statistics
        counts.connections_accepted += 1
        counts.live_connections += 1
        counts.peak_live_connections = max(counts.peak_live_connections, counts.live_connections)
        if self._logs_info:
            fields: dict[str, object] = {"session": session, "peer": peer}
            if trusted:
                fields["trusted"] = True
            self._info("connect", fields)

    def hangup(self, peer: str, seconds: float) -> None:
        """A client left, `seconds` after it came, before it was let in or refused. Limited as refusals are."""
        self.statistics.hangups += 1
        if self._logs_info and self._refusals.allows(peer, "hangup", self._clock.seconds()):
            self._info("hangup", self._with_suppressed({"peer": peer, "seconds": round(seconds, 3)}))

    def filter_failed(self, ip_filter: str, peer: str, problem: str, *, let_in: bool) -> None:
        """An IP filter raised, did not answer in time, or answered with what is no verdict.

        `let_in`: the operator wrote fail-open for it, so the next one is asked. Limited as failures are.
        """
        if self._logs_warn and self._failures.allows(peer, "filter_failed", self._clock.seconds()):
            fields: dict[str, object] = {"peer": peer, "filter": _word(ip_filter), "problem": _word(problem)}
            fields["outcome"] = "passed" if let_in else "refused"
            suppressed = self._failures.take_suppressed()
            if suppressed:
                fields["suppressed"] = suppressed
            self._warn("filter_failed", fields)

    def login(self, session: str, peer: str, user: str, mechanism: str) -> None:
        """A client has logged in. A failure is a `reject`."""
        if self._logs_info:
            fields: dict[str, object] = {"session": session, "peer": peer, "user": _word(user)}
            self._info("login", {**fields, "mechanism": mechanism})

    def disconnect(self, session: str, peer: str, reason: str, seconds: float, messages: int) -> None:
        """A connection that was let in has ended, after `seconds` and `messages` accepted. Exactly once."""
        counts = self.statistics
        counts.live_connections -= 1
        counts.sessions_ended += 1
        if self._logs_info:
            fields: dict[str, object] = {"session": session, "peer": peer, "reason": reason}
            self._info("disconnect", {**fields, "seconds": round(seconds, 3), "messages": messages})

    def reject(
        self,
        peer: str,
        reason: str,
        *,
        session: str = "",
        dry_run: bool = False,
        ip_filter: str = "",
        reply: Reply | None = None,
        limit: float | str | None = None,
        value: float | None = None,
        command: str = "",
        sender: str | None = None,
        recipient: str | None = None,
        user: str | None = None,
        client_gone: bool = False,
    ) -> None:
        """Something was refused: a connection (the only refusal without a session), a command, a message.

        `limit` is what it went against and `value` what there was. `dry_run`: it was not refused, since the
        limit is only tried. `ip_filter`: which one refused. `client_gone`: a delivery refused a message when
        there was nobody left to tell.
        """
        counts = self.statistics
        refusals = counts.dry_run_refusals if dry_run else counts.refusals
        refusals[reason] = refusals.get(reason, 0) + 1
        if not session and not dry_run:
            counts.connections_refused += 1
        # Under a flood this is where most refusals end, before anything is built.
        if not self._logs_info or not self._refusals.allows(peer, reason, self._clock.seconds()):
            return
        fields: dict[str, object] = {"peer": peer, "reason": reason}
        if dry_run:
            fields["dry_run"] = True
        if session:
            fields["session"] = session
        if ip_filter:
            fields["filter"] = _word(ip_filter)
        if limit is not None:
            fields["limit"] = limit
        if value is not None:
            fields["value"] = value
        if reply is not None:
            fields["code"] = reply.code
        if command:
            fields["command"] = _word(command)
        for name, said in (("sender", sender), ("recipient", recipient), ("user", user)):
            if said is not None:
                fields[name] = _word(said)
        if client_gone:
            fields["client_gone"] = True
        self._info("reject", self._with_suppressed(fields))

    def accept(
        self,
        session: str,
        peer: str,
        *,
        sender: str,
        recipients: Sequence[str],
        octets: int,
        seconds: float,
        client_gone: bool = False,
        late: bool = False,
        user: str | None = None,
    ) -> None:
        """The delivery took a message, `seconds` after its MAIL.

        `client_gone`: the client has not seen the 250. `late`: it has seen a 451 before, for the delivery's
        time was up. Either way it will probably send the message again.
        """
        counts = self.statistics
        counts.messages_accepted += 1
        counts.octets_accepted += octets
        counts.recipients_accepted += len(recipients)
        if not self._logs_info:
            return
        fields: dict[str, object] = {
            "session": session,
            "peer": peer,
            "sender": _word(sender),
            "recipients": len(recipients),
            "first_recipients": ",".join([_item(each) for each in recipients[:MAX_RECIPIENTS_SHOWN]]),
            "octets": octets,
            "seconds": round(seconds, 3),
        }
        if user is not None:
            fields["user"] = _word(user)
        if client_gone:
            fields["client_gone"] = True
        if late:
            fields["late"] = True
        self._info("accept", fields)

    def failure(self, failure: Failure, text: str, session: str = "", peer: str = "") -> None:
        """Something raised that should not have: our fault, or a delivery's. Logged with its traceback.

        `text` says what was being done. Limited as refusals are: a client that finds a fault of ours must not
        fill the disk with it.
        """
        self.statistics.failures += 1
        if not self._failures.allows(peer, "failure", self._clock.seconds()):
            return
        fields: dict[str, Any] = {}
        if session:
            fields["session"] = session
        if peer:
            fields["peer"] = peer
        suppressed = self._failures.take_suppressed()
        if suppressed:
            fields["suppressed"] = suppressed
        line = f"{_line('failure', fields)} {escape_text(text)}"
        failure, error = _escaped(failure)
        self._logger.failure(LINE, failure, text=line, event="failure", **fields, error=error)

    def _with_suppressed(self, fields: dict[str, object]) -> dict[str, object]:
        suppressed = self._refusals.take_suppressed()
        if suppressed:
            fields["suppressed"] = suppressed
        return fields

    def _info(self, event: str, fields: Mapping[str, object]) -> None:
        if self._logs_info:
            self._log(LogLevel.info, event, _line(event, fields), fields)

    def _warn(self, event: str, fields: Mapping[str, object], **sentence: str) -> None:
        if self._logs_warn:
            line = " ".join([_line(event, fields), *sentence.values()])
            self._log(LogLevel.warn, event, line, {**fields, **sentence})

    def _log(self, level: NamedConstant, event: str, line: str, fields: Mapping[str, object]) -> None:
        """As `Logger.emit` does it, which copies all fields twice and sorts all levels for each event."""
        logger = self._logger
        logger.observer(
            {
                "text": line,
                "event": event,
                **fields,
                "log_logger": logger,
                "log_level": level,
                "log_namespace": logger.namespace,
                "log_source": logger.source,
                "log_format": LINE,
                "log_time": self._clock.seconds(),
            }
        )


class LineBudget:
    """How many lines may be logged in each second of the clock: in all, and for each client and reason.

    0 is no limit. It holds one key a line logged in the current second, and never more than MAX_TABLE_KEYS.
    """

    def __init__(self, lines: int, lines_per_client: int) -> None:
        self._suppressed = 0
        self._max_lines = lines
        self._max_lines_per_client = lines_per_client
        self._second = -1
        self._lines = 0
        self._lines_by_client: dict[tuple[str, str], int] = {}

    def allows(self, peer: str, reason: str, now: float) -> bool:
        """Whether a line may be logged now. If so it counts as logged, if not as left out."""
        second = int(now)
        if second != self._second:
            self._second = second
            self._lines = 0
            self._lines_by_client.clear()
        # First, so that a flood from ever new addresses adds no key once the second is used up.
        if self._lines >= self._max_lines > 0:
            self._suppressed += 1
            return False
        if self._max_lines_per_client:
            client = (peer, reason)
            lines = self._lines_by_client.get(client, 0)
            if lines >= self._max_lines_per_client:
                self._suppressed += 1
                return False
            if len(self._lines_by_client) >= MAX_TABLE_KEYS:
                self._lines_by_client.clear()
            self._lines_by_client[client] = lines + 1
        self._lines += 1
        return True

    def take_suppressed(self) -> int:
        """How many lines were left out since this was last asked."""
        suppressed, self._suppressed = self._suppressed, 0
        return suppressed


def _line(event: str, fields: Mapping[str, object]) -> str:
    words = [
        f"{name}={value if type(value) in _SHOWN_AS_THEY_ARE else _shown(value)}"
        for name, value in fields.items()
    ]
    return " ".join([event, *words])


_SHOWN_AS_THEY_ARE = frozenset({str, int, float})


def _shown(value: object) -> object:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return ",".join([f"{key}:{count}" for key, count in value.items()])
    return value


def _word(text: str) -> str:
    if len(text) > MAX_VALUE_CHARACTERS:
        return escape_word(text[:MAX_VALUE_CHARACTERS]) + "..."
    return escape_word(text)


def _item(text: str) -> str:
    """A word in a list of words. A quoted local part may hold a comma (RFC 5321 4.1.2)."""
    return _word(text).replace(",", "\\x2c")


def _escaped(failure: Failure) -> tuple[Failure, str]:
    """The failure with nothing raw in its traceback, and its type and message as one line.

    A message may repeat what a client sent; everything else in a traceback comes from source files.
    """
    kind = type(failure.value).__name__
    raw = safe_str(failure.value)
    message = escape_text(raw[:MAX_ERROR_CHARACTERS])
    if message != raw:
        # In a copy, with its type and its frames: the raiser's own stays as it was.
        failure = Failure(failure)
        failure.value = Exception(message)
    return failure, f"{kind}: {message}"
