"""What a guard measures beside its `Statistics`: counts by kind, and histograms of times.

It is on in every guard, so a mail pays for it with an increment here and there. Metrics are made of it when they are
asked for. Nothing here has a key that a client chose, so that no crowd of strangers makes it grow.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping

import attrs

SESSION_BOUNDS = (0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0)
MESSAGE_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0)
HOOK_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
FILTER_BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
COUNTER_BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05)
"""The upper bounds of buckets, in seconds. They reach up to the time limits: 1800 for a session, 600 that a client
waits, 300 for a delivery, 10 for an IP filter, 0.05 for a decision of the counter store."""

HOOKS = ("begin", "recipient", "data", "write", "finish")
"""The hooks of a delivery that are measured."""


class Histogram:
    """Times by size. `counts` has one number for each of `bounds`, of times up to that bound and above the one before,
    and one more for longer times; `seconds` is their sum."""

    __slots__ = ("bounds", "counts", "seconds")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.seconds = 0.0

    def observe(self, seconds: float) -> None:
        """Count one time. A clock that was set back may make it negative, which counts as 0."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        if seconds > 0:
            self.seconds += seconds

    @property
    def total(self) -> int:
        """How many times were counted."""
        return sum(self.counts)

    def with_instant(self, more: int) -> Histogram:
        """A copy that has so many times of 0 seconds more."""
        copy = Histogram(self.bounds)
        copy.counts, copy.seconds = [self.counts[0] + more, *self.counts[1:]], self.seconds
        return copy


def _of_filters() -> defaultdict[tuple[str, str], Histogram]:
    return defaultdict(lambda: Histogram(FILTER_BOUNDS))


def _of_policies() -> defaultdict[tuple[str, str, str], Histogram]:
    return defaultdict(lambda: Histogram(FILTER_BOUNDS))


def _of_hooks() -> defaultdict[tuple[str, str], Histogram]:
    return defaultdict(lambda: Histogram(HOOK_BOUNDS))


def _counts() -> defaultdict[tuple[str, str], int]:
    return defaultdict(int)


@attrs.define(eq=False)
class Measurements:
    """The measurements of one guard since it was made. `Events` has them, and it and the engine fill them."""

    connections: defaultdict[tuple[str, str], int] = attrs.field(factory=_counts, init=False)
    """Connections by listener and outcome: accepted, refused or hung_up."""
    replies: defaultdict[tuple[str, int], int] = attrs.field(factory=lambda: defaultdict(int), init=False)
    """Replies to commands, by the verb of the last command and the code. The verb is `none` where that line was no
    command."""
    messages: defaultdict[str, int] = attrs.field(factory=lambda: defaultdict(int), init=False)
    """Messages that were not accepted, by outcome: rejected, deferred or aborted."""
    bans: defaultdict[tuple[str, str], int] = attrs.field(factory=_counts, init=False)
    """Bans that were made, by whether of a client or a network, and whether in dry run."""
    handshakes: defaultdict[tuple[str, str], int] = attrs.field(factory=_counts, init=False)
    """TLS handshakes by version (`none` where none was agreed on) and outcome."""
    session_seconds: Histogram = attrs.field(factory=lambda: Histogram(SESSION_BOUNDS), init=False)
    """Sessions that have ended, by their time."""
    message_seconds: Histogram = attrs.field(factory=lambda: Histogram(MESSAGE_BOUNDS), init=False)
    """Accepted messages, by the time from MAIL to the verdict."""
    filters: defaultdict[tuple[str, str], Histogram] = attrs.field(factory=_of_filters, init=False)
    """Answers of IP filters, by filter and verdict. One that was given in the call took 0 seconds."""
    policies: defaultdict[tuple[str, str, str], Histogram] = attrs.field(factory=_of_policies, init=False)
    """Answers of session policies, by policy, stage and verdict. One that was given in the call took 0 seconds."""
    hooks: defaultdict[tuple[str, str], Histogram] = attrs.field(factory=_of_hooks, init=False)
    """Answers of the delivery's hooks, by hook and outcome, but for acceptances in the call itself."""
    counter_seconds: Histogram = attrs.field(factory=lambda: Histogram(COUNTER_BOUNDS), init=False)
    """Decisions of a counter store that answers later, by the time that they took."""
    chunked_messages: int = 0
    """Messages that came by BDAT, for which the delivery has given a sink."""
    late_acceptances: int = 0
    """Messages that the delivery accepted after its time limit."""
    failed_reloads: dict[str, str] = attrs.field(factory=dict, init=False)
    """The parts whose last reload has failed, by their names in the log, each with a sentence about it."""
    _instant: dict[str, int] = attrs.field(factory=dict, init=False)

    def refused(self, code: int) -> None:
        """Count a message that was refused at the end of its data."""
        self.messages["deferred" if code < 500 else "rejected"] += 1

    def hook_seconds(self, accepted: int) -> Mapping[tuple[str, str], Histogram]:
        """As `hooks`, with the acceptances that were given in the call itself. `accepted` is the number of accepted
        messages.

        Such acceptances are the most common answers by far, so they are not counted one by one. Each leads to a
        positive reply: their number is that of the positive replies, less the hooks that have answered later.
        """
        positive = {
            "begin": self._positive("MAIL"),
            "recipient": self._positive("RCPT"),
            "data": self.replies.get(("DATA", 354), 0) + self.chunked_messages,
            "finish": accepted - self.late_acceptances,
        }
        found = dict(self.hooks)
        for hook, number in positive.items():
            later = found.get((hook, "ok"), Histogram(HOOK_BOUNDS))
            # A stop may replace the reply to a hook that has accepted, and what has been counted once must not fall.
            instant = self._instant[hook] = max(self._instant.get(hook, 0), number - later.total)
            found[hook, "ok"] = later.with_instant(instant)
        return found

    def _positive(self, verb: str) -> int:
        return sum(number for (each, code), number in self.replies.items() if each == verb and code < 400)
