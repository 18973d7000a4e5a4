"""A process that has no file descriptor left for a connection: who was dropped stands in the log, as any refusal."""

from __future__ import annotations

import re
import resource
import socket
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
from processes import GuardProcess, eventually
from rawclient import RawClient

DESCRIPTORS = 48
CROWD = 300


@pytest.mark.parametrize("endpoint", ["tcp:0:interface=127.0.0.1", "unix:{directory}/smtp.sock"])
def test_whom_it_drops_is_refused_within_the_limits_on_log_lines(tmp_path: Path, endpoint: str) -> None:
    options = ("--deliver=discard", "--max-log-lines=20", "--max-log-lines-per-client=3")
    with (
        GuardProcess(tmp_path, *options, listen=(endpoint.format(directory=tmp_path),)) as guard,
        ExitStack() as crowd,
    ):
        resource.prlimit(guard.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
        address = guard.addresses[0]
        unix = isinstance(address, str)
        dropped = 0
        for _ in range(CROWD):
            client = crowd.enter_context(socket.socket(socket.AF_UNIX if unix else socket.AF_INET))
            client.settimeout(10)
            client.connect(address)
            try:
                dropped += client.recv(1) == b""
            except ConnectionError:
                dropped += 1
        assert dropped > CROWD - DESCRIPTORS
        seconds = Counter(line[:19] for line in guard.lines if "connect " not in line)
        peer = "unix" if unix else "127.0.0.1"
        # Three refusals of one client, and what is said at the start.
        assert max(seconds.values()) < 12
        assert "EMFILE" not in guard.log.decode()
        guard.wait_for(f"reject peer={peer} reason=out_of_descriptors")
        crowd.close()
        eventually(lambda: served(guard), "it does not take connections again")
        guard.terminate()
        guard.status()
        (stopped,) = (line for line in guard.lines if "] stopped " in line)
        counted = re.search(r"refusals=out_of_descriptors:(\d+)", stopped)
        assert counted is not None
        assert int(counted[1]) >= dropped


def served(guard: GuardProcess) -> bool:
    try:
        with RawClient(guard.addresses[0]) as client:
            return client.ask("NOOP").startswith("250 ")
    except ConnectionError:
        return False
