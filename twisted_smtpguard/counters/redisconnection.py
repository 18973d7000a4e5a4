"""One connection to a Redis server: commands in their order, and its end if the server breaks the protocol.

txredisapi knows the protocol. It imports the reactor, so it is imported when a connection is made.
"""

from __future__ import annotations

from hashlib import sha1
from importlib.resources import files
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure

from twisted_smtpguard.inputs.escaping import escape_text

_SCRIPT = files("twisted_smtpguard.counters").joinpath("redis.lua").read_text(encoding="ascii")
_SHA = sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()

ANSWER_SECONDS = 1.0
"""A connection ends if something was asked and nothing was answered for so long, or up to half as long again."""
MOST_UNANSWERED = 10_000
"""So many commands may wait for their answers; further ones fail. It bounds what is kept for a server that is slow."""
_MOST_OCTETS = 65_536
"""The longest answer. The longest that the guard asks for has some hundred octets."""
_SLICE_OCTETS = 1024
"""txredisapi copies the rest of what has arrived for each line. It is given this much at a time, so that the time which
an arrival takes does not grow with its square."""


class RedisError(Exception):
    """The server cannot be used. The message is for the log: it has no password."""


class RedisConnection(Protocol):
    """Commands are answered in their order. The connection is over at the first answer that is wrong, or late."""

    def __init__(self, clock: Any) -> None:
        self.problem = ""
        """Why it is over; "" while it is not."""
        self.lost: Deferred[None] = Deferred()
        """Fires when it is over."""
        self._clock = clock
        self._watch: Any = None
        self._unanswered = 0
        self._looks = 0
        self._octets = 0
        self._closing = False
        # While a server that has forgotten the script is given it again, decisions wait, or they would change order.
        self._refused: list[tuple[tuple[Any, ...], Deferred[Any]]] = []
        self._held: list[tuple[tuple[Any, ...], Deferred[Any]]] = []

    # Called by Twisted.

    def connectionMade(self) -> None:
        from txredisapi import BaseRedisProtocol  # type: ignore[import-untyped]  # noqa: PLC0415

        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
            self.transport.setTcpKeepAlive(True)
        # Without hiredis, which would keep an answer of any size. A text stays a text, whatever it looks like.
        self._redis = BaseRedisProtocol(convertNumbers=False)
        # After a text it would go on in the next turn of the reactor, where nobody catches what it raises.
        self._redis.callLater = lambda seconds, function, *words: function(*words)
        self._redis.lineLengthExceeded = lambda line: self.fail("it does not speak the protocol of Redis")
        self._redis.makeConnection(self.transport)

    def dataReceived(self, data: bytes) -> None:
        for start in range(0, len(data), _SLICE_OCTETS):
            if self.problem:
                return
            piece = data[start : start + _SLICE_OCTETS]
            self._octets += len(piece)
            try:
                self._redis.dataReceived(piece)
            except Exception:  # noqa: BLE001 - txredisapi raises whatever comes of an answer that makes no sense
                self.fail("it does not speak the protocol of Redis")
            if self._redis.replyQueue.pending:
                self.fail("it answered what it was not asked")
            elif self._octets > _MOST_OCTETS:
                self.fail(f"an answer of it has more than {_MOST_OCTETS} octets")

    def connectionLost(self, reason: Failure = None) -> None:  # type: ignore[assignment]
        self.problem = self.problem or f"the connection was lost: {reason.getErrorMessage()}"
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        self._redis.connectionLost(reason)
        waiting = [*self._refused, *self._held]
        self._refused, self._held = [], []
        for _, result in waiting:
            result.errback(RedisError(self.problem))
        self.lost.callback(None)

    # Called by the store.

    def fail(self, problem: str) -> None:
        """End it now, because of `problem`, unless it is over already. What is unanswered fails."""
        if not self.problem:
            self.problem = problem
            self.transport.abortConnection()  # type: ignore[union-attr]

    def close(self) -> None:
        """End it when all is answered, or when no more answers come."""
        self._closing = True
        if not self._unanswered:
            self.fail("the guard stops")

    def ask(self, *words: Any) -> Deferred[Any]:
        """Send a command. The Deferred fires with its answer; it fails with RedisError, and nothing else."""
        if self.problem:
            return fail(RedisError(self.problem))
        self._unanswered += 1
        if self._watch is None:
            self._looks = 0
            self._watch = self._clock.callLater(ANSWER_SECONDS / 2, self._look_for_answers)
        answer: Deferred[Any] = self._redis.execute_command(*words)
        return answer.addCallbacks(self._answered, self._not_answered)

    def load_script(self) -> Deferred[Any]:
        """Give the script to the server."""
        return self.ask("SCRIPT", "LOAD", _SCRIPT)

    def run_script(self, prefix: str, *words: Any) -> Deferred[Any]:
        """Run the script with `words`, none of which has a line break or is empty. Scripts run in the order of these
        calls."""
        if self._unanswered + len(self._refused) + len(self._held) >= MOST_UNANSWERED:
            return fail(RedisError(f"{MOST_UNANSWERED} commands are unanswered"))
        result: Deferred[Any] = Deferred()
        arguments = ("EVALSHA", _SHA, 1, f"{prefix}:leases", "\n".join(map(str, words)))
        if self._refused:
            self._held.append((arguments, result))
        else:
            self._run(arguments, result)
        return result

    def _run(self, arguments: tuple[Any, ...], result: Deferred[Any], *, again: bool = False) -> None:
        def failed(failure: Failure) -> None:
            if not again and str(failure.value).startswith("NOSCRIPT"):
                self._refused.append((arguments, result))
            else:
                self.fail(str(failure.value))
                result.errback(failure)
            self._run_again()

        def answered(answer: object) -> None:
            result.callback(answer)
            self._run_again()

        self.ask(*arguments).addCallbacks(answered, failed)

    def _run_again(self) -> None:
        """When nothing more is unanswered: load the script, and run what was refused and what has come since."""
        if not self._refused or self._unanswered or self.problem:
            return
        waiting = [*self._refused, *self._held]
        self.load_script().addErrback(lambda failure: self.fail(str(failure.value)))
        self._refused, self._held = [], []
        for arguments, result in waiting:
            self._run(arguments, result, again=True)

    def _answered(self, answer: Any) -> Any:
        self._octets = 0
        self._unanswered -= 1
        self._looks = 0
        if self._closing and not self._unanswered:
            self.fail("the guard stops")
        return answer

    def _not_answered(self, failure: Failure) -> Any:
        """An error of the server, or the end of the connection."""
        self._answered(None)
        if failure.check(CancelledError):
            return failure
        raise RedisError(self.problem or _shown(str(failure.value))) from None

    def _look_for_answers(self) -> None:
        """Called twice in the time that an answer has. After one look it may be this process that was held up, or the
        clock that was set: what has arrived meanwhile is read only after it."""
        self._watch = None
        self._looks += 1
        if self._unanswered and self._looks > 1:
            self.fail(f"it did not answer within {ANSWER_SECONDS:g} s")
        elif self._unanswered:
            self._watch = self._clock.callLater(ANSWER_SECONDS / 2, self._look_for_answers)


def _shown(text: str) -> str:
    """An error of the server, for the log."""
    return escape_text(text.strip()[:200]) or "it answered with an error without a text"
