"""What clients do wrong, counted in points: who has enough of them within a time is banned."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from twisted_smtpguard.admission.bans import BanList
from twisted_smtpguard.admission.clients import UNIX
from twisted_smtpguard.counters.counting import Counting
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.log.events import Events
from twisted_smtpguard.values import Wanted

BAN_AFTER = "ban_after"
"""The limit, and the counter of points."""
WINDOW_SECONDS = 600
"""Within this time the points of a client lead to a ban. It begins with the first of them."""

_MAX_REASONS = 4
"""So many offences are told of one ban: those with the most points."""

_MAX_TOLD = 10_000
"""For so many clients it is remembered which offences gave their points."""


class Offender(Protocol):
    """A connection whose client has done something wrong. It is an engine."""

    peer_name: str
    trusted: bool

    @property
    def key(self) -> str: ...
    @property
    def is_known(self) -> bool: ...
    @property
    def names_client(self) -> bool:
        """Whether the address is that of the client, and not of a balancer that has named none."""


class Offences:
    """Counts the points of clients in `counting`, so that they are those of all guards that count there, and bans.

    A client that is trusted or known is never banned, whatever it does; nor are the clients on UNIX sockets, which are
    one, and a balancer. Who is banned gets no points: the connections that it has already go on, and a ban does not
    grow by what is refused because of it.
    """

    def __init__(self, limits: Limits, bans: BanList, counting: Counting, events: Events) -> None:
        self._bans = bans
        self._counting = counting
        self._events = events
        self._told: OrderedDict[str, tuple[float, dict[str, int]]] = OrderedDict()
        """The points of each client by offence, as this guard has seen them, since the time that the first was given.
        They are for the log; what leads to a ban is counted."""
        self.set_limits(limits)

    def set_limits(self, limits: Limits) -> None:
        """Swap the limits."""
        self._limits = limits
        self._points = limits.points() if limits.ban_after else {}

    def committed(self, offender: Offender, offence: str) -> None:
        """Called with each refusal. Most have no points."""
        points = self._points.get(offence)
        if points is None or offender.trusted or not offender.names_client:
            return
        key = offender.key
        if key == UNIX or self._is_banned(key) or offender.is_known:
            return
        reasons = self._note(key, offence, points)
        counts = self._counting.take((points_of(key, points),))
        counted = partial(self._counted, key, offender.peer_name, reasons)
        if isinstance(counts, Deferred):
            counts.addCallback(counted)
        else:
            counted(counts)

    def forgive(self, key: str) -> None:
        """Take back the points of a client. Called when its ban is lifted, or the next offence would ban it again."""
        self._told.pop(key, None)
        looks: Any = self._counting.look((points_of(key),))

        def forgiven(seen: Any) -> None:
            if seen[0][0]:
                self._counting.give_back((points_of(key, seen[0][0]),))

        if isinstance(looks, Deferred):
            looks.addCallback(forgiven)
        else:
            forgiven(looks)

    def _is_banned(self, key: str) -> bool:
        """Whether a ban keeps a client out, or would in dry run."""
        return self._bans.of(key, dry_run=BAN_AFTER in self._limits.dry_run) is not None

    def _note(self, key: str, offence: str, points: int) -> dict[str, int]:
        now = self._events.seconds()
        began, reasons = self._told.pop(key, (now, {}))
        if not 0 <= now - began < WINDOW_SECONDS:
            began, reasons = now, {}
        reasons[offence] = reasons.get(offence, 0) + points
        self._told[key] = began, reasons
        if len(self._told) > _MAX_TOLD:
            self._told.popitem(last=False)
        return reasons

    def _counted(self, key: str, peer: str, reasons: dict[str, int], counts: Any) -> None:
        if not 0 < self._limits.ban_after <= counts[0] or self._is_banned(key):
            return
        self._told.pop(key, None)
        dry_run = BAN_AFTER in self._limits.dry_run
        for made in self._bans.ban(key, counts[0], _text(reasons), dry_run=dry_run):
            self._events.banned(peer, made)


def _text(reasons: dict[str, int]) -> str:
    """The offences with the most points, as one word."""
    most_first = sorted(reasons.items(), key=lambda each: -each[1])
    return ",".join(f"{offence}:{points}" for offence, points in most_first[:_MAX_REASONS])


def points_of(key: str, points: int = 0) -> Wanted:
    """So many points of the client with this key."""
    return Wanted(BAN_AFTER, key, 0, WINDOW_SECONDS, points)
