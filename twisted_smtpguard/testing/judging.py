"""What a guard and its clients can do to an IP filter or a session policy: many questions at once, clients that leave
while they wait, reloads."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from twisted_smtpguard.hooks.later import call_hook
from twisted_smtpguard.interfaces import IPreparedReload, IReloadable
from twisted_smtpguard.testing.demands import require, verify

MAX_BLOCKING_SECONDS = 0.25
"""How long a check may block the reactor, and so every other client of the guard."""
MAX_STALLS = 5
"""How many checks may block for longer, since the machine may have been busy. A filter that blocks exceeds this number:
it blocks at each check, or, with a cache, at the first check of each address."""
AT_ONCE = 10
"""The number of clients at each address, in the check of many at once."""


async def checked_judge(
    judge: Any, what: str, cases: Mapping[str, object], answer_type: type, seconds: Callable[[], float]
) -> int:
    """Run all checks of a Checks. Returns the number of verdicts."""
    # An unhandled error from before the check is logged now, so that it is not taken for one of the judge.
    gc.collect()
    with capturedLogs() as events:
        verdicts = await Checks(judge, what, cases, answer_type, seconds).all()
        gc.collect()
    of_deferreds = [event for event in events if event.get("log_namespace") == "twisted.internet.defer"]
    unhandled = [event["log_failure"].value for event in of_deferreds if "log_failure" in event]
    require(not unhandled, f"an error was left unhandled in a Deferred: {unhandled}")
    return verdicts


class Question:
    """A call of check(), and its outcome."""

    def __init__(self, what: str, answer: Deferred[Any], answer_type: type) -> None:
        self.what = what
        self._answer_type = answer_type
        self.outcome: list[object] = []
        """The answer, or a Failure; empty until it has come."""
        self._answer: Deferred[None] = answer.addBoth(self.outcome.append)

    async def verdict(self) -> None:
        await self._answer
        (outcome,) = self.outcome
        if isinstance(outcome, Failure):
            raise AssertionError(f"{self.what} raised {outcome.value!r}") from outcome.value
        kind = self._answer_type
        require(isinstance(outcome, kind), f"{self.what} answered {outcome!r}, not a {kind.__name__}")

    def cancel(self) -> None:
        """Cancel the answer. After the answer has come this does nothing."""
        try:
            self._answer.cancel()
        except Exception as error:
            raise AssertionError(f"{self.what} was cancelled, and its canceller raised {error!r}") from error


class Checks:
    """The checks of one filter or policy, `judge`, which is called `what`. `cases` has what it is asked, by its name in
    an AssertionError, `answer_type` is that of its answers, and `seconds` the clock."""

    def __init__(
        self,
        judge: Any,
        what: str,
        cases: Mapping[str, object],
        answer_type: type,
        seconds: Callable[[], float],
    ) -> None:
        self._judge = judge
        self._what = what
        self._cases = cases
        self._answer_type = answer_type
        self._seconds = seconds
        self._verdicts = 0
        self._stalls = 0
        self._given: dict[int, Deferred[Any]] = {}
        """The Deferreds that it has given, by their ids. They are kept, so that no id is used again."""

    async def all(self) -> int:
        """Run all checks. Returns the number of verdicts."""
        for case in self._cases:
            await self._judged([self._ask(case)])
        await self._judged(self._many(", many at once"))
        await self._some_leave()
        if IReloadable.providedBy(self._judge):
            verify(IReloadable, self._judge, self._what)
            await self._meanwhile("reload()", self._judge.reload)
        if IPreparedReload.providedBy(self._judge):
            verify(IPreparedReload, self._judge, self._what)
            switch = await self._meanwhile("prepare_reload()", self._judge.prepare_reload)
            require(callable(switch), f"prepare_reload() answered {switch!r}, which cannot be called")
            await self._meanwhile("what prepare_reload() answered", switch)
        return self._verdicts

    async def _some_leave(self) -> None:
        """Let all clients at each address but one leave. The look-up for the one that stays must go on, and whatever
        was taken for the others must be freed."""
        leaving = self._many()
        staying = [self._ask(case, ", of whom others were cancelled") for case in self._cases]
        for question in leaving:
            question.cancel()
        await self._judged(staying)
        await self._judged(self._many(", many at once after as many were cancelled"))
        for question in leaving:
            require(bool(question.outcome), f"{question.what} was cancelled, and has not ended")

    async def _meanwhile(self, what: str, hook: Callable[[], Any]) -> Any:
        """The answer of a hook that reloads data. Clients are checked during the reload and after it."""
        pending = call_hook(hook)
        await self._judged([self._ask(case, f" during {what}") for case in self._cases])
        try:
            answer = await pending
        except Exception as error:
            raise AssertionError(f"{what} raised {error!r}") from error
        await self._judged([self._ask(case, f" after {what}") for case in self._cases])
        return answer

    def _many(self, when: str = "") -> list[Question]:
        return [self._ask(case, when) for _ in range(AT_ONCE) for case in self._cases]

    def _ask(self, case: str, when: str = "") -> Question:
        what = f"check() of {case}{when}"
        began = self._seconds()
        try:
            answer = self._judge.check(self._cases[case])
            coming = call_hook(lambda: answer)
        except Exception as error:
            raise AssertionError(f"{what} raised {error!r}") from error
        blocked = self._seconds() - began
        self._stalls += blocked > MAX_BLOCKING_SECONDS
        require(
            self._stalls <= MAX_STALLS,
            f"{what} blocked for {blocked:.2f} s, as {MAX_STALLS} did before it: no client was served meanwhile",
        )
        require(id(answer) not in self._given, f"{what} answered with a Deferred that it gave before")
        if isinstance(answer, Deferred):
            self._given[id(answer)] = answer
        return Question(what, coming, self._answer_type)

    async def _judged(self, questions: Iterable[Question]) -> None:
        """Wait for the verdicts, and count them."""
        for question in questions:
            await question.verdict()
            self._verdicts += 1
