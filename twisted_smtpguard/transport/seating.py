"""The seats of a guard as its connections take them, what stress changes for strangers, and room for newcomers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from twisted.internet.defer import Deferred

from twisted_smtpguard import replies
from twisted_smtpguard.admission.clients import total_place
from twisted_smtpguard.admission.idlesessions import IdleSessions
from twisted_smtpguard.admission.seats import STRESS_BEGINS, TOTAL, Seats, Stress, reserved_share
from twisted_smtpguard.counters.counting import Counting
from twisted_smtpguard.engine.context import ServerContext
from twisted_smtpguard.engine.engine import Engine
from twisted_smtpguard.interfaces import IReservingDelivery
from twisted_smtpguard.limits.limits import STRESS_SESSION_SECONDS, Limits
from twisted_smtpguard.transport.deadlines import Deadline, Deadlines, ExpiryQueue

_LOOK_SECONDS = 1
"""How often the connections of all guards are looked at where several count together."""

_SPREAD_SECONDS = 5
"""When stress begins, those whose time is over by then end within this time, so that not thousands end at once."""

_VICTIMS = 3
"""How many sessions are tried for a newcomer, if the last reply to one cannot be sent at once."""


class Seating:
    """The seats of one guard. `sessions` returns its connections that are not closed on our side, and `of_all` the
    number of all guards' that the latest admission has found. `serve` is called before the first connection."""

    context: ServerContext

    def __init__(
        self,
        limits: Limits,
        deadlines: Deadlines,
        counting: Counting,
        events: Any,
        sessions: Callable[[], Sequence[Engine]],
    ) -> None:
        self.seats = Seats(limits)
        self._crowd = self.seats.all * STRESS_BEGINS
        self.stress = Stress()
        self.taken = 0
        """How many connections of this guard have a seat."""
        self.imagined = 0
        self.of_all = 0
        """How many of all guards that count together have one, as far as it is known; 0: none do."""
        self._deadlines = deadlines
        self._counting = counting
        self.tell_stress: Callable[..., object] = events.stress
        """Called when stress begins or ends, as `Events.stress`."""
        self._sessions = sessions
        # A newcomer that is being decided about is not held against its own network.
        self._idle = IdleSessions(
            lambda: (engine for engine in self._strangers() if engine.admitted), deadlines.seconds
        )
        self._next_look: Deadline | None = None
        self.session_times = SessionTimes(deadlines, limits.max_session_time)

    def serve(self, context: ServerContext) -> None:
        """Keep the seats of the guard with this context."""
        self.context = context
        self._reserve_connections()

    def _reserve_connections(self) -> None:
        """Have the delivery keep the same share of its own connections for the same clients."""
        delivery = self.context.delivery
        if IReservingDelivery.providedBy(delivery):
            IReservingDelivery(delivery).reserve(reserved_share(self.context.limits), self.context.guard)

    def set_limits(self, limits: Limits) -> None:
        """Swap the limits. Those of the context and its sessions have been swapped already."""
        self.seats.set_limits(limits)
        self._crowd = self.seats.all * STRESS_BEGINS
        self._idle.clear()
        if self.stress.on:
            self._limit_strangers()
        self.see()
        self._reserve_connections()

    # Seats.

    @property
    def held(self) -> int:
        """How many connections have a seat, those of other processes too where that is known at once."""
        return max(self.taken, self._counting.held_by_all(TOTAL) if self.seats.all < math.inf else 0)

    def take(self) -> None:
        """Count one more connection of this guard."""
        self.taken += 1
        if self.taken >= self._crowd:
            self.see()
        if self._counting.shared and self._next_look is None:
            self._look_later()

    def give_back(self) -> None:
        """Count one less."""
        self.taken -= 1
        if self.stress.on:
            self.see()
        elif not self.taken:
            self.stop()

    def stop(self) -> None:
        """Look at the counter store no more. Called when the last session has ended."""
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None
        self.found(0)

    def found(self, of_all: int) -> None:
        """Called with the number of connections of all guards that count together."""
        self.of_all = of_all
        self.see()

    # Stress.

    @property
    def is_crowded(self) -> bool:
        """Whether the guard is in stress, and not just at the brim of it."""
        return self.stress.on and max(self.taken, self.of_all) != self._crowd

    def see(self) -> None:
        """See whether stress begins or ends now."""
        taken = max(self.taken, self.of_all)
        if self.stress.changes(taken, self.seats.all):
            self.context.stressed = self.stress.on
            self.tell_stress(taken, self.context.limits.max_connections, begins=self.stress.on)
            self._limit_strangers()
            if not self.stress.on:
                self._idle.clear()

    def _limit_strangers(self) -> None:
        """Apply the limits of stress to the sessions of strangers, or lift them."""
        context, now = self.context, self._deadlines.seconds()
        sessions = self._sessions()
        for number, engine in enumerate(sessions, 1):
            engine.time_limits_changed(now + _SPREAD_SECONDS * number / len(sessions))
            # One whose time was over is told again, if it still is.
            engine.account_all = context.draining or engine.is_over_time
        seconds, strangers = 0, []
        if self.stress.on:
            seconds, strangers = STRESS_SESSION_SECONDS, [each for each in self._strangers() if each.name]
        self.session_times.limit_strangers(seconds, strangers, now)

    def _strangers(self) -> Iterator[Engine]:
        return (engine for engine in self._sessions() if engine.is_stranger)

    def _look_later(self) -> None:
        self._next_look = self._deadlines.call_later(_LOOK_SECONDS, self._look)

    def _look(self) -> None:
        """Look how many connections all guards have, as long as this one has any or is in stress: those of others come
        and go too."""
        self._look_later()
        if self.context.limits.max_connections:
            looks = self._counting.look([total_place()])
            if isinstance(looks, Deferred):
                looks.addCallback(self._looked)
            else:
                self._looked(looks)

    def _looked(self, looks: Sequence[tuple[int, float]]) -> None:
        self.found(looks[0][0])
        if not (self.taken or self.stress.on):
            self.stop()

    # Room for newcomers.

    @property
    def may_make_room(self) -> bool:
        """Whether a session may have to go for a newcomer. It costs next to nothing."""
        return self._idle.may_have_any

    def could_make_room(self, network: str) -> bool:
        """Whether a session would have to go for a newcomer from this network. None goes."""
        return self._idle.may_have_any and self._idle.to_end(network, take=False) is not None

    def make_room(self, network: str) -> bool:
        """End the idle session of a stranger for a newcomer from this network; "" is one that is known or trusted.
        Returns whether its seat is free now."""
        for _ in range(_VICTIMS):
            engine: Any = self._idle.to_end(network) if self._idle.may_have_any else None
            if engine is None:
                return False
            engine.input(engine.hang_up, replies.MADE_ROOM)
            if not engine.holds_slot:
                return True
        return False


