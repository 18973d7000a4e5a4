"""Run with: python -m twisted.trial tests/test_known_clients.py"""

import sqlite3
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path
from threading import Event

from known_clients import THREADS, KnownClients, KnownClientsFactory
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, ensureDeferred
from twisted.trial.unittest import TestCase

from twisted_smtpguard import PASS, TRUST, Peer, Reply, Verdict, refuse
from twisted_smtpguard.testing import check_filter

SCHEMA = """
CREATE TABLE clients (
    address TEXT PRIMARY KEY,
    verdict TEXT NOT NULL CHECK (verdict IN ('pass', 'trust', 'refuse')),
    text TEXT NOT NULL DEFAULT ''
)
"""


def peer(address: str | None) -> Peer:
    known = None if address is None else ip_address(address)
    return Peer(known, 40000, ip_address("192.0.2.25"), 25, tls=False, proxied=False)


class KnownClientsTests(TestCase):
    timeout = 20  # seconds, for one that waits in vain

    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        with closing(sqlite3.connect(self.path)) as database, database:
            database.execute(SCHEMA)
        self.filter = self.make(str(self.path))
        self.filter.startService()
        self.addCleanup(self.filter.stopService)

    def make(self, argument: str) -> KnownClients:
        return KnownClientsFactory().make_filter(argument, reactor)

    def know(self, address: str, verdict: str, text: str = "") -> None:
        with closing(sqlite3.connect(self.path)) as database, database:
            database.execute("INSERT INTO clients VALUES (?, ?, ?)", (address, verdict, text))

    async def says(self, address: str | None) -> Verdict:
        return await self.filter.check(peer(address))

    async def test_it_keeps_the_contract(self) -> None:
        self.assertGreater(await check_filter(self.filter), 0)

    async def test_a_client_gets_the_verdict_that_the_database_has_for_it(self) -> None:
        self.know("192.0.2.1", "trust")
        self.know("192.0.2.2", "refuse")
        self.know("192.0.2.3", "refuse", "Go away")
        self.know("2001:db8::1", "pass")
        self.assertEqual(await self.says("192.0.2.1"), TRUST)
        self.assertEqual(await self.says("192.0.2.2"), refuse())
        self.assertEqual(await self.says("192.0.2.3"), refuse(Reply(521, "5.7.1", ("Go away",))))
        for unknown in ("2001:db8::1", "192.0.2.4", None):
            self.assertEqual(await self.says(unknown), PASS)

    def block_look_ups(self) -> tuple[list[str], Event]:
        """The addresses that are looked up from now on, and what lets these look-ups go on."""
        begun: list[str] = []
        go_on = Event()
        self.addCleanup(go_on.set)
        look_up = self.filter.look_up

        def blocked(address: str) -> tuple[str, str]:
            begun.append(address)
            go_on.wait()
            return look_up(address)

        self.patch(self.filter, "look_up", blocked)
        return begun, go_on

    def come_and_leave(self, clients: int) -> None:
        for _ in range(clients):
            check = ensureDeferred(self.says("192.0.2.1"))
            check.cancel()
            self.failureResultOf(check, CancelledError)

    async def test_clients_that_come_and_leave_cost_no_more_look_ups_than_there_are_threads(self) -> None:
        begun, go_on = self.block_look_ups()
        self.come_and_leave(2000)
        fresh = ensureDeferred(self.says("192.0.2.2"))
        go_on.set()
        self.assertEqual(await fresh, PASS)
        self.assertEqual(begun, ["192.0.2.1"] * THREADS + ["192.0.2.2"])

    async def test_a_look_up_that_fails_when_its_client_has_left_gives_back_its_turn(self) -> None:
        _, go_on = self.block_look_ups()
        self.come_and_leave(THREADS)
        self.path.unlink()
        go_on.set()
        with self.assertRaises(sqlite3.Error):
            await self.says("192.0.2.2")

    async def test_a_database_that_is_gone_is_an_error_and_no_verdict(self) -> None:
        self.path.unlink()
        with self.assertRaises(sqlite3.Error):
            await self.says("192.0.2.1")

    def test_what_is_no_database_is_told_at_the_start(self) -> None:
        for argument in ("", "/nowhere/clients.db", __file__):
            with self.assertRaisesRegex(ValueError, "a database of clients is expected"):
                self.make(argument)
