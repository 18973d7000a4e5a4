"""How many wrong passwords a client may try, over all its sessions.

A try is counted before its password is checked, and taken back if the password was right or could not be judged. So a
client that tries many passwords at once has no more of them checked than one after the other. While it depends on
passwords that are being checked whether a further one may be, the try waits: an honest client may log in by any number
of connections at once.

A user who has logged in from a client before is counted apart there, with the same rate: no guesses of its neighbours,
and none of other clients, lock it out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple, TypeAlias

import attrs
from twisted.internet.defer import Deferred

from twisted_smtpguard.admission.clients import ClientLimits
from twisted_smtpguard.counters.decision import fits
from twisted_smtpguard.hooks.later import CallLater, start_coroutine
from twisted_smtpguard.records.records import Records, renewed_after
from twisted_smtpguard.values import Wanted

OF_CLIENT, OF_USER = "auth_failure_rate", "auth_failure_rate_per_user"
"""The limits."""

_CHECKS = "auth_checks"
"""The counter of the passwords that are being checked. Each is counted as wrong too, until it is known not to be."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5
"""Seconds between two looks whether those passwords have been checked, perhaps by other processes."""


def digest_of(username: bytes) -> str:
    """Stands for the name of a user where it is kept: nobody is to read it there, and a client may send one of any
    length. It is the same for upper and lower case, since to many checkers they are one user."""
    name = username.decode("utf-8", "surrogateescape").casefold().encode("utf-8", "surrogateescape")
    return blake2b(name, digest_size=16).hexdigest()


class Exceeded(NamedTuple):
    """A limit that a try exceeds."""

    limit: str
    network: str
    """The network of the client that has exceeded it; "" for the client itself, and if the limit is per user."""
    failures: int
    """How many wrong passwords there are with this one."""


class _Count(NamedTuple):
    """One of the counts of a try."""

    limit: str
    network: str
    most: int
    wanted: Wanted


_Counts: TypeAlias = Sequence[_Count]


@attrs.define(eq=False)
class Attempt:
    """One try to log in. One of `right`, `wrong` and `withdraw` is called when its password has been checked, or will
    not be. Only the first call has an effect."""

    _attempts: LoginAttempts
    _client: str
    login: str
    """The key of the client and the user, among the logins."""
    known: bool
    """Whether the user has logged in from this client before."""
    exceeded: Sequence[Exceeded] = ()
    """What it exceeds: one limit that is enforced, so that nothing is counted, or any number in dry run."""
    _taken: Sequence[Wanted] = ()
    _failures: int = 0
    """How many wrong passwords the client has with this one, if all that are being checked are wrong too."""

    def right(self) -> None:
        """Its password was right."""
        self.withdraw()
        self._attempts.note_login(self.login)

    def wrong(self) -> None:
        """Its password was wrong, and stays counted."""
        if self._failures:
            self._attempts.note_failures(self._client, self._failures)
        self._give_back([each for each in self._taken if each.counter == _CHECKS])

    def withdraw(self) -> None:
        """Its password could not be judged, or the client has left before it was."""
        self._give_back(self._taken)

    def decided(self, exceeded: Sequence[Exceeded], taken: Sequence[Wanted], failures: int) -> None:
        """Called once it is decided whether the password may be checked."""
        self.exceeded, self._taken, self._failures = exceeded, taken, failures
        if failures and not taken:
            self._attempts.note_failures(self._client, failures)

    def _give_back(self, given: Sequence[Wanted]) -> None:
        if self._taken:
            self._taken = ()
            self._attempts.counting.give_back(given)


