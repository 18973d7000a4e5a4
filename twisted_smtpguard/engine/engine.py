"""The inputs that a host gives a connection, and what follows from each.

What arrives is taken by the stage that the connection is in; `enter` changes the stage, `reply` says something, `close`
and `abort` end it. All that is said to one arrival leaves in one write.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from twisted_smtpguard import replies
from twisted_smtpguard.engine import counts
from twisted_smtpguard.engine.connection import HELD_BY_OUTPUT, HELD_BY_TURN, NO_TIMER, SHARE, Connection
from twisted_smtpguard.engine.port import Close
from twisted_smtpguard.engine.refusal import Refusal, refusal_of
from twisted_smtpguard.engine.stages import ENDED, IN_TRANSACTION, Phase, Stage
from twisted_smtpguard.replies import Reply


class Engine(Connection):
    """One connection as its host sees it: a function for each input.

    An input that a hook causes while another input is carried out waits until that is done: no hook ever sees, or
    changes, a half-done step.
    """

    __slots__ = ()

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
        if self.stage in ENDED:
            # So it was not when the end came, within a hook.
            self.host.close(Close.PLAIN)
        elif not self.name:
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
        elif self.paused and not self.buffer_is_full:
            # What is unread may be the end of a message, or nothing.
            self.paused = False
            self.host.resume()

    def lost(self) -> None:
        """The connection is gone."""
        if self.stage is Stage.CLOSING:
            # Mostly within the host's `close`, after which nothing follows.
            self._lost()
        else:
            # A hook may still be running: what it answers must not have the connection linger.
            self.input_ended = True
            self.input(self._lost)

    def _lost(self) -> None:
        self.unwritten = b""
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

    def all_sent(self, *, lingers: bool) -> None:
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
        self.account_next = self.account_all = True
        if self.idle and counts.enforces(self, "max_session_time", once=True):
            self.input(self.hang_up, replies.SESSION_TOO_LONG)

    def data_too_slow(self) -> None:
        """Message data has come below the minimum rate."""
        if counts.enforces(self, "min_data_rate", once=True):
            self.input(self.hang_up, replies.DATA_TOO_SLOW)

    def shut_down(self, *, now: bool) -> None:
        """The service stops. A session in a transaction may go on until its verdict, unless `now`.

        Even then the last line leaves: with our FIN, for without it the kernel may hold back what it was given.
        """
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
        """Our side is shut down: the last line and our FIN have left."""
        if self.grace_over:
            self.abort()

    # Stages.

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
        octets = self.unwritten
        if octets:
            self.unwritten = b""
            if self.host.write(octets):
                self.held |= HELD_BY_OUTPUT
                self._settle()
        if self.progress:
            # A deadline only ever comes later than it was: to set it back is this, and no call.
            self.progress = False
            self.timer.when = self.context.seconds() + self.time_limit

    def _settle(self) -> None:
        """See to what has changed since the last command: the stage, an end of the input, what has not been taken."""
        if self.stage in ENDED:
            # `close` has seen to it.
            return
        if self.unwritten and not self.held & HELD_BY_TURN:
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
            if timeout:
                self.end_reason = "lost" if row.in_message else "half_closed"
                self.close(Close.PLAIN)
            return
        # What is waited for of the client must come, however little input may wait.
        pause = (not row.reads and not self.end_announced) or (not timeout and self.buffer_is_full)
        if pause is not self.paused:
            self.paused = pause
            if pause:
                self.host.pause()
            else:
                self.host.resume()
        rate = self.rate
        if rate is not None:
            rate.watch(
                in_message=row.in_message or self.phase is Phase.CHUNKS,
                held=self.held != 0 or self.pending is not None,
            )
        # In these every command is seen to, too.
        self.unsettled = pause or self.held != 0 or not row.timeout

    # Saying.

    def reply(self, reply: Reply, reason: str = "") -> None:
        """Say, count and log a reply. `reason` stands in for the one that it has in the catalogue."""
        if self.account_next or reply.is_accounted:
            self.account(reply, reason)
        else:
            self.unwritten += reply.wire

    def account(self, reply: Reply, reason: str = "") -> None:
        """Say a reply that is to be counted and logged, and end the session where it, or a limit, says so."""
        if self.queue is not None and self.context.draining and counts.outside_transaction(self):
            # The command's own hook has stopped the guard, before there was a transaction.
            self.reset()
            reply = replies.SHUTTING_DOWN
        self.unwritten += reply.wire
        if reply.code == 221:
            self.end_reason = "quit"
            self.close(Close.PLAIN)
            return
        last = reply
        after = counts.account(self, reply, reason)
        if after is not None:
            self.unwritten += after.wire
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
        except BaseException:  # noqa: BLE001 - what has failed once fails again, and nothing else would end the session
            self.abort()

    # The ends.

    def refuse(self, refusal: Refusal, *, at_once: bool = False) -> None:
        """Do not let the client in. At accept (`at_once`) as cheaply as can be; after a wait so that the line reaches a
        client that was not silent."""
        self.refused = True
        if self.place is not None:
            self.place.give_back()
        refusal.log(self, self.context.events, self.context.limits)
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
            self.unwritten += line
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
        if self.unwritten:
            octets, self.unwritten = self.unwritten, b""
            host.write(octets)
        host.close(how)

    def abort(self) -> None:
        """Drop the connection: nothing can be said, or the service waits no longer."""
        if self.stage not in ENDED:
            self._end(Stage.CLOSING)
        self.unwritten = b""
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
            self.context.pending_deliveries += 1
        else:
            self.pending = None
            if pending is not None:
                pending.cancel()
            self.abort_mail()
            self.notify_session_ended()

    def release(self) -> None:
        """Give back the slot and the place of the client. Once counts."""
        if self.holds_slot:
            self.holds_slot = False
            self.context.release(self)
            if self.place is not None:
                self.place.give_back()
            counts.log_end(self)
