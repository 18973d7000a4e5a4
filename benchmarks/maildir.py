"""How many messages a second are answered when each is on the disk first, and what that disk can do at all."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .load import smtp_source
from .measure import compare_counts
from .rows import Row
from .servers import Kind, Server, Wrong, running
from .workloads import AT_ONCE, multiple

RATES = ("messages", "fsyncs", "fsyncs, 20 at once")
COLUMNS = tuple(f"{what} a second" for what in RATES)
OCTETS = b"A line of some seventy octets, as lines of messages mostly are.\r\n" * 16


def rate(kind: Kind, rounds: int, scale: float) -> Row:
    """`kind` is a guard with a Maildir, in whose folder the disk is measured too, in turn with it."""
    some = multiple(scale)
    messages, files = some(1000, AT_ONCE), some(500, AT_ONCE)
    seconds: dict[str, list[float]] = {what: [] for what in RATES}
    load = smtp_source("-d", "-l", "1024", messages=messages, at_once=AT_ONCE)
    with running(kind) as server:
        with load(server) as send:
            sent = [send()]
            for _ in range(rounds):
                seconds["messages"].append(_timed(lambda: sent.append(send())) / messages)
                seconds["fsyncs"].append(_timed(lambda: _fsyncs(server, files, 1)) / files)
                seconds["fsyncs, 20 at once"].append(_timed(lambda: _fsyncs(server, files, AT_ONCE)) / files)
        server.stop()
        compare_counts(server, sent)
        stored = len(list((server.directory / "Maildir" / "new").iterdir()))
        if stored != messages * len(sent):
            raise Wrong(f"{stored} messages are in the Maildir where {messages * len(sent)} were answered")
    cells = {f"{what} a second": 1 / statistics.median(each) for what, each in seconds.items()}
    ratios = {
        f"messages to {what}": statistics.median(
            fsync / message for fsync, message in zip(seconds[what], seconds["messages"], strict=True)
        )
        for what in RATES[1:]
    }
    return Row("MAILDIR", "acknowledged, small mails", "a second", cells, {}, (), ratios)


def _timed(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def _fsyncs(server: Server, files: int, at_once: int) -> None:
    """A file of the size of a message each, on the disk of the Maildir, which is the folder of the server."""
    folder = server.directory / "fsync"
    folder.mkdir(exist_ok=True)
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(_fsync, [folder / str(number) for number in range(files)]))
    for path in folder.iterdir():
        path.unlink()


def _fsync(path: Path) -> None:
    with path.open("wb") as file:
        file.write(OCTETS)
        file.flush()
        os.fsync(file.fileno())
