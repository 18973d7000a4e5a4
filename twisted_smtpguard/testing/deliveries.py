"""`check_delivery` does to a delivery what a guard and its clients can do to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from twisted_smtpguard.delivery.callable import EXTENSIONS
from twisted_smtpguard.hooks.later import call_hook
from twisted_smtpguard.interfaces import IDelivery, IMailTransaction, IMessageSink, ISessionDelivery
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.testing.demands import require, verify
from twisted_smtpguard.testing.filters import PEERS
from twisted_smtpguard.values import Client, Path, Refused

PIECE_OCTETS = 64 * 1024

_CLIENT = Client(PEERS["IPv4"], "1-1", "client.example.com", "ESMTP", identity=None, trusted=False)
_CLIENTS = (
    attrs.evolve(_CLIENT, peer=PEERS["IPv6"], protocol="SMTP"),
    attrs.evolve(_CLIENT, peer=PEERS["a UNIX socket"], helo="a)(\\b;"),
    attrs.evolve(_CLIENT, helo="[192.0.2.1]", protocol="ESMTPSA", identity="jörg", avatar_id="jörg".encode()),
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
    """Check that `delivery` keeps its contract: the interfaces of the delivery, its transactions and its sinks,
    difficult envelopes and bodies, and an end at every stage. `recipient` is an address that the delivery accepts. Each
    message is in its own session, for which `session_ended()` of an ISessionDelivery is called.

    The Deferred fires with the number of accepted messages. It fails with an AssertionError that says what the delivery
    did wrong, and where. The delivery may refuse any message but the first plain one to `recipient`. A message whose
    verdict is cancelled, as at the time limit, may or may not have been stored, and is not counted.
    """
    return Deferred.fromCoroutine(_check(delivery, Path(recipient, {})))


async def _check(delivery: IDelivery, recipient: Path) -> int:
    verify(IDelivery, delivery, "the delivery")
    if ISessionDelivery.providedBy(delivery):
        verify(ISessionDelivery, delivery, "the delivery")
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
    """A message to send, without its body. `what` names it in an AssertionError."""

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
    if "DSN" in extensions:
        sender = Path("sender@example.com", {"RET": "HDRS", "ENVID": "QQ+2B314"})
        notified = attrs.evolve(recipient, parameters={"NOTIFY": "SUCCESS,DELAY", "ORCPT": "rfc822;a+40b"})
        yield _Envelope("delivery status notifications", sender, [notified, attrs.evolve(recipient)])
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


class _Session:
    """One session of a delivery, with a message of `envelope`. `session_ended()` is called once, when the session is
    over and all its hooks have answered, also those that were cancelled."""

    def __init__(self, delivery: IDelivery, envelope: _Envelope, number: int) -> None:
        self.envelope = envelope
        self.client = attrs.evolve(envelope.client, session=f"1-{number}")
        self._delivery = delivery
        self._pending = 1
        """How many hooks have not answered yet, plus one while the session goes on."""

    def call(self, hook: Callable[..., Any], *args: object) -> Deferred[Any]:
        """Call a hook. The Deferred fires with its answer, or fails with its exception."""
        self._pending += 1
        return call_hook(hook, *args).addBoth(self.end)

    def end(self, outcome: Any = None) -> Any:
        """Called after each answer, and once when the session is over. Returns `outcome`."""
        self._pending -= 1
        if not self._pending and ISessionDelivery.providedBy(self._delivery):
            end = ISessionDelivery(self._delivery).session_ended
            _tell_end("session_ended()", end, self.client.session)
        return outcome

    async def _answer(self, name: str, hook: Callable[..., Any], *args: object) -> Any:
        """The answer of a hook, at once or later. `Refused` is raised as it is; any other exception is a fault."""
        try:
            return await self.call(hook, *args)
        except Exception as error:
            raise _checked_error(self._what(name), error) from error

    def _what(self, hook: str) -> str:
        return f"{hook}, {self.envelope.what}"

    async def mail(self) -> IMailTransaction:
        mail: IMailTransaction = await self._answer(
            "begin()", self._delivery.begin, self.client, self.envelope.sender
        )
        verify(IMailTransaction, mail, f"what {self._what('begin()')} answered")
        return mail

    async def recipients(self, mail: IMailTransaction) -> None:
        """Give the transaction all recipients. `Refused`: none was accepted, and the transaction has been aborted."""
        refusals: list[Refused] = []
        for recipient in self.envelope.recipients:
            try:
                answer = await self._answer("recipient()", mail.recipient, recipient)
                _check_reply(answer, self._what("recipient()"))
            except Refused as refused:
                refusals.append(refused)
        if len(refusals) == len(self.envelope.recipients):
            _abort(mail, "after it refused every recipient")
            raise refusals[-1]

    async def sink(self) -> IMessageSink:
        mail = await self.mail()
        await self.recipients(mail)
        sink: IMessageSink = await self._answer("data()", mail.data)
        verify(IMessageSink, sink, f"what {self._what('data()')} answered")
        return sink

    async def write(self, sink: IMessageSink, piece: bytes) -> None:
        try:
            await self._answer("write()", sink.write, piece)
        except Refused:
            _abort(sink, "after it refused in write()")
            raise

    async def finish(self, sink: IMessageSink) -> None:
        """`Refused`: the message was not accepted."""
        _check_reply(await self._answer("finish()", sink.finish), self._what("finish()"))


class _Checks:
    """The checks of one delivery. `accepted` counts the messages that it accepted."""

    def __init__(self, delivery: IDelivery, recipient: Path) -> None:
        self.accepted = 0
        self._delivery = delivery
        self._plain = _Envelope("a plain message", recipients=[recipient])
        self._sessions = count(1)

    async def plain_message(self) -> None:
        refused = await self.message(self._plain, [b"Subject: plain\r\n", b"\r\n", b"text\r\n"])
        require(
            refused is None, f"a plain message was refused ({refused}): give a recipient that is accepted"
        )

    async def message(self, envelope: _Envelope, pieces: list[bytes]) -> Reply | None:
        """Deliver a whole message. Returns the refusal, or None."""
        with self._session(envelope) as session:
            try:
                sink = await session.sink()
                for piece in pieces:
                    await session.write(sink, piece)
                await session.finish(sink)
                self.accepted += 1
            except Refused as refused:
                return refused.reply
        return None

    async def aborts(self) -> None:
        """End a transaction at every stage, and during every write that waits."""
        with self._session() as session:
            _abort(await session.mail(), "after begin()")
        with self._session() as session:
            mail = await session.mail()
            await session.recipients(mail)
            _abort(mail, "after recipient()")
        with self._session() as session:
            _abort(await session.sink(), "after data()")
        for cancelled in (False, True):
            with self._session() as session:
                sink = await session.sink()
                limit = self._delivery.max_message_octets
                # The delivery may refuse. The sink is aborted even then.
                with suppress(Refused):
                    for _ in range(min(5, limit // PIECE_OCTETS) if limit else 5):
                        written = session.call(sink.write, b"x" * PIECE_OCTETS)
                        if not _answered("write()", written, cancel=cancelled):
                            break
                _abort(sink, "after or during write()")

    async def cancelled_hooks(self) -> None:
        """Cancel hooks as the guard does: begin() when the client leaves, and finish() at the time limit."""
        with self._session() as session:
            begun = session.call(self._delivery.begin, session.client, self._plain.sender)
            for mail in _answered("begin()", begun, cancel=True):
                _abort(mail, "after begin()")
        with self._session(attrs.evolve(self._plain, what="a message that is cancelled")) as session:
            sink = await session.sink()
            await session.write(sink, b"Subject: cancelled\r\n\r\n")
            for reply in _answered("finish()", session.call(sink.finish), cancel=True):
                _check_reply(reply, "finish()")
                self.accepted += 1

    async def two_at_once(self) -> None:
        """Deliver two messages at the same time: sessions must be independent of each other."""
        envelope = attrs.evolve(self._plain, what="two messages at once")
        with self._session(envelope) as one, self._session(envelope) as other:
            sinks: list[tuple[_Session, IMessageSink]] = []
            for session in (one, other):
                with suppress(Refused):
                    sinks.append((session, await session.sink()))
            for piece in (b"Subject: two at once\r\n", b"\r\n", b"text\r\n"):
                for session, sink in sinks.copy():
                    try:
                        await session.write(sink, piece)
                    except Refused:
                        sinks.remove((session, sink))
            for session, sink in sinks:
                with suppress(Refused):
                    await session.finish(sink)
                    self.accepted += 1

    @contextmanager
    def _session(self, envelope: _Envelope | None = None) -> Iterator[_Session]:
        """A session with its own id. It may end with a refusal, which is no fault."""
        session = _Session(self._delivery, envelope or self._plain, next(self._sessions))
        with suppress(Refused):
            yield session
        session.end()


def _check_reply(reply: object, what: str) -> None:
    """Check the type of `reply`. `Refused`: it is a refusal."""
    require(reply is None or isinstance(reply, Reply), f"{what} answered {reply!r}, neither None nor a Reply")
    if isinstance(reply, Reply) and reply.code >= 300:
        raise Refused(reply)


def _checked_error(what: str, error: Exception) -> Exception:
    """The AssertionError for a hook's exception, or the exception itself if it is a valid refusal."""
    if not isinstance(error, Refused):
        return AssertionError(f"{what} raised {error!r}")
    code = error.reply.code
    if not 400 <= code < 600:
        return AssertionError(f"{what} refused with {code}, which refuses nothing")
    return error


def _abort(ended: IMailTransaction | IMessageSink, when: str) -> None:
    _tell_end(f"abort() {when}", ended.abort)


def _tell_end(what: str, end: Callable[..., object], *args: object) -> None:
    try:
        result = end(*args)
    except Exception as error:
        raise AssertionError(f"{what} raised {error!r}") from error
    require(result is None, f"{what} answered {result!r}, not None")


def _answered(what: str, pending: Deferred[Any], *, cancel: bool) -> list[Any]:
    """The answer of a hook, as the only item of a list. The list is empty if the hook has not answered yet, or has been
    cancelled: a pending hook is cancelled with `cancel`, and left pending without."""
    outcomes: list[Any] = []
    pending.addBoth(outcomes.append)
    cancelled = cancel and not outcomes
    if cancelled:
        pending.cancel()
        require(bool(outcomes), f"{what} was cancelled, and its Deferred has not fired")
    if not outcomes or not isinstance(outcomes[0], Failure):
        return outcomes
    error: Any = outcomes[0].value
    if not cancelled:
        raise _checked_error(what, error)
    require(isinstance(error, CancelledError | Refused), f"{what} was cancelled, and failed with {error!r}")
    return []
