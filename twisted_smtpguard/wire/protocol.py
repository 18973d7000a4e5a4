"""One SMTP session on its connection: how it begins, what it waits for and for how long, and how it ends.

The protocol translates between the transport and the session and decides nothing about SMTP.
"""

from __future__ import annotations

from functools import partial

from twisted.python.failure import Failure

from twisted_smtpguard.admission.refusal import refusal_of
from twisted_smtpguard.smtp import replies
from twisted_smtpguard.smtp.replies import Reply, Step
from twisted_smtpguard.smtp.session import Session
from twisted_smtpguard.wire.datarate import DataRate
from twisted_smtpguard.wire.deadlines import Deadline
from twisted_smtpguard.wire.handshake import Handshake
from twisted_smtpguard.wire.lines import LineSplitter
from twisted_smtpguard.wire.peeking import input_waits
from twisted_smtpguard.wire.receiving import Receiving


class SMTPGuardProtocol(Receiving):
    """One connection and, from the greeting on, its session. Made by SMTPGuardFactory only."""

    _delivery_time: Deadline | None = None

    # The session begins, and is over.

    def begin_session(self) -> None:
        """Called after the greeting."""
        factory = self.factory
        self.session = Session(factory.site, factory.next_session_name(), self._visitor, self._tls)
        self._lines = LineSplitter(factory.line_rules)
        self._log_connect(silent=self._silent)
        factory.session_times.add(self)

    def silence_over(self) -> None:
        """Called when a connection whose proxy has named no client says something."""
        self._log_connect(counted=True)

    def _log_connect(self, *, silent: bool = False, counted: bool = False) -> None:
        visitor = self._visitor
        self.factory.site.events.connect(
            self.session.name,
            visitor.name,
            port=visitor.port,
            listener=visitor.listener,
            tls=self._tls,
            trusted=visitor.trusted,
            silent=silent,
            counted=counted,
        )

    def end_session(self) -> None:
        """Called when nothing more is said, and when the connection is gone."""
        if self._rate is not None:
            self._rate.stop()
            self._rate = None
        self.factory.session_times.remove(self)
        self.session.end()
        if not self.session.finishing:
            self._stop_delivery_time()

    def failed(self, failure: Failure, what: str) -> None:
        """Called when a step of ours, or somebody else's code in it, has raised."""
        session = self.session.name if self._greeted else ""
        self.factory.site.events.failure(failure, what, session, self._visitor.name)

    def session_over(self, seconds: float) -> None:
        """Called when the connection holds no slot any more."""
        session = self.session
        self.factory.site.events.disconnect(
            session.name, self._visitor.name, self.end_reason, seconds, session.messages, silent=self._silent
        )

    # Steps behind which no command comes.

    def _step(self, step: Step) -> None:
        if step is replies.READY_FOR_TLS:
            self._start_tls(step)
        else:
            self._reply(step)
            self._lines.response_due = True
            # Of the instance: no other line of no other session is asked whether it is a response.
            self.lineReceived = self._response_received  # type: ignore[method-assign]

    def _response_received(self, line: bytes) -> None:
        """What a challenge was answered with, without its CRLF."""
        del self.lineReceived
        self._lines.response_due = False
        self._go_on_with(self.session.respond(line, self._offset < len(self._buffer)))

    def _start_tls(self, granted: Step) -> None:
        if self._offset < len(self._buffer) or input_waits(self._transport):
            self._reply(replies.INPUT_AFTER_STARTTLS)
            return
        self._reply(granted)
        # Not with the others: behind this line nothing may leave in clear.
        self._output.send_now()
        if not self._closing:
            self._handshake = self._entrance = Handshake(self.factory, self._transport, self)
            if self._output.idle:
                self._begin_tls()

    # TLS.

    def _begin_tls(self) -> None:
        """The client has been told to begin. Nothing that is said from here on may leave in clear."""
        assert self._handshake is not None
        if self._peer_closed:
            # Its hello cannot come any more.
            self._leave_entrance()
            self._handshake = None
            self._input_ended()
            return
        self._output.lost()
        try:
            self._handshake.begin()
        except Exception:  # noqa: BLE001 - from here on nothing can be said, and nobody else would end it
            self.failed(Failure(), "TLS could not be begun")
            self._handshake_failed("tls_failed")
            self.abort()
            return
        self._secure = True
        self._begin_to_speak()

    def spoke_in_clear(self) -> None:
        """Called by the handshake, while the client is slow to take what comes before it."""
        self._leave_entrance()
        self._handshake = None
        self._hang_up(replies.INPUT_AFTER_STARTTLS)

    def secured(self) -> None:
        """Called when the handshake is over."""
        self.session.secured(self._tls)
        self._progress = True
        self._wait_for_what_is_next()

    def _handshake_failed(self, reason: str) -> None:
        super()._handshake_failed(reason)
        if self._greeted:
            self.session.conduct.log(reason)

    # Time.

    def _wait_for_what_is_next(self) -> None:
        held = self._held
        if self.session.reception is not None or (self._rate is not None and self._rate.watches):
            self._watch_rate(held)
        if held:
            self.setTimeout(None)
            if self._pending is not None and self.session.receiving and not self._end_announced:
                self._pause()
            self._bound_buffer()
            return
        if self._peer_closed:
            self._input_ended()
            return
        if self._paused:
            self._resume()
        if self.timeOut is None:
            self.setTimeout(self._limits.read_timeout or None)
        elif self._progress:
            self.resetTimeout()
        else:
            return
        self._progress = False
        self._progress_octets = 0
        self._at_ease = not (
            self._buffer
            or self.session.receiving
            or self._first_line
            or self._lines.amid_line
            or self._entrance is not None
        )

    def _watch_rate(self, held: bool) -> None:
        rate = self._rate
        if rate is None:
            limits = self._limits
            if not (limits.min_data_rate and limits.data_rate_window):
                return
            rate = self._rate = DataRate(
                self.factory.deadlines, limits.min_data_rate, limits.data_rate_window, self._data_too_slow
            )
        if not self.session.amid_message:
            rate.end()
        elif held:
            rate.hold()
        else:
            rate.run()

    def _start_delivery_time(self) -> None:
        if self._limits.delivery_timeout:
            self._delivery_time = self.factory.deadlines.call_later(
                self._limits.delivery_timeout, self._delivery_timed_out
            )

    def _delivery_timed_out(self) -> None:
        self._delivery_time = None
        self.or_abort("a delivery could not be timed out", self.session.expire)
        if self._pending is not None:
            # A counter store is still thinking. The delivery that is asked next must not have for ever.
            self._start_delivery_time()

    def _stop_delivery_time(self) -> None:
        if self._delivery_time is not None:
            self._delivery_time.cancel()
            self._delivery_time = None

    def read_timed_out(self) -> None:
        """Called when what was due did not come in time."""
        if self._handshake is None:
            self._hang_up(replies.READ_TIMED_OUT)
        else:
            self.handshake_timed_out()

    def _data_too_slow(self) -> None:
        if self.session.conduct.trips("min_data_rate", once=True):
            self.or_abort("a slow client could not be ended", partial(self._hang_up, replies.DATA_TOO_SLOW))

    def time_over(self) -> None:
        """Called when the session has had its time."""
        self.or_abort("a session could not be ended", self._time_over)

    def _time_over(self) -> None:
        self.session.conduct.time_over()
        if self._idle and self.session.conduct.trips("max_session_time", once=True):
            self._hang_up(replies.SESSION_TOO_LONG)

    # Holding the client back.

    def output_drained(self) -> None:
        """Called when the session has begun, and when the client has made room for replies."""
        if self._handshake is not None and not self._handshake.begun and not self._closing:
            self._begin_tls()
        elif not (self._walking or self._closing):
            self._walk()

    # The ways to end.

    @property
    def awaits_verdict(self) -> bool:
        """The delivery is deciding on a message, and the client is still there to hear of it."""
        return self._greeted and self.session.finishing and not self.session.ended

    @property
    def _idle(self) -> bool:
        """Between transactions, with nothing pending."""
        if self._closing or self._pending is not None:
            return False
        return not (self.session.in_transaction or self.session.receiving)

    def shut_down(self, *, now: bool) -> None:
        """The service stops. A session in a transaction may go on until its verdict, unless `now`.

        Even then the last line leaves: with our FIN, for without it the kernel may hold back what it was given.
        """
        if not self._greeted:
            if not self._closing:
                self.refuse(refusal_of(replies.SHUTTING_DOWN))
        elif self._idle or (now and not self._closing):
            self._hang_up(replies.SHUTTING_DOWN)
        if now:
            self._lingers_no_longer = True
            if self._half_closed:
                self.abort()

    def _hang_up(self, reply: Reply) -> None:
        self._reply(reply)
        self._output.flush()

    def output_stalled(self) -> None:
        """Called when the client takes no replies."""
        if self._greeted:
            self.session.conduct.log("write_timeout")
        super().output_stalled()

    def input_over(self) -> None:
        """Called when the client has shut down its side. Its commands may still wait for room for their replies."""
        if not self._held:
            self._walk()
        elif self.session.cuts_message_off(self._buffer[self._offset :]):
            self._input_ended()

    @property
    def owes_verdict(self) -> bool:
        """Called when a client under TLS has left without close_notify. Only a whole message is worth waiting for."""
        if self._closing or not self._greeted:
            return False
        return self._pending is None or self.session.finishing

    def _input_ended(self) -> None:
        self.end_reason = "lost" if self.session.receiving else "half_closed"
        self._close(half=False)
