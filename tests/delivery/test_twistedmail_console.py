"""A delivery as Twisted's tutorials write it, with a database that takes its time: whole conversations with it."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import Conversation, Guard
from twisted.cred.checkers import AllowAnonymousAccess
from twisted.cred.portal import IRealm, Portal
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.task import Clock, deferLater
from twisted.mail import smtp
from zope.interface import implementer

from twisted_smtpguard import TwistedMailDelivery


class Database:
    """Answers after a second."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.users = {b"alice": "Alice", b"bob": "Bob", b"full": "A full mailbox"}
        self.printed: list[str] = []
        self.sessions = 0

    def find(self, local: bytes) -> Deferred[str]:
        return deferLater(self.clock, 1, self.users.__getitem__, local)

    def store(self, text: str) -> Deferred[None]:
        return deferLater(self.clock, 1, self.printed.append, text)


@implementer(smtp.IMessage)
class ConsoleMessage:
    def __init__(self, database: Database, name: str) -> None:
        self.database = database
        self.name = name
        self.lines: list[bytes] = []

    def lineReceived(self, line: bytes) -> None:
        if line == b"X-Loop: yes":
            raise smtp.SMTPServerError(554, "Seen before")
        self.lines.append(line)

    def eomReceived(self) -> Deferred[None]:
        if b"crash" in self.lines:
            raise ZeroDivisionError
        return self.database.store(f"{self.name}: {b'|'.join(self.lines).decode()}")

    def connectionLost(self) -> None:
        self.lines.clear()


@implementer(smtp.IMessageDelivery)
class ConsoleDelivery:
    def __init__(self, database: Database) -> None:
        self.database = database

    def receivedHeader(self, helo: Any, origin: Any, recipients: list[Any]) -> bytes:
        return b"Received: from %b to %b" % (bytes(origin), b", ".join(map(bytes, recipients)))

    def validateFrom(self, helo: Any, origin: Any) -> Any:
        if origin.domain == b"spam.example":
            raise smtp.SMTPBadSender(origin, 553, "5.7.1 Not from you")
        return origin

    @inlineCallbacks
    def validateTo(self, user: Any) -> Any:
        if user.dest.domain == b"broken.example":
            raise OSError("the database is gone")
        try:
            name = yield self.database.find(user.dest.local)
        except KeyError:
            raise smtp.SMTPBadRcpt(user) from None
        if user.dest.local == b"full":
            raise smtp.SMTPServerError(452, b"Mailbox full\nTry again later")
        return lambda: ConsoleMessage(self.database, name)


@implementer(IRealm)
class ConsoleRealm:
    def __init__(self, database: Database) -> None:
        self.database = database

    def requestAvatar(self, avatarId: Any, mind: Any, *interfaces: Any) -> Any:
        assert smtp.IMessageDelivery in interfaces
        self.database.sessions += 1
        return smtp.IMessageDelivery, ConsoleDelivery(self.database), self.logout

    def logout(self) -> None:
        self.database.sessions -= 1


@pytest.fixture
def client() -> Conversation:
    clock = Clock()
    database = Database(clock)
    portal = Portal(ConsoleRealm(database), [AllowAnonymousAccess()])
    guard = Guard(TwistedMailDelivery(portal, "guard.example"), clock)
    client = guard.greeted()
    client.heard()
    client.database = database  # type: ignore[attr-defined]
    return client


def hold(client: Any, *turns: tuple[str, str]) -> Any:
    """The client says what is left and hears what is right, after as many seconds as it takes."""
    for said, expected in turns:
        heard = client.say(*said.split("\n"))
        for _ in range(5):
            client.guard.clock.advance(1)
            heard += client.heard()
        assert heard.replace("\r\n", "\n").rstrip("\n") == expected
    return client.database


FROM = ("MAIL FROM:<a@b.example>", "250 2.1.0 Sender OK")
TO_ALICE = ("RCPT TO:<alice@guard.example>", "250 2.1.5 Recipient OK")
TO_BOB = ("RCPT TO:<bob@guard.example>", "250 2.1.5 Recipient OK")
DATA = ("DATA", "354 End data with <CR><LF>.<CR><LF>")
ACCEPTED = "250 2.0.0 Message accepted"
INTERNAL_ERROR = "451 4.3.0 Internal error, try again later"


def test_a_message_for_two(client: Conversation) -> None:
    database = hold(client, FROM, TO_ALICE, TO_BOB, DATA, ("Hello\n.", ACCEPTED))
    assert database.printed == [
        "Alice: Received: from a@b.example to alice@guard.example||Hello",
        "Bob: Received: from a@b.example to bob@guard.example||Hello",
    ]


def test_all_at_once(client: Conversation) -> None:
    conversation = [FROM, TO_ALICE, TO_BOB, DATA, ("Hello\n.", ACCEPTED)]
    database = hold(client, tuple("\n".join(side) for side in zip(*conversation, strict=True)))
    assert [line.split(":")[0] for line in database.printed] == ["Alice", "Bob"]


def test_refusals_on_the_way_to_a_message(client: Conversation) -> None:
    database = hold(
        client,
        ("MAIL FROM:<a@spam.example>", "553 5.7.1 Not from you"),
        FROM,
        ("RCPT TO:<carol@guard.example>", "550 5.0.0 Cannot receive for specified address"),
        ("RCPT TO:<full@guard.example>", "452-4.0.0 Mailbox full\n452 4.0.0 Try again later"),
        ("RCPT TO:<bob@broken.example>", INTERNAL_ERROR),
        TO_BOB,
        DATA,
        ("Subject: x\nX-Loop: yes\n\ntext\n.", "554 5.0.0 Seen before"),
        FROM,
        TO_BOB,
        DATA,
        ("Subject: x\n\ncrash\n.", INTERNAL_ERROR),
        FROM,
        TO_BOB,
        DATA,
        ("Subject: x\n.", ACCEPTED),
        ("QUIT", "221 2.0.0 Closing connection"),
    )
    assert database.printed == ["Bob: Received: from a@b.example to bob@guard.example|Subject: x"]
    assert client.guard.factory.statistics.failures == 2
    assert database.sessions == 0


def test_a_client_that_does_not_wait_for_the_verdict(client: Conversation) -> None:
    database = hold(client, FROM, TO_ALICE, DATA)
    client.say("Subject: x", ".")
    client.disconnect()
    assert (database.printed, database.sessions) == ([], 1)
    client.guard.clock.advance(1)
    assert (len(database.printed), database.sessions) == (1, 0)


def test_a_client_that_leaves_while_its_recipient_is_looked_up(client: Conversation) -> None:
    database = hold(client, FROM)
    client.say("RCPT TO:<alice@guard.example>")
    client.disconnect()
    assert client.guard.clock.getDelayedCalls() == []
    assert (database.printed, database.sessions) == ([], 0)
