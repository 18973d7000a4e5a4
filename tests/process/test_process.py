"""A real `twist smtpguard`: what it listens on, what it does without options, and what its log looks like."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import LOCAL, ExecutedGuard, GuardProcess, command, eventually
from rawclient import MESSAGE, RawClient, deliver
from stored import stored

FULL = "421 4.7.0 Too many connections, try again later"

both_reactors = pytest.mark.parametrize("reactor", ["default", "asyncio"])


def failed_start(directory: Path, *options: str, listen: tuple[str, ...]) -> str:
    """What a guard that does not start leaves on standard error."""
    result = subprocess.run(
        command(*options, listen=listen),
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode not in (0, None)
    assert "Traceback" not in result.stdout
    return result.stderr


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@both_reactors
def test_both_reactors_take_mail_small_and_large(tmp_path: Path, reactor: str) -> None:
    large = b"Subject: large\r\n\r\n" + b".0123456789\r\n" * 400_000
    with ExecutedGuard(tmp_path, reactor=reactor) as guard:
        assert deliver(guard.address) == "250 2.0.0 Message accepted"
        assert deliver(guard.address, large) == "250 2.0.0 Message accepted"
    assert sorted(mail.message for mail in stored(guard.maildir)) == sorted(
        message.replace(b"\r\n", b"\n") for message in (MESSAGE, large)
    )


@both_reactors
def test_several_listeners_have_one_cap(tmp_path: Path, reactor: str) -> None:
    listen = (LOCAL, LOCAL, f"unix:{tmp_path}/s")
    with ExecutedGuard(tmp_path, "--max-connections=3", listen=listen, reactor=reactor) as guard:
        clients = [RawClient(address) for address in guard.addresses]
        assert [client.greeting[:3] for client in clients] == ["220"] * 3
        for address in guard.addresses:
            with RawClient(address) as refused:
                assert (refused.greeting, refused.rest()) == (FULL, b"")
        clients[0].ask("QUIT")
        assert clients[0].rest() == b""
        with RawClient(guard.addresses[2]) as client:
            assert client.greeting.startswith("220 ")
            with RawClient(guard.addresses[1]) as refused:
                assert refused.greeting == FULL
        for client in clients:
            client.close()


def test_a_unix_socket_takes_mail(tmp_path: Path) -> None:
    with ExecutedGuard(tmp_path, listen=(f"unix:{tmp_path}/s",)) as guard:
        assert deliver(guard.addresses[0]) == "250 2.0.0 Message accepted"
        guard.wait_for(r" accept session=\S+ peer=unix ")
    [mail] = stored(guard.maildir)
    assert mail.received.startswith("Received: from client.example (UNIX socket)\n")


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
def test_ipv6_takes_mail(tmp_path: Path) -> None:
    with ExecutedGuard(tmp_path, listen=(r"tcp6:0:interface=\:\:1",)) as guard:
        assert deliver(guard.address) == "250 2.0.0 Message accepted"
        guard.wait_for(r" accept session=\S+ peer=::1 ")
    [mail] = stored(guard.maildir)
    assert mail.received.startswith("Received: from client.example ([IPv6:::1])\n")


@contextmanager
def alone_on_this_host() -> Iterator[None]:
    """There is one port 2525, and other runs of the tests may stand beside this one."""
    directory = os.open(tempfile.gettempdir(), os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


@alone_on_this_host()
def test_without_options_it_serves_port_2525_of_this_host_alone_and_says_so_first(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken = probe.connect_ex(("127.0.0.1", 2525)) == 0
    if taken:
        sentence = failed_start(tmp_path, listen=())
        assert re.fullmatch(r"--listen: [^\n]*\b127\.0\.0\.1:2525: [^\n]*in use\.?\n", sentence)
        return
    with ExecutedGuard(tmp_path, listen=()) as guard:
        guard.wait_for("listening endpoint=tcp:2525:interface=127.0.0.1 address=127.0.0.1:2525")
        ours = [line for line in guard.lines if "[twisted_smtpguard#" in line]
        assert ours[0].endswith(" delivering delivery=maildir:Maildir")
        assert ours[1].endswith(" listening endpoint=tcp:2525:interface=127.0.0.1 address=127.0.0.1:2525")
        assert deliver(guard.address) == "250 2.0.0 Message accepted"
    assert len(stored(tmp_path / "Maildir")) == 1


def test_a_busy_port_ends_it_with_one_sentence_that_names_the_option(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        sentence = failed_start(tmp_path, listen=(LOCAL, f"tcp:{port}:interface=127.0.0.1"))
    assert re.fullmatch(rf"--listen: [^\n]*\b127\.0\.0\.1:{port}: [^\n]*in use\.?\n", sentence)


# The log.

NASTY = "\x1b[31m\x07\x85\u2028\u202e\x7f"
# What RFC 6531 and 5321 allow in an address, and a log line should not have.
ALLOWED = '"\u00a0\u202e reject peer=192.0.2.6"@example.com'
HOSTILE = (
    f"EHLO {NASTY}\r\n".encode(),
    b"EHLO client.example\r\n",
    b"NOOP\nreject peer=192.0.2.6 reason=forged\r\n",
    b"\x00\xff\xfe\x1b[2J\r\n",
    f"VERB{NASTY}\r\n".encode(),
    b"RCPT TO:<early@example.org>\r\n",
    f"MAIL FROM:<{NASTY}@example.com> SMTPUTF8\r\n".encode(),
    f"MAIL FROM:<{ALLOWED}> SMTPUTF8\r\n".encode(),
    f"RCPT TO:<{NASTY}@example.org>\r\n".encode(),
    f"RCPT TO:<{ALLOWED}>\r\n".encode(),
    b"RCPT TO:<two@example.org>\r\n",
    b"DATA\r\n",
    b"Subject: x\nreject peer=192.0.2.6 reason=forged\r\n.\r\n",
    f"MAIL FROM:<{ALLOWED}> SMTPUTF8\r\n".encode(),
    f"RCPT TO:<{ALLOWED}>\r\n".encode(),
    b"DATA\r\n",
    b"Subject: x\r\n\r\nreject peer=192.0.2.6 reason=forged\r\n.\r\n",
    b"QUIT\r\n",
)
REASONS = {
    "bad_arguments",
    "bad_line_end",
    "syntax_error",
    "bad_sequence",
    "max_recipients",
    "bare_newline",
}


def hostile_session(directory: Path, log_format: str) -> ExecutedGuard:
    options = ("--max-recipients=1", "--max-invalid-commands=0")
    with (
        ExecutedGuard(directory, *options, log_format=log_format) as guard,
        RawClient(guard.address) as client,
    ):
        client.send(b"".join(HOSTILE))
        assert client.rest().endswith(b"250 2.0.0 Message accepted\r\n221 2.0.0 Closing connection\r\n")
        eventually(
            lambda: b" disconnect " in guard.log or b'"disconnect"' in guard.log, "no disconnect is logged"
        )
    return guard


def test_the_text_log_of_hostile_input_is_plain_ascii_lines_for_fail2ban(tmp_path: Path) -> None:
    guard = hostile_session(tmp_path, "text")
    assert re.fullmatch(rb"[\x20-\x7e\n]*", guard.log)
    reasons = set()
    for line in guard.log.decode().splitlines():
        assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+0000 \[[\w.#-]+\] ", line), "a forged line"
        if refusal := re.search(r"\] reject peer=127\.0\.0\.1 reason=(\w+) ", line):
            reasons.add(refusal[1])
        assert " peer=192.0.2.6" not in line
    assert reasons >= REASONS


def test_the_json_log_of_hostile_input_is_a_record_a_line_with_fields(tmp_path: Path) -> None:
    guard = hostile_session(tmp_path, "json")
    # RS begins each record (RFC 7464); there is no other control octet.
    assert re.fullmatch(rb"(?:\x1e[\x20-\x7e]+\n)+", guard.log)
    records = [json.loads(line) for line in guard.lines]
    ours = [record for record in records if record["log_namespace"] == "twisted_smtpguard"]
    for record in ours:
        for value in record.values():
            assert not isinstance(value, str) or re.fullmatch(r"[\x20-\x7e]*", value), f"{record}"
    refusals = [record for record in ours if record["event"] == "reject"]
    assert {record["reason"] for record in refusals} >= REASONS
    assert {record["peer"] for record in refusals} == {"127.0.0.1"}
    assert all(
        record["text"].startswith(f"reject peer=127.0.0.1 reason={record['reason']} ") for record in refusals
    )
    assert len({record["session"] for record in refusals}) == 1


@both_reactors
def test_a_second_signal_means_now(tmp_path: Path, reactor: str) -> None:
    with ExecutedGuard(tmp_path, "--shutdown-grace=1h", reactor=reactor) as guard:
        idle, sending = RawClient(guard.address), RawClient(guard.address)
        for words in ("EHLO client.example", "MAIL FROM:<s@example.com>", "RCPT TO:<r@example.org>", "DATA"):
            sending.ask(words)
        guard.terminate()
        # Who is told to go knows that the first signal was heard.
        assert idle.rest() == b"421 4.3.2 Server shutting down\r\n"
        guard.terminate()
        assert sending.rest() == b"421 4.3.2 Server shutting down\r\n"
        guard.ended()
        idle.close()
        sending.close()
    assert stored(guard.maildir) == []


def test_the_collector_of_garbage_looks_at_no_module_while_it_is_imported_or_later() -> None:
    code = (
        "import gc; from twisted.plugins.twisted_smtpguard import smtpguard; usual = gc.get_threshold();"
        "full = lambda: gc.get_stats()[2]['collections']; before = full(); smtpguard.options;"
        "print(full() - before, len(gc.get_objects()) < 1000, gc.isenabled(), gc.get_threshold() == usual)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout == "0 True True True\n"


def begun(guard: GuardProcess) -> dict[str, object]:
    """What a process has from its start on, and what it ignores and handles."""
    process = Path("/proc", str(guard.pid))
    status = dict(line.split(":\t") for line in (process / "status").read_text().splitlines())
    kept = {
        name: status[name]
        for name in ("Umask", "SigBlk", "SigIgn", "SigCgt", "Groups", "NoNewPrivs", "Threads")
    }
    descriptors = sorted(re.sub(r"\d+", "N", str(each.readlink())) for each in (process / "fd").iterdir())
    return {
        **kept,
        "descriptors": descriptors,
        "session": os.getsid(guard.pid),
        "group": os.getpgid(guard.pid),
    }


def test_a_guard_that_is_forked_has_what_one_that_is_executed_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with GuardProcess(tmp_path):
        # The process that forks has begun before.
        pass
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    monkeypatch.setenv("SMTPGUARD_HOSTNAME", "mx.example.org")
    before = os.umask(0o027)
    try:
        found = []
        for kind in (GuardProcess, ExecutedGuard):
            with kind(tmp_path) as guard, RawClient(guard.address) as client:
                assert client.greeting.startswith("220 mx.example.org ")
                assert "+0530" in guard.lines[0]
                found.append(begun(guard))
                forked = b"forkserver.py" in Path(f"/proc/{guard.pid}/cmdline").read_bytes()
                assert forked == (kind is GuardProcess)
            # Ended by the signal, and told so.
            assert guard.status() == -signal.SIGTERM
    finally:
        os.umask(before)
    assert found[0] == found[1]
