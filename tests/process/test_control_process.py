"""A real guard with a control socket, asked and changed by the real command, as an operator does it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from commandline import twist
from processes import TWIST, GuardProcess, eventually
from rawclient import RawClient

COMMAND = TWIST.with_name("smtpguardctl")
ENDED = "421 4.3.2 Session ended by the operator, try again later"


def told(path: Path, *words: str, status: int = 0) -> str:
    """What `smtpguardctl` says of `words`: on standard output or, where it fails, the one line on standard error."""
    environment = {**os.environ, "SMTPGUARD_CONTROL": str(path)}
    done = subprocess.run(
        [str(COMMAND), *words], check=False, capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == status, done.stderr
    if status:
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1, done.stderr
    return str(done.stderr or done.stdout)


def rows(path: Path, *words: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in told(path, *words, "--json").splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
def guard(tmp_path: Path, path: Path) -> Iterator[GuardProcess]:
    with GuardProcess(tmp_path, f"--control={path}") as process:
        yield process
    assert not path.exists()


def test_the_command_starts_without_twisted() -> None:
    code = "import sys, twisted_smtpguard.control.command; print('twisted' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_the_status_and_the_sessions_are_those_of_the_moment(guard: GuardProcess, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    client = RawClient(guard.address)
    assert client.ask("EHLO client.example").startswith("250")
    (row,) = rows(path, "sessions")
    assert (row["client"], row["helo"], row["stage"]) == ("127.0.0.1", "client.example", "command")
    assert rows(path, "sessions", "192.0.2.0/24") == []
    (status,) = rows(path, "status")
    assert (status["state"], status["connections"], status["pid"]) == ("listening", 1, guard.pid)
    assert "client.example" in told(path, "sessions")
    client.close()


def test_a_session_is_ended_from_the_moment_at_which_the_command_ends(
    guard: GuardProcess, path: Path
) -> None:
    client, other = RawClient(guard.address), RawClient(guard.address)
    name = str(rows(path, "sessions")[0]["id"])
    told(path, "end", name)
    assert [row["id"] for row in rows(path, "sessions")] != [name]
    assert len(rows(path, "sessions")) == 1
    heard = []
    for each in (client, other):
        each.send(b"NOOP\r\n")
        with suppress(ConnectionError):
            heard.append(each.reply())
    assert sorted(heard) == ["250 2.0.0 OK", ENDED]
    assert told(path, "end", name, status=1) == f"smtpguardctl: there is no session '{name}'\n"
    guard.wait_for(f"operator by=uid:{os.getuid()} verb=end what={name}")


def test_a_guard_is_drained_and_listens_again(guard: GuardProcess, path: Path) -> None:
    told(path, "drain")
    with pytest.raises(ConnectionRefusedError):
        RawClient(guard.address)
    eventually(lambda: rows(path, "status")[0]["state"] == "drained", "it is not drained")
    (answer,) = rows(path, "resume")
    listening = answer["listening"]
    assert isinstance(listening, dict)
    (address,) = listening.values()
    host, _, port = address.rpartition(":")
    assert RawClient((host, int(port))).greeting.startswith("220")


def test_a_reload_is_done_when_the_command_ends(tmp_path: Path, path: Path) -> None:
    networks = tmp_path / "networks"
    networks.write_text("")
    with GuardProcess(tmp_path, f"--control={path}", f"--ip-filter=networks:{networks}") as guard:
        networks.write_text("deny 127.0.0.0/8\n")
        told(path, "reload")
        assert RawClient(guard.address).greeting.startswith("421")


def test_a_guard_that_is_not_there_cannot_be_reached(tmp_path: Path, path: Path) -> None:
    assert told(path, "status", status=2) == f"smtpguardctl: {path}: No such file or directory\n"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert told(path, "status", status=2) == f"smtpguardctl: {path}: Connection refused\n"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as another:
        another.bind(str(path))
        another.listen()
        asking = subprocess.Popen(
            [str(COMMAND), "--socket", str(path), "status"], stderr=subprocess.PIPE, text=True
        )
        connection, _ = another.accept()
        connection.recv(1000)
        connection.sendall(b"220 mx.example ESMTP\r\n")
        connection.close()
        _, errors = asking.communicate(timeout=60)
    assert (asking.returncode, errors) == (2, f"smtpguardctl: {path}: what answers there is no guard\n")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "the following arguments are required: VERB"),
        (["sing"], "invalid choice: 'sing'"),
        (["end"], "the following arguments are required: SESSION"),
        (["end", "a", "b"], "unrecognized arguments: b"),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_sentence(path: Path, words: list[str], sentence: str) -> None:
    assert sentence in told(path, *words, status=1)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_user_without_permission_is_kept_out(path: Path) -> None:
    # The directories of tests are for root alone.
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        with GuardProcess(folder, f"--control={folder / 'control.sock'}") as guard:
            with socket.socket(socket.AF_UNIX) as mine:
                mine.connect(str(folder / "control.sock"))
            code = (
                "import os, socket; os.setgroups([]); os.setgid(65534); os.setuid(65534);"
                f"print(socket.socket(socket.AF_UNIX).connect_ex({str(folder / 'control.sock')!r}))"
            )
            done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
            assert done.stdout == "13\n"
            assert RawClient(guard.address).greeting.startswith("220")
    finally:
        shutil.rmtree(folder)


# Starts.


def test_a_directory_that_everybody_can_write_to_is_a_wrong_command_line(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    status, _, errors = twist(f"--control={folder}/control.sock", cwd=tmp_path)
    assert (status, errors) == (
        64,
        f"--control: {folder}: everybody can write to this directory, and so replace the socket in it\n",
    )


def test_the_socket_of_a_guard_that_runs_is_not_taken(
    guard: GuardProcess, path: Path, tmp_path: Path
) -> None:
    status, _, errors = twist(
        "--listen=tcp:0:interface=127.0.0.1", f"--control={path}", "--deliver=discard", cwd=tmp_path
    )
    assert (status, errors) == (1, f"--control: {path}: another process has this socket\n")
    assert rows(path, "status")[0]["pid"] == guard.pid


@pytest.mark.parametrize("moment", ["the lock", "the socket", "the listener"])
def test_a_kill_at_any_moment_stops_no_later_start(tmp_path: Path, path: Path, moment: str) -> None:
    words = [str(TWIST), "smtpguard", "--listen=tcp:0:interface=127.0.0.1", f"--control={path}"]
    log = tmp_path / "killed"
    with log.open("wb") as written:
        started = subprocess.Popen(words, cwd=tmp_path, stdout=written, stderr=written)
    come = {
        "the lock": path.with_name("control.sock.lock").exists,
        "the socket": path.exists,
        "the listener": lambda: b"listening endpoint=" in log.read_bytes(),
    }
    eventually(come[moment], "it does not start")
    started.kill()
    started.wait()
    with GuardProcess(tmp_path, f"--control={path}") as guard:
        assert rows(path, "status")[0]["pid"] == guard.pid
        guard.kill()
    assert path.is_socket()
    assert told(path, "status", status=2).endswith(": Connection refused\n")


def test_the_command_is_ended_by_the_end_of_the_pipe_that_it_writes_to(
    guard: GuardProcess, path: Path
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "SMTPGUARD_CONTROL": str(path)}
    done = subprocess.run(
        [str(COMMAND), "status"], check=False, env=environment, stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")