class SessionTimes:
    """The limit on the time of the sessions that have been greeted, and in stress the shorter one of strangers."""

    def __init__(self, deadlines: Deadlines, seconds: float) -> None:
        self._of_all = ExpiryQueue(deadlines, seconds)
        self._of_strangers = ExpiryQueue(deadlines, 0, Engine.stress_time_over)
        self._strangers_have_less = False

    def add(self, engine: Engine) -> None:
        """Start the time limit of a session."""
        self._of_all.add(engine)
        if self._strangers_have_less and engine.is_stranger:
            self._of_strangers.add(engine)

    def remove(self, engine: Engine) -> None:
        """Drop it. May be called twice."""
        self._of_all.remove(engine)
        if self._strangers_have_less:
            self._of_strangers.remove(engine)

    def restart(self, seconds: float, sessions: Sequence[Engine]) -> None:
        """Swap the time limit of all, and begin it for these sessions when they began."""
        self._of_all.restart(seconds, [(each.began_at, each) for each in sessions])

    def limit_strangers(self, seconds: float, sessions: Sequence[Engine], now: float) -> None:
        """Give these sessions, which are those of strangers, this time; 0: no less than others. Those whose time is
        over end one after the other."""
        self._strangers_have_less = seconds > 0
        begun = [
            (max(each.began_at, now - seconds + _SPREAD_SECONDS * number / len(sessions)), each)
            for number, each in enumerate(sessions)
        ]
        self._of_strangers.restart(seconds, begun)
