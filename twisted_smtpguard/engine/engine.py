"""The inputs that a host gives a connection, and what each of them changes.

The current stage takes the octets that arrive. `enter` changes the stage, `reply` queues a reply, `close` and `abort`
end the connection. All replies to one arrival leave in one write.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from twisted_smtpguard import replies
from twisted_smtpguard.engine import counts, ending
from twisted_smtpguard.engine.connection import HELD_BY_OUTPUT, HELD_BY_TURN, SHARE, Connection
from twisted_smtpguard.engine.port import Close
from twisted_smtpguard.engine.refusal import Refusal, refusal_of
from twisted_smtpguard.engine.stages import ENDED, IN_TRANSACTION, Phase, Stage
from twisted_smtpguard.engine.timers import NO_TIMER
from twisted_smtpguard.replies import Reply


class Engine(Connection):
    """One connection as its host sees it: a method for each input. An input that a hook causes while another is being
    carried out is queued: no hook sees or changes a half-done step."""

    __slots__ = ()

    # Inputs.

    def input(self, function: Callable[..., object], *arguments: object) -> None:
        """Call `function` as one input, when those before it have been carried out."""
        if self.busy:
            self.queue = self.queue or []
            self.queue.append(partial(function, *arguments))
            return
        self.busy = True
        try:
            function(*arguments)
        except BaseException as error:  # noqa: BLE001 - a bug of ours must not end the process or another session
            self._recover(error)
        self.busy = False
        if self.queue is not None:
            self._serve_queue()

    def received(self, octets: bytes) -> None:
        """Take octets from the client."""
        self.input(self._receive, octets)

    def _recover(self, error: BaseException) -> None:
        """Handle an exception from an input, so that later inputs, above all the end of the connection, still work."""
        try:
            self._fault(error)
            self.advance()
        except BaseException:  # noqa: BLE001 - the same code may fail again
            if self.stage is not Stage.CLOSED:
                self.abort()

    def _receive(self, octets: bytes) -> None:
        if self.buffer:
            octets = self.buffer[self.offset :] + octets
            self.offset = 0
        self.buffer = octets
        self.advance()

    def _serve_queue(self) -> None:
        """Carry out the inputs that wait in their order, and after them those that they cause."""
        self.busy = True
        while self.queue:
            try:
                self.queue.pop(0)()
            except BaseException as error:  # noqa: BLE001 - as in `input`
                self._recover(error)
        self.queue = None
        self.busy = False

    def take_turn(self) -> None:
        """Continue, now that the other connections have had their turn."""
        self.held &= ~HELD_BY_TURN
        self.input(self.advance)

    def congested(self) -> None:
        """Take no more input until the client has read what waits: under TLS it is more than there may be."""
        if self.secure and self.stage not in ENDED:
            self.held |= HELD_BY_OUTPUT
            self.input(self._settle)

    def drained(self) -> None:
        """Continue, now that the client has read every reply that was written."""
        self.held &= ~HELD_BY_OUTPUT
        self.input(self.advance)

    def stalled(self) -> None:
        """Abort: the client has read none of the waiting replies within the write timeout."""
        if self.name:
            counts.log(self, "write_timeout")
        self.end_reason = "write_timeout"
        self.input(self.abort)

    def ended(self) -> None:
        """Take the client's half-close: it may still read."""
        self.input_ended = self.unsettled = True
        if self.stage in ENDED:
            self.host.close(Close.PLAIN)
        else:
            self.input(self._ended)

    def _ended(self) -> None:
        if self.stage in ENDED:
            # The stage has changed since `ended` queued this input.
            self.host.close(Close.PLAIN)
        elif not self.name:
            # No reply is due before the greeting, even to input that was sent early.
            self.close(Close.PLAIN)
        elif self.held or self.pending is not None:
            row, message = self.row, self.message
            if row.in_message and not (message.ended or message.ends_within(self.buffer[self.offset :])):
                self.close(Close.PLAIN)
        else:
            self.advance()

    def end_announced_by_host(self) -> None:
        """Take the client's half-close, which the kernel has reported while the client is not read."""
        self.end_announced = True
        if not self.name:
            self.ended()
        elif self.paused and not self.is_full:
            # The unread octets may hold the end of a message, and only reading them tells.
            self.resume()

    def lost(self) -> None:
        """Take the end of the connection in both directions."""
        if self.stage is Stage.CLOSING:
            # The host's `close` is the usual caller, and nothing runs after it, so this need not be queued.
            self._lost()
        else:
            self.input(self._lost)

    def _lost(self) -> None:
        self.unwritten = b""
        try:
            if self.stage is not Stage.CLOSED:
                ending.end(self, Stage.CLOSED)
        finally:
            ending.release(self)

    def timed_out(self) -> None:
        """Called when the time limit of the stage is over. A client that has become known since then has the usual one
        of those that are no strangers, and not that of stress."""
        timer = self.timer
        if self.context.stressed and not self.is_stranger:
            self.time_limits_changed(self.context.seconds() + 1)
        if self.timer is not timer:
            return
        self.timed = ""
        self.timer = NO_TIMER
        self.unsettled = True
        self.input(self.row.timed_out, self)

    def all_sent(self, *, lingers: bool) -> None:
        """Give back the slot: called once, when the last reply has been sent and our side is about to be closed.
        `lingers`: whether the connection then stays open until the client closes it."""
        ending.release(self)
        if lingers and self.stage is Stage.CLOSING:
            self.enter(Stage.LINGERING)
            self.set_deadline("linger")
            # Input that arrives from now on is thrown away and must not extend the deadline.
            self.progress = False

    def time_over(self) -> None:
        """End the session, whose time is over, now or after its mail transaction."""
        self.account_next = self.account_all = True
        if self.idle and counts.enforces(self, "max_session_time", once=True):
            self.input(self.hang_up, replies.SESSION_TOO_LONG)

    def stress_time_over(self) -> None:
        """Called when the session has lasted for as long as that of a stranger may in stress. Its client may have
        become known since."""
        if self.is_stranger:
            self.time_over()

    def data_too_slow(self) -> None:
        """End the session: its message data has come below the minimum rate."""
        if counts.enforces(self, "min_data_rate", once=True):
            self.input(self.hang_up, replies.DATA_TOO_SLOW)

    def shut_down(self, *, now: bool) -> None:
        """End the session because the service stops; `now`: even within a mail transaction. In both cases the 421 is
        sent. `now` aborts a connection only once our FIN has left: without it the kernel may hold back the 421."""
        self.account_next = self.account_all = True
        self.grace_over |= now
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
        """Called when our side is shut down: the last reply and our FIN have left."""
        if self.grace_over:
            self.input(self.abort)

    # Stages.

    def advance(self) -> None:
        """Take as much input as the stages allow, then write all replies at once."""
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
        octets = self.unwritten
        if octets:
            self.unwritten = b""
            if self.host.write(octets):
                self.held |= HELD_BY_OUTPUT
                self._settle()
        if self.progress:
            # A deadline is only ever extended, so assigning its time is enough and spares a call.
            self.progress = False
            self.timer.when = self.context.seconds() + self.time_limit

    def _settle(self) -> None:
        """Bring deadline, reading and data rate in line with the stage, the end of the input and the untaken octets."""
        if self.stage in ENDED:
            # `close` has settled them.
            return
        if self.unwritten and not self.held & HELD_BY_TURN:
            self.flush()
        row = self.row
        timeout = "" if self.held else row.timeout
        client_is_due = timeout and not row.awaits_hook
        if timeout is not self.timed:
            self.set_deadline(timeout)
        elif self.progress:
            self.timer.when = self.context.seconds() + self.time_limit
        self.progress = False
        if self.offset and not self.held & HELD_BY_TURN:
            # A burst that takes many turns is not cut now, or its rest would be copied at each turn.
            self.buffer = self.buffer[self.offset :]
            self.offset = 0
        if self.input_ended:
            if client_is_due:
                self.end_reason = "lost" if row.in_message else "half_closed"
                self.close(Close.PLAIN)
            return
        # A full buffer pauses reading only while nothing is awaited from the client: what is awaited must arrive.
        pause = (not row.reads and not self.end_announced) or (not client_is_due and self.is_full)
        if pause and not self.paused:
            self.paused = True
            self.host.pause()
        elif self.paused and not pause:
            self.resume()
        rate = self.rate
        if rate is not None:
            rate.watch(
                in_message=row.in_message or self.phase is Phase.CHUNKS,
                held=self.held != 0 or self.pending is not None,
            )
        # While one of these holds, every command has to be settled.
        self.unsettled = pause or self.held != 0 or not row.timeout

    # Replies.

    def reply(self, reply: Reply | None, reason: str = "") -> None:
        """Queue, count and log a reply; None: it comes later. `reason` replaces the log reason that the catalogue has
        for it."""
        if reply is None:
            return
        if self.account_next or reply.is_accounted:
            self.account(reply, reason)
        else:
            # As `counts.count_reply` does it, for half the cost: a reply that is no error answers a command.
            self.context.replies_sent[self.command.verb, reply.code] += 1
            self.unwritten += reply.wire

    def account(self, reply: Reply, reason: str = "") -> None:
        """Queue, count and log a reply, and end the session if the reply or a limit requires it."""
        if self.queue and self.context.draining and counts.outside_transaction(self):
            # A hook of this command has stopped the guard before the mail transaction began.
            self.reset()
            reply = replies.SHUTTING_DOWN
        counts.count_reply(self, reply)
        self.unwritten += reply.wire
        if reply.code == 221:
            self.end_reason = "quit"
            self.close(Close.PLAIN)
            return
        after = counts.account(self, reply, reason)
        if after is not None:
            self.unwritten += after.wire
            reply = after
        if reply.closes:
            self.end_reason = reason or replies.reason_of(reply)
            self.close(Close.LINGER)

    def hang_up(self, reply: Reply) -> None:
        """Send a closing reply that answers no command."""
        if self.stage not in ENDED:
            self.reply(reply)

    def _fault(self, error: BaseException, *, amid_message: bool = False) -> None:
        self.log_failure(error, "the session failed")
        if self.stage in ENDED or not self.name:
            self.abort()
            return
        try:
            if amid_message or self.row.in_message or self.phase not in IN_TRANSACTION:
                # It is unknown how much of the message was read, and its rest must never be taken for commands.
                self.reply(replies.LOCAL_ERROR_CLOSING)
            else:
                self.reset()
                self.reply(replies.LOCAL_ERROR)
        except BaseException:  # noqa: BLE001 - the same code may fail again, and nothing else would end the session
            self.abort()

    # The end of the connection.

    def refuse(self, refusal: Refusal, *, at_once: bool = False) -> None:
        """Refuse the connection before its greeting. At accept (`at_once`) this is as cheap as possible; later the
        connection lingers, so that the reply also reaches a client that has sent something."""
        self.refused = True
        if self.place is not None:
            self.place.give_back()
        refusal.log(self, self.context.events, self.context.limits)
        self.network = refusal.network
        counts.offend(self, refusal.reason)
        line = refusal.reply.wire
        if self.implicit_tls and not self.secure:
            # No reply can be sent before the handshake.
            self.abort()
            ending.release(self)
        elif at_once:
            ending.end(self, Stage.CLOSING)
            ending.release(self)
            self.host.turn_away(line)
        else:
            self.unwritten += line
            self.close(Close.LINGER)

    def close(self, how: Close) -> None:
        """Close the connection in the way `how` when every reply has been sent.

        Under TLS every close lingers: the client's close_notify is waited for, and a slow client may still be reading
        replies. A connection that was lost while a hook ran does not linger.
        """
        lingers = self.secure or (how is Close.LINGER and not self.input_ended)
        self.lingers = lingers and not self.host.gone and self.context.guard.may_linger()
        how = Close.LINGER if self.lingers else Close.PLAIN
        ending.end(self, Stage.CLOSING)
        self.timed = ""
        self.timer = NO_TIMER
        self.host.deadline(0)
        if self.paused and not self.input_ended:
            self.resume()
        if self.unwritten:
            octets, self.unwritten = self.unwritten, b""
            self.host.write(octets)
        self.host.close(how)

    def abort(self) -> None:
        """Drop the connection with all unsent replies: none can be sent, or the service no longer waits."""
        if self.stage not in ENDED:
            ending.end(self, Stage.CLOSING)
        self.unwritten = b""
        self.host.close(Close.ABORT)
