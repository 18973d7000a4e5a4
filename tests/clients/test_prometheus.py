"""A real Prometheus scrapes a real guard: the metrics, the alerts and the dashboard of the documents."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from documents import DOCS
from processes import GuardProcess, eventually
from programs import missing
from rawclient import RawClient, deliver
from shell import free_port

pytestmark = pytest.mark.clients

PROMETHEUS = DOCS / "examples" / "prometheus"
DASHBOARD = DOCS / "examples" / "grafana" / "dashboard.json"
HOW_TO = DOCS / "how-to" / "watch-it-with-prometheus.md"
REFERENCE = DOCS / "reference" / "metrics.md"


def need(program: str) -> None:
    if shutil.which(program) is None:
        missing(program)


def promtool(*words: str, text: bytes = b"") -> None:
    need("promtool")
    done = subprocess.run(["promtool", *words], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b""), done.stdout.decode() + done.stderr.decode()


def metrics_of(guard: GuardProcess, accept: str = "text/plain") -> bytes:
    line = guard.wait_for(r"\] serving_metrics ")
    (address,) = re.findall(r"address=(\S+)", line)
    request = urllib.request.Request(f"http://{address}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=30) as answer:
        octets: bytes = answer.read()
        return octets


class Prometheus:
    """One that scrapes a guard every half second, with the alerts of the documents, whose times are made short."""

    def __init__(self, port: str) -> None:
        self.port = port

    def asks(self, path: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            told = json.load(answer)
        assert told["status"] == "success", told
        return told["data"]

    def result(self, query: str) -> list[dict[str, Any]]:
        data = self.asks("query", query=query)
        # A warning would be that of a function whose argument has the wrong type.
        return list(data["result"])

    @property
    def firing(self) -> set[str]:
        return {
            each["labels"]["alertname"] for each in self.asks("alerts")["alerts"] if each["state"] == "firing"
        }

    @property
    def is_ready(self) -> bool:
        try:
            return bool(self.result('up{job="smtpguard"} == 1'))
        except OSError:
            return False


def shortened(rules: str) -> str:
    """With a second where the document has a minute."""
    return re.sub(r"\[\dm\]", "[3s]", re.sub(r"for: \d[mh]", "for: 1s", rules))


@contextmanager
def prometheus(directory: Path, guard: GuardProcess) -> Iterator[Prometheus]:
    need("prometheus")
    line = guard.wait_for(r"\] serving_metrics ")
    (address,) = re.findall(r"address=(\S+)", line)
    alerts = directory / "smtpguard-alerts.yml"
    alerts.write_text(shortened((PROMETHEUS / "alerts.yml").read_text()))
    text = (PROMETHEUS / "prometheus.yml").read_text()
    for there, here in (
        ("/etc/prometheus/smtpguard-alerts.yml", str(alerts)),
        ("127.0.0.1:9525", address),
        ("15s", "500ms"),
    ):
        assert there in text
        text = text.replace(there, here)
    configuration = directory / "prometheus.yml"
    configuration.write_text(f"global:\n  evaluation_interval: 500ms\n{text}")
    promtool("check", "config", str(configuration))
    port = free_port()
    words = ["prometheus", f"--config.file={configuration}", f"--web.listen-address=127.0.0.1:{port}"]
    words.append(f"--storage.tsdb.path={directory / 'data'}")
    with (
        (directory / "prometheus.log").open("wb") as log,
        subprocess.Popen(words, stdout=log, stderr=log) as process,
    ):
        try:
            made = Prometheus(port)
            eventually(lambda: made.is_ready, (directory / "prometheus.log").read_text())
            yield made
        finally:
            process.kill()


def test_promtool_finds_no_fault_in_the_metrics(tmp_path: Path) -> None:
    with GuardProcess(tmp_path, "--metrics=tcp:0:interface=127.0.0.1", "--deny=127.0.0.9") as guard:
        deliver(guard.address)
        promtool("check", "metrics", text=metrics_of(guard))


def test_promtool_finds_no_fault_in_the_rules() -> None:
    promtool("check", "rules", str(PROMETHEUS / "alerts.yml"))


def queries() -> list[str]:
    """Those of the dashboard, of the alerts and of the how-to."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    of_dashboard = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(of_dashboard) > len(panels) > 15
    of_alerts = re.findall(r"expr: (?:\|\n((?: {10}.*\n)+)|(.+)\n)", (PROMETHEUS / "alerts.yml").read_text())
    assert len(of_alerts) == 12
    of_how_to = re.findall(r"(?m)^\| [^|]*\? \| `(.*)` \|$", HOW_TO.read_text())
    assert len(of_how_to) == 6
    return [*of_dashboard, *(several or one for several, one in of_alerts), *of_how_to]


