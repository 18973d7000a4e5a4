"""Real guards know clients after kill -9, and a real crowd keeps no known client out."""

from __future__ import annotations

import smtplib
from pathlib import Path
from typing import Any

from askedguard import WORKERS, rows
from processes import GuardProcess, eventually
from rawclient import RawClient

CAP, RESERVED = 50, 10
KNOWN = [f"127.9.{number}.1" for number in range(5)]


def mail(guard: GuardProcess, source: str) -> None:
    """Send a mail, which is accepted, with the standard library."""
    with smtplib.SMTP(*guard.address, source_address=(source, 0), timeout=30) as client:
        assert client.sendmail("a@b.example", ["c@d.example"], b"Subject: x\r\n\r\nx\r\n") == {}


def status(socket: Path) -> dict[str, Any]:
    return rows(socket, "status")[0]


def clients(socket: Path) -> set[str]:
    return {row["client"] for row in rows(socket, "known") if "client" in row}


@WORKERS
def test_who_is_known_is_known_after_kill_9(tmp_path: Path, workers: tuple[str, ...]) -> None:
    state, socket, named = tmp_path / "state", tmp_path / "control", tmp_path / "named"
    state.mkdir(0o700)
    named.write_text("127.7.0.0/16  # our partners\n")
    options = (f"--state={state}", f"--control={socket}", "--deliver=discard:", f"--known={named}", *workers)
    guard = GuardProcess(tmp_path, *options)
    mail(guard, "127.0.0.3")
    eventually(lambda: clients(socket) == {"127.0.0.3"}, "it is not known")
    assert rows(socket, "forget", address="127.0.0.3") == [{"forgotten": "127.0.0.3"}]
    eventually(lambda: clients(socket) == set(), "it is not forgotten")
    mail(guard, "127.0.0.2")
    eventually(lambda: clients(socket) == {"127.0.0.2"}, "it is not known")
    assert rows(socket, "known", address="127.7.1.1")[0]["by"] == "file"
    # What is kept is written a moment later, in its order.
    written = state / "state.sqlite-wal"
    eventually(lambda: written.exists() and b"127.0.0.2" in written.read_bytes(), "nothing is kept")
    guard.kill()
    with GuardProcess(tmp_path, *options):
        assert clients(socket) == {"127.0.0.2"}
        named.write_text("127.8.0.0/16\n")
        rows(socket, "reload")
        told = [rows(socket, "known", address=each)[0]["known"] for each in ("127.7.1.1", "127.8.1.1")]
        assert told == [False, True]
        (answer,) = rows(socket, "why", address="127.0.0.2")
        assert (answer["known"]["known"], answer["known"]["by"], answer["stress"]) == (True, "mail", False)


@WORKERS
def test_a_hostile_crowd_keeps_no_known_client_out(tmp_path: Path, workers: tuple[str, ...]) -> None:
    socket = tmp_path / "control"
    with GuardProcess(
        tmp_path,
        f"--control={socket}",
        "--deliver=discard:",
        f"--max-connections={CAP}",
        f"--reserved-connections={RESERVED}",
        "--stress-read-timeout=0",
        "--max-log-lines=0",
        *workers,
    ) as guard:
        for source in KNOWN:
            mail(guard, source)
        eventually(lambda: {*KNOWN} <= clients(socket), "they are not known")
        crowd: list[RawClient] = []
        try:
            # Each from a network of its own, and stuck after MAIL, so that nobody makes room however long this takes.
            for number in range(2 * CAP):
                crowd.append(RawClient(guard.address, f"127.{100 + number // 200}.{number % 200}.1"))
                if crowd[-1].greeting.startswith("220 "):
                    crowd[-1].ask("EHLO x")
                    crowd[-1].ask("MAIL FROM:<a@b.example>")
            admitted = [each for each in crowd if each.greeting.startswith("220 ")]
            assert len(admitted) == CAP - RESERVED
            refused = [each.greeting for each in crowd if each not in admitted]
            assert {*refused} == {"421 4.7.0 Too many connections, try again later"}
            for _ in range(5):
                for source in KNOWN:
                    mail(guard, source)
            assert status(socket)["reserved_connections"] == RESERVED
            eventually(lambda: status(socket)["stress"], "it is no stress")

            def newcomer_is_greeted() -> bool:
                number = len(crowd)
                crowd.append(RawClient(guard.address, f"127.{120 + number // 200}.{number % 200}.1"))
                return crowd[-1].greeting.startswith("220 ")

            # Half of them become idle. After five seconds one of those makes room.
            for each in admitted[::2]:
                each.ask("RSET")
            eventually(newcomer_is_greeted, "nobody makes room")
            eventually(lambda: status(socket)["statistics"]["refusals"].get("made_room"), "nobody was ended")
            assert {*status(socket)["statistics"]["refusals"]} <= {"reserved_connections", "made_room"}
            for source in KNOWN:
                mail(guard, source)
            eventually(lambda: status(socket)["connections"] <= CAP - RESERVED, "strangers have more seats")
        finally:
            for each in crowd:
                each.close()
        eventually(lambda: not status(socket)["stress"], "stress does not end")
