"""`python -m benchmarks` as it is: a little of it, so that it cannot rot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import pytest
from documents import ROOT
from vitals import Vitals

from benchmarks.peers import tool
from benchmarks.servers import Wrong, _guard_counts

pytestmark = pytest.mark.xdist_group("load")

REQUIRED = os.environ.get("SMTPGUARD_CLIENTS_REQUIRED")
needs_postfix = [
    pytest.mark.clients,
    pytest.mark.skipif(not REQUIRED and tool("smtp-source") is None, reason="needs smtp-source"),
]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", "--scale", "0.01", "--rounds", "1", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


def tables(done: subprocess.CompletedProcess[str]) -> Sequence[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["tables"]
    return found


def rows(done: subprocess.CompletedProcess[str]) -> Sequence[dict[str, Any]]:
    return [row for table in tables(done) for row in table["rows"]]


def test_a_message_that_goes_on_has_a_bound_whichever_way_it_comes() -> None:
    found = rows(run("--only", "PROXYMEMORY", "--json"))
    assert [row["name"] for row in found] == [
        "a message of 16 MB passed on by DATA",
        "a message of 16 MB passed on by BDAT",
    ]
    assert [each["at_most"] for row in found for each in row["verdicts"]] == [128.0, 128.0]


def test_the_guard_alone_refuses_and_takes_pipelined_mail() -> None:
    # In a round of few ms the share of the time would be that of the kernel's last look, up to a tick ago.
    found = rows(run("--only", "W5,W7", "--against", "", "--scale", "0.1", "--json"))
    assert [row["key"] for row in found] == ["W5", "W7"]
    for row in found:
        assert row["cells"]["guard"] > 0
        assert 0 < row["details"]["guard"]["busy"] <= 1.1


SLOW_ROWS = ["MEMORY,LATENCY", "DEFAULTS,LOG,MAILDIR", "GROWTH"]


class TestWithPostfix:
    pytestmark = needs_postfix

    @pytest.mark.parametrize(
        "keys",
        ["W1,W2,W4,W6,W8", *(pytest.param(each, marks=pytest.mark.soak) for each in SLOW_ROWS)],
    )
    def test_every_row_can_be_measured(self, keys: str) -> None:
        found = rows(run("--only", keys, "--against", "", "--json"))
        assert {row["key"] for row in found} == set(keys.split(","))

    def test_tls_is_measured_beside_the_same_in_clear_by_either_load(self) -> None:
        found = rows(run("--only", "TLS", "--json"))
        assert [row["name"][:3] for row in found] == ["W1 ", "W2 "]
        for row in found:
            assert set(row["cells"]) == {"in clear, smtp-source", "in clear", "STARTTLS", "implicit TLS"}
            assert row["cells"]["implicit TLS"] > row["cells"]["in clear"]

    @pytest.mark.skipif(not REQUIRED and tool("haproxy") is None, reason="needs HAProxy")
    def test_mail_that_goes_on_is_measured_beside_haproxy(self) -> None:
        waits, costs = tables(run("--only", "PROXY", "--json"))
        assert [row["name"] for row in waits["rows"]] == [
            "a whole mail, smtp-sink directly",
            "a whole mail, guard",
            "a whole mail, HAProxy",
            "a whole mail, what guard adds",
            "a whole mail, what HAProxy adds",
        ]
        assert [row["unit"] for row in costs["rows"]] == ["µs a mail", "mails a second"] * 2
        for row in costs["rows"]:
            assert set(row["cells"]) == {"guard", "HAProxy", "smtp-sink directly"}

    def test_others_are_measured_beside_it(self) -> None:
        (row,) = rows(run("--only", "W2", "--against", "smtp-sink,twisted.mail", "--json"))
        assert set(row["cells"]) == {"guard", "smtp-sink", "twisted.mail"}
        assert [each["what"] for each in row["verdicts"]] == ["smtp-sink"]


def test_a_run_that_cannot_be_right_has_its_own_exit_status() -> None:
    done = run("--only", "W5", "--against", "", "--python", "/bin/false")
    assert done.returncode == 3
    assert "guard does not listen" in done.stderr


@pytest.mark.parametrize("accepts", [0, 1, 3])
def test_a_message_that_is_not_one_event_is_noticed(accepts: int) -> None:
    stopped = {"messages_accepted": 2, "recipients_accepted": 2, "connections_accepted": 0}
    stopped |= {"sessions_ended": 0, "connections_refused": 0}
    events = [{"event": "accept"}] * accepts + [{"event": "stopped", **stopped}]
    with pytest.raises(Wrong, match="has logged"):
        _guard_counts("".join(f"\x1e{json.dumps(event)}\n" for event in events))


def test_processor_time_is_that_of_all_threads_and_finer_than_a_tick() -> None:
    code = "import threading, time; work = lambda: sum(range(200_000)); t = threading.Thread(target=work)\n"
    code += "t.start(); t.join(); print(time.process_time(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        told = float(process.stdout.readline())
        assert told <= Vitals(process.pid).seconds <= told + 0.05
        process.communicate("\n")
    assert time.get_clock_info("process_time").resolution < 1e-6
