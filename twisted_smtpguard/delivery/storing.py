"""Small messages on their way into a directory, several of them in one trip to a thread.

What a trip costs, there and back, is shared by all that it takes along. So are the waits for the disk: all of a trip
are written before the first is synchronised, which lets a file system put them on the disk together; and one
synchronisation of the directory serves all that have their names by then.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Protocol, TypeAlias

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure

from twisted_smtpguard.hooks.threads import ThreadedReactor, in_thread

ONE_THREAD_IN = 3
"""Small messages are stored in a third of the reactor's threads, or in one. More of them would only take the
interpreter from each other. The rest stay free for large messages and for other work, also while the disk hangs."""

MOST_TOGETHER = 16
"""How many messages a thread stores together. One whose fsync takes long delays so many at most."""


class Storable(Protocol):
    """A message that can be stored. Its methods are called in the order in which they stand here, all but `answer` in a
    thread, one at a time. After an exception only `answer` is called."""

    def fill(self, *, together: bool) -> None:
        """Write the file. `together`: other files are written next, before this one is completed."""

    def complete(self) -> None:
        """Make the file safe and give it its name."""

    def take_back(self, error: Exception) -> None:
        """Remove the file again, since the synchronisation of the directory has failed with `error`. The message fails
        with `error`, or with what is raised here."""

    def answer(self, outcome: Failure | None) -> None:
        """Called in the reactor's thread, once unless it is forgotten: the message is safe (None), or not."""


Outcomes: TypeAlias = list[tuple[Storable, Failure | None]]


class StoringThreads:
    """Stores messages in one directory, which `sync` synchronises.

    A message that fails fails alone. Only if `sync` fails do all fail that it should have made safe. What one thread
    has begun any other may end, so that a message whose fsync takes long keeps the others of its trip waiting only
    until another thread comes by.
    """

    def __init__(self, reactor: ThreadedReactor, sync: Callable[[], None]) -> None:
        self._reactor = reactor
        self._sync = sync
        self._waiting: deque[Storable] = deque()
        """Those that no thread has taken yet."""
        self._filled: deque[Storable] = deque()
        """Those that are written, and that no thread is completing yet."""
        self._named: deque[Storable] = deque()
        """Those that have their names, and that no synchronisation serves yet."""
        self._threads = 0
        """How many threads store small messages, or were asked to."""
        self._called = False
        """Whether a thread was asked to take what waits, and has not done so yet."""

    def store(self, message: Storable) -> None:
        """Store `message` soon: at once and alone if no other is being stored, else together with others that wait.
        Called in the reactor's thread."""
        if not self._threads:
            self._start([message])
            return
        self._waiting.append(message)
        self._call()

    def store_alone(self, message: Storable) -> None:
        """Store `message` in its own trip, at once: its fsync may take so long that others should not wait for it.
        Called in the reactor's thread."""
        stored: Deferred[Outcomes] = maybeDeferred(in_thread, self._reactor, self._store_alone, message)
        stored.addCallbacks(_answer, message.answer)

    def forget(self, message: Storable) -> None:
        """`message` is not wanted any more. If no thread has taken it yet, none will; nothing of it is kept while the
        disk hangs. Called in the reactor's thread."""
        with suppress(ValueError):
            self._waiting.remove(message)

    def _call(self) -> None:
        """Ask one more thread to take what waits."""
        most = max(1, self._reactor.getThreadPool().max // ONE_THREAD_IN)
        if self._waiting and self._threads < most and not self._called:
            self._called = True
            self._start([])

    def _start(self, messages: list[Storable]) -> None:
        self._threads += 1
        working: Deferred[Outcomes] = maybeDeferred(in_thread, self._reactor, self._work, messages)
        working.addCallbacks(self._end, self._no_thread, errbackArgs=(messages,))

    def _no_thread(self, failure: Failure, messages: list[Storable]) -> None:
        """Called if there is no thread to be had. No other is asked for: there would be none, at once and again."""
        self._threads -= 1
        self._called = False
        # Those that wait stay if another thread will take them.
        rest = [] if self._threads else _popped(self._waiting)
        _answer([(message, failure) for message in [*messages, *rest]])

    def _end(self, outcomes: Outcomes) -> None:
        self._threads -= 1
        self._call()
        _answer(outcomes)

    # In a thread.

    def _work(self, messages: list[Storable]) -> Outcomes:
        """Store `messages`, if there are any, then all that wait, and what another thread has begun and does not
        come to. Returns the outcomes of the last."""
        if not messages:
            # Set before they are taken: one that comes now either is among them or asks for the next thread.
            self._called = False
            messages = self._take()
        while True:
            outcomes = self._store(messages)
            messages = self._take()
            if not messages and not self._filled:
                return outcomes
            self._reactor.callFromThread(_answer, outcomes)

    def _take(self) -> list[Storable]:
        taken = list(itertools.islice(_popped(self._waiting), MOST_TOGETHER))
        if self._waiting:
            self._reactor.callFromThread(self._call)
        return taken

    def _store(self, messages: list[Storable]) -> Outcomes:
        outcomes: Outcomes = []
        together = len(messages) > 1
        for message in messages:
            if _succeeds(partial(message.fill, together=together), message, outcomes):
                self._filled.append(message)
        # As many as a thread may have filled: then none is left over, and what has failed here is answered soon.
        for message in itertools.islice(_popped(self._filled), MOST_TOGETHER):
            self._complete(message, outcomes)
        return outcomes + self._make_safe()

    def _store_alone(self, message: Storable) -> Outcomes:
        outcomes: Outcomes = []
        if _succeeds(partial(message.fill, together=False), message, outcomes):
            self._complete(message, outcomes)
        return outcomes + self._make_safe()

    def _complete(self, message: Storable, outcomes: Outcomes) -> None:
        if _succeeds(message.complete, message, outcomes):
            self._named.append(message)

    def _make_safe(self) -> Outcomes:
        """Synchronise the directory for all that have their names and that nobody else serves."""
        served = list(_popped(self._named))
        if not served:
            return []
        try:
            self._sync()
        except Exception as error:  # noqa: BLE001 - it is what each of them is refused with
            return [(message, _taken_back(message, error)) for message in served]
        return [(message, None) for message in served]


def _popped(messages: deque[Storable]) -> Iterator[Storable]:
    """All of them. Each is popped by one thread, although several do so at once."""
    with suppress(IndexError):
        while True:
            yield messages.popleft()


def _succeeds(step: Callable[[], None], message: Storable, outcomes: Outcomes) -> bool:
    """Whether `step` raises nothing. Else `message` has its outcome."""
    try:
        step()
    except BaseException:  # noqa: BLE001 - of this message alone
        outcomes.append((message, Failure()))
        return False
    return True


def _taken_back(message: Storable, error: Exception) -> Failure:
    try:
        message.take_back(error)
    except BaseException:  # noqa: BLE001 - of this message alone
        return Failure()
    return Failure(error)


def _answer(outcomes: Outcomes) -> None:
    for message, outcome in outcomes:
        message.answer(outcome)
