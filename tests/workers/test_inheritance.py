"""What a worker is told, and what keeps it from working with a supervisor of another version."""

from __future__ import annotations

import json
import socket

import pytest

from twisted_smtpguard.workers.channel import first_message
from twisted_smtpguard.workers.inheritance import (
    LISTENERS,
    LOADS,
    TABLE,
    VARIABLE,
    VERSION,
    Inheritance,
    inherited,
)

TOLD = Inheritance(number=3, part=0, parts=2, families=())


def test_a_process_that_is_no_worker_is_told_nothing() -> None:
    assert inherited({"PATH": "/bin"}) is None


def test_the_environment_has_nothing_of_systemd_and_no_option_more() -> None:
    base = {
        "PATH": "/bin",
        "NOTIFY_SOCKET": "/run/x",
        "WATCHDOG_USEC": "1",
        "LISTEN_FDS": "1",
        "LISTEN_PID": "7",
    }
    made = TOLD.environment(base)
    assert made.keys() == {"PATH", VARIABLE}
    assert not VARIABLE.startswith("SMTPGUARD_")


def test_a_worker_of_another_version_ends_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {VARIABLE: json.dumps([VERSION + 1, *TOLD])}
    with pytest.raises(SystemExit, match="restart the whole guard"):
        inherited(environment)


def test_each_descriptor_has_its_place() -> None:
    assert TOLD.descriptors(20, (21, 24), [22, 23]) == {
        **{0: 0, 1: 1, 2: 2, 3: 20, TABLE: 21, LOADS: 24},
        **{LISTENERS: 22, LISTENERS + 1: 23},
    }


@pytest.mark.parametrize("size", [1, 70_000, 150_000])
def test_the_first_line_is_read_and_nothing_after_it(size: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        line = json.dumps({"x": "y" * size}).encode()
        ours.sendall(line[:5])
        ours.sendall(line[5:] + b"\nrest")
        assert first_message(theirs.fileno()) == {"x": "y" * size}
        assert theirs.recv(100) == b"rest"


def test_a_channel_that_ends_before_the_first_line_is_told() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.sendall(b'{"x"')
        ours.close()
        with pytest.raises(EOFError):
            first_message(theirs.fileno())
