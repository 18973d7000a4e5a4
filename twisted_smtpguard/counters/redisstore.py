"""The counter store in Redis, which guards on several hosts share."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_smtpguard.counters.redisconnection import RedisConnection, RedisError
from twisted_smtpguard.counters.redisdial import connect
from twisted_smtpguard.counters.redisrenewal import NO_NAME, Renewals
from twisted_smtpguard.counters.redisurl import RedisServer, redis_servers
from twisted_smtpguard.hooks.faults import at_debug, safely
from twisted_smtpguard.interfaces import IConnectingCounterStore, IRecordStore
from twisted_smtpguard.values import MOST_RECORDS, CounterStoreUnavailable, Record, RecordsSince, Wanted

_FIRST_DELAY, _LONGEST_DELAY = 0.1, 5.0

_NO_MARK = "-1 0"
_HOUR_MILLISECONDS = 3_600_000
"""How long Redis knows that a record was removed of which it has not known."""


def redis_counter_store(text: str, reactor: object) -> RedisCounterStore:
    """Make a store of what follows `--counters`: one URL or several, or `redis+file:PATH`.

    ValueError says in one sentence, without a password, what is wrong with it.
    """
    servers = redis_servers(text)
    # txredisapi imports the reactor, so it is not imported before there is one.
    if find_spec("txredisapi") is None:
        raise ValueError(
            "Redis needs txredisapi, which is not installed: pip install twisted_smtpguard[redis]"
        )
    return RedisCounterStore(servers, reactor)


@implementer(IConnectingCounterStore, IRecordStore)
class RedisCounterStore(Service):
    """A counter store in the first of `servers()` that can be used. It is a service: while it runs it is connected, or
    tries to connect again after 0.05 to 5 seconds, and calls `servers()` anew each time. `lease_seconds` is the same in
    all guards.

    Answers come in the order of the calls, however late. While it is not connected every call fails at once with
    CounterStoreUnavailable; when the connection is lost, so does each call that has no answer. What was taken by such a
    call is held until the next `renew()`. All times but the delays are of Redis's clock. A call costs one round trip
    and one command, except that `renew()` has one for each 250 places.
    """

    def __init__(
        self, servers: Callable[[], Sequence[RedisServer]], reactor: Any, lease_seconds: float = 10.0
    ) -> None:
        self.lease_seconds = lease_seconds
        self.problem = "it has not been started"
        """Why it is not connected, with the server's name; "" if it is connected."""
        self.server = ""
        """The name of the server that is used, or was last: its URL without user and password."""
        self._servers = servers
        self._reactor = reactor
        self._connection: RedisConnection | None = None
        self._prefix = ""
        self._listeners: list[Callable[[], object]] = []
        self._runs: Deferred[None] | None = None
        self._stops = False
        self._renewals = Renewals(self._run)

    # As a service.

    def startService(self) -> None:
        """Begin to connect."""
        super().startService()
        self.problem = "it has not connected yet"
        self._stops = False
        self._runs = Deferred.fromCoroutine(self._stay_connected())

    def stopService(self) -> Deferred[None]:
        """Disconnect. What was asked before is answered, or fails when no answer has come for a second or two."""
        super().stopService()
        self._stops = True
        stopped = self._runs
        assert stopped is not None, "it is started before it is stopped"
        if self._connection is not None:
            self._connection.close()
        else:
            stopped.cancel()
        return stopped

    @property
    def connected(self) -> bool:
        """Whether the store can be asked now."""
        return self._connection is not None and not self._connection.problem

    def on_connected(self, call: Callable[[], object]) -> None:
        """Have `call()` called whenever the store has connected, before anything else is asked: for `renew()`, since
        Redis may have lost what it knew."""
        self._listeners.append(call)

    async def check(self) -> str:
        """Connect as at a start, and disconnect again. Returns why that is not possible; "" if it is. Called while the
        store does not run."""
        connection = await self._first_usable()
        if connection is None:
            return self.problem
        connection.close()
        await connection.lost
        return ""

    async def _stay_connected(self) -> None:
        failures = 0
        while self.running:
            connection = await self._first_usable()
            if connection is not None:
                self._connection, self.problem = connection, ""
                for call in self._listeners:
                    safely(at_debug, "what waited for the counter store raised", call)
                began = self._reactor.seconds()
                await connection.lost
                self._connection = None
                self.problem = f"{self.server}: {connection.problem}"
                # A server that drops each connection soon is not asked ten times a second.
                if self._reactor.seconds() - began > _LONGEST_DELAY:
                    failures = 0
            if not self.running:
                break
            delay = min(_FIRST_DELAY * 2 ** min(failures, 10), _LONGEST_DELAY)
            failures += 1
            # Guards that lost it together do not come back together.
            await self._pause(delay * random.uniform(0.5, 1))  # noqa: S311 - no secret

    async def _first_usable(self) -> RedisConnection | None:
        """A connection to the first server that can be used. None: there is none, and `problem` says why."""
        problems = []
        try:
            servers = self._servers()
        except ValueError as error:
            servers, problems = [], [str(error)]
        for server in servers:
            try:
                connection = await connect(server, self._reactor, self._lease())
            except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again
                problems.append(f"{server.name}: {error}")
                if self._stops:
                    break
                continue
            self._prefix, self.server = server.prefix, server.name
            return connection
        self.problem = "; ".join(problems)
        return None

    async def _pause(self, seconds: float) -> None:
        try:
            await deferLater(self._reactor, seconds)
        except Exception:
            if self.running:
                raise

    # As a counter store.

    def take(self, owner: str, wanted: Sequence[Wanted]) -> Deferred[list[int]]:
        """Take all that is wanted, or nothing, and answer the counts."""
        number = self._renewals.asked(owner, _places(wanted))

        def answered(counts: Any) -> Any:
            self._renewals.answered(number)
            return counts

        return self._run("take", owner, *_words(wanted), numbers=len(wanted)).addBoth(answered)

    def give_back(self, owner: str, taken: Sequence[Wanted]) -> Deferred[None]:
        """Give back what was taken, by this owner and no other."""
        former = self._renewals.given_back(owner, _places(taken))
        return self._run("give_back", owner, former, *_words(taken)).addCallback(lambda _: None)

    def look(self, wanted: Sequence[Wanted]) -> Deferred[list[tuple[int, float]]]:
        """Answer the count of each, and the seconds after which its window ends."""

        def pairs(seen: list[int]) -> list[tuple[int, float]]:
            return [(seen[at], seen[at + 1] / 1000) for at in range(0, len(seen), 2)]

        return self._run("look", NO_NAME, *_words(wanted), numbers=2 * len(wanted)).addCallback(pairs)

    def renew(self, owner: str, places: Mapping[tuple[str, str], int]) -> Deferred[None]:
        """Hold these places, and no others of this owner, from now on. Places that were asked for and are unanswered
        may be among them or not."""
        return self._renewals.renew(owner, places).addCallback(self._purge)

    # As a store of records.

    def put_records(self, kind: str, records: Mapping[str, Record | None], only_new: bool) -> Deferred[None]:
        """Keep these records. Their ends are kept by Redis's clock, so that those of the hosts do not matter."""
        now = self._reactor.seconds()
        words: list[object] = [kind, MOST_RECORDS, int(only_new)]
        for key, record in records.items():
            words += [key, *_words_of_record(record, now)]
        return self._run("put_records", NO_NAME, *words).addCallback(lambda _: None)

    def records_since(self, kind: str, mark: str) -> Deferred[RecordsSince]:
        """Answer what has changed since the answer with this mark: 100 changes at most."""
        known = mark or _NO_MARK

        def changes(answer: Sequence[Any]) -> RecordsSince:
            made, stamp, more, *rest = answer
            now = self._reactor.seconds()
            records = {rest[at]: _record(rest[at + 1], rest[at + 2], now) for at in range(0, len(rest), 3)}
            return RecordsSince(records, f"{made} {stamp}", bool(more), made != int(known.split()[0]))

        asked = self._run("records_since", NO_NAME, kind, *known.split(), fits=_are_changes)
        return asked.addCallback(changes)

    def _purge(self, ended: int) -> None:
        """Have the script give back what owners hold whose lease has ended: a part in each call, and nobody waits."""
        if ended:
            self._run("purge", NO_NAME).addCallbacks(self._purge, lambda _: None)

    def _run(
        self,
        verb: str,
        owner: str,
        *words: object,
        numbers: int = -1,
        fits: Callable[[Any], bool] | None = None,
    ) -> Deferred[Any]:
        """Run the script. Its answer is one number, or a list of `numbers` numbers unless that is -1, or what `fits`
        says."""
        connection = self._connection
        if connection is None or connection.problem:
            problem = self.problem if connection is None else f"{self.server}: {connection.problem}"
            return fail(CounterStoreUnavailable(problem))

        def answered(answer: Any) -> Any:
            if (fits or partial(_are_numbers, numbers))(answer):
                return answer
            connection.fail(f"its answer to {verb} makes no sense")
            raise CounterStoreUnavailable(f"{self.server}: {connection.problem}")

        return connection.run_script(self._prefix, verb, owner, self._lease(), *words).addCallbacks(
            answered, self._away
        )

    def _lease(self) -> int:
        return round(self.lease_seconds * 1000)

    def _away(self, failure: Failure) -> None:
        failure.trap(RedisError)
        raise CounterStoreUnavailable(f"{self.server}: {failure.value}") from None


