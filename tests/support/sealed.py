"""Messages that tell whether they are whole, how they are sent, and what was answered."""

from __future__ import annotations

import hashlib
from pathlib import Path
from threading import Lock

import attrs
from rawclient import RawClient, stuffed
from stored import Stored, stored

ENVELOPE = b"MAIL FROM:<sender@example.com>\r\nRCPT TO:<%b@example.org>\r\n"


def sealed(name: str, octets: int) -> bytes:
    """A message of about `octets` that tells in its last line how long it is and what its checksum is."""
    line = b".%b says that dots at line starts are no obstacle\r\n" % name.encode()
    body = b"Subject: %b\r\n\r\n" % name.encode() + line * (octets // len(line))
    return body + _seal(body.replace(b"\r\n", b"\n"))


def is_whole(message: bytes) -> bool:
    """Whether a message that was stored ends with its seal."""
    body, newline, seal = message[:-1].rpartition(b"\n")
    body += newline
    return message.endswith(b"\n") and seal + b"\r\n" == _seal(body)


def _seal(body: bytes) -> bytes:
    return b"%d %b\r\n" % (len(body), hashlib.sha256(body).hexdigest().encode())


@attrs.define
class Ledger:
    """What a load was told."""

    accepted: set[str] = attrs.field(factory=set)
    """The names of messages that got their 250."""
    refusals: set[str] = attrs.field(factory=set)
    """What others got."""
    last_words: set[str] = attrs.field(factory=set)
    """What was said last in sessions that ended in the middle."""
    sent: int = 0
    _lock: Lock = attrs.field(factory=Lock)

    def next_name(self) -> str:
        with self._lock:
            self.sent += 1
            return str(self.sent)

    def record(self, name: str, reply: str) -> None:
        with self._lock:
            if reply.startswith("250 "):
                self.accepted.add(name)
            else:
                self.refusals.add(reply)


def send_by_data(client: RawClient, name: str, message: bytes) -> str:
    client.send(ENVELOPE % name.encode() + b"DATA\r\n")
    for expected in ("250", "250", "354"):
        reply = client.reply()
        if not reply.startswith(expected):
            return reply
    client.send(stuffed(message))
    verdict = client.reply()
    return verdict if verdict.startswith("250 ") else f"as a verdict: {verdict}"


def send_by_bdat(client: RawClient, name: str, message: bytes) -> str:
    client.send(ENVELOPE % name.encode() + b"BDAT %d LAST\r\n%b" % (len(message), message))
    for _ in range(2):
        reply = client.reply()
        if not reply.startswith("250"):
            return reply
    return client.reply()


def name_of(mail: Stored) -> str:
    """The name of a message that was stored; AssertionError where it is not whole, or not for whom it was."""
    assert is_whole(mail.message), f"{mail.recipients} is partial: {mail.message[-200:]!r}"
    name = mail.message.partition(b"\n")[0].decode().removeprefix("Subject: ")
    assert mail.recipients == (f"{name}@example.org",)
    return name


def assert_nothing_lost(maildir: Path, ledger: Ledger) -> None:
    """Every message that got its 250 is in new/; nothing there is partial, twice, or not what was sent."""
    names = [name_of(mail) for mail in stored(maildir)]
    assert len(names) == len(set(names)), "a message is there twice"
    assert ledger.accepted <= set(names), f"lost: {ledger.accepted - set(names)}"
