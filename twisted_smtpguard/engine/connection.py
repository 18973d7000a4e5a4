"""The state of one connection and of its session, and the steps that every stage may take.

`Engine` adds the inputs of the host. Both are one object: beside it an idle connection needs only its host, its
transport and its deadline.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from twisted_smtpguard.engine.datarate import DataRate
from twisted_smtpguard.engine.port import Cancellable
from twisted_smtpguard.engine.stages import ENDED, IN_TRANSACTION, Phase, Stage, StageRow
from twisted_smtpguard.engine.standing import ClientStanding
from twisted_smtpguard.engine.timers import NO_TIMER, ChangedLimit
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.values import Client, Path

_NO_SENDER = Path("", {})
NOTHING: frozenset[str] = frozenset()
_NO_RECIPIENTS: list[str] = []
"""The recipients of every session before its first MAIL, which gives the session its own list."""

SHARE = 64
"""What a connection may do in one turn of the reactor, counted in short commands. 64 KiB of message data, the most
that arrives at once, are one share too."""

HELD_BY_TURN = 1
"""The connection has used up its share of this turn of the reactor."""
HELD_BY_OUTPUT = 2
"""So many replies wait for the client to read them that no further command is executed."""


@attrs.define(eq=False, repr=False, weakref_slot=False)
class Connection(ClientStanding):
    """One connection and its session. Its effects go to `host`; `peer_name` is the client's name in the log."""

    port: int | None = None
    """The client's port; None for a UNIX socket."""
    listener: str = ""
    """The name in the log of the listener that accepted the connection."""
    implicit_tls: bool = False
    """Whether TLS comes before the greeting."""
    stage: Stage = Stage.ACCEPTED
    row: StageRow = attrs.field(init=False)
    stage_before: Stage = Stage.ACCEPTED
    """The stage that the connection goes back to when a skipped line has ended."""
    phase: Phase = Phase.CONNECTED
    began_at: float = attrs.field(init=False)
    # Input and output.
    buffer: bytes = b""
    offset: int = 0
    """How many octets of the buffer have been taken."""
    unwritten: bytes = b""
    """Replies that have not been written yet."""
    busy: bool = False
    """Whether an input is being carried out."""
    queue: list[Callable[[], object]] | None = None
    """Inputs that wait until the current one is complete; None if there are none."""
    held: int = 0
    """The reasons why no more input may be taken now: HELD_BY_TURN, HELD_BY_OUTPUT, both, or 0 for none."""
    share: int = 0
    """What is left of the connection's share of this turn of the reactor, in short commands."""
    paused: bool = False
    """Whether the host has been told to stop reading the client."""
    input_ended: bool = False
    """Whether the client has half-closed the connection."""
    end_announced: bool = False
    """Whether the kernel has reported the client's half-close. Octets that it sent before may still be unread."""
    progress: bool = True
    """Whether the deadline is to be extended: the client has sent what was due, or a new stage was entered."""
    timed: str = ""
    """The name in `ServerContext.timeouts` of the running time limit; "" for none."""
    timer: Any = NO_TIMER
    """The deadline of that time limit."""
    time_limit: float = 0.0
    """Seconds from the last progress to the deadline."""
    unsettled: bool = True
    """Whether more than the deadline has to be settled, such as a new stage or the end of the input."""
    progress_octets: int = 0
    """Octets of message data without a line end since the last progress."""
    skipped: int = 0
    """The octets of the skipped line that have been thrown away."""
    skipped_for: Reply | None = None
    """The reply that is due at the end of the skipped line; None if it has been given."""
    # The client and its admission.
    behind_proxy: bool = False
    """Whether the connection comes from a trusted proxy, and so begins with a PROXY header."""
    beginning: bytes = b""
    """Empty lines that have been answered and may be the beginning of an unexpected PROXY header."""
    admitted: bool = False
    place: Any = None
    """The `Place` of this connection among those that its client may have at once."""
    tls: str = ""
    """TLS version and cipher; "" without TLS."""
    secure: bool = False
    """Whether the TLS handshake with the guard is complete. A proxy's handshake does not count."""
    handshaking: bool = False
    """Whether a TLS handshake has begun and is not complete."""
    delay: Cancellable | None = None
    """The call that ends the greet delay, while it runs."""
    refused: bool = False
    """Whether the connection was refused before its greeting. That has been logged."""
    seated: bool = True
    """Whether the connection has its seat for good. Above the seats of strangers it has one until it is decided whether
    it may."""
    holds_slot: bool = True
    """Whether the connection counts against `Limits.max_connections`."""
    grace_over: bool = False
    """Whether the grace of a stop is over, so that the service no longer waits for lingering clients."""
    lingers: bool = False
    """Whether the connection counts against `Limits.max_lingering`."""
    end_reason: str = "lost"
    """The reason in the log for the end of the connection."""
    # The session.
    name: str = ""
    """The name of the session in the log; "" before the greeting."""
    helo: str = ""
    known_client: Client | None = None
    """The `Client` that the delivery gets for messages without SMTPUTF8; None until it is first needed."""
    offered: frozenset[str] = NOTHING
    """The MAIL parameters that the reply to EHLO has offered; none before EHLO."""
    user: Any = None
    """The user who has logged in."""
    mechanism: str = ""
    """The mechanism of the last AUTH that succeeded."""
    policed: Any = None
    """The `PolicyState`; None before a policy was first asked."""
    auth: Any = None
    """The exchange of AUTH, while a response is due; else None."""
    failures: int = 0
    """The number of wrong credentials in this session."""
    messages: int = 0
    """The number of accepted messages."""
    vouched: bool = False
    """Whether the session's accepted mail has made its client known, so that its further mail need not."""
    recipients_accepted: int = 0
    """The number of their recipients."""
    transactions: int = 0
    """The number of mail transactions that have begun: MAIL commands that were accepted."""
    pending: Any = None
    """The `Wait` for the hook whose answer is needed to go on; None if there is none."""
    hook_timer: Any = None
    """The call that looks whether the time of a pending hook is over; None if there is none."""
    hooks_at_work: int = 0
    """The number of hooks of the delivery that have not answered, cancelled ones included."""
    owes_session_ended: bool = False
    """Whether `session_ended()` has yet to be called, because `begin()` was."""
    # The mail transaction.
    mail: Any = None
    """The `IMailTransaction` until its `data()` is called, and then the `IMessageSink` until the end of the message."""
    message: Any = None
    """The `IncomingMessage`, from DATA or the first BDAT to the verdict."""
    sender: Path = _NO_SENDER
    recipients: list[str] = _NO_RECIPIENTS
    """The accepted recipients."""
    utf8: bool = False
    """Whether the transaction was begun with SMTPUTF8."""
    mail_began_at: float = 0.0
    rate: DataRate | None = None
    """The watch on the rate of message data; None if there is no limit."""
    # Counts and values for the log.
    command: Any = None
    """The row of the last command; None if the last line was no command."""
    phase_before: Phase = Phase.CONNECTED
    """The phase in which the last command came."""
    after_auth: bool = False
    """Whether the last valid command was AUTH, or a line since looked like it. An unknown line may then be a
    password, and is not logged."""
    unknown: bytes = b""
    """The unknown verb of the last line, if it was no command."""
    parameter: str = ""
    """The MAIL or RCPT parameter that was refused with a 555, until it is logged."""
    recipient: str | None = None
    """The address in the last RCPT."""
    user_tried: str | None = None
    """The user name in the last AUTH."""
    value: float | None = None
    """The value that exceeded a limit, for the log."""
    network: str = ""
    """The network of the client that has exceeded it, for the log; "" for the client itself."""
    reason: str = ""
    """The reason in the log for the reply to the last command; "" for the one that the catalogue has."""
    invalid_commands: int = 0
    rejected_recipients: int = 0
    errors: int = 0
    junk: int = 0
    is_junk: bool = False
    """Whether the last command counts as junk."""
    account_next: bool = False
    """Whether the next reply passes through `account` even if it is a success."""
    account_all: bool = False
    """Whether every reply passes through `account`: the service stops, or the session time is over."""
    closing_reply: Reply | None = None
    """The reply that ends the session after the next one, whatever the counts say; None for none."""
    dry_run_logged: frozenset[str] = NOTHING
    """Limits in dry run that have been logged in this session. One that would have ended it is logged once."""

    def __attrs_post_init__(self) -> None:
        self.row = self.context.stages[self.stage]
        self.began_at = self.context.seconds()

    # Properties.

    @property
    def names_client(self) -> bool:
        """Whether the address is that of the client, and not of a proxy that has named none, as for its own checks."""
        peer = self.known_peer
        return not self.behind_proxy or (peer is not None and peer.proxied)

    @property
    def awaits_verdict(self) -> bool:
        """Whether the verdict on a message is pending and the session has not ended."""
        return self.pending is not None and self.pending.finishes and self.stage not in ENDED

    @property
    def owes_reply(self) -> bool:
        """Whether a client whose TLS connection ended without close_notify may still read a reply. While a hook is
        pending this holds for `finish()` only: nothing but the verdict on a whole message is worth waiting for."""
        return self.name != "" and self.stage not in ENDED and (self.pending is None or self.pending.finishes)

    @property
    def gone(self) -> bool:
        """Whether the connection is closing, lingering or closed."""
        return self.stage in ENDED

    @property
    def idle(self) -> bool:
        """Whether the session can be ended at once: it is greeted, outside a mail transaction, and awaits no hook. In a
        TLS handshake the client could hear no reply, and the handshake has its own time limit."""
        busy = (
            self.pending is not None
            or self.row.in_message
            or self.phase in IN_TRANSACTION
            or self.handshaking
        )
        return self.name != "" and not (busy or self.stage in ENDED)

    @property
    def is_over_time(self) -> bool:
        """Whether the session has lasted for as long as it may."""
        return 0 < self.limits.max_session_time <= self.context.seconds() - self.began_at

    @property
    def idle_since(self) -> float | None:
        """When the client sent its last whole command; None if the session cannot be ended for another now: it is not
        idle, or its last reply could not be sent at once."""
        if not self.idle or self.busy or self.held or self.timer is NO_TIMER or not self.host.idle:
            return None
        since: float = self.timer.when - self.time_limit
        return since

    @property
    def is_full(self) -> bool:
        """Whether the untaken input has reached `Limits.max_input_buffer`. Under TLS also whether the client does not
        read: TLS answers some input itself, such as KeyUpdate (RFC 8446 4.6.3), and would do so without end."""
        if self.secure and self.held & HELD_BY_OUTPUT:
            return True
        return 0 < self.context.limits.max_input_buffer <= len(self.buffer) - self.offset

    # Steps.

    def enter(self, stage: Stage) -> None:
        """Change the stage; nothing else does. Its deadline and reading are settled when the input is complete."""
        row = self.context.stages[stage]
        assert self.stage in row.follows, f"{self.stage} -> {stage}"
        if row.needs != self.row.needs:
            self.unsettled = True
        self.stage = stage
        self.row = row
        self.progress = True

    def set_deadline(self, timeout: str) -> None:
        """Start the time limit with this name in `ServerContext.timeouts`; "" stops the one that runs."""
        if self.handshaking and not timeout:
            # The handshake deadline of a TLS endpoint keeps running during admission and the greet delay.
            return
        self.timed = timeout
        self.time_limit = self.timeouts[timeout]
        self.timer = self.host.deadline(self.time_limit) or NO_TIMER

    def time_limits_changed(self, soonest: float) -> None:
        """Called when stress begins or ends. The deadline that runs moves with its time limit, which for a stranger has
        become shorter or longer, but not to a time before `soonest`, which is later than now."""
        limit = self.timeouts[self.timed]
        if limit != self.time_limit:
            due = self.timer.when + limit - self.time_limit
            self.set_deadline(self.timed)
            if limit and self.timer is not NO_TIMER and self.timer.when > due:
                seconds = max(due, soonest) - self.context.seconds()
                self.timer = self.host.deadline(seconds) or NO_TIMER

    def limits_changed(self) -> None:
        """Called when the guard's limits have been swapped for others."""
        self.known_network = ""
        if self.timed:
            self.timer = ChangedLimit(self)
        if self.rate is not None:
            self.rate.outdated = True

    def stop_hook_timer(self) -> None:
        """Called when no hook with a time limit will be waited for any more."""
        if self.hook_timer is not None:
            self.hook_timer.cancel()
            self.hook_timer = None

    def resume(self) -> None:
        """Read the client again, if it is not read."""
        if self.paused:
            self.paused = False
            self.host.resume()

    def flush(self) -> None:
        """Write the queued replies."""
        octets, self.unwritten = self.unwritten, b""
        if self.host.write(octets):
            self.held |= HELD_BY_OUTPUT
            self.unsettled = True

    def has_share_left(self, cost: int) -> bool:
        """Take `cost` from the connection's share of the turn. Returns whether the connection may continue; otherwise
        it waits for its next turn, or for the client to read its replies."""
        if len(self.unwritten) >= self.context.max_unwritten:
            self.flush()
            if self.held:
                return False
        self.share -= cost
        if self.share > 0:
            return True
        self.wait_for_turn()
        return False

    def wait_for_turn(self) -> None:
        """Take no more input until the connection's next turn, because its share is used up."""
        self.held |= HELD_BY_TURN
        self.unsettled = True
        self.host.next_turn()

    # The mail transaction.

    def reset(self) -> None:
        """End the mail transaction, if there is one, and call the delivery's `abort()` unless it has had its end."""
        if self.mail is not None:
            self.drop_mail()
        self.message = None
        self.utf8 = False
        if self.rate is not None:
            self.rate.end()
        self.phase = Phase.READY if self.helo else Phase.CONNECTED

    def drop_mail(self) -> None:
        """As `abort_mail`, where the client has ended the transaction or has left it."""
        if self.mail is not None and self.message is not None:
            self.context.measured.messages["aborted"] += 1
        self.abort_mail()

    def abort_mail(self) -> None:
        """Call `abort()` of the transaction's sink or IMailTransaction, unless it has had its end already."""
        given, self.mail = self.mail, None
        if given is not None:
            self.abort_given(given)

    def abort_given(self, given: Any) -> None:
        """Call `abort()` of an object that a hook has returned. An exception is only logged."""
        try:
            given.abort()
        except BaseException as error:  # noqa: BLE001 - a delivery's bug must not keep the rest from being released
            self.delivery_failed(error, "abort() raised")

    def delivery_failed(self, error: BaseException, what: str) -> None:
        """Log an exception of the delivery with its traceback."""
        self.log_failure(error, f"the delivery failed: {what}")

    def log_failure(self, error: BaseException, what: str) -> None:
        """Log an exception of the guard or of foreign code with its traceback."""
        self.context.events.failure(error, what, self.name, self.peer_name)

    def notify_session_ended(self) -> None:
        """Call the delivery's `session_ended()` once, when the session is over and every hook has answered."""
        if self.owes_session_ended and self.stage in ENDED and not self.hooks_at_work:
            self.owes_session_ended = False
            session_ended = self.context.session_ended
            assert session_ended is not None
            try:
                session_ended(self.name)
            except BaseException as error:  # noqa: BLE001 - a delivery's bug must not keep the connection from ending
                self.delivery_failed(error, "session_ended() raised")
