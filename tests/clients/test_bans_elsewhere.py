"""Bans behind a real HAProxy, and of guards that share a real Redis."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import GuardProcess, eventually
from programs import proxied
from rawclient import RawClient
from redisserver import RealRedis

from twisted_smtpguard.control.command import ask
from twisted_smtpguard.operations.verbs import VERBS

pytestmark = pytest.mark.clients

DENIED = "421 4.7.0 Connection refused"
BANNED = "421 4.7.0 Too many offences, try again later"
BANS = ("--ban-after=3", "--deliver=discard:", "--max-invalid-commands=0")

HAPROXY = """\
defaults
    mode tcp
    timeout connect 5s
    timeout client 30s
    timeout server 30s
listen smtp
    bind 127.0.0.1:{front}
    server guard 127.0.0.1:{port} send-proxy-v2 check check-send-proxy inter 100ms
"""


def greeting(address: tuple[str, int], source: str) -> str:
    with RawClient(address, source) as client:
        return client.greeting


def errs(address: tuple[str, int], source: str, times: int = 3) -> None:
    with RawClient(address, source) as client:
        for _ in range(times):
            assert client.ask("XYZZY").startswith("500 ")


def test_behind_haproxy_the_client_is_banned_and_neither_another_nor_the_balancer(tmp_path: Path) -> None:
    with (
        GuardProcess(tmp_path, "--proxy-protocol-from=127.0.0.1", "--ipv4-networks=24", *BANS) as guard,
        proxied("haproxy", tmp_path, guard.port, HAPROXY) as front,
    ):
        balancer = ("127.0.0.1", front)
        for host in range(31, 36):
            errs(balancer, f"127.0.33.{host}")
            assert greeting(balancer, f"127.0.33.{host}") == BANNED
        # The network of the five, and no other; the checks of the balancer go on.
        assert greeting(balancer, "127.0.33.99") == BANNED
        assert greeting(balancer, "127.0.34.1").startswith("220 ")
        # Forged: whoever is no balancer names nobody, and is no offender.
        for _ in range(5):
            with RawClient(guard.address, "127.0.0.9") as stranger:
                stranger.send(b"PROXY TCP4 127.0.34.1 127.0.0.1 1 25\r\n")
                assert stranger.reply() == "421 4.7.0 Protocol error: unexpected PROXY header"
        assert greeting(balancer, "127.0.34.1").startswith("220 ")
        assert greeting(guard.address, "127.0.0.9").startswith("220 ")
        assert " client=127.0.0.1 " not in guard.log.decode()


def test_two_guards_on_one_redis_count_and_ban_together(tmp_path: Path) -> None:
    with RealRedis() as server:
        folders = [tmp_path / name for name in ("one", "two")]
        for each in folders:
            each.mkdir()
        options = (*BANS, f"--counters={server.url}")
        with GuardProcess(folders[0], *options) as one, GuardProcess(folders[1], *options) as two:
            for guard in (one, two):
                eventually(lambda guard=guard: "smtpguard:leases" in server.lives(), "it does not connect")
                with RawClient(guard.address, "127.0.0.9") as client:
                    client.ask("NOOP")
            errs(one.address, "127.0.0.2", 2)
            assert greeting(two.address, "127.0.0.2").startswith("220 ")
            errs(two.address, "127.0.0.2", 1)
            for guard in (two, one):
                eventually(lambda guard=guard: greeting(guard.address, "127.0.0.2") == BANNED, "not banned")
            told = [sum(" banned " in line for line in guard.lines) for guard in (one, two)]
            assert told == [0, 1]
            # The bans go on while Redis is away, and one that has lost its data is given them, for a guard that starts
            # later.
            server.kill()
            assert greeting(one.address, "127.0.0.2") == BANNED
            server.start()
            with GuardProcess(folders[1], *options) as three:
                eventually(lambda: greeting(three.address, "127.0.0.2") == BANNED, "not banned")


def test_what_an_operator_denies_for_a_time_at_one_host_is_denied_at_all(tmp_path: Path) -> None:
    with RealRedis() as server:
        folders = [tmp_path / name for name in ("one", "two")]
        for each in folders:
            each.mkdir()
        sockets = [each / "control" for each in folders]
        guards = [
            GuardProcess(folder, "--deliver=discard:", f"--counters={server.url}", f"--control={socket}")
            for folder, socket in zip(folders, sockets, strict=True)
        ]
        with guards[0] as one, guards[1] as two:
            list(ask(str(sockets[0]), VERBS["deny"], {"network": "127.0.0.2", "for": "1h"}))
            assert greeting(one.address, "127.0.0.2") == DENIED
            eventually(lambda: greeting(two.address, "127.0.0.2") == DENIED, "it is not denied elsewhere")
            list(ask(str(sockets[1]), VERBS["remove"], {"network": "127.0.0.2"}))
            eventually(lambda: greeting(one.address, "127.0.0.2").startswith("220 "), "it is denied still")
