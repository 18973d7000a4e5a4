"""Bans of a real guard: over a restart, over `kill -9`, and in all its workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from processes import GuardProcess, eventually
from rawclient import RawClient
from workers import Workers

from twisted_smtpguard.control.command import RefusedError, ask
from twisted_smtpguard.operations.verbs import VERBS

BANNED = "421 4.7.0 Too many offences, try again later"
BANS = ("--ban-after=3", "--deliver=discard:", "--max-invalid-commands=0")


def greeting(guard: GuardProcess, source: str) -> str:
    with RawClient(guard.address, source) as client:
        return client.greeting


def errs(guard: GuardProcess, source: str, times: int = 3) -> None:
    with RawClient(guard.address, source) as client:
        for _ in range(times):
            assert client.ask("XYZZY").startswith("500 ")


def does(socket: Path, verb: str, **arguments: str) -> dict[str, Any]:
    *_, last = ask(str(socket), VERBS[verb], arguments)
    done: dict[str, Any] = last["done"]
    return done


def rows(socket: Path, verb: str = "bans") -> list[dict[str, Any]]:
    return [row for answer in ask(str(socket), VERBS[verb], {}) for row in answer.get("rows", ())]


def on_disk(state: Path, source: str) -> bool:
    """Whether the ban of a client has been written: kind and key stand side by side in the files of SQLite."""
    return f"ban{source}".encode() in b"".join(path.read_bytes() for path in state.iterdir())


@pytest.mark.parametrize("workers", [(), ("--workers=2",)], ids=["one", "workers"])
def test_a_ban_holds_after_kill_9_until_its_end_and_is_lifted_for_good(
    tmp_path: Path, workers: tuple[str, ...]
) -> None:
    state, socket = tmp_path / "state", tmp_path / "control"
    state.mkdir(0o700)
    options = (*BANS, f"--state={state}", f"--control={socket}", *workers)
    guard = GuardProcess(tmp_path, *options)
    for source in ("127.0.0.2", "127.0.0.3"):
        errs(guard, source)
    eventually(lambda: len(rows(socket)) == 2, "they are not banned")
    before = {row["banned"]: row for row in rows(socket)}
    for source in before:
        eventually(lambda source=source: on_disk(state, source), f"the ban of {source} is not on the disk")
    guard.kill()
    with GuardProcess(tmp_path, *options) as again:
        assert greeting(again, "127.0.0.2") == BANNED
        eventually(lambda: answered(socket), "no worker becomes ready")
        assert {row["banned"]: row for row in rows(socket)} == before
        assert does(socket, "unban", address="127.0.0.2")["lifted"] == ["127.0.0.2"]
        eventually(lambda: greeting(again, "127.0.0.2").startswith("220 "), "it is refused")
        assert greeting(again, "127.0.0.3") == BANNED
    with GuardProcess(tmp_path, *options) as last:
        assert greeting(last, "127.0.0.2").startswith("220 ")
        assert greeting(last, "127.0.0.3") == BANNED


def answered(socket: Path) -> bool:
    try:
        rows(socket)
    except RefusedError:
        return False
    return True


def test_points_and_bans_are_those_of_all_workers_and_of_one_that_is_started_later(tmp_path: Path) -> None:
    socket = tmp_path / "control"
    with Workers(tmp_path, 2, *BANS, f"--control={socket}") as guard:
        for number in (1, 2, 1):
            with guard.alone(number):
                assert greeting(guard, "127.0.0.2").startswith("220 ")
                errs(guard, "127.0.0.2", 1)
        eventually(lambda: rows(socket), "it is not banned")
        for number in (1, 2):
            with guard.alone(number):
                # It may have been stopped when the ban was told to it.
                eventually(
                    lambda: greeting(guard, "127.0.0.2") == BANNED, "a worker does not know of the ban"
                )
        does(socket, "restart")
        eventually(lambda: len(guard.pids) == 2, "those that were replaced stay")
        assert greeting(guard, "127.0.0.2") == BANNED
        does(socket, "unban", address="127.0.0.2")
        for number in sorted(guard.pids):
            with guard.alone(number):
                eventually(lambda: greeting(guard, "127.0.0.2").startswith("220 "), "it is refused")