def _are_numbers(numbers: int, answer: Any) -> bool:
    found = [answer] if numbers < 0 else answer
    return isinstance(found, list) and [*map(type, found)] == [int] * abs(numbers)


def _are_changes(answer: Any) -> bool:
    if not isinstance(answer, list):
        return False
    kinds = [*map(type, answer)]
    return kinds[:3] == [int] * 3 and kinds[3:] == [str, int, str] * ((len(kinds) - 3) // 3)


def _words_of_record(record: Record | None, now: float) -> tuple[int, str]:
    """The milliseconds that a record lives, and its value, as the script has them."""
    if record is None:
        # It lives as long as Redis knows of it.
        return _HOUR_MILLISECONDS, "-"
    return max(0, round((record.end - now) * 1000)), f"+{record.value}"


def _record(milliseconds: int, value: str, now: float) -> Record | None:
    return Record(value[1:], now + milliseconds / 1000) if value.startswith("+") else None


def _name(wanted: Wanted) -> str:
    if wanted.seconds:
        return f"w:{wanted.counter}:{wanted.seconds:g}:{wanted.client}"
    return f"p:{wanted.counter}:{wanted.client}"


def _places(wanted: Iterable[Wanted]) -> Counter[str]:
    places: Counter[str] = Counter()
    for each in wanted:
        if not each.seconds:
            places[_name(each)] += each.events
    return places


def _words(wanted: Iterable[Wanted]) -> Iterable[object]:
    for each in wanted:
        yield _name(each)
        yield each.limit
        # A window of less than a millisecond is one.
        yield max(1, round(each.seconds * 1000)) if each.seconds else 0
        yield each.events
