"""An IP filter that asks an SQLite database: known clients are trusted or refused, all others are left to the next."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.threads import deferToThreadPool
from twisted.plugin import IPlugin
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

from twisted_smtpguard import PASS, TRUST, Peer, Reply, Verdict, refuse
from twisted_smtpguard.interfaces import IIPFilter, IIPFilterFactory

THREADS = 4
QUERY = "SELECT verdict, text FROM clients WHERE address = ?"


@implementer(IIPFilter)
class KnownClients(Service):
    """Asks the table `clients` of the database at `path`.

    It is a service, so the guard starts and stops it: it has its own threads, since those of the reactor write mail.
    """

    def __init__(self, path: Path, reactor: Any) -> None:
        self._uri = f"{path.absolute().as_uri()}?mode=ro"
        self._reactor = reactor
        self._turns = DeferredSemaphore(THREADS)

    def startService(self) -> None:  # noqa: N802 - Twisted's name
        super().startService()
        self._threads = ThreadPool(0, THREADS, "known-clients")
        self._threads.start()

    def stopService(self) -> Deferred[None]:  # noqa: N802 - Twisted's name
        super().stopService()
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), self._threads.stop)

    async def check(self, peer: Peer) -> Verdict:
        """Must not block, so the database is read in a thread.

        The guard cancels it when the client leaves or the time is up. One that waits for its turn then costs no thread
        at all. What goes wrong is raised; the guard refuses, or with fail-open asks the next filter.
        """
        if peer.address is None:  # a UNIX socket
            return PASS
        await self._turns.acquire()
        look_up = deferToThreadPool(self._reactor, self._threads, self.look_up, str(peer.address))
        # A thread cannot be stopped: the turn ends with the look-up, even if the client has left. If it ended
        # when the client leaves, clients that connect and leave would fill the threads' queue. So only the answer is
        # cancelled.
        answer: Deferred[tuple[str, str]] = Deferred()
        look_up.chainDeferred(answer).addBoth(lambda _: self._turns.release())
        verdict, text = await answer
        if verdict == "refuse":
            # The guard's own reply, or for good: 521 (RFC 7504). No other codes than 421 and 521 are possible.
            return refuse(Reply(521, "5.7.1", (text,))) if text else refuse()
        return {"pass": PASS, "trust": TRUST}[verdict]

    def look_up(self, address: str) -> tuple[str, str]:
        """The verdict on `address` and its text. Called in a thread."""
        with closing(sqlite3.connect(self._uri, uri=True, timeout=1)) as database:
            return database.execute(QUERY, (address,)).fetchone() or ("pass", "")


@implementer(IPlugin, IIPFilterFactory)
class KnownClientsFactory:
    name = "known-clients"
    summary = "Trusts or refuses the clients that an SQLite database knows."
    argument_format = "The path of the database. Its table: clients (address, verdict, text)."

    def make_filter(self, argument: str, reactor: Any) -> KnownClients:
        """Called before anything listens, so it may block. The text of a ValueError is shown to the operator."""
        known = KnownClients(Path(argument), reactor)
        try:
            known.look_up("127.0.0.1")
        except sqlite3.Error as error:
            raise ValueError(f"a database of clients is expected, not {argument!r} ({error})") from error
        return known
