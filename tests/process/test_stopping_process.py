"""How a real `twist smtpguard` ends on a signal: what each client is told, what is waited for, and for how long.

Loads that a signal comes into are in test_durability.py, SIGHUP in test_filter_process.py.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import held_delivery
import pytest
import stuck_thread
from held_delivery import ASKED, TAKEN, VERDICT
from processes import LOCAL, PATIENCE_SECONDS, GuardProcess, eventually
from rawclient import RawClient
from stored import stored, unfinished

ENVELOPE = ("EHLO client.example", "MAIL FROM:<s@example.com>", "RCPT TO:<r@example.org>")
ACCEPTED = b"250 2.0.0 Message accepted\r\n"
SHUTTING_DOWN = b"421 4.3.2 Server shutting down\r\n"
MESSAGE = b"Subject: x\r\n\r\nHello\r\n"

both_reactors = pytest.mark.parametrize("reactor", ["default", "asyncio"])


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def come(clients: ExitStack, guard: GuardProcess, *words: str) -> RawClient:
    """A client that has had the replies to `words`."""
    client = clients.enter_context(RawClient(guard.address))
    for each in words:
        assert client.ask(each)[0] in "23"
    return client


def listens(address: tuple[str, int]) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(address) == 0


# What clients are told.


@both_reactors
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_each_client_is_told_when_its_phase_allows_it(
    tmp_path: Path, clients: ExitStack, reactor: str, number: signal.Signals
) -> None:
    with GuardProcess(tmp_path, reactor=reactor) as guard:
        new, idle = come(clients, guard), come(clients, guard, "EHLO client.example")
        envelope, other = come(clients, guard, *ENVELOPE), come(clients, guard, *ENVELOPE[:2])
        sending = come(clients, guard, *ENVELOPE, "DATA")
        sending.send(MESSAGE)
        os.kill(guard.pid, number)
        assert new.rest() == idle.rest() == SHUTTING_DOWN
        assert not listens(guard.address)
        # They were not told with the others.
        for client in (envelope, other):
            client.send(b"RSET\r\n")
            assert client.rest() == SHUTTING_DOWN
        sending.send(b".\r\n")
        assert sending.rest() == ACCEPTED + SHUTTING_DOWN
        clients.close()
        guard.ended(number)
    [mail] = stored(guard.maildir)
    assert mail.message == MESSAGE.replace(b"\r\n", b"\n")


def test_who_waits_for_the_greeting_is_told_instead(tmp_path: Path) -> None:
    with GuardProcess(tmp_path, "--greet-delay=100", "--trust=127.0.0.2") as guard:
        with socket.create_connection(guard.address, PATIENCE_SECONDS) as waiting:
            # Its delay has begun when a client that came later is served.
            RawClient(guard.address, "127.0.0.2").close()
            guard.terminate()
            assert waiting.makefile("rb").read() == SHUTTING_DOWN
        guard.ended()


# For how long.


@both_reactors
def test_who_outstays_the_grace_is_told_and_cut_off_and_only_then(
    tmp_path: Path, clients: ExitStack, reactor: str
) -> None:
    with GuardProcess(tmp_path, "--shutdown-grace=1", reactor=reactor) as guard:
        sending = come(clients, guard, *ENVELOPE, "DATA")
        silent = come(clients, guard, *ENVELOPE)
        sending.send((b"x" * 60 + b"\r\n") * 8000)
        eventually(lambda: unfinished(guard.maildir), "the message never came to the disk")
        began = time.monotonic()
        guard.terminate()
        assert sending.rest() == silent.rest() == SHUTTING_DOWN
        # They keep their ends open.
        guard.ended()
        took = time.monotonic() - began
    assert 0.9 < took < 1 + 5 + 4
    assert stored(guard.maildir) == unfinished(guard.maildir) == []


def install(plugin: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "plugins" / "twisted" / "plugins"
    folder.mkdir(parents=True)
    shutil.copy(str(plugin.__file__), folder)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "plugins"))


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The option for a delivery whose files are in `tmp_path`."""
    install(held_delivery, tmp_path, monkeypatch)
    return f"--deliver=held:{tmp_path}"


def ask_for_a_verdict(clients: ExitStack, guard: GuardProcess, directory: Path) -> RawClient:
    client = come(clients, guard, *ENVELOPE, "DATA")
    client.send(MESSAGE + b".\r\n")
    eventually((directory / ASKED).exists, "the delivery is never asked")
    return client


