"""A delivery and an IP filter of an application's own, in front of its database. Their hooks are coroutines."""

from collections.abc import Mapping, Sequence

from twisted.application.service import Service
from zope.interface import implementer

from twisted_smtpguard import PASS, TRUST, Client, Path, Peer, Refused, Reply, Verdict, refuse
from twisted_smtpguard.interfaces import IDelivery, IIPFilter, IMailTransaction, IMessageSink

NO_SUCH_MAILBOX = Reply(550, "5.1.1", ("No such mailbox",))


class Store(Service):
    """Stands for a database: who has a mailbox, what is in it, and what is known of a client's address."""

    def __init__(self, mailboxes: Sequence[str], standing: Mapping[str, str]) -> None:
        self.mailboxes: dict[str, list[bytes]] = {address: [] for address in mailboxes}
        self._standing = standing

    async def knows(self, address: str) -> bool:
        return address in self.mailboxes

    async def keep(self, recipients: Sequence[str], message: bytes) -> None:
        if not self.running:
            raise RuntimeError("the database is closed")
        for address in recipients:
            self.mailboxes[address].append(message)
        print(f"kept {len(message)} octets for {', '.join(recipients)}", flush=True)

    async def standing(self, address: str) -> str:
        return self._standing.get(address, "unknown")


@implementer(IDelivery)
class Inbox:
    """Takes mail for those who have a mailbox."""

    extensions = frozenset({"8BITMIME", "SMTPUTF8"})
    max_message_octets = 1024 * 1024  # It is in memory until it is kept.

    def __init__(self, store: Store) -> None:
        self._store = store

    async def begin(self, client: Client, sender: Path) -> IMailTransaction:
        return Message(self._store)


@implementer(IMailTransaction, IMessageSink)
class Message:
    """One message, from its first recipient to its verdict."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._recipients: list[str] = []
        self._octets = bytearray()

    async def recipient(self, recipient: Path) -> None:
        if not await self._store.knows(recipient.address):
            raise Refused(NO_SUCH_MAILBOX)
        self._recipients.append(recipient.address)

    async def data(self) -> IMessageSink:
        return self

    def write(self, data: bytes) -> None:
        self._octets += data

    async def finish(self) -> None:
        """To return is to say that it is safe: the client gets its 250."""
        await self._store.keep(self._recipients, bytes(self._octets))

    def abort(self) -> None:
        """Nothing was kept yet."""


@implementer(IIPFilter)
class Standing:
    """Trusts friends and refuses who is banned; it has no opinion of others."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def check(self, peer: Peer) -> Verdict:
        verdicts = {"friend": TRUST, "banned": refuse()}
        return verdicts.get(await self._store.standing(str(peer.address)), PASS)
