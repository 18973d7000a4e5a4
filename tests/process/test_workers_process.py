"""Real guards of several processes: one cap over all of them, what becomes of one that dies, and how they end."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from certificates import CERTIFICATE
from processes import LOCAL, PATIENCE_SECONDS, GuardProcess, eventually
from programs import s_client
from rawclient import RawClient
from stored import stored
from workers import Workers

CAP = 50
TOO_MANY = "421 4.7.0 Too many connections, try again later"


def is_gone(pid: int) -> bool:
    """Whether a process has ended, if it is still a zombie too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


class Crowd:
    """Clients that all come at once, and count themselves from their greeting to the moment at which they leave."""

    def __init__(self, guard: GuardProcess, size: int, sources: Sequence[str] = ()) -> None:
        self.greeted: list[socket.socket] = []
        self.refused = 0
        self._address = guard.address
        self._begin = threading.Barrier(size)
        self._lock = threading.Lock()
        threads = [threading.Thread(target=self._come, args=(source,)) for source in sources or [""] * size]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _come(self, source: str) -> None:
        client = socket.socket()
        client.bind((source, 0))
        client.settimeout(PATIENCE_SECONDS)
        self._begin.wait()
        client.connect(self._address)
        line = client.recv(512)
        with self._lock:
            if line.startswith(b"220 "):
                self.greeted.append(client)
                return
            self.refused += line == TOO_MANY.encode() + b"\r\n"
        client.close()

    def leave(self) -> None:
        for client in self.greeted:
            client.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("reactor", ["default", "uvloop"])
def test_the_cap_is_exact_over_all_workers_again_and_again(tmp_path: Path, reactor: str) -> None:
    options = (
        "--profile=edge",
        f"--max-connections={CAP}",
        # All of the crowd are strangers.
        "--reserved-connections=0",
        "--greet-delay=0",
        "--max-connections-per-client=0",
    )
    with Workers(tmp_path, 4, *options, "--connection-rate=0", "--max-log-lines=0", reactor=reactor) as guard:
        for _ in range(4):
            crowd = Crowd(guard, 400)
            # All that were greeted are there at the same instant.
            assert (len(crowd.greeted), crowd.refused) == (CAP, 400 - CAP)
            with suppress(ConnectionError), RawClient(guard.address) as one_more:
                assert not one_more.greeting.startswith("220")
            crowd.leave()
            eventually(lambda: greets(guard, CAP), "not all seats are free again")


def test_a_network_holds_what_it_may_over_all_workers(tmp_path: Path) -> None:
    options = ("--max-connections-per-client=2", "--ipv4-networks=24", "--network-factor=3")
    with Workers(tmp_path, 3, *options, "--max-log-lines=0") as guard:
        for _ in range(3):
            sources = [f"127.0.{number % 2 + 1}.{number // 2 + 1}" for number in range(80)]
            crowd = Crowd(guard, 80, sources)
            near = [client.getsockname()[0].rpartition(".")[0] for client in crowd.greeted]
            assert (near.count("127.0.1"), near.count("127.0.2")) == (6, 6)
            crowd.leave()
            eventually(lambda: not open_sessions(guard), "a connection has not ended")


def open_sessions(guard: Workers) -> int:
    return guard.count("connect") - guard.count("disconnect")


def greets(guard: GuardProcess, number: int) -> bool:
    """Whether so many clients are greeted at once."""
    with ExitStack() as stack:
        greetings = [stack.enter_context(RawClient(guard.address)).greeting for _ in range(number)]
        return all(greeting.startswith("220") for greeting in greetings)


