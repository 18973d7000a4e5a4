"""A state of all workers ends when the last has left it, and not because those who told of it are gone."""

from __future__ import annotations

from twisted.internet.task import Clock

from twisted_smtpguard.workers.commonstate import SETTLE_SECONDS, CommonState


def test_a_worker_that_had_left_and_came_back_has_not_ended_it_for_the_others() -> None:
    clock = Clock()
    told: list[str] = []
    state = CommonState(clock, lambda: True, lambda _: told.append("begins"), lambda _: told.append("ends"))
    state.enter("one", None)
    state.enter("other", None)
    state.leave("one")
    state.enter("one", None)
    state.gone("one")
    state.gone("other")
    assert told == ["begins"]
    # One in their place may be in the state.
    state.enter("new", None)
    clock.advance(SETTLE_SECONDS)
    assert told == ["begins"]
    state.leave("new")
    assert told == ["begins", "ends"]
