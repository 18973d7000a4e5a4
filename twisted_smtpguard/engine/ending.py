"""What ends with a connection: all that it has begun or holds is aborted, cancelled or given back, once."""

from __future__ import annotations

from twisted_smtpguard.engine import counts
from twisted_smtpguard.engine.connection import Connection
from twisted_smtpguard.engine.stages import ENDED, Stage


def end(connection: Connection, stage: Stage) -> None:
    """Enter a final stage and abort what is pending, except a `finish()`, whose message may be safe already."""
    over = connection.stage in ENDED
    connection.enter(stage)
    if over:
        return
    connection.buffer, connection.offset, connection.held = b"", 0, 0
    drop_exchange(connection)
    if connection.handshaking:
        connection.context.handshake_over(connection, "abandoned")
    if connection.delay is not None:
        connection.delay.cancel()
        connection.delay = None
    if connection.rate is not None:
        connection.rate.stop()
        connection.rate = None
    if connection.name:
        connection.context.guard.session_times.remove(connection)
    pending = connection.pending
    if pending is not None and pending.finishes:
        connection.context.pending_deliveries += 1
    else:
        connection.pending = None
        connection.stop_hook_timer()
        if pending is not None:
            pending.cancel()
        connection.drop_mail()
        connection.notify_session_ended()


def release(connection: Connection) -> None:
    """Give back the connection's slot and the client's place. Only the first call has an effect."""
    if connection.holds_slot:
        connection.holds_slot = False
        connection.context.guard.release(connection)
        if connection.place is not None:
            connection.place.give_back()
        counts.log_end(connection)


def drop_exchange(connection: Connection) -> None:
    """End the exchange of AUTH that goes on, if there is one. An exception is only logged."""
    exchange, connection.auth = connection.auth, None
    if exchange is not None:
        try:
            exchange.abort()
        except BaseException as error:  # noqa: BLE001 - a plug-in's bug must not keep the rest from being released
            connection.log_failure(error, "a login could not be aborted")
