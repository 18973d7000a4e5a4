"""`check_delivery` does to a delivery what a guard and its clients can do to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred

from twisted_smtpguard.interfaces import (
    Client,
    IDelivery,
    IMailTransaction,
    IMessageSink,
    Path,
    Peer,
    Refused,
)
from twisted_smtpguard.smtp.replies import Reply
from twisted_smtpguard.testing.demands import later, require, verify

EXTENSIONS = frozenset({"8BITMIME", "SMTPUTF8", "BINARYMIME", "DSN"})
PIECE_OCTETS = 64 * 1024

_PEER = Peer(IPv4Address("192.0.2.1"), 40000, IPv4Address("192.0.2.25"), 25, tls=False, proxied=False)
_CLIENT = Client(_PEER, "1-1", "client.example.com", "ESMTP", identity=None, trusted=False)
_CLIENTS = (
    attrs.evolve(_CLIENT, peer=attrs.evolve(_PEER, address=IPv6Address("2001:db8::1")), protocol="SMTP"),
    attrs.evolve(_CLIENT, peer=Peer(None, None, None, None, tls=False, proxied=False), helo="a)(\\b;"),
    attrs.evolve(_CLIENT, helo="[192.0.2.1]", protocol="ESMTPSA", identity="jörg"),
)
_SENDER = Path("sender@example.com", {})
_ADDRESSES = (
    "a@example.com",
    '"quoted \\" @ <local> part"@example.com',
    "a@[192.0.2.1]",
    "a@[IPv6:2001:db8::1]",
    f"{'l' * 64}@{'.'.join(['d' * 60] * 3)}.example",
)


def check_delivery(delivery: IDelivery, *, recipient: str = "user@example.com") -> Deferred[int]:
    """Hold `delivery` to its contract: the interfaces of all three objects, nasty envelopes and bodies, and
    an end at every stage. `recipient` is an address that it accepts.

    Fires with the number of messages that it accepted; an AssertionError says what it did wrong, and where.
    It may refuse whatever it likes but a plain message to `recipient`. The message whose verdict is
    cancelled, as at the time limit, may or may not have been stored, and is not in the number.
    """
    return Deferred.fromCoroutine(_check(delivery, Path(recipient, {})))


async def _check(delivery: IDelivery, recipient: Path) -> int:
    verify(IDelivery, delivery, "the delivery")
    extensions, octets = delivery.extensions, delivery.max_message_octets
    require(isinstance(extensions, frozenset), f"extensions is {extensions!r}, not a frozenset")
    require(extensions <= EXTENSIONS, f"extensions has unknown words: {sorted(extensions - EXTENSIONS)}")
    require(isinstance(octets, int) and octets >= 0, f"max_message_octets is {octets!r}")

    check = _Checks(delivery, recipient)
    await check.plain_message()
    for envelope in _envelopes(extensions, recipient):
        await check.message(envelope, [b"Subject: x\r\n\r\n", b"text\r\n"])
    for what, pieces in _bodies(extensions).items():
        if not octets or sum(map(len, pieces)) <= octets:
            await check.message(_Envelope(what, recipients=[recipient]), pieces)
    await check.aborts()
    await check.cancelled_hooks()
    await check.two_at_once()
    return check.accepted


@attrs.frozen
class _Envelope:
    what: str
    sender: Path = _SENDER
    recipients: list[Path] = attrs.Factory(list)
    client: Client = _CLIENT


def _envelopes(extensions: frozenset[str], recipient: Path) -> Iterator[_Envelope]:
    yield _Envelope("the null sender", Path("", {}), [recipient])
    yield _Envelope("a declared size", Path("a@example.com", {"SIZE": "20"}), [recipient])
    yield _Envelope("a recipient without a domain", recipients=[Path("Postmaster", {})])
    yield _Envelope("a recipient twice", recipients=[recipient, recipient])
    many = [Path(f"user{number}@example.com", {}) for number in range(100)]
    yield _Envelope("a hundred recipients", recipients=[recipient, *many])
    addresses: list[tuple[str, Mapping[str, str | None]]] = [(address, {}) for address in _ADDRESSES]
    if "8BITMIME" in extensions:
        addresses.append(("a@example.com", {"BODY": "8BITMIME"}))
    if "SMTPUTF8" in extensions:
        addresses.append(("jörg@bücher.example", {"SMTPUTF8": None}))
        addresses.append(('"聊 天"@例子.example', {"SMTPUTF8": None}))
    for address, parameters in addresses:
        sender = Path(address, parameters)
        yield _Envelope(f"sender and recipient {address}", sender, [recipient, Path(address, {})])
    for client in _CLIENTS:
        yield _Envelope(f"a client that calls itself {client.helo}", recipients=[recipient], client=client)


def _bodies(extensions: frozenset[str]) -> dict[str, list[bytes]]:
    line = b"0123456789abcde" * 5 + b"\r\n"
    large = (line * (PIECE_OCTETS // len(line) + 1))[:PIECE_OCTETS]
    bodies = {
        "an empty body": [],
        "an empty piece": [b"", b"a\r\n", b""],
        "a CRLF split over two pieces": [b"a\r", b"\nb\r", b"\n"],
        "a body an octet at a time": [bytes([octet]) for octet in b"Subject: x\r\n\r\n\r\n.\r\nFrom \r\n"],
        "no line end at the end": [b"Subject: x\r\n\r\ntext"],
        "pieces of 64 KiB": [large] * 5,
        "a line of 192 KiB": [b"x" * PIECE_OCTETS] * 3 + [b"\r\n"],
    }
    if "8BITMIME" in extensions:
        bodies["8-bit text"] = [bytes(range(128, 256)) + b"\r\n"]
    if "BINARYMIME" in extensions:
        bodies["every octet, bare CR, LF and NUL too"] = [bytes(range(256)), b"\r", b"\r", b"\n\n"]
    return bodies


class _Checks:
    """One delivery under check. `accepted` counts its messages."""

    def __init__(self, delivery: IDelivery, recipient: Path) -> None:
        self.accepted = 0
        self._delivery = delivery
        self._plain = _Envelope("a plain message", recipients=[recipient])

    async def plain_message(self) -> None:
        refused = await self.message(self._plain, [b"Subject: plain\r\n", b"\r\n", b"text\r\n"])
        require(
            refused is None, f"a plain message was refused ({refused}): give a recipient that is accepted"
        )

    async def message(self, envelope: _Envelope, pieces: list[bytes]) -> Reply | None:
        """A whole message. What refused it, or None."""
        try:
            sink = await self._sink(envelope)
            try:
                for piece in pieces:
                    await _answer(f"write(), {envelope.what}", sink.write, piece)
            except Refused:
                _abort(sink, "after it refused in write()")
                raise
            reply: Reply | None = await _answer(f"finish(), {envelope.what}", sink.finish)
        except Refused as refused:
            return refused.reply
        _check_reply(reply, f"finish(), {envelope.what}")
        if reply is not None and reply.code >= 300:
            return reply
        self.accepted += 1
        return None

    async def aborts(self) -> None:
        """An end at every stage, and in the middle of every write that waits."""
        mail = await self._mail(self._plain)
        _abort(mail, "after begin()")
        mail = await self._mail(self._plain)
        await self._recipients(mail, self._plain)
        _abort(mail, "after recipient()")
        _abort(await self._sink(self._plain), "after data()")
        for cancelled in (False, True):
            sink = await self._sink(self._plain)
            limit = self._delivery.max_message_octets
            try:
                for _ in range(min(5, limit // PIECE_OCTETS) if limit else 5):
                    if not _has_come("write()", sink.write(b"x" * PIECE_OCTETS), cancel=cancelled):
                        break
            except Refused:
                pass  # As it may. It is aborted like any other.
            _abort(sink, "after or during write()")

    async def cancelled_hooks(self) -> None:
        """The client leaves while a hook is pending, or the time limit passes while the verdict is."""
        begun = later(self._delivery.begin(self._plain.client, self._plain.sender))
        given: list[IMailTransaction] = []
        _has_come("begin()", begun.addCallback(given.append), cancel=True)
        for mail in given:
            _abort(mail, "after begin()")
        sink = await self._sink(self._plain)
        await _answer("write()", sink.write, b"Subject: cancelled\r\n\r\n")
        self.accepted += _has_come("finish()", sink.finish(), cancel=True)

    async def two_at_once(self) -> None:
        """Sessions are independent of each other."""
        sinks = [await self._sink(self._plain), await self._sink(self._plain)]
        for piece in (b"Subject: two at once\r\n", b"\r\n", b"text\r\n"):
            for sink in sinks:
                await _answer("write(), two messages at once", sink.write, piece)
        for sink in sinks:
            await _answer("finish(), two messages at once", sink.finish)
            self.accepted += 1

    async def _mail(self, envelope: _Envelope) -> IMailTransaction:
        what = f"begin(), {envelope.what}"
        mail: IMailTransaction = await _answer(what, self._delivery.begin, envelope.client, envelope.sender)
        verify(IMailTransaction, mail, f"what {what} answered")
        return mail

    async def _recipients(self, mail: IMailTransaction, envelope: _Envelope) -> None:
        refusal: Refused | None = None
        accepted = 0
        for recipient in envelope.recipients:
            what = f"recipient(), {envelope.what}"
            try:
                reply = await _answer(what, mail.recipient, recipient)
            except Refused as refused:
                refusal = refused
            else:
                _check_reply(reply, what)
                accepted += 1
        if not accepted:
            _abort(mail, "after it refused every recipient")
            assert refusal is not None
            raise refusal

    async def _sink(self, envelope: _Envelope) -> IMessageSink:
        mail = await self._mail(envelope)
        await self._recipients(mail, envelope)
        sink: IMessageSink = await _answer(f"data(), {envelope.what}", mail.data)
        verify(IMessageSink, sink, f"what data(), {envelope.what} answered")
        return sink


def _check_reply(reply: object, what: str) -> None:
    require(reply is None or isinstance(reply, Reply), f"{what} answered {reply!r}, neither None nor a Reply")


async def _answer(what: str, hook: Callable[..., Any], *args: object) -> Any:
    """The answer of a hook, at once or later. `Refused` goes through; anything else is a fault."""
    try:
        return await later(hook(*args))
    except Refused as refused:
        code = refused.reply.code
        require(400 <= code < 600, f"{what} refused with {code}, which refuses nothing")
        raise
    except Exception as error:
        raise AssertionError(f"{what} raised {error!r}") from error


def _abort(ended: IMailTransaction | IMessageSink, when: str) -> None:
    try:
        result: object = ended.abort()
    except Exception as error:
        raise AssertionError(f"abort() {when} raised {error!r}") from error
    require(result is None, f"abort() {when} answered {result!r}, not None")


def _has_come(what: str, result: Any, *, cancel: bool) -> bool:
    """Whether a hook has answered already. If not, its Deferred is cancelled, or let go."""
    pending = later(result)
    outcomes: list[object] = []
    pending.addBoth(outcomes.append)
    if outcomes:
        return True
    if cancel:
        pending.cancel()
        require(bool(outcomes), f"{what} was cancelled, and its Deferred has not fired")
        error = getattr(outcomes[0], "value", None)
        require(
            error is None or isinstance(error, CancelledError | Refused),
            f"{what} was cancelled, and failed with {error!r}",
        )
    return False
