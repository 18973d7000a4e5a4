"""One end of a channel as it sees records: each change on this side is sent, some in each turn, and each change of the
other side is taken.

The supervisor has such an end for each worker. What a worker changes is changed in the tables of the supervisor, and
from there told to all workers, also to the one that it came from. So all of them end with what the supervisor has got
last, however their changes cross.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twisted_smtpguard.records.recordtables import OF_CLIENTS, Change, Outbox, RecordTables
from twisted_smtpguard.values import Record
from twisted_smtpguard.workers.channel import Channel, Message

MOST_IN_MESSAGE = 500
"""How many records one message has, and so how many are sent in a turn: some ten kilobytes."""

RECORDS = "records"
"""The word of a message with records."""


class RecordLink:
    """Sends the changes of `tables` through `channel`, as fast as the other end reads."""

    def __init__(self, reactor: Any, channel: Channel, tables: RecordTables) -> None:
        self._reactor = reactor
        self._channel = channel
        self._outbox = Outbox(tables, self._changed, OF_CLIENTS)
        self._next: Any = None
        self._marks_end = False
        channel.on_room = self._changed

    def send_all(self) -> None:
        """Send all that there is, and then a message without any, by which the other end knows that it has all."""
        self._outbox.add_all()
        self._marks_end = True
        self._changed()

    def learn(self, message: Message) -> None:
        """Take a message of the supervisor."""
        self._outbox.learn(changes_in(message))

    def flush(self) -> None:
        """Send all that has not been sent, now."""
        while self._outbox:
            self._send()

    def close(self) -> None:
        """Send nothing more."""
        self._outbox.close()
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _changed(self) -> None:
        if self._next is None and (self._outbox or self._marks_end):
            self._next = self._reactor.callLater(0, self._turn)

    def _turn(self) -> None:
        self._next = None
        # A full channel calls again when it has room.
        if not self._channel.full:
            self._send()
            self._changed()

    def _send(self) -> None:
        changes = self._outbox.take(MOST_IN_MESSAGE)
        ends = self._marks_end and not changes and not self._outbox
        if changes or ends:
            self._channel.send({RECORDS: rows_of(changes)})
        self._marks_end = self._marks_end and not ends


def rows_of(changes: Iterable[Change]) -> list[list[Any]]:
    """Changes as values of JSON."""
    return [[kind, key, *(record or ())] for kind, key, record in changes]


def changes_in(message: Message) -> Sequence[Change]:
    """The changes in a message."""
    return [Change(kind, key, Record(*record) if record else None) for kind, key, *record in message[RECORDS]]


def take_all(tables: RecordTables, next_message: Callable[[], Message]) -> None:
    """Take messages until one without records has come, as a worker does before it serves."""
    while changes := changes_in(next_message()):
        tables.learn(changes)
