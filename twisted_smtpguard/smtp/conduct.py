"""How a client behaves: what is counted and logged against its session, and when that is enough."""

from __future__ import annotations

from twisted_smtpguard.admission.visitor import Visitor
from twisted_smtpguard.smtp import replies
from twisted_smtpguard.smtp.commands import Command
from twisted_smtpguard.smtp.replies import Reply
from twisted_smtpguard.smtp.site import Site


class Conduct:
    """The counts of one session, and what the log says of its refusals. A limit N trips at the N-th event."""

    # Ten thousand idle sessions have these; what follows only who has given cause for it.
    __slots__ = (
        "__dict__",
        "_command",
        "_junk",
        "_session",
        "_site",
        "_visitor",
        "recipient",
        "sender",
        "unremarkable",
    )

    invalid_commands = 0
    """Unrecognized, malformed as lines, or out of sequence; in the whole session."""
    rejected_recipients = 0
    """Refused for good by the delivery; in the whole session."""
    errors = 0
    """Error replies, and junk commands above their limit, since the last accepted message."""
    junk = 0
    """Commands that bring no message closer, since the last accepted message."""
    user: str | None = None
    """Who the client has last tried to be, for the log."""
    value: float | None = None
    """What went against a limit, for the log. Of a reply that has no account nothing did."""
    parameter = ""
    """What a 555 was for, for the log."""
    unknown = b""
    """The verb of a line that is no command, for the log."""
    _after_auth = False
    """An AUTH was the last command that there is. What comes after it may be a password, whatever was answered."""
    behind: Reply | None = None
    """What ends the session behind the reply, whatever was counted."""
    value_behind: float | None = None
    """What went against the limit of that, for the log."""
    _time_is_up = False
    _tried: frozenset[str] = frozenset()

    def __init__(self, site: Site, session: str, visitor: Visitor) -> None:
        self._site = site
        self._session = session
        self._visitor = visitor
        self._command: Command | None = None
        self._junk = False
        self.unremarkable = True
        """No reply below 400 to the command needs an account."""
        self.sender: str | None = None
        """Whose transaction it was about, for the log."""
        self.recipient: str | None = None
        """Whom a RCPT was about, for the log."""

    def begin(self, command: Command | None, junk: bool, sender: str | None) -> None:
        """A command comes, or a line that is none. What follows is about it. `sender`: of the transaction."""
        self._command = command
        self._junk = junk
        self.unremarkable = not (junk or self._time_is_up)
        self.sender = sender
        self.recipient = None
        if command is not None and (self._after_auth or command.verb == "AUTH"):
            self._after_auth = command.verb == "AUTH"

    def time_over(self) -> None:
        """The session time has passed; it ends between transactions."""
        self._time_is_up = True
        self.unremarkable = False

    def invalid(self, reply: Reply) -> Reply:
        """Count an invalid command that gets `reply`, and hand that back."""
        self.invalid_commands += 1
        return reply

    def message_accepted(self) -> None:
        """An accepted message makes up for errors and junk."""
        if self.errors or self.junk:
            self.errors = self.junk = 0

    def account(self, reply: Reply, reason: str, *, between: bool) -> Reply | None:
        """Count and log a reply that is about to be written; what comes back ends the session behind it.

        It counts once, by its class, whoever made it; one that ends the session is not counted. `between`: no
        transaction is open.
        """
        if reply.code >= 400:
            self.log(reason or replies.reason_of(reply), reply)
        if reply.closes:
            # RFC 5321 3.8: in a session nothing but a 421 announces that we hang up.
            return None if reply.code == 421 else replies.SESSION_REFUSED
        self.junk += self._junk
        # That we cannot judge credentials is our fault.
        error = reply.code >= 400 and reply is not replies.AUTH_UNAVAILABLE
        if error or (self._junk and self._too_much_junk()):
            self.errors += 1
        self._junk = False
        self.value = None
        behind = self._verdict(between)
        if behind is not None:
            self.log(replies.reason_of(behind), behind)
        return behind

    def _verdict(self, between: bool) -> Reply | None:
        """Where one command trips two limits, that on invalid commands gives the reply."""
        if self.behind is not None:
            self.value = self.value_behind
            return self.behind
        limits, trips = self._site.limits, self.trips
        if not self._visitor.trusted:
            # Plainly, one after the other: this is asked at every reply.
            count = self.invalid_commands
            if 0 < limits.max_invalid_commands <= count and trips("max_invalid_commands", count, once=True):
                return replies.TOO_MANY_INVALID_COMMANDS
            count = self.rejected_recipients
            if 0 < limits.max_rejected_recipients <= count and trips(
                "max_rejected_recipients", count, once=True
            ):
                return replies.TOO_MANY_REJECTED_RECIPIENTS
            count = self.errors
            if 0 < limits.max_errors <= count and trips("max_errors", count, once=True):
                return replies.TOO_MANY_ERRORS
        if between and self._site.draining:
            return replies.SHUTTING_DOWN
        if between and self._time_is_up and self.trips("max_session_time", once=True):
            return replies.SESSION_TOO_LONG
        return None

    def _too_much_junk(self) -> bool:
        limit = self._site.limits.max_junk_commands
        over = 0 < limit < self.junk and not self._visitor.trusted
        return over and self.trips("max_junk_commands", self.junk, once=True)

    def trips(self, limit: str, value: float | None = None, *, once: bool = False) -> bool:
        """Whether the limit that `value` went against is enforced. One that is only tried is logged instead:
        `once` in a session, where it would have ended it."""
        self.value = value
        if limit not in self._site.limits.dry_run:
            return True
        if not (once and limit in self._tried):
            self._tried |= {limit}
            self.log(limit, dry_run=True)
        self.value = None
        return False

    def log(
        self, reason: str, reply: Reply | None = None, *, client_gone: bool = False, dry_run: bool = False
    ) -> None:
        """Log and count a refusal. `reply` None: there was nobody to say it to, or `dry_run`: nothing is refused."""
        site, visitor = self._site, self._visitor
        command = self._command.verb if self._command else ""
        if self.unknown and not (command or self._after_auth):
            command = self.unknown.decode("ascii")
        parameter = self.parameter
        if parameter:
            self.parameter = ""
        site.events.reject(
            visitor.name,
            reason,
            session=self._session,
            dry_run=dry_run,
            helo=visitor.helo,
            tls=visitor.tls,
            reply=reply,
            limit=site.limits.shown(reason),
            value=self.value,
            command=command,
            parameter=parameter,
            sender=self.sender,
            recipient=self.recipient,
            user=self.user if command == "AUTH" else None,
            client_gone=client_gone,
            hint=replies.hint_of(reason, self._visitor.name),
        )
