"""How many messages a second are answered when each is on the disk first, and what that disk can do at all."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import bounds
from .load import smtp_source
from .measure import compare_counts
from .rows import Row, Verdict
from .servers import Kind, Wrong, running
from .workloads import AT_ONCE, multiple

THREADS = 3
"""As many as the guard has for small messages."""
TOGETHER = 16
"""As many small messages as a thread of the guard stores at most before it synchronises new/."""

MESSAGES = "messages"
FSYNCS = f"fsyncs, {THREADS} at once"
FILES = f"files in a Maildir, {THREADS} at once"
RATES = (MESSAGES, "fsyncs", FSYNCS, f"fsyncs, {AT_ONCE} at once", FILES)
COLUMNS = tuple(f"{what} a second" for what in RATES)
OCTETS = b"A line of some seventy octets, as lines of messages mostly are.\r\n" * 16


def rate(kind: Kind, rounds: int, scale: float) -> Row:
    """`kind` is a guard with a Maildir, in whose folder the disk is measured too, in turn with it."""
    some = multiple(scale)
    messages, files = some(1000, AT_ONCE), some(500, AT_ONCE)
    seconds: dict[str, list[float]] = {what: [] for what in RATES}
    load = smtp_source("-d", "-l", "1024", messages=messages, at_once=AT_ONCE)
    with running(kind) as server:
        disk = _Disk(server.directory, files)
        with load(server) as send:
            sent = [send()]
            for _ in range(rounds):
                seconds[MESSAGES].append(_timed(lambda: sent.append(send())) / messages)
                seconds["fsyncs"].append(_timed(lambda: disk.fsyncs(1)) / files)
                seconds[FSYNCS].append(_timed(lambda: disk.fsyncs(THREADS)) / files)
                seconds[f"fsyncs, {AT_ONCE} at once"].append(_timed(lambda: disk.fsyncs(AT_ONCE)) / files)
                seconds[FILES].append(_timed(lambda: disk.store(THREADS)) / files)
        server.stop()
        compare_counts(server, sent)
        stored = len(list((server.directory / "Maildir" / "new").iterdir()))
        if stored != messages * len(sent):
            raise Wrong(f"{stored} messages are in the Maildir where {messages * len(sent)} were answered")
    cells = {f"{what} a second": 1 / statistics.median(each) for what, each in seconds.items()}
    ratios = {
        f"messages to {what}": statistics.median(
            other / message for other, message in zip(seconds[what], seconds[MESSAGES], strict=True)
        )
        for what in RATES[1:]
    }
    verdict = Verdict(f"{FSYNCS}, to messages", 1 / ratios[f"messages to {FSYNCS}"], bounds.FSYNCS_A_MESSAGE)
    return Row("MAILDIR", "acknowledged, small mails", "a second", cells, {}, [verdict], ratios)


def _timed(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


class _Disk:
    """Files of the size of a message, on the disk of `folder`.

    No file is removed before the end. On ext4 without a journal each new file costs more, for a minute, the more were
    removed: half a millisecond of processor time where it was 30 µs.
    """

    def __init__(self, folder: Path, files: int) -> None:
        self._folder = folder
        self._files = files
        self._numbers = itertools.count()

    def fsyncs(self, at_once: int) -> None:
        """Each thread writes one file after the other, with an fsync each, and does nothing else."""
        folder = self._new_folder()
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(_fsync, [folder / str(number) for number in range(self._files)]))

    def store(self, at_once: int) -> None:
        """The least that stores them in a Maildir: fsync, rename, and an fsync of new/ for several."""
        folder = self._new_folder()
        (folder / "new").mkdir()
        names = [str(number) for number in range(self._files)]
        several = [names[first : first + TOGETHER] for first in range(0, len(names), TOGETHER)]
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(_store, [folder] * len(several), several))

    def _new_folder(self) -> Path:
        folder = self._folder / f"disk{next(self._numbers)}"
        folder.mkdir()
        return folder


def _fsync(path: Path) -> None:
    with path.open("wb") as file:
        file.write(OCTETS)
        file.flush()
        os.fsync(file.fileno())


def _store(folder: Path, names: list[str]) -> None:
    for name in names:
        _fsync(folder / name)
        (folder / name).rename(folder / "new" / name)
    new = os.open(folder / "new", os.O_RDONLY)
    os.fsync(new)
    os.close(new)
