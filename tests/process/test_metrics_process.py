"""`--metrics` of a real `twist smtpguard`: what is served, and that it costs mail nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from commandline import twist
from processes import GuardProcess, eventually
from rawclient import RawClient, deliver
from workers import Workers

UNIX = "--metrics=unix:m.sock"


def metrics_port(guard: GuardProcess) -> int:
    line = guard.wait_for(r"\] serving_metrics endpoint=tcp\S+ ")
    found = re.search(r"address=127\.0\.0\.1:(\d+)", line)
    assert found is not None
    return int(found[1])


def asked(place: int | Path, path: str = "/metrics", host: str = "localhost") -> str:
    """The whole answer."""
    kind = socket.AF_UNIX if isinstance(place, Path) else socket.AF_INET
    with socket.socket(kind) as client:
        client.settimeout(30)
        client.connect(str(place) if isinstance(place, Path) else ("127.0.0.1", place))
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        said = b""
        while octets := client.recv(65536):
            said += octets
    return said.decode()


def value(answer: str, series: str) -> float:
    return float(re.search(f"(?m)^smtpguard_{re.escape(series)} (.*)$", answer)[1])  # type: ignore[index]


@pytest.mark.parametrize("reactor", ["default", "asyncio"])
def test_mail_is_counted_and_served_on_tcp_and_a_unix_socket(tmp_path: Path, reactor: str) -> None:
    with GuardProcess(tmp_path, "--metrics=tcp:0:interface=127.0.0.1", UNIX, reactor=reactor) as guard:
        deliver(guard.address)
        for place in (tmp_path / "m.sock", metrics_port(guard)):
            answer = asked(place)
            assert value(answer, 'messages_total{outcome="accepted"}') == 1
            assert value(answer, 'delivery_seconds_count{hook="finish",outcome="ok"}') == 1
            assert re.search(r"(?m)^process_cpu_seconds_total ", answer)
            assert asked(place, "/healthz").endswith("\r\n\r\nok\n")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_name_that_is_none_of_the_guard_is_refused_but_on_a_unix_socket(
    tmp_path: Path, workers: int
) -> None:
    options = (
        "--metrics=tcp:0:interface=127.0.0.1",
        UNIX,
        "--hostname=guard.example",
        "--metrics-host=Status.Example.org",
    )
    guard = (
        Workers(tmp_path, workers, *options, reactor="default")
        if workers
        else GuardProcess(tmp_path, *options)
    )
    with guard:
        port = metrics_port(guard)

        def status(host: str, place: int | Path = port) -> int:
            return int(asked(place, "/status.json", host).split()[1])

        assert [status(host) for host in ("guard.example:1", "status.example.org", f"127.0.0.1:{port}")] == [
            200
        ] * 3
        assert status("attacker.example") == 421
        assert status("attacker.example", tmp_path / "m.sock") == 200


def test_the_health_says_that_the_guard_drains(tmp_path: Path) -> None:
    with GuardProcess(tmp_path, UNIX) as guard:
        with RawClient(guard.address) as client:
            client.ask("EHLO x")
            client.ask("MAIL FROM:<a@example.org>")
            os.kill(guard.pid, signal.SIGTERM)
            guard.wait_for(r"\] draining ")
            answer = asked(tmp_path / "m.sock", "/healthz")
            assert answer.startswith("HTTP/1.1 503 Service Unavailable\r\n")
            assert answer.endswith("\r\n\r\nthe guard does not listen, it is draining\n")
        guard.wait_for(r"\] stopped ")
        eventually(lambda: not guard.runs, "it does not end")
        assert not (tmp_path / "m.sock").exists()


def test_a_crowd_on_the_metrics_keeps_no_mail_and_no_scrape_waiting(tmp_path: Path) -> None:
    with GuardProcess(tmp_path, "--metrics=tcp:0:interface=127.0.0.1") as guard:
        port = metrics_port(guard)
        crowd = []
        began = time.monotonic()
        for number in range(2000):
            client = socket.create_connection(("127.0.0.1", port))
            client.setblocking(False)
            client.send(
                (b"", b"GET", b"GET /metrics HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n")[
                    number % 4
                ]
            )
            crowd.append(client)
            if number % 400 == 0:
                deliver(guard.address)
                assert value(asked(port), "message_octets_total") > 0
        folder = Path(f"/proc/{guard.pid}/fd")
        eventually(lambda: len(list(folder.iterdir())) < 100, "it has kept too many of them")
        assert time.monotonic() - began < 60
        for client in crowd:
            client.close()


def test_an_address_that_others_can_reach_is_warned_of(tmp_path: Path) -> None:
    with GuardProcess(tmp_path, "--metrics=tcp:0") as guard:
        guard.wait_for(
            r"\] setup_warning what=metrics other hosts can read the metrics at tcp:0, which have no password"
        )


def test_a_taken_port_ends_the_start_with_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = ("--listen=tcp:0:interface=127.0.0.1", f"--metrics=tcp:{port}:interface=127.0.0.1")
        status, _, errors = twist(*words, cwd=tmp_path)
    assert status == 1
    assert re.fullmatch(rf"--metrics: cannot listen on tcp:{port}:interface=127\.0\.0\.1: .*\n", errors)


def test_a_wrong_endpoint_is_one_sentence(tmp_path: Path) -> None:
    status, _, errors = twist("--metrics=9525", cwd=tmp_path)
    assert status == 64
    assert errors.startswith("--metrics: an endpoint such as ")


@pytest.mark.parametrize("options", [(), ("--metrics=unix:m.sock",)])
def test_twisted_web_is_loaded_only_where_it_is_used(tmp_path: Path, options: tuple[str, ...]) -> None:
    code = (
        "import sys; from twisted_smtpguard.cli.options import Options, make_service; from twisted.internet.task "
        "import Clock; options = Options(); options.parseOptions(sys.argv[1:]); "
        "from twisted.internet.testing import MemoryReactorClock; make_service(options, MemoryReactorClock()); "
        "print('twisted.web' in sys.modules, 'prometheus_client' in sys.modules)"
    )
    words = [sys.executable, "-c", code, "--deliver=discard", *options]
    done = subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.split() == [str(bool(options))] * 2


def test_the_page_of_several_workers_is_that_of_one_guard_and_outlives_a_worker(tmp_path: Path) -> None:
    with Workers(tmp_path, 2, UNIX, reactor="default") as guard:
        place = tmp_path / "m.sock"
        for _ in range(20):
            deliver(guard.address)

        def of_each() -> list[float]:
            answer = asked(place)
            found = re.findall(r'(?m)^smtpguard_worker_messages_total\{worker="\d"\} (.*)$', answer)
            return [float(each) for each in found]

        assert value(asked(place), 'messages_total{outcome="accepted"}') == 20
        assert (
            value(asked(place), 'connections_total{listener="tcp:0:interface=127.0.0.1",outcome="accepted"}')
            == 20
        )
        assert len(of_each()) == 2
        assert sum(of_each()) == 20
        os.kill(guard.pids[1], signal.SIGKILL)
        eventually(lambda: guard.count("worker_started") == 3, "it was not replaced")
        assert value(asked(place), 'messages_total{outcome="accepted"}') == 20
        assert asked(place, "/healthz").endswith("\r\n\r\nok\n")


def test_the_status_of_several_workers_is_one_page_with_each_of_them(tmp_path: Path) -> None:
    with Workers(tmp_path, 2, UNIX, reactor="default") as guard, RawClient(guard.address) as client:
        client.ask("EHLO client.example")
        place = tmp_path / "m.sock"

        def told() -> Any:
            return json.loads(asked(place, "/status.json").partition("\r\n\r\n")[2])

        # What a worker has is known a second later.
        eventually(lambda: told()["status"].get("connections") == 1, "the connection is not there")
        assert [row["worker"] for row in told()["status"]["workers"]] == [1, 2]
        assert told()["top"] == [
            {"client": "127.0.0.1", "connections": 1, "messages": 0, "recipients": 0, "refusals": 0}
        ]
        assert told()["problems"] == {}
        eventually(lambda: told()["hour"][-1]["connections"] == 1, "the hour is not kept")
        assert re.search(r"<h2[^>]*>Workers</h2>.*<th scope=row>2</th>", asked(place, "/status"))
