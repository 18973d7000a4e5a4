"""One connection and its session: everything that is true of it, and the inputs that its host gives it.

What arrives is taken by the stage that the connection is in; `enter` changes the stage, `reply` says something, `wait`
waits for a hook. All that is said to one arrival leaves in one write.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted_smtpguard import replies
from twisted_smtpguard.engine import counts
from twisted_smtpguard.engine.context import ServerContext
from twisted_smtpguard.engine.port import Cancellable, Close, Host
from twisted_smtpguard.engine.refusal import Refusal, refusal_of
from twisted_smtpguard.engine.stages import ENDED, IN_TRANSACTION, Phase, Stage, StageRow
from twisted_smtpguard.engine.waiting import Then, Wait
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.values import Client, Path, Peer

NOBODY = Path("", {})
_NOTHING: frozenset[str] = frozenset()
_NO_RECIPIENTS: list[str] = []
"""Of a session before its first MAIL, which brings a list of its own."""

SHARE = 64
"""Of one turn of the reactor, in short commands, the first of an arrival included. A whole arrival of 64 KiB of message
data is one share too."""

HELD_BY_TURN = 1
"""The connection has had its share of this turn of the reactor."""
HELD_BY_OUTPUT = 2
"""The client has not read so many replies that no more commands are executed."""


class _NoTimer:
    """In the place of a deadline where there is none."""

    when = 0.0


NO_TIMER = _NoTimer()


class Engine:
    """One connection. `host` is what it has its effects on; `peer_name` is what the log calls the client.

    An input that a hook causes while another input is carried out waits until that is done: no hook ever sees, or
    changes, a half-done step.
    """

    __slots__ = (
        "admitted",
        "after_auth",
        "auth",
        "began_at",
        "beginning",
        "behind_proxy",
        "buffer",
        "busy",
        "closing_reply",
        "closing_value",
        "command",
        "context",
        "delay",
        "end_announced",
        "end_reason",
        "errors",
        "failures",
        "handshaking",
        "held",
        "helo",
        "holds_slot",
        "hooks_at_work",
        "host",
        "hurried",
        "implicit_tls",
        "input_ended",
        "invalid_commands",
        "is_junk",
        "junk",
        "known_client",
        "known_key",
        "known_peer",
        "lingers",
        "listener",
        "mail",
        "mail_began_at",
        "message",
        "messages",
        "name",
        "offered",
        "offset",
        "owes_farewell",
        "parameter",
        "paused",
        "peer_name",
        "pending",
        "phase",
        "phase_before",
        "place",
        "port",
        "progress",
        "progress_octets",
        "queue",
        "rate",
        "recipient",
        "recipients",
        "refused",
        "rejected_recipients",
        "row",
        "said",
        "secure",
        "sender",
        "share",
        "silent",
        "sink",
        "skipped",
        "skipped_for",
        "stage",
        "stage_before",
        "time_limit",
        "timed",
        "timer",
        "tls",
        "transactions",
        "tried",
        "trusted",
        "unknown",
        "unsettled",
        "user",
        "user_tried",
        "utf8",
        "value",
        "watched",
        "watches",
    )

    def __init__(
        self,
        context: ServerContext,
        host: Host,
        peer_name: str,
        *,
        port: int | None = None,
        listener: str = "",
        implicit_tls: bool = False,
    ) -> None:
        self.context = context
        self.host = host
        self.peer_name = peer_name
        self.port = port
        """The client's; None where it came over a UNIX socket."""
        self.listener = listener
        """What the log calls the listener at which it came."""
        self.implicit_tls = implicit_tls
        """TLS comes before the greeting."""
        self.stage = Stage.ACCEPTED
        self.row = context.stages[Stage.ACCEPTED]
        self.stage_before = Stage.ACCEPTED
        """Of a skipped line."""
        self.phase = Phase.CONNECTED
        self.began_at = context.seconds()
        # Input and output.
        self.buffer = b""
        self.offset = 0
        """How much of the buffer has been taken."""
        self.said = b""
        """What has been said and not been written yet."""
        self.busy = False
        self.queue: list[Callable[[], object]] | None = None
        """Inputs that wait until another has been carried out."""
        self.held = 0
        """Why nothing more may be taken now."""
        self.share = 0
        """What is left of the connection's share of this turn of the reactor, in short commands."""
        self.paused = False
        """The client is not read."""
        self.input_ended = False
        """The client has shut down its side."""
        self.end_announced = False
        """It has, but what it sent before that may be still unread."""
        self.progress = True
        """The client has sent what was due, or the stage is a new one: its time begins anew."""
        self.timed = ""
        """Which of `ServerContext.timeouts` runs."""
        self.timer: Any = NO_TIMER
        """The deadline that it runs to."""
        self.time_limit = 0.0
        """Seconds to it from the last progress."""
        self.unsettled = True
        """More is to be seen to than the deadline: a new stage, an end of the input, or that nothing may be taken."""
        self.progress_octets = 0
        """Of message data without a line end, since the last progress."""
        self.skipped = 0
        """Octets of the line that is being thrown away."""
        self.skipped_for: Reply | None = None
        """What is said when it has ended."""
        # Who the client is.
        self.behind_proxy = False
        """The connection began with the header of a proxy."""
        self.silent = False
        """It is the proxy's own, and has said nothing yet."""
        self.beginning = b""
        """Of what the client sent, where a PROXY header may have begun with lines that were answered."""
        self.known_peer: Peer | None = None
        self.known_key = ""
        self.admitted = False
        self.trusted = False
        """An IP filter said so."""
        self.place: Any = None
        """Among the connections that its client may have at once."""
        self.tls = ""
        """How what is said is encrypted; "": it is not."""
        self.secure = False
        """A handshake with us is complete."""
        self.handshaking = False
        """A TLS handshake has begun and is not complete."""
        self.delay: Cancellable | None = None
        """The greet delay."""
        self.refused = False
        self.holds_slot = True
        self.hurried = False
        """The service does not wait for a client that lingers."""
        self.lingers = False
        """It counts among those that may linger."""
        self.end_reason = "lost"
        """Why the connection ends, for the log."""
        # The session.
        self.name = ""
        """The session's, from the greeting on."""
        self.helo = ""
        self.known_client: Client | None = None
        """The session as most of its messages know it."""
        self.offered = _NOTHING
        """MAIL parameters that may be used: none before EHLO."""
        self.user: Any = None
        """Who has logged in."""
        self.auth: Any = None
        """The exchange of AUTH, while a response is due."""
        self.failures = 0
        """Wrong credentials, in the whole session."""
        self.messages = 0
        """Accepted ones."""
        self.transactions = 0
        """That were begun."""
        self.pending: Wait | None = None
        self.hooks_at_work = 0
        """Of the delivery; those count for whose answer nobody waits any more, too."""
        self.owes_farewell = False
        """`begin()` has been called, and `session_ended()` has not."""
        # The mail transaction.
        self.mail: Any = None
        """The IMailTransaction, until `data()` is called."""
        self.sink: Any = None
        """The IMessageSink, until the end of the message."""
        self.message: Any = None
        """The message, from DATA or the first BDAT to the verdict."""
        self.sender = NOBODY
        self.recipients = _NO_RECIPIENTS
        """Accepted ones."""
        self.utf8 = False
        """The transaction was begun with SMTPUTF8."""
        self.mail_began_at = 0.0
        self.rate: Any = None
        """Watches how fast message data comes."""
        # What is counted, and told in the log.
        self.command: Any = None
        self.phase_before = Phase.CONNECTED
        """When the command came."""
        self.after_auth = False
        """The last command that there is was AUTH: what comes after it may be a password."""
        self.unknown = b""
        """The verb of a line that is no command."""
        self.parameter = ""
        """What a 555 was for."""
        self.recipient: str | None = None
        """Whom the last RCPT was about."""
        self.user_tried: str | None = None
        """Who the client has last tried to be."""
        self.value: float | None = None
        """What went against a limit."""
        self.invalid_commands = 0
        self.rejected_recipients = 0
        self.errors = 0
        self.junk = 0
        self.is_junk = False
        """The command counts as junk."""
        self.watched = False
        """The next reply is looked at, whatever it is."""
        self.watches = False
        """Every reply is: the service stops, or the session has had its time."""
        self.closing_reply: Reply | None = None
        """What ends the session after the reply, whatever was counted."""
        self.closing_value: float | None = None
        self.tried = _NOTHING
        """Limits in dry run that would have ended the session."""

    # What is known of the client.

    @property
    def peer(self) -> Peer:
        """What filters and deliveries are told. Costs a system call, so it is asked for when it is first needed."""
        if self.known_peer is None:
            self.known_peer = self.host.peer()
        return self.known_peer

    @property
    def key(self) -> str:
        """The client that the limits per client count for."""
        if not self.known_key:
            peer = self.known_peer
            address = self.host.address() if peer is None else peer.address
            self.known_key = self.context.clients.key_of(address)
        return self.known_key

    @property
    def awaits_verdict(self) -> bool:
        """The delivery is deciding on a message, and the client is still there to hear of it."""
        return self.pending is not None and self.pending.finishes and self.stage not in ENDED

    @property
    def owes_reply(self) -> bool:
        """A reply is due that a client may still read whose TLS connection has ended without close_notify. Only a whole
        message is worth waiting for."""
        return self.name != "" and self.stage not in ENDED and (self.pending is None or self.pending.finishes)

    @property
    def gone(self) -> bool:
        """The connection is refused, ending or gone."""
        return self.stage in ENDED

    @property
    def idle(self) -> bool:
        """Greeted, between transactions, with nothing pending: the session may be ended."""
        busy = self.pending is not None or self.row.in_message or self.phase in IN_TRANSACTION
        return self.name != "" and not (busy or self.stage in ENDED)

    # Inputs.

    def input(self, function: Callable[..., object], *arguments: object) -> None:
        """Carry out one input, then those that it has caused."""
        if self.busy:
            self._postpone(partial(function, *arguments))
            return
        self.busy = True
        try:
            function(*arguments)
        except BaseException as error:  # noqa: BLE001 - our own fault must not end the process or another session
            self._recover(error)
        self.busy = False
        if self.queue is not None:
            self._serve_queue()

    def received(self, octets: bytes) -> None:
        """Octets have come from the client."""
        if self.busy:
            self._postpone(partial(self.received, octets))
            return
        self.busy = True
        if self.buffer:
            self.buffer = self.buffer[self.offset :] + octets
            self.offset = 0
        else:
            self.buffer = octets
        try:
            self.advance()
        except BaseException as error:  # noqa: BLE001 - as in `input`
            self._recover(error)
        self.busy = False
        if self.queue is not None:
            self._serve_queue()

    def _recover(self, error: BaseException) -> None:
        """An input could not be carried out. The next ones can, the end of the connection above all."""
        try:
            self._fault(error)
            self.advance()
        except BaseException:  # noqa: BLE001 - what has failed once fails again
            if self.stage is not Stage.CLOSED:
                self.abort()

    def _postpone(self, call: Callable[[], object]) -> None:
        if self.queue is None:
            self.queue = []
        self.queue.append(call)

    def _serve_queue(self) -> None:
        queue, self.queue = self.queue or [], None
        for call in queue:
            call() if call.func == self.received else self.input(call)  # type: ignore[attr-defined]

    def take_turn(self) -> None:
        """The other connections have had their turn."""
        self.held &= ~HELD_BY_TURN
        self.input(self.advance)

    def drained(self) -> None:
        """The client has taken all that was written."""
        self.held &= ~HELD_BY_OUTPUT
        self.input(self.advance)

    def stalled(self) -> None:
        """The client has taken none of the waiting replies for the time limit on writing."""
        if self.name:
            counts.log(self, "write_timeout")
        self.end_reason = "write_timeout"
        self.input(self.abort)

    def ended(self) -> None:
        """The client has shut down its side, and may go on reading."""
        self.input_ended = self.unsettled = True
        if self.stage in ENDED:
            self.host.close(Close.PLAIN)
        else:
            self.input(self._ended)

    def _ended(self) -> None:
        if not self.name:
            # Before the greeting no reply is due, whatever was sent ahead.
            self.close(Close.PLAIN)
        elif self.held or self.pending is not None:
            row, message = self.row, self.message
            if row.in_message and not (message.ended or message.ends_within(self.buffer[self.offset :])):
                self.close(Close.PLAIN)
        else:
            self.advance()

    def end_announced_by_host(self) -> None:
        """The client has shut down its side, while nothing is read."""
        self.end_announced = True
        if not self.name:
            self.ended()
        elif self.paused and not self._buffer_is_full:
            # What is unread may be the end of a message, or nothing.
            self.paused = False
            self.host.resume()

    def lost(self) -> None:
        """The connection is gone."""
        if self.stage is Stage.CLOSING:
            # Mostly within the host's `close`, after which nothing follows.
            self._lost()
        else:
            self.input(self._lost)

    def _lost(self) -> None:
        self.said = b""
        try:
            if self.stage is not Stage.CLOSED:
                self._end(Stage.CLOSED)
        finally:
            self.release()

    def timed_out(self) -> None:
        """The stage has had its time."""
        self.timed = ""
        self.timer = NO_TIMER
        self.unsettled = True
        self.input(self.row.timed_out, self)

    def said_all(self, *, lingers: bool) -> None:
        """Called by the host, once: the last line has left, and our side is about to be closed, so that no slot is held
        any more. `lingers`: it depends on the client when the connection is gone."""
        self.release()
        if lingers and self.stage is Stage.CLOSING:
            self.enter(Stage.LINGERING)
            self.set_deadline("linger")
            # Nothing that is thrown away sets it back, be it the first arrival.
            self.progress = False

    def time_over(self) -> None:
        """The session has had its time; it ends between transactions."""
        self.watched = self.watches = True
        if self.idle and counts.trips(self, "max_session_time", once=True):
            self.input(self.hang_up, replies.SESSION_TOO_LONG)

    def data_too_slow(self) -> None:
        """Message data has come below the minimum rate."""
        if counts.trips(self, "min_data_rate", once=True):
            self.input(self.hang_up, replies.DATA_TOO_SLOW)

    def shut_down(self, *, now: bool) -> None:
        """The service stops. A session in a transaction may go on until its verdict, unless `now`.

        Even then the last line leaves: with our FIN, for without it the kernel may hold back what it was given.
        """
        self.watched = self.watches = True
        self.hurried |= now
        self.input(self._shut_down, now)

    def _shut_down(self, now: bool) -> None:
        if self.stage not in ENDED:
            if not self.name:
                self.refuse(refusal_of(replies.SHUTTING_DOWN))
            elif now or self.idle:
                self.hang_up(replies.SHUTTING_DOWN)
        if now and self.host.half_closed:
            self.abort()

    def half_closed(self) -> None:
        """Our side is shut down: the last line and our FIN have left."""
        if self.hurried:
            self.abort()

    # Stages.

    def enter(self, stage: Stage) -> None:
        """The only way from one stage to another. What the new one needs is seen to when the input is done with."""
        row = self.context.stages[stage]
        assert self.stage in row.follows, f"{self.stage} -> {stage}"
        self.stage = stage
        self.row = row
        self.progress = self.unsettled = True

    def advance(self) -> None:
        """Take what has come as far as the stages go, and say all that is to be said in one write."""
        self.share = SHARE
        while not self.held:
            row = self.row
            try:
                while row.take(self):
                    row = self.row
                break
            except BaseException as error:  # noqa: BLE001 - as in `input`
                self._fault(error, amid_message=row.in_message)
        if self.unsettled or self.buffer:
            self._settle()
            return
        said = self.said
        if said:
            self.said = b""
            if self.host.write(said):
                self.held |= HELD_BY_OUTPUT
                self._settle()
        if self.progress:
            # A deadline only ever comes later than it was: to set it back is this, and no call.
            self.progress = False
            self.timer.when = self.context.seconds() + self.time_limit

    def _settle(self) -> None:
        """See to what has changed since the last command: the stage, an end of the input, what has not been taken."""
        if self.said and not self.held & HELD_BY_TURN:
            self.flush()
        row = self.row
        timeout = "" if self.held else row.timeout
        if timeout is not self.timed:
            self.set_deadline(timeout)
        elif self.progress:
            self.timer.when = self.context.seconds() + self.time_limit
        self.progress = False
        if self.offset and not self.held & HELD_BY_TURN:
            # Within a burst that takes many turns it would be copied at each of them.
            self.buffer = self.buffer[self.offset :]
            self.offset = 0
        if self.input_ended:
            if timeout and self.stage not in ENDED:
                self.end_reason = "lost" if row.in_message else "half_closed"
                self.close(Close.PLAIN)
            return
        # What is waited for of the client must come, however little input may wait.
        pause = (not row.reads and not self.end_announced) or (not timeout and self._buffer_is_full)
        if pause is not self.paused:
            self.paused = pause
            if pause:
                self.host.pause()
            else:
                self.host.resume()
        rate = self.rate
        if rate is not None:
            self._watch_rate(row)
        # In these every command is seen to, too.
        self.unsettled = pause or self.held != 0 or not row.timeout

    def set_deadline(self, timeout: str) -> None:
        """Limit the stage by this one of `ServerContext.timeouts` from now on; "" for none."""
        if self.handshaking and not timeout:
            # The time of a handshake that an endpoint has begun goes on beside what else is waited for.
            return
        self.timed = timeout
        self.time_limit = self.context.timeouts[timeout]
        self.timer = self.host.deadline(self.time_limit) or NO_TIMER

    @property
    def _buffer_is_full(self) -> bool:
        return 0 < self.context.limits.max_input_buffer <= len(self.buffer) - self.offset

    def _watch_rate(self, row: StageRow) -> None:
        rate = self.rate
        if not (row.in_message or self.phase is Phase.CHUNKS):
            if rate.watches:
                rate.end()
        elif self.held or self.pending is not None:
            rate.hold()
        else:
            rate.run()

    def has_share_left(self, cost: int) -> bool:
        """Whether the connection may go on after what has cost so much of its share. Else it waits for a turn, or for a
        client that does not read what was said."""
        if len(self.said) >= self.context.max_said:
            self.flush()
            if self.held:
                return False
        self.share -= cost
        if self.share > 0:
            return True
        self.wait_for_turn()
        return False

    def wait_for_turn(self) -> None:
        """The connection has had its share: nothing more is taken before the others have had theirs."""
        self.held |= HELD_BY_TURN
        self.unsettled = True
        self.host.next_turn()

    def flush(self) -> None:
        """Write what has been said."""
        said, self.said = self.said, b""
        if self.host.write(said):
            self.held |= HELD_BY_OUTPUT
            self.unsettled = True

    # Saying.

    def reply(self, reply: Reply, reason: str = "") -> None:
        """Say, count and log a reply. `reason` stands in for the one that it has in the catalogue."""
        if self.watched or reply.remarkable:
            self.account(reply, reason)
        else:
            self.said += reply.wire

    def account(self, reply: Reply, reason: str = "") -> None:
        """Say a reply that is to be counted and logged, and end the session where it, or a limit, says so."""
        if self.queue is not None and self.context.draining and counts.outside_transaction(self):
            # The command's own hook has stopped the guard, before there was a transaction.
            self.reset()
            reply = replies.SHUTTING_DOWN
        self.said += reply.wire
        if reply.code == 221:
            self.end_reason = "quit"
            self.close(Close.PLAIN)
            return
        last = reply
        after = counts.account(self, reply, reason)
        if after is not None:
            self.said += after.wire
            last = after
        if last.closes:
            self.end_reason = reason or replies.reason_of(last)
            self.close(Close.LINGER)

    def hang_up(self, reply: Reply, reason: str = "") -> None:
        """Say a last line that answers nothing."""
        if self.stage not in ENDED:
            self.reply(reply, reason)

    def _fault(self, error: BaseException, *, amid_message: bool = False) -> None:
        self.context.events.failure(error, "the session failed", self.name, self.peer_name)
        if self.stage in ENDED or not self.name:
            self.abort()
            return
        try:
            if amid_message or self.row.in_message or self.phase not in IN_TRANSACTION:
                # How much of the message was read is not known, and the rest of it must never be taken for commands.
                self.reply(replies.LOCAL_ERROR_CLOSING)
            else:
                self.reset()
                self.reply(replies.LOCAL_ERROR)
        except BaseException:  # noqa: BLE001 - what has failed once fails again, and nobody else would end the session
            self.abort()

    # Waiting.

    def wait(
        self,
        later: Any,
        then: Then,
        *,
        late: Then | None = None,
        stage: Stage = Stage.ANSWER,
        is_delivery: bool = True,
        finishes: bool = False,
        seconds: float | None = None,
    ) -> Reply | None:
        """Wait for a hook that answers later. `then(engine, value, error)` makes the reply of its answer; `late` hears
        of one that is not wanted any more. `seconds`: its time, by default the delivery's.

        A reply where the answer is there already, else None.
        """
        pending = self.pending = Wait(self, then, late, is_delivery=is_delivery, finishes=finishes)
        self.hooks_at_work += is_delivery
        self.enter(stage)
        handle = self.host.wait(later, pending.answered)
        if pending.there:
            return self._answer_of(pending)
        limit = self.context.limits.delivery_timeout if seconds is None else seconds
        pending.begin(handle, self.context.call_later(limit, pending.time_out) if limit else None)
        return None

    def take_answer(self, pending: Wait) -> None:
        """What was waited for has been answered, or has had its time."""
        answers_command = self.stage is Stage.ANSWER and not pending.finishes
        reply = self._answer_of(pending)
        if self.stage in ENDED:
            return
        if reply is not None:
            if answers_command and self.offset < len(self.buffer) and counts.refuses_pipelining(self):
                reply = replies.UNEXPECTED_PIPELINING
            self.reply(reply)
        if self.stage not in ENDED:
            self.advance()

    def _answer_of(self, pending: Wait) -> Reply | None:
        self.pending = None
        if self.stage is Stage.ANSWER:
            self.enter(Stage.COMMAND)
        try:
            reply: Reply | None = pending.then(self, pending.value, pending.error)
        finally:
            if pending.there:
                self._hook_is_over(pending)
        return reply

    def forget(self, wait: Wait, value: Any, error: BaseException | None) -> None:
        """A hook has answered for which nobody waits any more."""
        try:
            if wait.late is not None:
                wait.late(self, value, error)
        finally:
            self._hook_is_over(wait)

    def _hook_is_over(self, wait: Wait) -> None:
        if wait.is_delivery:
            self.hooks_at_work -= 1
            self._say_farewell()

    def _say_farewell(self) -> None:
        if self.owes_farewell and self.stage in ENDED and not self.hooks_at_work:
            self.owes_farewell = False
            session_ended = self.context.session_ended
            assert session_ended is not None
            try:
                session_ended(self.name)
            except BaseException as error:  # noqa: BLE001 - a delivery's fault must not keep the connection from ending
                self.delivery_failed(error, "session_ended() raised")

    # The mail transaction.

    def reset(self) -> None:
        """There is no mail transaction any more; what was begun is aborted."""
        self.abort_mail()
        self.message = None
        self.utf8 = False
        self.phase = Phase.READY if self.helo else Phase.CONNECTED

    def abort_mail(self) -> None:
        """Tell the delivery, if it has not heard of an end yet, that the transaction ends without a message."""
        given = self.sink or self.mail
        self.sink = self.mail = None
        if given is not None:
            self.abort_given(given)

    def abort_given(self, given: Any) -> None:
        """Call `abort()` of what a hook has handed over."""
        try:
            given.abort()
        except BaseException as error:  # noqa: BLE001 - a delivery's fault must not keep the rest from being released
            self.delivery_failed(error, "abort() raised")

    def delivery_failed(self, error: BaseException, what: str) -> None:
        """Log what the delivery did wrong."""
        self.context.events.failure(error, f"the delivery failed: {what}", self.name, self.peer_name)

    # The ends.

    def refuse(self, refusal: Refusal, *, at_once: bool = False) -> None:
        """Do not let the client in. At accept (`at_once`) as cheaply as can be; after a wait so that the line reaches a
        client that was not silent."""
        self.refused = True
        if self.place is not None:
            self.place.give_back()
        refusal.log_of(self, self.context.events, self.context.limits)
        line = refusal.reply.wire
        if self.implicit_tls and not self.secure:
            # Nothing can be said without a handshake.
            self.abort()
            self.release()
        elif at_once:
            self._end(Stage.CLOSING)
            self.release()
            self.host.turn_away(line)
        else:
            self.said += line
            self.close(Close.LINGER)

    def close(self, how: Close) -> None:
        """The connection ends when what has been said has left."""
        if how is Close.LINGER and (self.input_ended or not self.context.may_linger()):
            how = Close.PLAIN
        self.lingers = how is Close.LINGER
        self._end(Stage.CLOSING)
        host = self.host
        self.timed = ""
        self.timer = NO_TIMER
        host.deadline(0)
        if self.paused and not self.input_ended:
            self.paused = False
            host.resume()
        if self.said:
            said, self.said = self.said, b""
            host.write(said)
        host.close(how)

    def abort(self) -> None:
        """Drop the connection: nothing can be said, or the service waits no longer."""
        if self.stage not in ENDED:
            self._end(Stage.CLOSING)
        self.said = b""
        self.host.close(Close.ABORT)

    def _end(self, stage: Stage) -> None:
        """Enter a stage in which nothing more is delivered, but what is being finished is."""
        over = self.stage in ENDED
        self.enter(stage)
        if over:
            return
        self.buffer = b""
        self.offset = self.held = 0
        self.auth = None
        if self.delay is not None:
            self.delay.cancel()
            self.delay = None
        if self.rate is not None:
            self.rate.stop()
            self.rate = None
        if self.name:
            self.context.session_times.remove(self)
        pending = self.pending
        if pending is not None and pending.finishes:
            self.context.orphans += 1
        else:
            self.pending = None
            if pending is not None:
                pending.cancel()
            self.abort_mail()
            self._say_farewell()

    def release(self) -> None:
        """Give back the slot and the place of the client. Once counts."""
        if self.holds_slot:
            self.holds_slot = False
            self.context.release(self)
            if self.place is not None:
                self.place.give_back()
            counts.log_end(self)
