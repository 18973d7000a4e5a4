"""Real guards and passwords that are guessed, by many clients of 127.0.0.0/8 and by one at many guards."""

from __future__ import annotations

import asyncio
import smtplib
from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from guardsofredis import Guards
from processes import GuardProcess, eventually
from programs import run
from rawclient import RawClient
from redisserver import RealRedis
from workers import Workers

pytestmark = [pytest.mark.clients, pytest.mark.timeout(240)]

HOME, ELSEWHERE = "127.9.0.1", "127.9.0.2"
"""Where the user has logged in before, and where not."""
WRONG, LATER = "535 5.7.8 Authentication credentials invalid", "454 4.7.0 Temporary authentication failure"
YES = "235 2.7.0 Authentication successful"


@pytest.fixture
def options(tmp_path: Path) -> tuple[str, ...]:
    users = tmp_path / "users"
    users.write_text("ann:correct-horse\nbob:battery-staple\n")
    return f"--auth=file:{users}", "--auth-without-tls", "--deliver=discard", "--max-log-lines=0"


def plain(user: str, password: str) -> str:
    return f"AUTH PLAIN {b64encode(f'{chr(0)}{user}{chr(0)}{password}'.encode()).decode()}"


def logs_in(guard: GuardProcess, source: str, user: str = "ann", password: str = "correct-horse") -> str:
    with RawClient(guard.address, source) as client:
        client.ask("EHLO client.example")
        return client.ask(plain(user, password))


async def guess(port: int, source: str, tries: int, heard: Counter[str]) -> None:
    """Guess so often, in one session after the other."""
    while tries:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
        await reader.readline()
        writer.write(b"HELO x\r\nEHLO guesser.example\r\n")
        while not (await reader.readline()).startswith(b"250 ENH"):
            pass
        while tries:
            tries -= 1
            writer.write(f"{plain('ann', f'guess{tries}')}\r\n".encode())
            reply = (await reader.readline()).decode().strip()
            heard[reply] += 1
            if reply == WRONG and heard[WRONG] % 3 == 0:
                # The session ends now.
                await reader.read()
                break
        writer.close()


def guess_all(ports: Sequence[int], sources: Sequence[str], tries: int) -> dict[str, Counter[str]]:
    """What each client hears that guesses the password of ann so often, fifty of them at once."""
    heard: dict[str, Counter[str]] = {source: Counter() for source in sources}

    async def all_of_them() -> None:
        some = asyncio.Semaphore(50)

        async def one(number: int, source: str) -> None:
            async with some:
                await guess(ports[number % len(ports)], source, tries, heard[source])

        await asyncio.gather(*(one(*each) for each in enumerate(sources)))

    asyncio.run(all_of_them())
    return heard