@both_reactors
@pytest.mark.parametrize("gone", [False, True], ids=["client waits", "client is gone"])
def test_a_pending_verdict_is_waited_for(
    tmp_path: Path, held: str, clients: ExitStack, reactor: str, gone: bool
) -> None:
    with GuardProcess(tmp_path, held, reactor=reactor) as guard:
        idle = come(clients, guard)
        client = ask_for_a_verdict(clients, guard, tmp_path)
        if gone:
            # A plain close may be a half-close: then the verdict is still due.
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            guard.wait_for(r"\] disconnect ")
        guard.terminate()
        assert idle.rest() == SHUTTING_DOWN
        idle.close()
        (tmp_path / VERDICT).touch()
        if not gone:
            assert client.rest() == ACCEPTED + SHUTTING_DOWN
            client.close()
        guard.ended()
        assert (" client_gone=true" in guard.wait_for(r"\] accept ")) is gone
    assert (tmp_path / TAKEN).read_bytes() == MESSAGE


@pytest.mark.parametrize("hurry", [False, True], ids=["after the grace", "at a second signal"])
def test_a_verdict_that_never_comes_is_waited_for_five_seconds_more(
    tmp_path: Path, held: str, clients: ExitStack, hurry: bool
) -> None:
    grace = "--shutdown-grace=1h" if hurry else "--shutdown-grace=0.5"
    with GuardProcess(tmp_path, held, grace) as guard:
        idle = come(clients, guard)
        client = ask_for_a_verdict(clients, guard, tmp_path)
        guard.terminate()
        assert idle.rest() == SHUTTING_DOWN
        idle.close()
        began = time.monotonic()
        if hurry:
            os.kill(guard.pid, signal.SIGINT)
        assert b"250" not in client.rest()
        client.close()
        guard.ended()
        assert 4.5 < time.monotonic() - began < 5.5 + 4
    assert not (tmp_path / TAKEN).exists()


# While a thread hangs, for which the reactor waits.


@pytest.fixture
def stuck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    install(stuck_thread, tmp_path, monkeypatch)
    return "--deliver=stuck"


@both_reactors
def test_a_thread_that_hangs_keeps_the_process_three_seconds_and_the_log_says_so(
    tmp_path: Path, stuck: str, clients: ExitStack, reactor: str
) -> None:
    with GuardProcess(tmp_path, stuck, reactor=reactor) as guard:
        idle = come(clients, guard)
        guard.terminate()
        assert idle.rest() == SHUTTING_DOWN
        clients.close()
        guard.wait_for(r"\] stopped ")
        began = time.monotonic()
        assert guard.status() == 1
        assert time.monotonic() - began < 3 + 4
        assert guard.lines[-1].endswith(
            "the process ends with status 1: a thread still hangs 3 seconds after the stop, as on a disk that does "
            "not answer"
        )


@both_reactors
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_while_it_waits_for_a_thread_ends_the_process_at_once(
    tmp_path: Path, stuck: str, clients: ExitStack, reactor: str, number: signal.Signals
) -> None:
    with GuardProcess(tmp_path, stuck, reactor=reactor) as guard:
        # Who has been greeted knows that the reactor runs, and hears signals.
        come(clients, guard)
        clients.close()
        guard.terminate()
        guard.wait_for(r"\] stopped ")

        def ended() -> bool:
            # The first may come a moment too soon.
            os.kill(guard.pid, number)
            return not guard.runs

        eventually(ended, "it does not end")
        guard.ended(number)


# Again.


def test_the_next_guard_takes_the_port_and_the_maildir_while_the_first_still_ends(
    tmp_path: Path, clients: ExitStack
) -> None:
    with GuardProcess(tmp_path) as first:
        idle, sending = come(clients, first), come(clients, first, *ENVELOPE, "DATA")
        first.terminate()
        assert idle.rest() == SHUTTING_DOWN
        same = LOCAL.replace(":0:", f":{first.port}:")
        with GuardProcess(tmp_path, listen=(same,)) as second:
            other = come(clients, second, *ENVELOPE, "DATA")
            for client in (sending, other):
                client.send(MESSAGE + b".\r\n")
                assert client.reply() == ACCEPTED.decode().rstrip()
            clients.close()
            first.ended()
            assert listens(second.address)
    assert len(stored(second.maildir)) == 2
    assert unfinished(second.maildir) == []


def test_a_guard_on_a_unix_socket_can_be_started_again(tmp_path: Path) -> None:
    for _ in range(2):
        with GuardProcess(tmp_path, listen=(f"unix:{tmp_path}/s",)) as guard:
            with RawClient(guard.addresses[0]) as client:
                assert client.greeting.startswith("220 ")
                guard.terminate()
                assert client.rest() == SHUTTING_DOWN
            guard.ended()
