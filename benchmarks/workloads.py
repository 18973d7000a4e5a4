"""The workloads W1 to W5, W7 and W8: what a round of each sends, and what a unit of it is."""

from __future__ import annotations

import attrs

from . import load
from .load import Send, Sent
from .servers import Server


@attrs.frozen
class Workload:
    """One way to keep a server busy."""

    key: str
    name: str
    unit: str
    factor: float
    """From seconds of processor time to the unit."""
    send: Send
    refusing: bool = False


def _source(
    *options: str, messages: int, at_once: int, recipients: int = 1, units_a_message: float = 1.0
) -> Send:
    def send(server: Server) -> Sent:
        seconds = load.smtp_source(
            server, "-s", str(at_once), *options, messages=messages, recipients=recipients
        )
        return Sent(messages * units_a_message, seconds, messages, messages * recipients)

    return send


def _pipelined(messages: int, connections: int) -> Send:
    def send(server: Server) -> Sent:
        seconds = load.pipelined(server, messages, connections)
        return Sent(messages, seconds, messages, messages)

    return send


def _refused(connections: int, at_once: int) -> Send:
    def send(server: Server) -> Sent:
        return Sent(connections, load.refused(server, connections, at_once), refused=connections)

    return send


def workloads(scale: float = 1.0) -> dict[str, Workload]:
    """All by key. `scale`: of the size of a round."""

    def some(number: int, step: int) -> int:
        """A multiple of `step`."""
        return max(1, round(number * scale / step)) * step

    rows = [
        Workload(
            "W1",
            "small mail, one a connection",
            "µs a mail",
            1e6,
            _source("-l", "1024", messages=some(3000, 20), at_once=20),
        ),
        Workload(
            "W2",
            "small mails, many a connection",
            "µs a mail",
            1e6,
            _source("-d", "-l", "1024", messages=some(6000, 20), at_once=20),
        ),
        Workload(
            "W3",
            "5 MB mails, 20 at once",
            "ms a MB",
            1e3,
            _source("-l", "5000000", messages=some(40, 20), at_once=20, units_a_message=5.0),
        ),
        Workload(
            "W4",
            "100 recipients a mail",
            "µs a recipient",
            1e6,
            _source(
                "-d",
                *("-l", "1024"),
                messages=some(200, 10),
                at_once=10,
                recipients=100,
                units_a_message=100.0,
            ),
        ),
        Workload(
            "W5",
            "refused with 421 at accept",
            "µs a connection",
            1e6,
            _refused(some(4000, 20), 20),
            refusing=True,
        ),
        Workload("W7", "pipelined small mails", "µs a mail", 1e6, _pipelined(some(6000, 20), 20)),
    ]
    return {row.key: row for row in rows}
