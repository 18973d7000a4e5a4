"""What must not grow: the cost of a mail at N and at 10 N of what there is much of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from . import bounds
from .load import among, burst, smtp_source
from .measure import Entry, measure
from .rows import Row
from .servers import PROTECTIONS, Guard, Kind
from .workloads import AT_ONCE, multiple

KIB = 1024
BURSTS = (32 * KIB, 320 * KIB)
FILTERS = (1, 10)
CROWDS = (1, 1_000, 10_000)
CLIENTS = (1_000, 10_000)
RECIPIENTS = (100, 1_000)
ENVELOPES = b"MAIL FROM:<a@client.example>\r\nRCPT TO:<b@guard.example>\r\nRSET\r\n"


def growth(make: Guard, rounds: int, scale: float, crowd_scale: float) -> list[Row]:
    """A row for each thing. `make`: of `servers.guards`."""
    some = multiple(scale)
    own = make()
    one_each = smtp_source("-l", "1024", messages=some(2000, AT_ONCE), at_once=AT_ONCE)
    many = smtp_source("-d", "-l", "1024", messages=some(3000, AT_ONCE), at_once=AT_ONCE)
    crowds = [max(1, round(crowd * crowd_scale)) for crowd in CROWDS]
    clients = [max(1, round(crowd * crowd_scale)) for crowd in CLIENTS]

    def row(name: str, unit: str, entries: list[Entry]) -> Row:
        return _row(name, unit, entries, rounds)

    with _indifferent_filters(make) as filtered:
        return [
            row(
                "idle connections",
                "µs a mail",
                [Entry(f"{crowd:,}", own, among(crowd, many)) for crowd in crowds],
            ),
            row(
                "clients connected",
                "µs a mail",
                [Entry(f"{crowd:,}", own, among(crowd, one_each, strangers=True)) for crowd in clients],
            ),
            row(
                "filters without an opinion",
                "µs a mail",
                [Entry(str(number), kind, one_each) for number, kind in filtered.items()],
            ),
            row(
                "recipients so far",
                "µs a recipient",
                [_recipients(make, number, some(20_000, 1_000)) for number in RECIPIENTS],
            ),
            row("octets of a burst of NOOP", "ns an octet", _bursts(own, b"NOOP\r\n")),
            row("octets of a burst of envelopes", "ns an octet", _bursts(own, ENVELOPES)),
        ]


def _row(name: str, unit: str, entries: list[Entry], rounds: int) -> Row:
    name = bounds.told_of(entries[0].kind.name, name)
    found = measure(entries, rounds, 1e9 if unit.startswith("ns") else 1e6, count=False)
    names = [entry.name for entry in entries]
    columns = dict(zip(names[-2:], ("at N", "at 10 N"), strict=True))
    if len(names) > 2:
        columns[names[0]] = "at 1"
    verdicts = [bounds.exactly(f"{names[-1]} to {names[0]}", found.ratio(names[-1], names[0]), bounds.GROWTH)]
    return Row(
        "GROWTH",
        f"{name}: {', '.join(names)}",
        unit,
        {columns[each]: found.median(each) for each in names},
        {columns[each]: found.details(each) for each in names},
        verdicts,
    )


def _recipients(make: Guard, recipients: int, wanted: int) -> Entry:
    kind = make(protections=(*PROTECTIONS, f"--max-recipients={recipients}"))
    messages = max(1, wanted // recipients)
    load = smtp_source(
        "-d",
        *("-l", "1024"),
        messages=messages,
        # The same at each size: what a recipient costs depends on how many are served in a turn.
        at_once=4,
        recipients=recipients,
        units=messages * recipients,
    )
    return Entry(f"{recipients:,}", kind, load)


def _bursts(kind: Kind, pattern: bytes) -> list[Entry]:
    return [
        Entry(f"{size // KIB} KiB", kind, burst(pattern * (size // len(pattern)), BURSTS[-1] // size))
        for size in BURSTS
    ]


@contextmanager
def _indifferent_filters(make: Guard) -> Iterator[dict[int, Kind]]:
    """Guards with so many lists of networks in which no client is."""
    with TemporaryDirectory() as folder:
        listed = Path(folder, "networks")
        listed.write_text("deny 203.0.113.0/24\n")
        yield {number: make(*[f"--ip-filter=networks:{listed}"] * number) for number in FILTERS}
