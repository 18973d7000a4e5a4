"""How a guard is: why it takes no mail, and how fast its filters, its policies and its delivery answer."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from twisted_smtpguard.interfaces import IReportsHealth
from twisted_smtpguard.log.measurements import Histogram
from twisted_smtpguard.transport.factory import SMTPGuardFactory

_MOST_OF_ALL = 0.95


def problem_of(state: str, delivery: object) -> str:
    """Why a guard in this state, and with this delivery, takes no mail now, as a line for people; "" if it does."""
    if state != "listening":
        return f"the guard does not listen, it is {state}"
    problem = IReportsHealth(delivery).problem if IReportsHealth.providedBy(delivery) else ""
    return f"the delivery is down: {problem}" if problem else ""


def upstream_of(delivery: object) -> dict[str, int]:
    """The connections of a delivery to its server, by what they are doing. None if it does not tell."""
    return dict(IReportsHealth(delivery).connections_by_state) if IReportsHealth.providedBy(delivery) else {}


def rows(factory: SMTPGuardFactory) -> Iterator[dict[str, Any]]:
    """One row for each outcome of each IP filter, of each policy and stage, and of each hook of the delivery that has
    answered."""
    measured = factory.context.events.measured
    of_delivery = measured.hook_seconds(factory.statistics.messages_accepted)
    of_policies = {
        (f"{name} ({stage})", verdict): histogram
        for (name, stage, verdict), histogram in measured.policies.items()
    }
    parts = (("filter", measured.filters), ("policy", of_policies), ("delivery", of_delivery))
    for part, histograms in parts:
        for (name, outcome), histogram in sorted(histograms.items()):
            if histogram.total:
                yield {"part": part, "name": name, "outcome": outcome, **_summary(histogram)}


def _summary(histogram: Histogram) -> dict[str, Any]:
    total = histogram.total
    within = next(
        (
            bound
            for bound, number in zip(histogram.bounds, accumulate(histogram.counts), strict=False)
            if number >= total * _MOST_OF_ALL
        ),
        None,
    )
    return {
        "answers": total,
        "seconds": round(histogram.seconds, 6),
        "mean_seconds": round(histogram.seconds / total, 6),
        "within_seconds": within,
    }
