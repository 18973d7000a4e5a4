"""The most that each client had of each limit per client, from which an operator can choose limits.

Clients are in three groups: those whose mail was accepted, those that were only refused, and those that were banned,
without accepted mail. What is kept is bounded: the latest clients with their peaks, and of those that are forgotten how
many of each group had which peak. Counts are kept in spans, which are exact up to 16 and eight to a doubling above, so
that a count is noted only where it begins a span.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence

from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.records.records import Records
from twisted_smtpguard.values import Record

NOTED_LIMITS = (
    "max_connections_per_client",
    "connection_rate",
    "message_rate",
    "recipient_rate",
    "auth_failure_rate",
)
"""The limits whose counts are noted."""

ACCEPTED, REFUSED, BANNED = GROUPS = ("accepted", "refused", "banned")

MAX_CLIENTS = 10_000
"""The clients whose mail was accepted, and as many others. The one about which nothing was noted for longest is
forgotten first; strangers, however many, make the guard forget strangers only."""

Peaks = Mapping[str, Mapping[int, int]]
"""For each group how many clients had which peak. A peak is the last count of its span."""

_EXACT = 16
_FIRST: Sequence[int] = (
    *range(_EXACT),
    *(start + part * start // 8 for start in (2**power for power in range(4, 31)) for part in range(8)),
)
"""The first count of each span. Their numbers fit an octet."""
_LAST = (*(following - 1 for following in _FIRST[1:]), 2**63)
"""The last count of each span. There are no counts above."""

NOTED = frozenset(_FIRST[2:])
"""The counts that begin a span, and so have to be noted. That a client has one of something tells nothing."""

_PLACE = {name: place for place, name in enumerate(NOTED_LIMITS)}
_MARK = len(NOTED_LIMITS)
"""Where a row has the group of a client whose mail was not accepted, as a number: 0 for none."""
_NEW = bytes(_MARK + 1)


def span_of(count: int) -> int:
    """The number of the span to which a count belongs."""
    return bisect_right(_FIRST, count) - 1


class ClientPeaks:
    """The peaks of all clients since the guard started, or since what is counted was changed: the window of a rate, or
    what a client is. `seconds` returns the time, in seconds since 1970. `bans` has those that are banned."""

    def __init__(self, limits: Limits, seconds: Callable[[], float], bans: Records | None = None) -> None:
        self._seconds = seconds
        if bans is not None:
            bans.on_change(self._banned)
            bans.on_learnt(self._banned)
        self._counted: tuple[object, ...] = ()
        self.set_limits(limits)

    def set_limits(self, limits: Limits) -> None:
        """Swap the limits. Begins anew if peaks from before cannot be compared with those that follow."""
        values = [getattr(limits, name) for name in NOTED_LIMITS]
        windows = [(bool(value), getattr(value, "seconds", 0)) for value in values]
        counted = *windows, limits.ipv4_client_prefix, limits.ipv6_client_prefix
        if counted != self._counted:
            self._counted = counted
            self.since = self._seconds()
            """From when on peaks are noted."""
            # A row has the number of the peak's span for each limit, and the mark. The clients whose mail was accepted
            # have their own table.
            self._accepted: OrderedDict[str, bytes] = OrderedDict()
            self._others: OrderedDict[str, bytes] = OrderedDict()
            self._forgotten: dict[str, dict[str, Counter[int]]] = {
                name: {group: Counter() for group in GROUPS} for name in NOTED_LIMITS
            }

    def sizes(self) -> dict[str, int]:
        """How many clients are remembered."""
        return {"peaks_accepted": len(self._accepted), "peaks_others": len(self._others)}

    def note(self, key: str, limit: str, count: int) -> None:
        """The client with this key has so much of a limit. Called at least with those in NOTED."""
        row = self._accepted.get(key) or self._others.get(key, _NEW)
        place = _PLACE[limit]
        # Mostly it has had that before.
        if count > _LAST[row[place]]:
            table = self._accepted if key in self._accepted else self._others
            self._keep(table, key, row[:place] + bytes((span_of(count),)) + row[place + 1 :])

    def accepted(self, key: str) -> None:
        """Mail of the client with this key was accepted. Called at least once in a session."""
        row = self._others.pop(key, None) or self._accepted.get(key, _NEW)
        self._keep(self._accepted, key, row)

    def refused(self, key: str) -> None:
        """The client with this key was refused something."""
        self._mark(key, REFUSED)

    def _banned(self, key: str, record: Record | None) -> None:
        # It may be a network. A client that is not remembered here was refused elsewhere, and is counted there.
        if record is not None and key in self._others:
            self._mark(key, BANNED)

    def _mark(self, key: str, group: str) -> None:
        if key in self._accepted:
            self._accepted.move_to_end(key)
            return
        row, mark = self._others.get(key, _NEW), GROUPS.index(group)
        self._keep(self._others, key, row if row[_MARK] >= mark else row[:_MARK] + bytes((mark,)))

    def _keep(self, table: OrderedDict[str, bytes], key: str, row: bytes) -> None:
        table[key] = row
        table.move_to_end(key)
        if len(table) > MAX_CLIENTS:
            _, row = table.popitem(last=False)
            group = self._group(table, row)
            if group:
                for name, span in zip(NOTED_LIMITS, row, strict=False):
                    self._forgotten[name][group][span] += 1

    def _group(self, table: OrderedDict[str, bytes], row: bytes) -> str:
        """The group of the client with this row; "" for none, since it was neither accepted nor refused."""
        if table is self._accepted:
            return ACCEPTED
        return GROUPS[row[_MARK]] if row[_MARK] else ""

    def of_limit(self, limit: str) -> Peaks:
        """The peaks of one limit. It takes up to three milliseconds in full tables."""
        spans, place, width = self._forgotten[limit], _PLACE[limit], len(_NEW)
        accepted, others = b"".join(self._accepted.values()), b"".join(self._others.values())
        marked = Counter(zip(others[_MARK::width], others[place::width], strict=True))
        now = {
            ACCEPTED: Counter(accepted[place::width]),
            **{
                GROUPS[mark]: Counter(
                    {span: clients for (each, span), clients in marked.items() if each == mark}
                )
                for mark in (1, 2)
            },
        }
        return {
            group: {_LAST[span]: clients for span, clients in sorted((spans[group] + now[group]).items())}
            for group in GROUPS
        }
