"""Lists in the DNS behind a real `twist smtpguard`: what clients, the log, operators and metrics are told."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from announced import PROXIED, first_line
from commandline import twist
from nameserver import NOTHING, SERVFAIL, NameServer, Said, lists
from processes import TWIST, GuardProcess, eventually
from test_metrics_process import asked, value

KEY = "geheim.bl.test"
ENTRIES = {
    KEY: {"192.0.2.1": ["127.0.0.2", "127.0.0.4"], "192.0.2.3": ["127.0.0.2"]},
    "ok.test": {"192.0.2.3": ["127.0.5.1"]},
    "all.test": {"*": ["127.0.0.2"]},
}


@pytest.fixture
def server() -> Iterator[NameServer]:
    with NameServer(lists(ENTRIES)) as running:
        yield running


def options(server: NameServer, more: str = "") -> tuple[str, ...]:
    return (
        f"--ip-filter=dnsbl:{KEY}*2,ok.test*-2,all.test;name=bl,ok,all;resolver={server.address}{more}",
        PROXIED,
    )


def why(directory: Path, address: str) -> str:
    words = [str(TWIST.with_name("smtpguardctl")), "--socket", str(directory / "c"), "why", address]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.parametrize("reactor", ["default", "asyncio"])
def test_who_is_listed_is_refused_and_everybody_is_told_why_without_a_key(
    tmp_path: Path, server: NameServer, reactor: str
) -> None:
    more = ("--control=c", "--metrics=unix:m.sock")
    with GuardProcess(tmp_path, *options(server), *more, reactor=reactor) as guard:
        assert first_line(guard, "192.0.2.1") == "521 5.7.1 Your address is listed by bl"
        assert first_line(guard, "192.0.2.2").startswith("220 ")
        assert first_line(guard, "192.0.2.3").startswith("220 ")
        guard.wait_for(
            r"\] reject peer=192\.0\.2\.1 reason=ip_filter filter=dnsbl rule=bl:127\.0\.0\.2\+127\.0\.0\.4 code=521 "
        )
        guard.wait_for(r"\] dnsbl_left_out list=all it lists 127\.0\.0\.1, and so may list everybody$")
        answer = why(tmp_path, "192.0.2.1")
        assert "its listing by bl (127.0.0.2+127.0.0.4, weight 2)" in answer
        assert "smtpguardctl trust 192.0.2.1 --for 1h" in answer
        metrics = asked(tmp_path / "m.sock")
        assert value(metrics, 'dnsbl_answers_total{list="bl",outcome="listed"}') == 2
        assert value(metrics, 'dnsbl_list_counts{list="all"}') == 0
        assert value(metrics, 'dnsbl_list_counts{list="bl"}') == 1
        shown = guard.log.decode() + answer + metrics + asked(tmp_path / "m.sock", "/status")
        assert "geheim" not in shown
        # A question costs no line of the log.
        assert not re.search("DNS", guard.log.decode())


def test_a_list_that_goes_and_comes_back_is_told_at_a_reload(tmp_path: Path, server: NameServer) -> None:
    with GuardProcess(tmp_path, *options(server)) as guard:
        assert first_line(guard, "192.0.2.1").startswith("521 ")
        server.answering = lambda _: Said(code=SERVFAIL)
        os.kill(guard.pid, signal.SIGHUP)
        guard.wait_for(r"\] reloaded what=dnsbl option=--ip-filter")
        guard.wait_for(r"\] dnsbl_left_out list=bl it does not answer: the resolver answers SERVFAIL$")
        assert first_line(guard, "192.0.2.1").startswith("220 ")
        server.answering = lists(ENTRIES)
        os.kill(guard.pid, signal.SIGHUP)
        guard.wait_for(r"\] dnsbl_back list=bl$")
        assert first_line(guard, "192.0.2.1").startswith("521 ")


def test_check_tells_what_is_wrong_with_a_list_and_starts_nothing(tmp_path: Path, server: NameServer) -> None:
    status, out, err = twist("--check", "--deliver=discard", *options(server), cwd=tmp_path)
    assert (status, err) == (0, "")
    assert "warning: dnsbl: the list all: it lists 127.0.0.1, and so may list everybody" in out
    assert "geheim" not in out
    assert re.search(r"(?m)^ip-filter +dnsbl +command line$", out)
    server.answering = lambda _: NOTHING
    status, out, _ = twist("--check", "--deliver=discard", *options(server, ";timeout=0.3"), cwd=tmp_path)
    assert status == 0
    assert "the list bl: it does not answer: no answer in time" in out


def test_a_list_that_lists_known_clients_only_logs(tmp_path: Path, server: NameServer) -> None:
    (tmp_path / "known").write_text("192.0.2.0/24\n")
    entries = {KEY: {f"192.0.2.{i}": ["127.0.0.2"] for i in range(11, 19)} | {"203.0.113.1": ["127.0.0.2"]}}
    server.answering = lists({**ENTRIES, **entries})
    with GuardProcess(tmp_path, *options(server), "--known=known") as guard:
        assert first_line(guard, "203.0.113.1").startswith("521 ")
        said = [first_line(guard, f"192.0.2.{i}")[:4] for i in range(11, 19)]
        assert said == ["521 "] * 3 + ["220 "] * 5
        guard.wait_for(r"\] dnsbl_dry_run list=bl in this hour it would have refused 3 of 3 known clients$")
        guard.wait_for(
            r"\] reject peer=192\.0\.2\.18 reason=ip_filter dry_run=true filter=dnsbl rule=bl:127\.0\.0\.2 "
        )
        # It lists strangers no better.
        assert first_line(guard, "203.0.113.1").startswith("220 ")
        assert len(re.findall("dnsbl_dry_run", guard.log.decode())) == 1


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("", "dnsbl needs a list, such as dnsbl:bl.example"),
        ("geheim.bl.test=10.0.0.1", "list 1: only an answer that begins with 127 is a listing"),
        ("geheim.bl.test;resolver=a b", "resolver=: a host such as 127.0.0.1"),
    ],
)
def test_a_mistake_ends_the_start_with_one_sentence(tmp_path: Path, argument: str, told: str) -> None:
    status, out, err = twist(f"--ip-filter=dnsbl:{argument}", cwd=tmp_path)
    assert (status, out, err.count("\n")) == (64, "", 1)
    assert err.startswith(f"--ip-filter: {told}")
    assert "geheim" not in err


def test_two_workers_have_one_page_of_their_lists(tmp_path: Path, server: NameServer) -> None:
    with GuardProcess(tmp_path, *options(server), "--workers=2", "--metrics=unix:m.sock") as guard:
        for i in range(20):
            assert first_line(guard, "192.0.2.1").startswith("521 ")
            assert first_line(guard, f"198.51.100.{i}").startswith("220 ")
        metrics = asked(tmp_path / "m.sock")
        assert value(metrics, 'dnsbl_list_counts{list="bl"}') == 1
        assert value(metrics, 'dnsbl_list_counts{list="all"}') == 0
        # Each address is asked about by each worker once at most.
        assert 20 <= value(metrics, 'dnsbl_answers_total{list="bl",outcome="not_listed"}') <= 40
        eventually(lambda: guard.log.decode().count("dnsbl_left_out") == 2, "a worker does not tell")
