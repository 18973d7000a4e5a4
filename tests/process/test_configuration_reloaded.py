"""SIGHUP to a real `twist smtpguard` whose --config file has changed, while clients are served."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from processes import GuardProcess
from rawclient import RawClient

FULL = "421 4.7.0 Too many connections, try again later"

GOOD = """\
max-connections = 3
max-connections-per-client = 0
max-errors = 50
max-junk-commands = 0
max-messages = 5
max-recipients = 10
max-rejected-recipients = 7
max-invalid-commands = 9
max-message-size = 1M
max-header-size = 64k
max-received-fields = 50
max-command-line = 1k
max-log-lines = 500
max-log-lines-per-client = 100
read-timeout = 100
write-timeout = 100
max-session-time = 1h
delivery-timeout = 100
dry-run = max-messages
deny = 127.0.0.9
"""


@contextmanager
def load(clients: list[RawClient]) -> Iterator[None]:
    """Each of these sends NOOP all the time, and gets its answer."""
    over = threading.Event()
    faults: list[str] = []

    def work(client: RawClient) -> None:
        while not over.is_set():
            reply = client.ask("NOOP")
            if not reply.startswith("250 "):
                faults.append(reply)
                return

    threads = [threading.Thread(target=work, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert faults == []


def hang_up(guard: GuardProcess) -> None:
    os.kill(guard.pid, signal.SIGHUP)


def greeting(guard: GuardProcess, source: str = "127.0.0.1") -> str:
    with RawClient(guard.address, source) as client:
        return client.greeting


def test_one_bad_line_among_twenty_changes_nothing_and_a_good_file_holds_from_the_next_connection_on(
    tmp_path: Path,
) -> None:
    file = tmp_path / "guard.conf"
    file.write_text("max-connections = 40\n")
    # A stranger who says NOOP again and again is not kept where the connections come near the cap.
    trusted = "127.0.0.2"
    with GuardProcess(tmp_path, f"--config={file}", f"--trust={trusted}") as guard, ExitStack() as stack:
        clients = [stack.enter_context(RawClient(guard.address, trusted)) for _ in range(6)]
        with load(clients):
            file.write_text(f"{GOOD}max-auth-failures = three\n")
            hang_up(guard)
            guard.wait_for(
                r"\] reload_failed what=configuration option=--config file=\S+ "
                r"line 21: max-auth-failures: a whole number such as 20 is expected, not 'three'$"
            )
            assert greeting(guard).startswith("220 ")
            assert greeting(guard, "127.0.0.9").startswith("220 ")
            file.write_text(GOOD)
            hang_up(guard)
            guard.wait_for(r"\] reloaded what=configuration option=--config file=\S+/guard\.conf$")
            assert [greeting(guard) for _ in range(50)] == [FULL] * 50
        # All six have been served to the last, and two of them leave room for one.
        for client in clients[2:]:
            assert client.ask("QUIT").startswith("221 ")
            client.rest()
        with RawClient(guard.address) as one:
            assert one.greeting.startswith("220 ")
            assert greeting(guard) == FULL
        guard.wait_for(r"\] dry_run limits=max_messages$")


def test_a_network_that_is_denied_in_the_file_is_refused_and_the_command_line_still_wins(
    tmp_path: Path,
) -> None:
    file = tmp_path / "guard.conf"
    file.write_text("max-recipients = 5\n")
    with GuardProcess(tmp_path, f"--config={file}", "--max-recipients=2") as guard:
        assert greeting(guard, "127.0.0.9").startswith("220 ")
        file.write_text("max-recipients = 9\ndeny = 127.0.0.9\nhostname = mx.example\n")
        hang_up(guard)
        guard.wait_for(r"\] restart_needed option=--hostname origin=file\\x20\S+\\x20line\\x203 ")
        guard.wait_for(r"\] reloaded what=configuration ")
        assert greeting(guard, "127.0.0.9") == "421 4.7.0 Connection refused"
        with RawClient(guard.address) as client:
            client.ask("EHLO client.example")
            client.ask("MAIL FROM:<a@client.example>")
            replies = [client.ask(f"RCPT TO:<{name}@guard.example>")[:3] for name in "abc"]
            assert replies == ["250", "250", "452"]