class LoginAttempts:
    """Counts the passwords that clients try against the limits of `clients`. `logins` has from where users have logged
    in. `rehearses`: no user is meant, and no try waits."""

    def __init__(
        self,
        clients: ClientLimits,
        logins: Records,
        call_later: CallLater,
        seconds: Callable[[], float],
        *,
        rehearses: bool = False,
    ) -> None:
        self.counting = clients.counting
        self.call_later = call_later
        self._clients = clients
        self._logins = logins
        self._seconds = seconds
        self._rehearses = rehearses
        self._queues: dict[str, _Queue] = {}
        """The tries that wait, by the client in their first count."""

    def begin(self, client: str, username: bytes, *, trusted: bool = False) -> Attempt | Deferred[Attempt]:
        """Count a try of the client with this key. A Deferred if the store answers later, or the try has to wait;
        cancel it if the client leaves."""
        user = digest_of(username)
        login = f"{client}#{user}"
        attempt = Attempt(self, client, login, self._logins.get(login) is not None)
        counts = [] if trusted else list(self._counts(client, user, attempt))
        if not counts:
            return attempt
        queue = self._queues.get(counts[0].wanted.client)
        return start_coroutine(self._begin(attempt, counts)) if queue is None else queue.join(attempt, counts)

    def _counts(self, client: str, user: str, attempt: Attempt) -> Iterator[_Count]:
        known = attempt.known
        of_client, of_user = self._clients.limit(OF_CLIENT), self._clients.limit(OF_USER)
        if of_client is not None:
            own, *of_networks = of_client.wanted(client)
            if known:
                own, of_networks = own._replace(client=attempt.login), []
            yield _Count(OF_CLIENT, "", of_client.most, own)
            for each in of_networks:
                yield _Count(
                    OF_CLIENT, each.client, of_client.most * self._clients.limits.times(each.client), each
                )
        if of_user is not None and not (known or self._rehearses):
            limit = of_user.most if self._clients.limits.enforced(OF_USER) else 0
            yield _Count(OF_USER, "", of_user.most, Wanted(OF_USER, user, limit, of_user.seconds))

    async def _begin(self, attempt: Attempt, counts: _Counts) -> Attempt:
        if not await self.decide(attempt, counts):
            key = counts[0].wanted.client
            if key not in self._queues:
                self._queues[key] = _Queue(self, partial(self._queues.pop, key))
            await self._queues[key].join(attempt, counts)
        return attempt

    async def decide(self, attempt: Attempt, counts: _Counts) -> bool:
        """Count a try if it is allowed. Returns False if that depends on passwords that are being checked."""
        wanted = [each for count in counts for each in (count.wanted, Wanted(_CHECKS, count.wanted.client))]
        answer = self.counting.take(wanted)
        numbers = await answer if isinstance(answer, Deferred) else answer
        exceeded: list[Exceeded] = []
        enforced: list[Exceeded] = []
        for count, failures, checks in zip(counts, numbers[::2], numbers[1::2], strict=True):
            wrong = failures - checks + 1
            if wrong > count.most:
                over = enforced if count.wanted.limit else exceeded
                over.append(Exceeded(count.limit, count.network, wrong))
        if fits(wanted, numbers):
            attempt.decided(exceeded, wanted, numbers[0] if counts[0].limit == OF_CLIENT else 0)
        elif enforced:
            of_client = enforced[0].limit == OF_CLIENT and not enforced[0].network
            attempt.decided(enforced[:1], (), enforced[0].failures if of_client else 0)
        else:
            return self._rehearses
        return True

    def note_failures(self, client: str, failures: int) -> None:
        """Called when a client has so many wrong passwords, or would have."""
        self._clients.peaks.note(client, OF_CLIENT, failures)

    def note_login(self, login: str) -> None:
        """Called when a user has logged in from a client."""
        seconds = self._clients.limits.known_for
        end = self._seconds() + seconds
        record = self._logins.get(login)
        if seconds and (record is None or end - record.end >= renewed_after(seconds)):
            self._logins.put(login, "", end)


class _Queue:
    """The tries of a client that wait. Only the first of them asks the counter store, again after each pause, so that
    few questions are asked, and none overtakes another. `ended` is called when no try waits any more."""

    def __init__(self, attempts: LoginAttempts, ended: Callable[[], object]) -> None:
        self._attempts = attempts
        self._ended = ended
        self._waiting: dict[Deferred[Attempt], tuple[Attempt, _Counts]] = {}
        self._asking = False
        self._pause: Any = None

    def join(self, attempt: Attempt, counts: _Counts) -> Deferred[Attempt]:
        """Fires when it is decided whether the password may be checked. Cancel it if the client leaves."""
        waiting: Deferred[Attempt] = Deferred(self._leave)
        self._waiting[waiting] = attempt, counts
        if self._pause is None and not self._asking:
            self._sleep(_FIRST_PAUSE)
        return waiting

    def _leave(self, waiting: Deferred[Attempt]) -> None:
        del self._waiting[waiting]
        if not self._waiting and self._pause is not None:
            self._pause.cancel()
            self._ended()

    def _sleep(self, seconds: float) -> None:
        self._pause = self._attempts.call_later(
            seconds, partial(self._wake, min(2 * seconds, _LONGEST_PAUSE))
        )

    def _wake(self, pause: float) -> None:
        self._pause = None
        self._asking = True
        Deferred.fromCoroutine(self._ask()).addCallback(self._asked, pause)

    async def _ask(self) -> bool:
        """Decide about one try after the other, as far as that is possible. Returns whether there was one."""
        some = False
        while self._waiting:
            waiting, (attempt, counts) = next(iter(self._waiting.items()))
            if not await self._attempts.decide(attempt, counts):
                break
            if self._waiting.pop(waiting, None) is None:
                # The client has left meanwhile.
                attempt.withdraw()
            else:
                some = True
                waiting.callback(attempt)
        return some

    def _asked(self, some: bool, pause: float) -> None:
        self._asking = False
        if self._waiting:
            self._sleep(_FIRST_PAUSE if some else pause)
        else:
            self._ended()
