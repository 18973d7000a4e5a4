"""The list of bans: who is banned, until when, and how often so far.

A ban ends by itself. Each further one of the same client or network is twice as long, up to a day; who was not banned
for a week begins anew. A network is banned when several of its clients are, and a wider one when they are in several of
the next narrower. The list is kept in records, so that a restart, other workers and other guards have the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from twisted_smtpguard.admission.clients import networks_of
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.records.records import Records
from twisted_smtpguard.values import Record

FIRST_SECONDS, MOST_SECONDS = 600, 86_400
"""How long the first ban is, and the longest."""
FORGOTTEN_SECONDS = 7 * 86_400
"""How long after its end a ban is remembered."""
CLIENTS_OF_NETWORK = 5
"""So many different clients of a network, or narrower networks of it, are banned before it is."""

_MAX_NETWORKS = 100_000
"""For so many networks it is remembered which of their clients were banned."""
_OF_NETWORK = "clients"
"""The reason of a ban of a network, whose points are its banned clients."""
_DRY_RUN = "dry_run"


class Ban(NamedTuple):
    """A ban that has not ended."""

    key: str
    """The key of the client or of the network."""
    until: float
    """Its end, in seconds since 1970."""
    times: int
    """How many bans of it there have been with this one, as far as they are remembered: 1 is the first."""
    points: int
    """The points that have led to it; of a network how many of its clients are banned."""
    reasons: str
    """The offences, with the points of each, such as `early_talker:10,auth_failed:10`; of a network `clients`."""
    dry_run: bool
    """Whether it was made in dry run, and refuses nobody."""

    @property
    def is_of_network(self) -> bool:
        """Whether it is the ban of a network."""
        return self.reasons == _OF_NETWORK


class BanList:
    """The bans in `bans`, and in `former` how often who was banned lately. `seconds` returns the time, in seconds since
    1970."""

    def __init__(self, limits: Limits, bans: Records, former: Records, seconds: Callable[[], float]) -> None:
        self._bans = bans
        self._former = former
        self._seconds = seconds
        self._banned_of: OrderedDict[str, tuple[tuple[str, str], ...]] = OrderedDict()
        """The latest of each network that were banned: the client or narrower network of it, and the banned client."""
        self._until = self._until_of_networks = 0.0
        """When the last ban ends, or has ended, since it may have been lifted; and the last of a network. Until then
        clients are looked for, and at all widths."""
        self.set_limits(limits)
        bans.on_change(self._noticed)
        bans.on_learnt(self._noticed)

    def set_limits(self, limits: Limits) -> None:
        """Swap the limits: the networks are those of them."""
        self._networks = limits.networks(4), limits.networks(6)

    def __len__(self) -> int:
        return len(self._bans)

    def may_hold(self, key: str) -> bool:
        """Whether a ban may hold for the client with this key. It costs little: every connection asks."""
        now = self._seconds()
        return self._until > now and (self._until_of_networks > now or self._bans.get(key) is not None)

    def of(self, key: str, *, dry_run: bool = True) -> Ban | None:
        """The ban of the client or network with this key itself; with `dry_run` one that was made in dry run too."""
        record = self._bans.get(key)
        ban = None if record is None else _ban(key, record)
        return ban if ban is None or dry_run or not ban.dry_run else None

    def of_networks(self, key: str, *, dry_run: bool = True) -> Ban | None:
        """The ban of the narrowest network that has the client with this key and is banned."""
        bans = (self.of(each, dry_run=dry_run) for each in networks_of(key, *self._networks))
        return next(filter(None, bans), None)

    def holding(self, key: str) -> Iterator[Ban]:
        """The bans that hold for the client with this key: its own, and those of its networks."""
        return filter(None, map(self.of, (key, *networks_of(key, *self._networks))))

    def rows(self) -> Iterator[Ban]:
        """All bans, in no order. Others may be made meanwhile."""
        return filter(None, map(self.of, self._bans.keys()))

    def ban(self, key: str, points: int, reasons: str, *, dry_run: bool) -> list[Ban]:
        """Ban a client, and those of its networks that follow. Returns the bans that were made. `reasons` is a word of
        at most 150 characters."""
        made = [self._put(key, points, reasons, dry_run=dry_run)]
        for network in networks_of(key, *self._networks):
            banned = self._number_banned(network, dry_run=dry_run)
            if banned >= CLIENTS_OF_NETWORK and self.of(network, dry_run=dry_run) is None:
                made.append(self._put(network, banned, _OF_NETWORK, dry_run=dry_run))
        return made

    def lift(self, key: str) -> Sequence[str]:
        """End the ban of a client and those of its networks, and forget that they were banned. Returns the keys of
        those that were."""
        keys = (key, *networks_of(key, *self._networks))
        for each in keys:
            self._former.remove(each)
        return [each for each in keys if self._bans.remove(each) is not None]

    def _number_banned(self, network: str, *, dry_run: bool) -> int:
        banned = self._banned_of.get(network, ())
        return sum(self.of(client, dry_run=dry_run) is not None for _, client in banned)

    def _put(self, key: str, points: int, reasons: str, *, dry_run: bool) -> Ban:
        before = self._former.get(key)
        # A time in which nobody was refused makes no later ban longer.
        counts = before is not None and (dry_run or not before.value.endswith(_DRY_RUN))
        times = 1 + (_number(before.value.partition(" ")[0]) if before is not None and counts else 0)
        until = self._seconds() + min(FIRST_SECONDS * 2 ** min(times - 1, 10), MOST_SECONDS)
        mark = f" {_DRY_RUN}" if dry_run else ""
        self._bans.put(key, f"{times} {points} {reasons}{mark}", until)
        self._former.put(key, f"{times}{mark}", until + FORGOTTEN_SECONDS)
        return Ban(key, until, times, points, reasons, dry_run)

    def _noticed(self, key: str, record: Record | None) -> None:
        """Called with each ban that is made or lifted here or elsewhere."""
        if record is None:
            return
        self._until = max(self._until, record.end)
        if _ban(key, record).is_of_network:
            self._until_of_networks = max(self._until_of_networks, record.end)
            return
        try:
            networks = networks_of(key, *self._networks)
        except (OSError, ValueError):
            # Another program has written it, and it hits nobody.
            return
        part = key
        for network in networks:
            others = [each for each in self._banned_of.get(network, ()) if each[0] != part]
            self._banned_of[network] = (*others[1 - CLIENTS_OF_NETWORK :], (part, key))
            self._banned_of.move_to_end(network)
            part = network
        while len(self._banned_of) > _MAX_NETWORKS:
            self._banned_of.popitem(last=False)


def _ban(key: str, record: Record) -> Ban:
    """The ban in a record. Another program may have written it."""
    times, points, reasons, dry_run, *_ = *record.value.split(" "), "", "", "", ""
    return Ban(key, record.end, _number(times) or 1, _number(points), reasons, dry_run == _DRY_RUN)


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0
