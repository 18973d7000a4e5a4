"""What the command is told, and what that comes to."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .peers import FLOOR, PEERS

PROCESSOR_TIME = ("W1", "W2", "W3", "W4", "W5", "W7", "W8")
KEYS = (
    *PROCESSOR_TIME,
    "W6",
    "MEMORY",
    "LATENCY",
    "DEFAULTS",
    "LOG",
    "MAILDIR",
    "WORKERS",
    "TLS",
    "HANDSHAKES",
    "PROXY",
    "PROXYMEMORY",
    "GROWTH",
    "LOAD",
)
NOT_QUICK = ("W8", "GROWTH", "LOAD")
ROUNDS = 5
# Three take 250 s of processor time, of the load and the servers together: more than three minutes on one core.
QUICK_ROUNDS = 2
QUICK_SCALE = 0.2

DESCRIPTION = """What the guard costs, beside other servers in the same run, and whether that is within its bounds.
Exit status 0; 1 if --judge is given and a bound is missed; 3 if a reply or a count was not as it must be."""

ROWS = """Rows: W1 to W5, W7, W8 processor time; W6 idle connections; MEMORY of large messages and of clients that hold
a session; LATENCY beside idle connections; DEFAULTS, without the protections; LOG, an event at info; MAILDIR,
on the disk; WORKERS, two beside one; TLS, beside the same in clear; HANDSHAKES, full ones and resumed
sessions, beside other servers; PROXY, mail that goes on to an upstream server, beside other proxies;
PROXYMEMORY, of a large one; GROWTH, the cost at N and at 10 N; LOAD, the same with a slower load."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """`only`, `against`, `rounds`, `scale` (of a round), `crowd_scale` and all else that was asked for."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=DESCRIPTION, epilog=ROWS)
    parser.add_argument("--only", type=_words(KEYS), default=[], metavar="W1,W3", help="these rows alone")
    parser.add_argument(
        "--against",
        type=_words(tuple(PEERS)),
        default=[name for name in PEERS if name != FLOOR],
        metavar="NAMES",
        help=f"these servers beside the guard, of {', '.join(PEERS)} (default: all but {FLOOR}; '' for none)",
    )
    parser.add_argument("--rounds", type=_positive, help=f"of each row, interleaved (default: {ROUNDS})")
    parser.add_argument("--quick", action="store_true", help="less of everything: within three minutes")
    parser.add_argument("--json", action="store_true", help="JSON; tables go to standard error")
    parser.add_argument("--markdown", action="store_true", help="tables in Markdown, for a document")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="the processor time as SVG")
    parser.add_argument("--judge", action="store_true", help="exit status 1 if a bound is missed")
    parser.add_argument(
        "--python", default=sys.executable, help="of the environment whose guard is measured (default: this)"
    )
    parser.add_argument(
        "--reactor",
        default="uvloop",
        metavar="NAME",
        help="a column more: the guard on this reactor of twist's (default: uvloop; '' for none)",
    )
    parser.add_argument("--scale", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    # Less load does in a hurry, but no smaller crowd: its size is what bounds are about.
    options.crowd_scale = options.scale or 1.0
    options.scale = options.scale or (QUICK_SCALE if options.quick else 1.0)
    if not options.only:
        options.only = [key for key in KEYS if not (options.quick and key in NOT_QUICK)]
    if options.plot and not options.plot.absolute().parent.is_dir():
        parser.error(f"--plot: there is no folder {options.plot.parent}")
    if shutil.which(options.python) is None:
        parser.error(f"--python: {options.python} cannot be started")
    if "smtp-sink" not in options.against and options.plot:
        parser.error("--plot shows multiples of smtp-sink: it must be among --against")
    if options.plot and not set(options.only) & set(PROCESSOR_TIME):
        parser.error("--plot shows the processor time: --only must have some of that")
    return options


def _words(known: Sequence[str]) -> Callable[[str], list[str]]:
    def words(text: str) -> list[str]:
        found = [word.strip() for word in text.split(",") if word.strip()]
        for word in found:
            if word not in known:
                raise argparse.ArgumentTypeError(f"{word} is none of {', '.join(known)}")
        return found

    return words


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError("a whole number from 1 up is expected")
    return number
