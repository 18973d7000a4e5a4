"""`check_counter_store` does to a counter store what guards and their clients can do to it."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from twisted_smtpguard.hooks.later import call_hook
from twisted_smtpguard.interfaces import ICounterStore
from twisted_smtpguard.testing.demands import require, verify
from twisted_smtpguard.values import Wanted

_CROWD = 40
"""How many decisions are asked for at once."""
_LIMIT = 7
_WINDOW = 2
"""Seconds of a window in these checks."""


def check_counter_store(
    store: ICounterStore, wait: Callable[[float], Awaitable[object]], *, second: ICounterStore | None = None
) -> Deferred[int]:
    """Check that `store` keeps its contract: alone, in a crowd, at the end of windows and of leases.

    `wait(seconds)` lets time pass on the store's clock: it may advance a Clock, or really wait; for a store with leases
    it is called with somewhat more than `lease_seconds`. `second` is another store on the same data, as another guard
    has it: give one if the store is meant to be shared.

    The Deferred fires with the number of decisions. It fails with an AssertionError that says what the store did wrong.
    """
    return Deferred.fromCoroutine(_Checks(store, second or store, wait).all())


class _Checks:
    """The checks of one store. Each uses its own clients, so that they do not disturb each other, or a guard."""

    def __init__(
        self, store: ICounterStore, second: ICounterStore, wait: Callable[[float], Awaitable[object]]
    ) -> None:
        self._store = store
        self._second = second
        self._wait = wait
        self._owner = f"check-{secrets.token_hex(8)}"
        self._other = f"check-{secrets.token_hex(8)}"
        self._decisions = 0

    async def all(self) -> int:
        verify(ICounterStore, self._store, "the store")
        verify(ICounterStore, self._second, "the second store")
        await self._places()
        await self._windows()
        await self._all_or_none()
        await self._networks()
        await self._a_crowd()
        await self._a_crowd_of_a_network()
        await self._the_end_of_a_window()
        if self._store.lease_seconds:
            await self._the_end_of_a_lease()
        return self._decisions

    async def _places(self) -> None:
        place = _place("connections")
        for held in range(1, _LIMIT + 1):
            await self._counts([place], [held], "a place was taken")
        await self._counts([place], [_LIMIT + 1], "a place above the limit was wanted")
        await self._counts(
            [place], [_LIMIT + 1], "a place above the limit was wanted again: it had been taken"
        )
        await self._seen([place], [_LIMIT], "a place above the limit was refused")
        await self._give_back([place], "a place")
        await self._counts([place], [_LIMIT], "a place was given back")
        await self._counts([place._replace(client=_client())], [1], "another client wanted a place")
        await self._counts([place._replace(limit=0)], [_LIMIT + 1], "a place without a limit was wanted")
        await self._give_back([place] * (_LIMIT + 1), "all places")
        await self._give_back([place], "a place that is not held")
        await self._counts([place], [1], "more places were given back than were held")

    async def _windows(self) -> None:
        rate = _rate("messages", seconds=600)
        await self._seen([rate], [0], "nothing was taken")
        await self._counts(
            [rate._replace(events=_LIMIT)], [_LIMIT], "as many events as the limit were wanted"
        )
        await self._counts([rate], [_LIMIT + 1], "an event above the limit was wanted")
        ((count, left),) = await self._look([rate])
        require(count == _LIMIT, f"look() answered {count} events, not {_LIMIT}")
        require(0 < left <= 600, f"look() answered that a window of 600 s ends in {left} s")
        await self._give_back([rate], "an event")
        await self._counts([rate], [_LIMIT], "an event was taken back")

    async def _all_or_none(self) -> None:
        client = _client()
        full, free, rate = _place("connections", client, 1), _place("networks", client), _rate("rate", client)
        await self._counts([full, free, rate], [1, 1, 1], "all was free")
        await self._counts([free, full, rate], [2, 2, 2], "one place of three was not free")
        await self._seen([full, free, rate], [1, 1, 1], "a decision was refused, but part of it was taken")
        over = rate._replace(limit=1)
        await self._counts([full._replace(limit=2), free, over], [2, 2, 2], "the rate was exceeded")
        await self._seen(
            [full, free, rate], [1, 1, 1], "a decision was refused for its rate, but part was taken"
        )

    async def _networks(self) -> None:
        """Of one counter a client and the networks in which it is are wanted at once, each with its own limit."""
        for kind in (_place, _rate):
            network, wider = kind("connections", limit=3), kind("connections", limit=5)
            clients = [kind("connections", limit=2) for _ in range(4)]
            for number, client in enumerate(clients[:3]):
                await self._counts(
                    [client, network, wider], [1, number + 1, number + 1], "a network had room for a client"
                )
            all_of_them = [*clients, network, wider]
            await self._counts([clients[3], network, wider], [1, 4, 4], "a network was full")
            await self._seen(
                all_of_them,
                [1, 1, 1, 0, 3, 3],
                "a decision was refused for a network, but part of it was taken",
            )
            await self._counts([clients[0], wider], [2, 4], "a wider network had room for a client")
            await self._counts([clients[0], wider], [3, 5], "a client was full")
            await self._seen(
                all_of_them,
                [2, 1, 1, 0, 3, 4],
                "a decision was refused for a client, but part of it was taken",
            )

    async def _a_crowd(self) -> None:
        place, rate = _place("connections"), _rate("rate", seconds=600)
        crowd = [
            self._take(store, owner, [place, rate])
            for _ in range(_CROWD // 2)
            for store, owner in ((self._store, self._owner), (self._second, self._other))
        ]
        answers: Any = await gatherResults(crowd, consumeErrors=True)
        taken = sum(held <= _LIMIT and events <= _LIMIT for held, events in answers)
        require(taken == _LIMIT, f"of {_CROWD} clients at once {taken} got one of {_LIMIT} places")
        await self._seen([place, rate], [_LIMIT, _LIMIT], "a crowd wanted more than there was")

    async def _a_crowd_of_a_network(self) -> None:
        network, rate = _place("connections"), _rate("rate", limit=2 * _LIMIT)
        clients = [_place("connections", limit=1) for _ in range(_CROWD)]
        crowd = [
            self._take(store, owner, [client, network, rate])
            for client, (store, owner) in zip(
                clients, [(self._store, self._owner), (self._second, self._other)] * _CROWD, strict=False
            )
        ]
        answers: Any = await gatherResults(crowd, consumeErrors=True)
        taken = [int(held <= _LIMIT) for _, held, _ in answers]
        require(
            sum(taken) == _LIMIT,
            f"of {_CROWD} clients of one network at once {sum(taken)} got one of its {_LIMIT} places",
        )
        await self._seen([*clients, network, rate], [*taken, _LIMIT, _LIMIT], "a network was full")

    async def _the_end_of_a_window(self) -> None:
        rate = _rate("rate", seconds=_WINDOW)
        await self._counts([rate._replace(events=_LIMIT)], [_LIMIT], "a window began")
        await self._wait(_WINDOW * 1.1)
        await self._seen([rate], [0], "a window was over")
        await self._counts([rate], [1], "a window was over")

    async def _the_end_of_a_lease(self) -> None:
        kept, lost = _place("kept"), _place("lost")
        await self._counts([kept, lost], [1, 1], "places were wanted")
        for _ in range(4):
            await self._wait(self._store.lease_seconds * 0.4)
            await self._answer("renew()", lambda: self._store.renew(self._owner, {kept[:2]: 1}))
        await self._seen([kept, lost], [1, 0], "one of two places was renewed")
        await self._wait(self._store.lease_seconds * 1.2)
        await self._seen([kept], [0], "a lease was not renewed")
        await self._answer("renew()", lambda: self._store.renew(self._owner, {kept[:2]: 2}))
        await self._seen([kept], [2], "two places that the store had lost were renewed")

    async def _counts(self, wanted: Sequence[Wanted], counts: Sequence[int], when: str) -> None:
        answer = await self._take(self._store, self._owner, wanted)
        require(list(answer) == list(counts), f"take() answered {list(answer)}, not {list(counts)}: {when}")

    async def _seen(self, wanted: Sequence[Wanted], counts: Sequence[int], when: str) -> None:
        seen = [count for count, _ in await self._look(wanted, self._second)]
        require(seen == list(counts), f"look() answered the counts {seen}, not {list(counts)}: {when}")

    def _take(self, store: Any, owner: str, wanted: Sequence[Wanted]) -> Deferred[Any]:
        self._decisions += 1
        return self._answer("take()", lambda: store.take(owner, wanted))

    def _look(self, wanted: Sequence[Wanted], store: Any = None) -> Deferred[Any]:
        return self._answer("look()", lambda: (store or self._store).look(wanted))

    def _give_back(self, taken: Sequence[Wanted], what: str) -> Deferred[Any]:
        return self._answer(f"give_back() of {what}", lambda: self._store.give_back(self._owner, taken))

    @staticmethod
    def _answer(what: str, hook: Callable[[], Any]) -> Deferred[Any]:
        def failed(failure: Any) -> None:
            raise AssertionError(f"{what} raised {failure.value!r}") from failure.value

        return call_hook(hook).addErrback(failed)


def _client() -> str:
    return f"check-{secrets.token_hex(8)}"


def _place(counter: str, client: str = "", limit: int = _LIMIT) -> Wanted:
    return Wanted(f"check_{counter}", client or _client(), limit)


def _rate(counter: str, client: str = "", limit: int = _LIMIT, seconds: float = 600) -> Wanted:
    return Wanted(f"check_{counter}_rate", client or _client(), limit, seconds)
