"""IP filters of a real `twist smtpguard`: who is let in, and what SIGHUP changes."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from processes import GuardProcess, eventually
from rawclient import RawClient

REFUSED = "421 4.7.0 Connection refused"

both_reactors = pytest.mark.parametrize("reactor", ["default", "asyncio"])


def greeting(guard: GuardProcess, source: str) -> str:
    """What a client at `source` is told first."""
    with RawClient(guard.address, source) as client:
        if client.greeting == REFUSED:
            assert client.rest() == b""
        return client.greeting


def hang_up(guard: GuardProcess) -> None:
    os.kill(guard.pid, signal.SIGHUP)


@both_reactors
def test_a_denied_client_is_refused_and_the_refusal_logged(tmp_path: Path, reactor: str) -> None:
    with GuardProcess(tmp_path, "--deny=127.0.0.1", reactor=reactor) as guard:
        assert greeting(guard, "127.0.0.1") == REFUSED
        assert greeting(guard, "127.0.0.2").startswith("220 ")
        guard.wait_for(r"\] filtering filter=deny/trust$")
        line = guard.wait_for(r"\] reject peer=127\.0\.0\.1 reason=ip_filter ")
        assert re.search(
            r" filter=deny/trust rule=127\.0\.0\.1/32 code=421 port=[0-9]+ listener=tcp:0:interface=127\.0\.0\.1$",
            line,
        )


def test_the_longest_prefix_of_deny_and_trust_wins(tmp_path: Path) -> None:
    with GuardProcess(tmp_path, "--deny=127.0.0.0/8", "--trust=127.0.0.2") as guard:
        assert greeting(guard, "127.0.0.3") == REFUSED
        assert greeting(guard, "127.0.0.2").startswith("220 ")
        guard.wait_for(r"\] connect session=\S+ peer=127\.0\.0\.2 trusted=true ")


def test_deny_is_asked_before_an_ip_filter_that_would_trust(tmp_path: Path) -> None:
    (tmp_path / "networks").write_text("trust 127.0.0.0/8\n")
    with GuardProcess(tmp_path, "--ip-filter=networks:networks", "--deny=127.0.0.2") as guard:
        assert greeting(guard, "127.0.0.2") == REFUSED
        assert greeting(guard, "127.0.0.3").startswith("220 ")


def test_a_filter_in_dry_run_refuses_no_client_and_logs_those_that_it_would_refuse(tmp_path: Path) -> None:
    with GuardProcess(tmp_path, "--deny=127.0.0.1", "--dry-run=ip-filter") as guard:
        assert greeting(guard, "127.0.0.1").startswith("220 ")
        guard.wait_for(r"\] reject peer=127\.0\.0\.1 reason=ip_filter dry_run=true filter=deny/trust ")


@both_reactors
def test_sighup_reads_networks_again_and_a_bad_file_leaves_the_old(tmp_path: Path, reactor: str) -> None:
    networks = tmp_path / "networks"
    networks.write_text("deny 127.0.0.2\n")
    with GuardProcess(tmp_path, "--ip-filter=networks:networks", reactor=reactor) as guard:
        with RawClient(guard.address, "127.0.0.3") as greeted:
            assert greeting(guard, "127.0.0.2") == REFUSED
            networks.write_text("deny 127.0.0.3 Go away\n")
            hang_up(guard)
            guard.wait_for(r"\] reloaded what=networks option=--ip-filter file=networks$")
            assert greeting(guard, "127.0.0.2").startswith("220 ")
            with RawClient(guard.address, "127.0.0.3") as refused:
                assert (refused.greeting, refused.rest()) == ("421 4.7.0 Go away", b"")
            # Who has been greeted stays.
            assert greeted.ask("NOOP").startswith("250 ")

        networks.write_text("deny 127.0.0.4\nfrobnicate\n")
        hang_up(guard)
        guard.wait_for(r"\] reload_failed what=networks option=--ip-filter networks line 2: .*'frobnicate'$")
        assert greeting(guard, "127.0.0.4").startswith("220 ")
        assert not greeting(guard, "127.0.0.3").startswith("220 ")

        networks.unlink()
        hang_up(guard)
        guard.wait_for(r"\] reload_failed what=networks option=--ip-filter networks cannot be read: ")
        networks.write_text("")
        hang_up(guard)
        eventually(lambda: greeting(guard, "127.0.0.3").startswith("220 "), "the list stays as it was")


def test_sighup_without_anything_to_read_again_changes_nothing(tmp_path: Path) -> None:
    with GuardProcess(tmp_path) as guard:
        for _ in range(20):
            hang_up(guard)
        assert greeting(guard, "127.0.0.1").startswith("220 ")


def test_sighup_while_it_stops_kills_nothing(tmp_path: Path) -> None:
    with GuardProcess(tmp_path) as guard, RawClient(guard.address) as sending:
        for words in ("EHLO client.example", "MAIL FROM:<s@example.com>", "RCPT TO:<r@example.org>", "DATA"):
            sending.ask(words)
        idle = RawClient(guard.address)
        guard.terminate()
        # Who is told to go knows that the signal was heard.
        assert idle.rest() == b"421 4.3.2 Server shutting down\r\n"
        hang_up(guard)
        sending.send(b"Subject: x\r\n\r\nHello\r\n.\r\n")
        assert sending.rest() == b"250 2.0.0 Message accepted\r\n421 4.3.2 Server shutting down\r\n"
        idle.close()
        guard.ended()
