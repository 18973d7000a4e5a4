"""What an operator changes in a real guard holds from the moment of the answer, while clients keep it busy."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import GuardProcess, eventually
from rawclient import RawClient

from twisted_smtpguard.control.command import RefusedError, ask
from twisted_smtpguard.operations.verbs import VERBS

FULL = "421 4.7.0 Too many connections, try again later"
DENIED = "421 4.7.0 Connection refused"


class Operated:
    """A guard whose clients never pause: four, whom it knows, say NOOP, and four come and go."""

    def __init__(self, guard: GuardProcess, socket: Path) -> None:
        self.guard = guard
        self._socket = str(socket)
        self._over = threading.Event()
        self.faults: list[str] = []
        stay = [RawClient(guard.address, "127.0.0.2") for _ in range(4)]
        self._threads = [threading.Thread(target=self._stays, args=(client,)) for client in stay]
        self._threads += [threading.Thread(target=self._comes_and_goes) for _ in range(4)]
        for thread in self._threads:
            thread.start()

    def _stays(self, client: RawClient) -> None:
        with client:
            while not self._over.is_set():
                reply = client.ask("NOOP")
                if not reply.startswith("250 "):
                    self.faults.append(reply)

    def _comes_and_goes(self) -> None:
        while not self._over.is_set():
            with RawClient(self.guard.address, "127.0.0.3") as client:
                if client.greeting.startswith("220 "):
                    client.ask("QUIT")
                elif client.greeting != FULL:
                    self.faults.append(client.greeting)

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        assert self.faults == []

    def types(self, verb: str, **arguments: str) -> list[dict[str, Any]]:
        return list(ask(self._socket, VERBS[verb], arguments))

    def greeting(self, source: str = "127.0.0.1") -> str:
        with RawClient(self.guard.address, source) as client:
            return client.greeting


@pytest.fixture
def operated(tmp_path: Path) -> Iterator[Operated]:
    socket = tmp_path / "control.sock"
    # A stranger who says NOOP again and again is not kept where the connections come near the cap.
    known = tmp_path / "known"
    known.write_text("127.0.0.2\n")
    options = (f"--control={socket}", "--deliver=discard", f"--known={known}")
    with GuardProcess(tmp_path, *options) as guard:
        operated = Operated(guard, socket)
        try:
            yield operated
        finally:
            operated.end()


def test_a_limit_holds_from_the_answer_on_and_is_off_again_from_the_next(operated: Operated) -> None:
    for _ in range(5):
        # Four stay, so a fifth is never among so few.
        operated.types("set", limit="max-connections", value="4")
        assert [operated.greeting() for _ in range(20)] == [FULL] * 20
        operated.types("unset", limit="max-connections")
        assert all(operated.greeting().startswith("220 ") for _ in range(20))


def test_a_wrong_value_changes_nothing(operated: Operated) -> None:
    before = operated.types("limits")
    with pytest.raises(
        RefusedError, match=r"^--max-connections: a whole number such as 20 is expected, not 'x'$"
    ):
        operated.types("set", limit="max-connections", value="x")
    assert operated.types("limits") == before


def test_a_network_is_shut_out_and_comes_in_again_when_its_time_is_over(operated: Operated) -> None:
    operated.types("deny", network="127.0.0.8/29", **{"for": "1"})
    assert operated.greeting("127.0.0.9") == DENIED
    eventually(lambda: operated.greeting("127.0.0.9") != DENIED, "it does not come in again")
    assert operated.types("rules")[:-1] == []


def test_all_mail_comes_later_from_the_answer_on_and_the_sessions_stay(operated: Operated) -> None:
    with RawClient(operated.guard.address) as client:
        client.ask("EHLO client.example")
        for _ in range(5):
            operated.types("defer", state="on", text="Back soon")
            assert client.ask("MAIL FROM:<a@client.example>") == "451 4.3.2 Back soon"
            operated.types("defer", state="off")
            assert client.ask("MAIL FROM:<a@client.example>").startswith("250 ")
            assert client.ask("RSET").startswith("250 ")