def test_a_thousand_guessers_are_each_stopped_at_the_tenth_and_the_user_goes_on_to_log_in(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    with GuardProcess(tmp_path, *options) as guard:
        assert logs_in(guard, HOME) == YES
        sources = [f"127.2.{number // 250}.{number % 250 + 1}" for number in range(1000)]
        heard = guess_all([guard.port], sources, 13)
        assert all(each == {WRONG: 10, LATER: 3} for each in heard.values())
        assert logs_in(guard, HOME) == YES
        with smtplib.SMTP(*guard.address, source_address=(HOME, 0), timeout=30) as client:
            client.login("ann", "correct-horse")
        words = (f"--local-interface={HOME}", "--auth=LOGIN", "--auth-user=ann", "--quit-after=AUTH")
        shown = run("swaks", f"--server=127.0.0.1:{guard.port}", *words, "--auth-password=correct-horse")
        assert YES in shown.stdout.decode()
        # Nobody has guessed from here, so that here the password is just right.
        assert logs_in(guard, ELSEWHERE) == YES
        refused = [line for line in guard.lines if " reason=auth_failure_rate " in line]
        assert len(refused) == 3000
        assert all(" limit=10/600 value=11 code=454 command=AUTH user=ann " in line for line in refused)


def test_a_neighbours_guesses_keep_out_new_users_of_that_address_and_not_the_one_who_was_there(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    with GuardProcess(tmp_path, *options, "--max-auth-failures=0") as guard:
        assert logs_in(guard, HOME) == YES
        said = [logs_in(guard, HOME, f"user{number}", "wrong") for number in range(11)]
        assert said == [WRONG] * 10 + [LATER]
        assert logs_in(guard, HOME, "bob", "battery-staple") == LATER
        assert logs_in(guard, HOME) == YES


def all_at_once(guards: Sequence[GuardProcess], number: int, password: str = "wrong") -> Counter[str]:
    """What so many sessions of one client hear that have all sent a password before one of them listens."""
    with ExitStack() as stack:
        clients = [
            stack.enter_context(RawClient(guards[each % len(guards)].address, ELSEWHERE))
            for each in range(number)
        ]
        for client in clients:
            client.ask("EHLO client.example")
        for client in clients:
            client.send(f"{plain('ann', password)}\r\n".encode())
        return Counter(client.reply() for client in clients)


def test_fifty_sessions_at_once_get_ten_passwords_checked(tmp_path: Path, options: tuple[str, ...]) -> None:
    with GuardProcess(tmp_path, *options) as guard:
        assert all_at_once([guard], 50) == {WRONG: 10, LATER: 40}


def test_fifty_sessions_at_once_with_the_right_password_are_all_let_in(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    with GuardProcess(tmp_path, *options) as guard:
        assert all_at_once([guard], 50, "correct-horse") == {YES: 50}


def test_over_workers_they_get_as_many_as_over_one_process(tmp_path: Path, options: tuple[str, ...]) -> None:
    with Workers(tmp_path, 3, *options) as guard:
        assert all_at_once([guard], 50) == {WRONG: 10, LATER: 40}


def test_over_workers_all_right_ones_are_let_in(tmp_path: Path, options: tuple[str, ...]) -> None:
    with Workers(tmp_path, 3, *options) as guard:
        assert all_at_once([guard], 50, "correct-horse") == {YES: 50}


def test_over_hosts_they_get_as_many_as_at_one(tmp_path: Path, options: tuple[str, ...]) -> None:
    with RealRedis() as server, Guards(tmp_path, server.url, *options) as guards:
        heard = all_at_once(guards.running, 51)
        assert heard.total() == 51
        if sum(guards.told("counters_away")) == 0:
            assert heard == {WRONG: 10, LATER: 41}
        # If this machine was too busy for 50 ms, a guard has counted alone for a while.
        assert 10 <= heard[WRONG] <= 30


def test_over_hosts_all_right_ones_are_let_in(tmp_path: Path, options: tuple[str, ...]) -> None:
    with RealRedis() as server, Guards(tmp_path, server.url, *options) as guards:
        assert all_at_once(guards.running, 51, "correct-horse") == {YES: 51}


def lock_out_strangers(guard: GuardProcess) -> None:
    """A neighbour of the user guesses until nobody who is new may try a password from there."""
    with RawClient(guard.address, HOME) as client:
        client.ask("EHLO client.example")
        for _ in range(12):
            client.ask(plain("bob", "wrong"))
        assert client.last_reply == LATER


def test_where_a_user_has_logged_in_is_known_after_a_restart(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    options = (*options, f"--state={state}", "--max-auth-failures=0")
    with GuardProcess(tmp_path, *options) as guard:
        assert logs_in(guard, HOME) == YES
    with GuardProcess(tmp_path, *options) as guard:
        lock_out_strangers(guard)
        assert logs_in(guard, HOME, "bob", "battery-staple") == LATER
        assert logs_in(guard, HOME) == YES
    assert b"ann" not in b"".join(path.read_bytes() for path in state.iterdir())


def test_where_a_user_has_logged_in_is_known_to_all_workers(tmp_path: Path, options: tuple[str, ...]) -> None:
    with Workers(tmp_path, 3, *options, "--max-auth-failures=0") as guard:
        first, *others = guard.pids
        with guard.alone(first):
            # It has told the others of the first time before it answers the second.
            assert [logs_in(guard, HOME), logs_in(guard, HOME)] == [YES, YES]
        for number in others:
            with guard.alone(number):
                lock_out_strangers(guard)
                assert logs_in(guard, HOME, "bob", "battery-staple") == LATER
                eventually(lambda: logs_in(guard, HOME) == YES, "the user is locked out")


def test_where_a_user_has_logged_in_is_known_to_all_hosts(tmp_path: Path, options: tuple[str, ...]) -> None:
    with (
        RealRedis() as server,
        Guards(tmp_path, server.url, *options, "--max-auth-failures=0") as guards,
    ):
        first, *others = guards.running
        assert logs_in(first, HOME) == YES
        lock_out_strangers(first)
        for guard in others:
            # They ask about once a second what is new.
            eventually(lambda guard=guard: logs_in(guard, HOME) == YES, "the user is locked out")
