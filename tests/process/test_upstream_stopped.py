"""A guard whose upstream server is another guard, and that one is stopped under load: no message comes twice."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

import pytest
from processes import GuardProcess, eventually
from rawclient import RawClient
from sealed import Ledger, send_by_bdat, send_by_data

SENDERS = 6


def keep_sending(guard: GuardProcess, ledger: Ledger, enough: Event, number: int) -> None:
    how = send_by_bdat if number % 2 else send_by_data
    with suppress(OSError):
        while not enough.is_set():
            with RawClient(guard.address) as client:
                client.ask("EHLO c")
                for _ in range(20):
                    name = ledger.next_name()
                    reply = how(client, name, b"Subject: %b\r\n\r\ntext\r\n" % name.encode())
                    ledger.record(name, reply)
                    if not reply.startswith("250 "):
                        break


def names_in(maildir: Path) -> list[str]:
    texts = [path.read_bytes() for path in (maildir / "new").iterdir()]
    return [re.search(rb"^Subject: (\d+)$", text, re.MULTILINE)[1].decode() for text in texts]  # type: ignore[index]


@pytest.mark.parametrize("round_", range(3))
def test_what_an_upstream_guard_has_stored_when_it_stops_is_what_clients_were_told(
    tmp_path: Path, round_: int
) -> None:
    ledger, enough = Ledger(), Event()
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    with GuardProcess(tmp_path / "second") as second:
        host, port = second.address
        with GuardProcess(tmp_path / "first", f"--deliver=smtp:tcp:{host}:{port}") as first:
            senders = [
                Thread(target=keep_sending, args=(first, ledger, enough, number), daemon=True)
                for number in range(SENDERS)
            ]
            for sender in senders:
                sender.start()
            eventually(lambda: len(ledger.accepted) > 100 + 20 * round_, "the load does not get on")
            second.terminate()
            second.ended()
            enough.set()
            for sender in senders:
                sender.join(60)
                assert not sender.is_alive(), "a sender hangs"
        stored = names_in(second.maildir)
    assert len(stored) == len(set(stored))
    # A message whose client was told to try again is not there yet.
    assert set(stored) == ledger.accepted
    assert ledger.accepted
