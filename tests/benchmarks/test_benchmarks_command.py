"""`python -m benchmarks` as it is: a little of it, so that it cannot rot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from documents import ROOT
from vitals import Vitals

from benchmarks.peers import PEERS, tool
from benchmarks.proxied import columns, missing
from benchmarks.proxies import PROXIES
from benchmarks.servers import Kind, Wrong, _guard_counts, reactor_missing, running
from benchmarks.vitals import Family
from benchmarks.workers import largest_share

pytestmark = pytest.mark.xdist_group("load")

REQUIRED = os.environ.get("TESTS_CLIENTS_REQUIRED")
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
    found = rows(run("--only", "PROXYMEMORY", "--reactor", "", "--json"))
    assert [row["name"] for row in found] == [
        "a message of 16 MB passed on by DATA",
        "a message of 16 MB passed on by BDAT",
    ]
    assert [each["at_most"] for row in found for each in row["verdicts"]] == [96.0, 96.0]


def test_the_guard_alone_refuses_and_takes_pipelined_mail() -> None:
    # In a round of few ms the share of the time would be that of the kernel's last look, up to a tick ago.
    found = rows(run("--only", "W5,W7", "--against", "", "--scale", "0.1", "--json"))
    assert [row["key"] for row in found] == ["W5", "W7"]
    for row in found:
        assert row["cells"]["guard"] > 0
        assert 0 < row["details"]["guard"]["busy"] <= 1.1


def test_the_guard_on_another_reactor_has_its_own_column_rows_and_bounds() -> None:
    costs, waits = tables(run("--only", "W5,LATENCY", "--against", "", "--reactor", "asyncio", "--json"))
    (row,) = costs["rows"]
    assert set(row["cells"]) == {"guard", "guard on asyncio"}
    assert [row["name"] for row in waits["rows"]] == [
        "RSET and NOOP beside 50 idle",
        "RSET and NOOP beside 50 idle, guard on asyncio",
    ]


def test_a_reactor_that_cannot_be_had_leaves_its_column_empty_and_the_reason_below() -> None:
    (costs,) = tables(run("--only", "W5", "--against", "", "--reactor", "none-such", "--json"))
    assert costs["columns"] == ["guard", "guard on none-such"]
    assert set(costs["rows"][0]["cells"]) == {"guard"}
    assert costs["notes"] == ["guard on none-such could not be had: twist knows no reactor of that name"]


def test_a_reactor_is_looked_for_where_the_guard_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "twisted.py").write_text("raise ImportError('not this one')")
    monkeypatch.chdir(tmp_path)
    assert reactor_missing(sys.executable, "asyncio") == ""


HANDSHAKES = [
    f"{key}, {way}"
    for key in ("ECDSA P-256", "RSA 2048")
    for way in ("in clear", "full handshake", "resumed session")
]


def test_handshakes_are_measured_with_both_kinds_of_key_and_each_session_that_is_offered_is_resumed() -> None:
    found = rows(run("--only", "HANDSHAKES", "--against", "", "--json"))
    assert [row["name"] for row in found] == HANDSHAKES
    for row in found:
        assert set(row["cells"]) == {"guard"}
        assert row["verdicts"] == []


@pytest.mark.clients
def test_a_full_handshake_has_bounds_beside_other_servers() -> None:
    (table,) = tables(run("--only", "HANDSHAKES", "--against", "aiosmtpd,smtp-server", "--json"))
    assert table["columns"] == ["guard", "aiosmtpd", "smtp-server"]
    assert table["notes"] == [] or not REQUIRED
    judged = {
        row["name"]: {each["what"]: each["at_most"] for each in row["verdicts"]} for row in table["rows"]
    }
    bounds = {"aiosmtpd": 0.7, "smtp-server": 0.4}
    there = {name: bound for name, bound in bounds.items() if name in table["rows"][0]["cells"]}
    assert judged == {name: there if name == "ECDSA P-256, full handshake" else {} for name in HANDSHAKES}


def stopped(**counts: int) -> str:
    return "\x1e" + json.dumps({"event": "stopped", **counts}) + "\n"


def test_the_share_of_a_worker_is_of_what_all_workers_have_counted() -> None:
    log = stopped(worker=1, messages_accepted=30) + stopped(worker=2, messages_accepted=70)
    assert largest_share("no record\n" + log + stopped(messages_accepted=100), "messages_accepted") == 0.7
    with pytest.raises(Wrong, match="have counted no messages_accepted"):
        largest_share(stopped(messages_accepted=100), "messages_accepted")


SLOW_ROWS = ["WORKERS", "MEMORY,LATENCY", "DEFAULTS,LOG,MAILDIR", "GROWTH"]


class TestWithPostfix:
    pytestmark = needs_postfix

    @pytest.mark.parametrize(
        "keys",
        ["W1,W2,W4,W6,W8", *(pytest.param(each, marks=pytest.mark.soak) for each in SLOW_ROWS)],
    )
    def test_every_row_can_be_measured(self, keys: str) -> None:
        found = rows(run("--only", keys, "--against", "", "--reactor", "", "--json"))
        assert {row["key"] for row in found} == set(keys.split(","))

    def test_tls_is_measured_beside_the_same_in_clear_by_either_load(self) -> None:
        found = rows(run("--only", "TLS", "--json"))
        assert [row["name"][:3] for row in found] == ["W1 ", "W2 "]
        for row in found:
            assert set(row["cells"]) == {"in clear, smtp-source", "in clear", "STARTTLS", "implicit TLS"}
            assert row["cells"]["implicit TLS"] > row["cells"]["in clear"]

    def test_mail_that_goes_on_is_measured_beside_other_proxies_and_beside_the_same_guard_discarding(
        self,
    ) -> None:
        waits, costs = tables(run("--only", "PROXY", "--reactor", "asyncio", "--json"))
        guards = ["guard", "guard on asyncio"]
        proxies = [name for name, proxy in PROXIES.items() if not proxy.missing()]
        assert proxies == list(PROXIES) or not REQUIRED
        through = [*guards, *proxies]
        assert [row["name"] for row in waits["rows"]] == [
            *(f"a whole mail, {name}" for name in ("smtp-sink directly", *through)),
            *(f"a whole mail, what {name} adds" for name in through),
        ]
        judged = {
            row["name"]: {each["what"]: each["at_most"] for each in row["verdicts"]} for row in waits["rows"]
        }
        assert {name: of for name, of in judged.items() if of} == {
            f"a whole mail, what {name} adds": {"median": 0.3, "p99": 0.6} for name in guards
        }
        assert [row["unit"] for row in costs["rows"]] == ["µs a mail", "mails a second"] * 2
        for row in costs["rows"]:
            own = {f"{name}, discarding" for name in guards}
            assert set(row["cells"]) == {*through, "smtp-sink directly", *own}
            assert set(row["cells"]) <= set(costs["columns"])
        assert [(each["what"], each["at_most"]) for row in costs["rows"] for each in row["verdicts"]] == [
            ("discarding", 2.5),
            ("guard on asyncio to discarding", 2.5),
            ("discarding", 3.0),
            ("guard on asyncio to discarding", 3.0),
        ]

    def test_others_are_measured_beside_it(self) -> None:
        (row,) = rows(run("--only", "W2", "--against", "smtp-sink,twisted.mail", "--reactor", "", "--json"))
        assert set(row["cells"]) == {"guard", "smtp-sink", "twisted.mail"}
        assert [each["what"] for each in row["verdicts"]] == ["smtp-sink"]

    @pytest.mark.skipif(not REQUIRED and os.geteuid() != 0, reason="needs root to start Postfix")
    @pytest.mark.parametrize("key", ["W1", "W2", "W4"])
    def test_postfixs_smtpd_is_measured_with_its_processes_and_its_count_is_compared(self, key: str) -> None:
        (table,) = tables(run("--only", key, "--against", "Postfix smtpd", "--reactor", "", "--json"))
        assert table["notes"] == []
        (row,) = table["rows"]
        # It has more processes than the guard for a mail, and each wakes another.
        assert row["cells"]["Postfix smtpd"] > row["cells"]["guard"]

    def test_postfixs_smtpd_has_no_part_in_what_no_process_for_each_connection_can_bear(self) -> None:
        (row,) = rows(run("--only", "W5", "--against", "Postfix smtpd", "--reactor", "", "--json"))
        assert set(row["cells"]) == {"guard"}


def test_a_run_that_cannot_be_right_has_its_own_exit_status() -> None:
    done = run("--only", "W5", "--against", "", "--python", "/bin/false")
    assert done.returncode == 3
    assert "guard does not listen" in done.stderr


def test_without_root_postfix_is_none_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.peers.tool", lambda program: f"/usr/sbin/{program}")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert PEERS["Postfix smtpd"].missing() == "only root can start Postfix"


PARENT = """
import signal, socket, subprocess, sys
child = [sys.executable, "-c", "import sys; sys.stdin.read(); sum(range(10_000_000)); print('The parent has ended.')"]
kept = subprocess.Popen(child, stdin=subprocess.PIPE)
connection, _ = socket.create_server(("127.0.0.1", int(sys.argv[1]))).accept()
connection.sendall(b"220 ready")
signal.pause()
"""


def test_what_a_server_has_started_may_have_something_to_say_after_its_end() -> None:
    with running(Kind("parent", lambda port, refusing: [sys.executable, "-c", PARENT, str(port)])) as server:
        server.stop()
        assert server.printed == "The parent has ended.\n"


@pytest.mark.parametrize("accepts", [0, 1, 3])
def test_a_message_that_is_not_one_event_is_noticed(accepts: int) -> None:
    stopped = {"messages_accepted": 2, "recipients_accepted": 2, "connections_accepted": 0}
    stopped |= {"sessions_ended": 0, "connections_refused": 0}
    events = [{"event": "accept"}] * accepts + [{"event": "stopped", **stopped}]
    with pytest.raises(Wrong, match="has logged"):
        _guard_counts("".join(f"\x1e{json.dumps(event)}\n" for event in events))


@pytest.mark.parametrize(
    ("name", "why"), [("HAProxy", "it is not installed"), ("nginx", "it is not installed")]
)
def test_a_proxy_that_is_not_here_leaves_its_column_empty_and_is_told(
    monkeypatch: pytest.MonkeyPatch, name: str, why: str
) -> None:
    monkeypatch.setattr("benchmarks.proxies.tool", lambda program: None)
    assert name in columns(["guard"])
    assert f"{name} could not be had: {why}" in missing()


def test_nginx_without_its_mail_module_is_none_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.proxies.tool", lambda program: f"/usr/sbin/{program}")
    monkeypatch.setattr("benchmarks.proxies.NGINX_MAIL", Path("/nowhere"))
    assert "nginx could not be had: its mail module is not installed" in missing()


def test_that_clients_leave_while_the_guard_stops_is_no_fault() -> None:
    stopped = {"messages_accepted": 0, "recipients_accepted": 0, "connections_accepted": 0}
    stopped |= {"sessions_ended": 0, "connections_refused": 0}
    events = [{"event": "draining"}, {"event": "stopped", **stopped}]
    counts = _guard_counts("".join(f"\x1e{json.dumps(event)}\n" for event in events))
    assert counts == {"messages": 0, "recipients": 0, "refused": 0}


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


def test_processor_time_of_a_server_is_also_that_of_the_processes_it_starts_and_has_started() -> None:
    work = "import time; sum(range(3_000_000)); print(time.process_time(), flush=True)"
    code = f"import subprocess, sys; child = [sys.executable, '-c', {work!r}]\n"
    code += "subprocess.run(child); kept = [sys.executable, '-c', child[2] + '; input()']\n"
    code += "kept = subprocess.Popen(kept, stdin=subprocess.PIPE); input(); kept.communicate(b'\\n')"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        ended, there = float(process.stdout.readline()), float(process.stdout.readline())
        found = Family(process.pid).seconds
        # That of the one that has ended is told in ticks of 10 ms, user and system.
        assert found - Vitals(process.pid).seconds >= ended + there - 0.02
        assert Family(process.pid).seconds <= Vitals(process.pid).seconds + ended + there + 0.2
        process.communicate("\n")


@pytest.mark.clients
@pytest.mark.skipif(not REQUIRED and tool("smtp-source") is None, reason="needs smtp-source")
def test_each_kind_of_connection_on_uvloop_takes_mail_and_is_measured() -> None:
    pytest.importorskip("uvloop", reason="the extra uvloop")
    code = "from benchmarks.uvloop_transports import main; main(rounds=1, idle=40)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    measured = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:]]
    assert [name for name, *_ in measured] == ["server", "accepted", "descriptors", "epoll"]
    assert all(float(cost) > 0 for _, *costs in measured for cost in costs[:2])
