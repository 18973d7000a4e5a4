"""A real guard with a state directory is killed, and started again."""

from __future__ import annotations

from pathlib import Path

from askedguard import WORKERS, told
from commandline import twist
from processes import GuardProcess, eventually
from rawclient import RawClient

DENIED = "421 4.7.0 Connection refused"


def greeting(guard: GuardProcess, source: str) -> str:
    with RawClient(guard.address, source) as client:
        return client.greeting


@WORKERS
def test_what_was_answered_before_kill_9_holds_after_the_restart(
    tmp_path: Path, workers: tuple[str, ...]
) -> None:
    state, socket = tmp_path / "state", tmp_path / "control"
    state.mkdir(0o700)
    options = (f"--state={state}", f"--control={socket}", "--deliver=discard:", *workers)
    guard = GuardProcess(tmp_path, *options)
    told(socket, "deny", network="127.0.0.2", **{"for": "1h"})
    told(socket, "set", limit="max-errors", value="3", **{"for": "1h"})
    told(socket, "deny", network="127.0.0.3")
    assert greeting(guard, "127.0.0.2") == DENIED
    status, _, errors = twist(f"--state={state}", "--listen=tcp:0", "--deliver=discard:", cwd=tmp_path)
    assert (status, errors) == (1, f"--state: {state}/state.sqlite: another guard has this directory\n")
    guard.kill()
    with GuardProcess(tmp_path, *options) as again:
        again.wait_for("state_restored directory=.* limits=1 rules=1")
        assert greeting(again, "127.0.0.2") == DENIED
        assert greeting(again, "127.0.0.3").startswith("220 ")
        answers = told(socket, "limits")
        every = [row for answer in answers for row in answer.get("rows", ())]
        (row,) = [row for row in every if row["limit"] == "max-errors"]
        assert row["value"] == "3"
        told(socket, "remove", network="127.0.0.2")
        eventually(lambda: greeting(again, "127.0.0.2").startswith("220 "), "it is still denied")
    with GuardProcess(tmp_path, *options) as again:
        assert greeting(again, "127.0.0.2").startswith("220 ")


def test_a_mistake_is_one_sentence(tmp_path: Path) -> None:
    status, _, errors = twist("--check", f"--state={tmp_path}/none", cwd=tmp_path)
    assert (status, errors) == (
        64,
        f"--state: {tmp_path}/none: there is no such directory; make it with: mkdir -m 700 {tmp_path}/none\n",
    )
