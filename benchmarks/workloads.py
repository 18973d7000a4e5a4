"""The workloads by their keys: what a round of each sends, and what a unit of it is. One table."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs

from .load import Load, dripping, pipelined, refused, smtp_source
from .servers import Kind

AT_ONCE = 20


@attrs.frozen
class Workload:
    """One way to keep a server busy."""

    key: str
    name: str
    unit: str
    factor: float
    """From seconds of processor time to the unit."""
    load: Load
    refusing: bool = False
    """Whether the server is made to refuse every connection."""
    slow: Mapping[str, Load] = attrs.field(factory=dict)
    """The same for servers that keep clients waiting, by what for: fewer, or more at once, so that it ends soon."""

    def load_for(self, kind: Kind) -> Load:
        return self.slow.get(kind.slow, self.load)


def multiple(scale: float) -> Callable[[int, int], int]:
    """How many in a round of that scale: a multiple of the second number, and never none."""
    return lambda number, step: max(1, round(number * scale / step)) * step


def workloads(scale: float = 1.0) -> dict[str, Workload]:
    """All whose cost is processor time, by key. `scale`: of the size of a round."""
    some = multiple(scale)

    def one_each(number: int, at_once: int = AT_ONCE) -> Load:
        return smtp_source("-l", "1024", messages=some(number, at_once), at_once=at_once)

    def many(number: int) -> Load:
        return smtp_source("-d", "-l", "1024", messages=some(number, AT_ONCE), at_once=AT_ONCE)

    def crowd(number: int) -> Load:
        messages = some(number, 10)
        units = messages * 100
        return smtp_source("-d", "-l", "1024", messages=messages, at_once=10, recipients=100, units=units)

    def in_a_pipeline(number: int) -> Load:
        return pipelined(some(number, AT_ONCE), AT_ONCE)

    large = some(40, AT_ONCE)
    w3 = smtp_source("-l", "5000000", messages=large, at_once=AT_ONCE, units=large * 5)
    w5 = refused(some(4000, AT_ONCE), AT_ONCE)
    w8 = dripping(some(1000, 1000), some(2, 1))
    few = one_each(400)
    w1_slow = {"disk": few, "upstream": few, "processes": one_each(1000), "greeting": one_each(3000, 100)}
    w2_slow = {"disk": many(1500), "upstream": many(1500), "processes": many(2000)}
    w4_slow = {"processes": crowd(50)}
    w7_slow = {"processes": in_a_pipeline(2000)}
    rows = [
        Workload("W1", "small mail, one a connection", "µs a mail", 1e6, one_each(3000), slow=w1_slow),
        Workload("W2", "small mails, many a connection", "µs a mail", 1e6, many(6000), slow=w2_slow),
        Workload("W3", "5 MB mails, 20 at once", "ms a MB", 1e3, w3),
        Workload("W4", "100 recipients a mail", "µs a recipient", 1e6, crowd(200), slow=w4_slow),
        Workload("W5", "refused with 421 at accept", "µs a connection", 1e6, w5, refusing=True),
        Workload("W7", "pipelined small mails", "µs a mail", 1e6, in_a_pipeline(6000), slow=w7_slow),
        Workload("W8", "1,000 clients, one octet a second", "µs an octet", 1e6, w8),
    ]
    return {row.key: row for row in rows}