def test_the_seats_of_a_worker_that_is_killed_are_back_within_a_second_and_others_notice_nothing(
    tmp_path: Path, clients: ExitStack
) -> None:
    with Workers(tmp_path, 2, f"--max-connections={CAP}") as guard:
        (number, pid), (second, _) = sorted(guard.pids.items())
        held = []
        for each, share in ((number, CAP // 2), (second, CAP - CAP // 2)):
            with guard.alone(each):
                held += [clients.enter_context(RawClient(guard.address)) for _ in range(share)]
        with RawClient(guard.address) as one_more:
            assert one_more.greeting == TOO_MANY
        os.kill(pid, signal.SIGKILL)
        alive = [client for client in held if answers(client)]
        lost = CAP - len(alive)
        assert lost == CAP // 2
        began = time.monotonic()
        come: list[RawClient] = []
        while len(come) < lost:
            client = clients.enter_context(RawClient(guard.address))
            come += [client] * client.greeting.startswith("220")
            assert time.monotonic() - began < 1
        with RawClient(guard.address) as one_more:
            assert one_more.greeting == TOO_MANY
        assert all(answers(client) for client in [*alive, *come])
        guard.wait_for(rf"worker_died worker={number} pid={pid} how=signal:SIGKILL seconds=\d")
        eventually(lambda: len(guard.pids) == 2, "it was not replaced")
        clients.close()


def answers(client: RawClient) -> bool:
    try:
        return client.ask("NOOP").startswith("250")
    except OSError:
        return False


def test_a_message_in_each_worker_is_stored_under_a_name_of_its_own_and_its_events_name_the_worker(
    tmp_path: Path, clients: ExitStack
) -> None:
    events = tmp_path / "events"
    with Workers(tmp_path, 2, f"--event-log={events}") as guard:
        for number in guard.pids:
            with guard.alone(number):
                for _ in range(20):
                    client = clients.enter_context(RawClient(guard.address))
                    client.ask("HELO a.example")
                    for line in ("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.org>", "DATA"):
                        client.ask(line)
                    assert client.ask("Subject: x\r\n\r\nx\r\n.").startswith("250")
        clients.close()
    assert len(stored(guard.maildir)) == 40
    seen = re.findall(r'"event": "accept(?:ed)?".*"worker": (\d)', events.read_text())
    assert len(seen) == 40
    assert sorted(seen) == ["1"] * 20 + ["2"] * 20
    # What each worker has counted, and the sums.
    stopped = re.findall(r"stopped .*messages_accepted=(\d+) .*", guard.log.decode())
    assert len(stopped) == 3
    assert int(stopped[0]) + int(stopped[1]) == int(stopped[2]) == 40


def refuses(guard: Workers) -> bool:
    """Whether nobody listens any more."""
    with socket.socket() as client:
        return client.connect_ex(guard.address) == errno.ECONNREFUSED


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_stop_waits_for_the_transactions_of_all_workers(
    tmp_path: Path, clients: ExitStack, number: signal.Signals
) -> None:
    with Workers(tmp_path, 2) as guard:
        pids = [*guard.pids.values()]
        sending = [clients.enter_context(RawClient(guard.address)) for _ in range(20)]
        for client in sending:
            for line in ("HELO a.example", "MAIL FROM:<a@example.org>", "RCPT TO:<b@example.org>", "DATA"):
                client.ask(line)
        os.kill(guard.pid, number)
        eventually(lambda: refuses(guard), "it still listens")
        for client in sending:
            assert client.ask("Subject: x\r\n\r\nx\r\n.").startswith("250")
            assert client.rest() == b"421 4.3.2 Server shutting down\r\n"
        clients.close()
        guard.ended(number)
        assert all(is_gone(pid) for pid in pids)
    assert len(stored(guard.maildir)) == 20


def test_a_second_signal_ends_the_grace_of_all_workers(tmp_path: Path, clients: ExitStack) -> None:
    with Workers(tmp_path, 2, "--shutdown-grace=1000") as guard:
        held = [clients.enter_context(RawClient(guard.address)) for _ in range(20)]
        for client in held:
            client.ask("HELO a.example")
            client.ask("MAIL FROM:<a@example.org>")
        guard.terminate()
        guard.wait_for("draining sessions=[1-9]")
        guard.terminate()
        for client in held:
            assert client.rest() == b"421 4.3.2 Server shutting down\r\n"
        clients.close()
        guard.ended()


def test_the_workers_of_a_supervisor_that_is_killed_end_and_the_next_start_works(
    tmp_path: Path, clients: ExitStack
) -> None:
    with Workers(tmp_path, 2) as guard:
        pids, port = [*guard.pids.values()], guard.port
        sending = clients.enter_context(RawClient(guard.address))
        for line in ("HELO a.example", "MAIL FROM:<a@example.org>", "RCPT TO:<b@example.org>", "DATA"):
            sending.ask(line)
        guard.kill()
        assert sending.ask("Subject: x\r\n\r\nx\r\n.").startswith("250")
        clients.close()
        eventually(lambda: all(is_gone(pid) for pid in pids), "a worker goes on without a supervisor")
    assert len(stored(guard.maildir)) == 1
    with Workers(tmp_path, 2, listen=(f"tcp:{port}:interface=127.0.0.1",)) as again:
        assert RawClient(again.address).greeting.startswith("220")


def test_unix_sockets_are_inherited_too(tmp_path: Path) -> None:
    path = tmp_path / "smtp.sock"
    with Workers(tmp_path, 2, listen=(f"unix:{path}:mode=600", LOCAL)) as guard:
        assert path.stat().st_mode & 0o777 == 0o600
        with RawClient(str(path)) as client:
            assert client.greeting.startswith("220")
        os.kill(guard.pids[1], signal.SIGKILL)
        eventually(lambda: guard.count("worker_started") == 3, "it was not replaced")
        assert path.stat().st_mode & 0o777 == 0o600
        with RawClient(str(path)) as client:
            assert client.greeting.startswith("220")
    assert not path.exists()


def test_implicit_tls_and_starttls_are_inherited_too(tmp_path: Path) -> None:
    with Workers(tmp_path, 2, f"--tls-certificate={CERTIFICATE}", listen_tls=(LOCAL,)) as guard:
        (_, port) = guard.addresses[1]
        assert isinstance(port, int)
        assert "250 " in s_client(port)
        with RawClient(guard.address) as client:
            assert "STARTTLS" in client.ask("EHLO a.example")


def test_the_upstream_server_sees_no_more_connections_than_one_guard_would_make(
    tmp_path: Path, clients: ExitStack
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        seen: list[socket.socket] = []

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    seen.append(connection)
                    threading.Thread(target=talk, args=(connection,), daemon=True).start()

        def talk(connection: socket.socket) -> None:
            with suppress(OSError), connection.makefile("rb") as lines:
                connection.sendall(b"220 x\r\n")
                for line in lines:
                    # Whoever has said MAIL keeps the connection.
                    if not line.startswith(b"MAIL"):
                        connection.sendall(b"250 x\r\n")

        threading.Thread(target=serve, daemon=True).start()
        upstream = f"smtp:tcp:127.0.0.1:{server.getsockname()[1]},connections=5,wait=1"
        with Workers(
            tmp_path, 2, f"--deliver={upstream}", "--accept-domain=example.org", "--shutdown-grace=1"
        ) as guard:
            waiting = [clients.enter_context(RawClient(guard.address)) for _ in range(30)]
            for client in waiting:
                client.ask("HELO a.example")
                client.send(b"MAIL FROM:<a@example.org>\r\n")
            refused = 0
            for client in waiting:
                client.socket.settimeout(3)
                with suppress(TimeoutError):
                    refused += client.reply().startswith("4")
            assert len(seen) == 5
            assert refused == 25
            clients.close()
