"""benchmarks/options.py: what the command is told."""

from __future__ import annotations

import sys

import pytest

from benchmarks.options import KEYS, parse
from benchmarks.peers import FLOOR, PEERS
from benchmarks.workloads import workloads


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            [],
            {
                "only": list(KEYS),
                "against": [name for name in PEERS if name != FLOOR],
                "rounds": 5,
                "scale": 1.0,
                "python": sys.executable,
                "reactor": "uvloop",
            },
        ),
        (["--only", "W1, W3"], {"only": ["W1", "W3"]}),
        (["--against", ""], {"against": []}),
        (["--against", "aiosmtpd,smtp-sink"], {"against": ["aiosmtpd", "smtp-sink"]}),
        (["--quick"], {"rounds": 2, "scale": 0.2, "crowd_scale": 1.0}),
        (["--quick", "--rounds", "7"], {"rounds": 7}),
        (["--scale", "0.1"], {"scale": 0.1, "crowd_scale": 0.1}),
    ],
)
def test_options(arguments: list[str], expected: dict[str, object]) -> None:
    found = vars(parse(arguments))
    assert {name: found[name] for name in expected} == expected


def test_in_a_hurry_what_takes_longest_is_left_out_unless_it_is_asked_for() -> None:
    assert not {"W8", "GROWTH", "LOAD"} & set(parse(["--quick"]).only)
    assert parse(["--quick", "--only", "LOAD"]).only == ["LOAD"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--only", "W9"], "W9 is none of W1"),
        (["--against", "sendmail"], "sendmail is none of smtp-sink"),
        (["--rounds", "0"], "a whole number from 1 up is expected"),
        (["--plot", "x.svg", "--against", "aiosmtpd"], "--plot shows multiples of smtp-sink"),
        (["--plot", "x.svg", "--only", "GROWTH"], "--plot shows the processor time"),
    ],
)
def test_a_mistake_is_told(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_every_workload_has_a_key_that_can_be_asked_for() -> None:
    assert set(workloads()) <= set(KEYS)


def test_a_server_has_no_part_in_rows_that_exist() -> None:
    assert {key for peer in PEERS.values() for key in peer.not_in} <= set(KEYS)
