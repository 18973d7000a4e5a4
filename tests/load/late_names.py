"""A name server in its own process, whose lists answer late.

    python late_names.py SECONDS DEAD

It prints its address, and ends with its standard input. In the zones bl.test and b2.test a client whose last octet ends
in 0 is listed; of the zone DEAD only the entries for tests are answered. One that is named `late` takes five seconds.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUPPORT = Path(__file__).parents[1] / "support"


def main(late: float, dead: str) -> None:
    from nameserver import NOTHING, NameServer, Said, lists

    tests = lists({"bl.test": {}, "b2.test": {}, "dead.test": {}, "late.test": {}})

    def answer(name: str) -> Said:
        if ".0.0.127." in name or ".f.f.f.f." in name:
            return tests(name)
        if name.endswith(dead):
            return NOTHING
        seconds = 5 if name.endswith("late.test") else late
        if name.partition(".")[0].endswith("0"):
            return Said(["127.0.0.2"], late=seconds)
        return Said(code=3, minimum=300, late=seconds)

    with NameServer(answer) as server:
        print(server.address, flush=True)
        sys.stdin.read()


@contextmanager
def late_names(late: float, dead: str) -> Iterator[str]:
    """The address of one that runs while the block runs."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(late), dead],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


if __name__ == "__main__":
    sys.path.insert(0, str(SUPPORT))
    main(float(sys.argv[1]), sys.argv[2])
