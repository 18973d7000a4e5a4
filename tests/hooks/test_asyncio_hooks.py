"""Hooks that await what asyncio has: each of them, each way to answer, cancellation, and reactors without asyncio."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

import pytest
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_smtpguard import CallableDelivery, FilterEntry, Rate, SMTPGuardService
from twisted_smtpguard.hooks.later import AsyncioUnavailableError, HookCancelledError, as_deferred, call_hook
from twisted_smtpguard.interfaces import PASS, ICounterStore, IIPFilter, IReloadable, Wanted, refuse
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.testing import FakeDelivery, FakeFilter, Guard

MAX_TURNS = 1_000
MESSAGE = ("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.org>", "DATA", "Subject: x", "", ".")
BRIEFLY = 0.001
"""Seconds. A hook waits so long in a loop of asyncio whose turns a test counts."""


async def until(condition: Callable[[], object]) -> None:
    for _ in range(MAX_TURNS):
        if condition():
            return
        await asyncio.sleep(BRIEFLY)
    raise AssertionError("it does not come to that")


async def hears(client: Any, *codes: int, said: str = "") -> str:
    """What the guard says after `said`, as soon as it has said these codes."""

    def heard() -> bool:
        nonlocal said
        client.guard.clock.advance(0)
        said += client.heard()
        return len([line for line in said.split("\r\n") if line[3:4] == " "]) >= len(codes)

    await until(heard)
    assert [int(line[:3]) for line in said.split("\r\n") if line[3:4] == " "] == list(codes), said
    return said


async def sleeping(value: Any) -> Any:
    await asyncio.sleep(BRIEFLY)
    return value


async def with_a_timeout(value: Any) -> Any:
    return await asyncio.wait_for(sleeping(value), 60)


async def with_deferreds_between(value: Any) -> Any:
    later: Deferred[Any] = Deferred()
    asyncio.get_running_loop().call_later(BRIEFLY, later.callback, value)
    await asyncio.sleep(BRIEFLY)
    assert await succeed(1) == 1
    answer = await later
    await asyncio.sleep(0)
    return answer


async def gathered(value: Any) -> Any:
    assert asyncio.current_task() is not None
    one, other = await asyncio.gather(sleeping(1), sleeping(value))
    assert one == 1
    return other


def future(value: Any) -> asyncio.Future[Any]:
    made: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(BRIEFLY, made.set_result, value)
    return made


def task(value: Any) -> asyncio.Task[Any]:
    return asyncio.get_running_loop().create_task(sleeping(value))


class AwaitableOnly:
    def __init__(self, value: Any) -> None:
        self._value = value

    def __await__(self) -> Any:
        return sleeping(self._value).__await__()


WAYS = [sleeping, with_a_timeout, with_deferreds_between, gathered, future, task, AwaitableOnly]
ways = pytest.mark.parametrize("later", WAYS)


# Every hook.


@ways
def test_every_hook_of_a_delivery_may_answer_so(later: Callable[[Any], Any]) -> None:
    class Slow(FakeDelivery):
        def begin(self, client: Any, sender: Any) -> Any:
            mail = super().begin(client, sender)
            data = mail.data
            mail.data = lambda: later(data())
            return later(mail)

    async def conversation() -> None:
        delivery = Slow()
        delivery.answers.update(
            recipient=lambda *_: later(None),
            write=lambda *_: later(None),
            finish=lambda *_: later(Reply(250, "2.0.0", ("Queued",))),
        )
        client = Guard(delivery).greeted()
        client.heard()
        said = client.say(*MESSAGE)
        assert "250 2.0.0 Queued\r\n" in await hears(client, 250, 250, 354, 250, said=said)
        assert delivery.messages[0].octets == b"Subject: x\r\n\r\n"

    asyncio.run(conversation())


@ways
def test_a_function_of_an_application_may_answer_so(later: Callable[[Any], Any]) -> None:
    async def conversation() -> None:
        delivery = CallableDelivery(lambda *_: later(Reply(250, "2.0.0", ("Queued",))), Clock())
        client = Guard(delivery).greeted()
        client.heard()
        said = client.say(*MESSAGE)
        assert "250 2.0.0 Queued\r\n" in await hears(client, 250, 250, 354, 250, said=said)

    asyncio.run(conversation())


@ways
def test_a_filter_may_answer_so(later: Callable[[Any], Any]) -> None:
    async def conversation() -> None:
        no = refuse(Reply(521, "5.7.1", ("Not you",)))
        filters = [FakeFilter(lambda peer: later(PASS if str(peer.address) == "192.0.2.1" else no))]
        guard = Guard(ip_filters=filters)
        await hears(guard.connect(), 220)
        await hears(guard.connect("192.0.2.2"), 521)

    asyncio.run(conversation())


@ways
def test_a_checker_of_passwords_may_answer_so(later: Callable[[Any], Any]) -> None:
    class Checker:
        credentialInterfaces = (IUsernamePassword,)

        async def requestAvatarId(self, credentials: Any) -> Any:
            if not await later(credentials.password == b"secret"):
                raise UnauthorizedLogin
            return credentials.username

    async def conversation() -> None:
        client = Guard(checkers=[Checker()]).greeted()
        client.heard()
        said = client.say("AUTH PLAIN AGFubgB3cm9uZw==")
        await hears(client, 535, said=said)
        said = client.say("AUTH PLAIN AGFubgBzZWNyZXQ=")
        await hears(client, 235, said=said)

    asyncio.run(conversation())


@implementer(ICounterStore)
class Store:
    def __init__(self, later: Callable[[Any], Any]) -> None:
        self.later = later
        self.held = 0

    lease_seconds = 0

    def take(self, owner: str, wanted: Sequence[Wanted]) -> Any:
        self.held += 1
        return self.later([self.held])

    def give_back(self, owner: str, taken: Sequence[Wanted]) -> Any:
        self.held -= 1
        return self.later(None)

    def look(self, wanted: Sequence[Wanted]) -> Any:
        return self.later([(self.held, 0)])

    def renew(self, owner: str, places: Mapping[tuple[str, str], int]) -> Any:
        return self.later(None)


@ways
def test_a_counter_store_may_answer_so(later: Callable[[Any], Any]) -> None:
    async def conversation() -> None:
        store = Store(later)
        guard = Guard(counters=store, max_connections_per_client=1)
        first = guard.connect()
        await hears(first, 220)
        await hears(guard.connect(), 421)
        first.disconnect()
        await until(lambda: guard.factory.counting.pending == 0)

    asyncio.run(conversation())


@ways
def test_a_reload_may_answer_so(later: Callable[[Any], Any]) -> None:
    @implementer(IIPFilter, IReloadable)
    class Part(FakeFilter):
        def reload(self) -> Any:
            return later(None)

    async def reload() -> list[Any]:
        guard = SMTPGuardService(Guard().clock, [], FakeDelivery(), ip_filters=[FilterEntry(Part(), "f0")])
        done = guard.reload()
        with capturedLogs() as events:
            await until(lambda: done.called)
        return [event["event"] for event in events]

    assert asyncio.run(reload()) == ["reloaded"]


# How it ends.


def test_a_task_that_fails_is_a_failure_of_its_hook_and_asyncio_hears_nothing_of_it() -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise KeyError("x")

    async def run() -> Any:
        asyncio.get_running_loop().set_exception_handler(lambda *what: told.append(what))
        outcomes: list[Any] = []
        for answer in (fails(), asyncio.ensure_future(fails())):
            as_deferred(answer).addErrback(outcomes.append)
        await until(lambda: len(outcomes) == 2)
        return outcomes

    told: list[Any] = []
    assert [outcome.type for outcome in asyncio.run(run())] == [KeyError, KeyError]
    gc.collect()
    assert told == []


def test_a_hook_that_raises_system_exit_does_not_end_the_loop() -> None:
    async def leaves() -> None:
        await asyncio.sleep(0)
        raise SystemExit

    async def run() -> Any:
        outcomes: list[Any] = []
        as_deferred(leaves()).addErrback(outcomes.append)
        await until(lambda: outcomes)
        return outcomes[0].type

    assert asyncio.run(run()) is SystemExit


@pytest.mark.parametrize("as_a_task", [False, True])
def test_to_cancel_the_answer_cancels_what_is_awaited(as_a_task: bool) -> None:
    heard: list[str] = []

    async def hook() -> None:
        try:
            await asyncio.sleep(1_000)
        except asyncio.CancelledError:
            heard.append("cancelled")
            raise

    async def run() -> Any:
        outcomes: list[Any] = []
        answer: Awaitable[None] = asyncio.ensure_future(hook()) if as_a_task else hook()
        promised = as_deferred(answer)
        promised.addErrback(outcomes.append)
        await asyncio.sleep(BRIEFLY)
        promised.cancel()
        await until(lambda: outcomes)
        return outcomes[0].value

    # What has cancelled a hook asks for Twisted's class.
    assert isinstance(asyncio.run(run()), CancelledError)
    assert heard == ["cancelled"]


def test_one_that_goes_on_in_spite_of_it_says_what_came_of_it() -> None:
    async def stubborn() -> str:
        try:
            await asyncio.sleep(1_000)
        except asyncio.CancelledError:
            await asyncio.sleep(BRIEFLY)
        return "delivered"

    async def run() -> list[Any]:
        outcomes: list[Any] = []
        promised = as_deferred(stubborn())
        promised.addBoth(outcomes.append)
        await asyncio.sleep(BRIEFLY)
        promised.cancel()
        assert outcomes == []
        await until(lambda: outcomes)
        return outcomes

    assert asyncio.run(run()) == ["delivered"]


def test_a_deferred_that_is_awaited_in_a_task_is_cancelled_as_without_one() -> None:
    cancelled: list[object] = []

    async def hook() -> str:
        try:
            await Deferred(cancelled.append)
        except CancelledError:
            return "heard it"
        return ""

    async def run() -> list[Any]:
        outcomes: list[Any] = []
        promised = as_deferred(hook())
        promised.addBoth(outcomes.append)
        await asyncio.sleep(BRIEFLY)
        promised.cancel()
        await until(lambda: outcomes)
        return outcomes

    assert asyncio.run(run()) == ["heard it"]
    assert len(cancelled) == 1


def test_one_that_is_cancelled_before_its_first_step_leaves_no_coroutine() -> None:
    async def run() -> Any:
        outcomes: list[Any] = []
        promised = as_deferred(sleeping(1))
        promised.addErrback(outcomes.append)
        promised.cancel()
        await until(lambda: outcomes)
        return outcomes[0].value

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(asyncio.run(run()), CancelledError)
        gc.collect()


def test_a_client_that_leaves_cancels_the_task_of_its_hook() -> None:
    cancelled: list[str] = []

    async def hook(*_: object) -> None:
        try:
            await asyncio.sleep(1_000)
        except asyncio.CancelledError:
            cancelled.append("cancelled")
            raise

    async def conversation() -> None:
        delivery = FakeDelivery()
        delivery.answers["recipient"] = hook
        client = Guard(delivery).greeted()
        client.heard()
        client.say(*MESSAGE[:2])
        await asyncio.sleep(BRIEFLY)
        client.disconnect()
        await until(lambda: cancelled)
        assert delivery.calls[-1] == "transaction.abort"

    with capturedLogs() as events:
        asyncio.run(conversation())
    assert [event["event"] for event in events if event["event"] == "failure"] == []


def test_a_hook_whose_time_is_over_is_cancelled() -> None:
    async def hook(*_: object) -> None:
        await asyncio.sleep(1_000)

    async def conversation() -> None:
        delivery = FakeDelivery()
        delivery.answers["finish"] = hook
        guard = Guard(delivery, delivery_timeout=5)
        client = guard.greeted()
        client.say(*MESSAGE)
        await asyncio.sleep(BRIEFLY)
        client.heard()
        guard.clock.advance(5)
        assert client.heard().startswith("451 4.3.0 ")
        await until(lambda: len(asyncio.all_tasks()) == 1)
        assert client.codes("NOOP") == [250]

    asyncio.run(conversation())


# asyncio's CancelledError is no Exception.


def raises(*_: object) -> Any:
    raise asyncio.CancelledError


async def ends_so(*_: object) -> Any:
    raise asyncio.CancelledError


def fails_so(*_: object) -> Any:
    failed: Deferred[Any] = Deferred()
    failed.errback(Failure(asyncio.CancelledError()))
    return failed


@pytest.mark.parametrize("in_a_loop", [False, True])
@pytest.mark.parametrize("hook", [raises, ends_so, fails_so])
def test_cancelled_error_of_a_hook_is_its_failure_and_nothing_else_is_hurt(
    hook: Callable[..., Any], in_a_loop: bool
) -> None:
    class Checker:
        credentialInterfaces = (IUsernamePassword,)
        requestAvatarId = staticmethod(hook)

    class Broken(Store):
        def take(self, *_: object) -> Any:
            return hook()

    async def settle() -> None:
        if in_a_loop:
            await asyncio.sleep(BRIEFLY)

    async def conversation() -> None:
        client = Guard(ip_filters=[FakeFilter(hook)]).connect()
        await settle()
        assert client.heard() == "421 4.3.0 Internal error, try again later\r\n"
        for name in ("begin", "recipient", "data", "finish"):
            delivery = FakeDelivery()
            delivery.answers[name] = hook
            client = Guard(delivery).greeted()
            client.heard()
            for line in MESSAGE:
                client.say(line)
                await settle()
            client.say("NOOP")
            await settle()
            assert client.protocol.engine.name and not client.closed
        client = Guard(checkers=[Checker()]).greeted()
        client.heard()
        said = client.say("AUTH PLAIN AGFubgBzZWNyZXQ=")
        await settle()
        assert (said + client.heard()).startswith("454 4.7.0 ")
        client = Guard(counters=Broken(lambda value: value), recipient_rate=Rate(1, 1)).greeted()
        client.say(*MESSAGE[:2])
        await settle()

    def drive(coroutine: Coroutine[Any, Any, None]) -> None:
        with pytest.raises(StopIteration):
            coroutine.send(None)

    with capturedLogs() as events:
        asyncio.run(conversation()) if in_a_loop else drive(conversation())
    assert [event["event"] for event in events].count("failure") == 7


# Where no loop runs.


async def sleeps() -> None:
    await asyncio.sleep(0.1)


def of_no_loop() -> asyncio.Future[None]:
    return asyncio.Future(loop=LOOP)


async def awaits_one_of_no_loop() -> None:
    await of_no_loop()


def begins_a_task() -> Any:
    coroutine = sleeps()
    try:
        return asyncio.create_task(coroutine)
    finally:
        coroutine.close()


LOOP = asyncio.new_event_loop()


@pytest.mark.parametrize("hook", [sleeps, of_no_loop, awaits_one_of_no_loop, begins_a_task])
def test_without_a_loop_the_error_says_that_the_asyncio_reactor_is_needed(hook: Callable[[], Any]) -> None:
    failures: list[Any] = []
    call_hook(hook).addErrback(failures.append)
    assert failures[0].type is AsyncioUnavailableError
    assert "--reactor=asyncio" in failures[0].getErrorMessage()
    delivery = FakeDelivery()
    delivery.answers["recipient"] = lambda *_: hook()
    client = Guard(delivery).greeted()
    client.heard()
    with capturedLogs() as events:
        assert client.codes(*MESSAGE[:2]) == [250, 451]
    [failure] = [event for event in events if event["event"] == "failure"]
    assert failure["error"].startswith("AsyncioUnavailableError: ")


def test_in_a_loop_a_coroutine_in_a_deferred_is_told_from_one_that_is_not() -> None:
    async def run() -> Failure:
        failures: list[Failure] = []
        as_deferred(Deferred.fromCoroutine(sleeps())).addErrback(failures.append)
        return failures[0]

    assert "not with Deferred.fromCoroutine()" in asyncio.run(run()).getErrorMessage()


def test_cancelled_by_itself_it_is_told_from_one_that_was_cancelled() -> None:
    failures: list[Failure] = []
    call_hook(raises).addErrback(failures.append)
    assert failures[0].type is HookCancelledError