def test_each_query_of_the_documents_is_answered_and_asks_for_what_there_is(tmp_path: Path) -> None:
    known = set(re.findall(r"(?m)^\| `(smtpguard_\w+)` \|", REFERENCE.read_text()))
    labels = set(
        re.findall(
            r"`(\w+)`",
            "".join(re.findall(r"(?m)^\| `smtpguard_\w+` \| \w+ \| (.*?) \|", REFERENCE.read_text())),
        )
    )
    with (
        GuardProcess(tmp_path, "--metrics=tcp:0:interface=127.0.0.1") as guard,
        prometheus(tmp_path, guard) as server,
    ):
        deliver(guard.address)
        for query in queries():
            asked = query.replace("$__rate_interval", "1m").replace("$instance", ".*")
            server.result(asked)
            for name in re.findall(r"\bsmtpguard_\w+", query):
                assert re.sub("_(bucket|count|sum)$", "", name) in known, query
            for selector in re.findall(r"\bsmtpguard_\w+\{([^}]*)\}", query):
                assert {*re.findall(r"(\w+)\s*[!=]", selector)} - {"instance"} <= labels, query
        names = server.asks("label/__name__/values")
        eventually(
            lambda: server.result('smtpguard_messages_total{outcome="accepted"} == 1'), "it is not scraped"
        )
        assert "process_resident_memory_bytes" in names
        assert server.firing == set()


def test_a_flood_of_clients_fires_the_alert_of_the_documents(tmp_path: Path) -> None:
    options = ("--metrics=tcp:0:interface=127.0.0.1", "--max-connections=5")
    with GuardProcess(tmp_path, *options) as guard, prometheus(tmp_path, guard) as server:
        deliver(guard.address)
        assert "SmtpguardFlood" not in server.firing
        held = [RawClient(guard.address, f"127.0.1.{number}") for number in range(1, 6)]
        turned_away = 0
        deadline = time.monotonic() + 60
        while not {"SmtpguardFlood", "SmtpguardNearlyFull"} <= server.firing:
            assert time.monotonic() < deadline, server.asks("alerts")
            for number in range(1, 60):
                with RawClient(guard.address, f"127.1.{turned_away % 250}.{number}") as client:
                    assert client.greeting.startswith("421 ")
                turned_away += 1
        for each in held:
            each.close()
        eventually(lambda: not server.firing, "the alert does not end")


def test_a_guard_that_is_gone_fires_the_alert_of_the_documents(tmp_path: Path) -> None:
    with (
        GuardProcess(tmp_path, "--metrics=tcp:0:interface=127.0.0.1") as guard,
        prometheus(tmp_path, guard) as server,
    ):
        guard.stop()
        eventually(lambda: "SmtpguardDown" in server.firing, "no alert fires")


def test_the_files_that_are_shown_are_the_examples() -> None:
    assert f"```text\n{(PROMETHEUS / 'prometheus.yml').read_text()}```" in HOW_TO.read_text()
    alerts = re.findall(r"- alert: (\w+)", (PROMETHEUS / "alerts.yml").read_text())
    assert re.findall(r"(?m)^\| `(Smtpguard\w+)` \|", HOW_TO.read_text()) == alerts
