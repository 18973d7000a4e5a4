"""Messages into objects that were written for twisted.mail.smtp. They see what its SMTP class would show them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from twisted.cred.credentials import Anonymous
from twisted.cred.error import UnauthorizedLogin, UnhandledCredentials
from twisted.cred.portal import Portal
from twisted.internet.defer import CancelledError, Deferred, DeferredList, fail
from twisted.logger import Logger
from twisted.mail.interfaces import IMessageDelivery, IMessageDeliveryFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_smtpguard.arguments import checked
from twisted_smtpguard.delivery.twistedmailview import ProtocolView, client_host
from twisted_smtpguard.hostnames import check_hostname
from twisted_smtpguard.interfaces import (
    Client,
    IMailTransaction,
    IMessageSink,
    ISessionDelivery,
    Path,
    Refused,
)
from twisted_smtpguard.later import FAULTS, asked, shielded
from twisted_smtpguard.smtp import replies
from twisted_smtpguard.smtp.replies import Reply

T = TypeVar("T")

_log = Logger()

MAX_LINE_OCTETS = 64 * 1024
"""IMessage takes whole lines. What is longer is refused, for a session must not hold more."""

_ENHANCED = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}(?!\S)")


def _smtp() -> Any:
    """twisted.mail.smtp. To import it chooses the reactor, which is not for a module that plugins import."""
    from twisted.mail import smtp  # noqa: PLC0415

    return smtp


@implementer(ISessionDelivery)
class TwistedMailDelivery:
    """Hands messages to `deliverer`, which was written for twisted.mail.smtp and is used as it is. It provides

    - IMessageDelivery: it is used for all messages; or
    - IMessageDeliveryFactory: it is asked for a delivery at each MAIL; or
    - it is a Portal of twisted.cred: at the first MAIL of a session its realm is asked for the avatar of the user
      who has logged in by AUTH, whoever checked the password, or else it is asked to let Anonymous() in; the logout
      is at the session's end. Where AUTH came behind a message, the next MAIL is a logout and another login.

    Anything else is a TypeError. `hostname` is the domain of an address that has none, and `user.protocol.host`.

    Every answer may be a Deferred or a coroutine. It is cancelled when the client leaves; that of eomReceived()
    is not, but at the time limit. A login and the making of a message are never cancelled: what comes too late
    is logged out at once, or told connectionLost(). SMTPServerError and its kinds refuse with their code and text.

    The client gets its 250 when eomReceived() has succeeded for every recipient. Where it raised SMTPServerError
    for every one, the client gets that code, a 4xx if there is one. Else it is a 451, and those recipients who
    have the message get it again when the client tries again.

    An IMessage cannot hold the client back: if it is slow it has to keep what it was given. It takes whole
    lines, so a line above 64 KiB is refused; each line is a call for each recipient.
    """

    # twisted.mail's addresses are ASCII: no SMTPUTF8. Its lines have no other octets than text: no BINARYMIME.
    # It has no place for the parameters of DSN. 8-bit text is lines like any other.
    extensions = frozenset({"8BITMIME"})
    max_message_octets = 0

    @checked
    def __init__(self, deliverer: object, hostname: str) -> None:
        if not (
            isinstance(deliverer, Portal)
            or IMessageDeliveryFactory.providedBy(deliverer)
            or IMessageDelivery.providedBy(deliverer)
        ):
            raise TypeError(
                f"an IMessageDelivery, an IMessageDeliveryFactory or a Portal is expected, not {deliverer!r}"
            )
        self._deliverer = deliverer
        self._hostname = check_hostname(hostname).encode("ascii")
        self._sessions: dict[str, _Session] = {}

    async def begin(self, client: Client, sender: Path) -> IMailTransaction:
        smtp = _smtp()
        session = self._sessions.get(client.session)
        if session is None:
            view = ProtocolView(client.peer, self._hostname)
            session = self._sessions[client.session] = _Session(self._deliverer, view)
        helo = (client.helo.encode(), client_host(client.peer))
        with _addresses(replies.BAD_SENDER_ADDRESS):
            address = smtp.Address(b"<%b>" % sender.address.encode(), self._hostname)
        with _refusals():
            delivery = await session.delivery(client, address)
            if delivery is None:
                raise smtp.SMTPBadSender(address)
            origin = await asked(delivery.validateFrom, helo, address)
        if not origin:
            # twisted.mail would go on, and refuse every recipient.
            raise ValueError(f"validateFrom() answered {origin!r}, not the sender's address")
        return _Mail(delivery, helo, origin, session)

    def session_ended(self, session: str) -> None:
        ended = self._sessions.pop(session, None)
        if ended is not None:
            ended.log_out()


class _Session:
    """Where the deliveries of one session come from."""

    def __init__(self, deliverer: object, protocol: ProtocolView) -> None:
        self.protocol = protocol
        self._portal = deliverer if isinstance(deliverer, Portal) else None
        self._source: Any = None if self._portal else deliverer
        self._is_factory = IMessageDeliveryFactory.providedBy(deliverer)
        self._of: Client | None = None
        """Who has logged in to the portal."""
        self._logouts: list[Callable[[], object]] = []
        self._pending = 0

    async def delivery(self, client: Client, sender: object) -> Any:
        """The delivery for the next message, or None. SMTPBadSender where nobody may log in."""
        if self._portal is not None and not _is_same_user(self._of, client):
            # Who is refused now does not go on as who was let in before.
            self._of = self._source = None
            if not self._pending:
                self.log_out()
            await self._log_in(self._portal, client, sender)
        return await asked(self._source.getMessageDelivery) if self._is_factory else self._source

    async def _log_in(self, portal: Portal, client: Client, sender: object) -> None:
        interfaces = (IMessageDeliveryFactory, IMessageDelivery)
        login: Deferred[Any]
        avatar_id: Any = client.avatar_id
        try:
            if client.identity is None:
                login = asked(portal.login, Anonymous(), None, *interfaces)
            else:
                # The other half of Portal.login(). The password has been checked, and is no longer there.
                login = asked(portal.realm.requestAvatar, avatar_id, None, *interfaces)
            interface, avatar, logout = await _or_given_back(login, _log_out_again)
        except UnauthorizedLogin as error:
            raise _smtp().SMTPBadSender(sender) from error
        except UnhandledCredentials as error:
            raise _smtp().SMTPBadSender(sender, resp="Unauthenticated senders not allowed") from error
        # Before anything can be wrong with it: each login gets its logout, one that is of no use too.
        self._logouts.append(logout)
        if not any(interface.isOrExtends(each) for each in interfaces):
            raise TypeError(f"the realm answered with {interface!r}, which it was not asked for")
        self._is_factory = interface.isOrExtends(IMessageDeliveryFactory)
        self._source, self._of = avatar, client

    @contextmanager
    def pending(self) -> Iterator[None]:
        """A verdict is. Beyond its time limit it may still be so at the next MAIL: then nobody is logged out."""
        self._pending += 1
        try:
            yield
        finally:
            self._pending -= 1

    def log_out(self) -> None:
        """Whoever is in. A login that is still to come is logged out then."""
        logouts, self._logouts = self._logouts, []
        for logout in logouts:
            _log_out(logout)


def _is_same_user(before: Client | None, now: Client) -> bool:
    """By the same AUTH, or both by none."""
    return before is not None and before.identity == now.identity and before.avatar_id is now.avatar_id


@implementer(IMailTransaction)
class _Mail:
    def __init__(self, delivery: Any, helo: tuple[bytes, bytes], origin: object, session: _Session) -> None:
        self._delivery = delivery
        self._helo = helo
        self._origin = origin
        self._session = session
        self._recipients: list[tuple[object, Callable[[], object]]] = []

    async def recipient(self, recipient: Path) -> None:
        address = b"<%b>" % recipient.address.encode()
        with _addresses(replies.BAD_RECIPIENT_ADDRESS):
            user = _smtp().User(address, self._helo, self._session.protocol, self._origin)
        with _refusals():
            make_message = await asked(self._delivery.validateTo, user)
        self._recipients.append((user, make_message))

    async def data(self) -> IMessageSink:
        messages: list[Any] = []
        ask_received = self._delivery.receivedHeader
        try:
            with _refusals():
                for user, make_message in self._recipients:
                    message: Any = await _or_given_back(asked(make_message), _discard)
                    messages.append(message)
                    received = await asked(ask_received, self._helo, self._origin, [user])
                    if received:
                        message.lineReceived(received)
        except BaseException:
            _discard_all(messages)
            raise
        return _Sink(messages, self._session)

    def abort(self) -> None:
        """No message was made yet."""


@implementer(IMessageSink)
class _Sink:
    """The messages of all recipients, told line by line."""

    def __init__(self, messages: Sequence[Any], session: _Session) -> None:
        self._messages = messages
        self._session = session
        self._partial = bytearray()
        self._begun = False

    def write(self, data: bytes) -> None:
        lines: list[bytes] = []
        if b"\n" in data:
            *lines, rest = (bytes(self._partial) + data).split(b"\r\n")
            self._partial = bytearray(rest)
        else:
            # A line that comes an octet at a time is not looked at again for each of them.
            self._partial += data
        # A line that began in these octets is no longer than they are.
        unfinished = len(self._partial) - self._partial.endswith(b"\r")
        if max(unfinished, len(lines[0]) if lines else 0) > MAX_LINE_OCTETS:
            raise Refused(replies.MESSAGE_LINE_TOO_LONG)
        self._tell(lines)

    def _tell(self, lines: Sequence[bytes]) -> None:
        with _refusals():
            if lines and not self._begun:
                self._begun = True
                if lines[0] and b":" not in lines[0]:
                    # A message without a header. As in twisted.mail, the Received field gets its end.
                    self._tell([b""])
            for line in lines:
                for message in self._messages:
                    message.lineReceived(line)

    async def finish(self) -> None:
        if self._partial:
            try:
                self._tell([bytes(self._partial)])
            except BaseException:
                self.abort()
                raise
        with self._session.pending():
            verdicts = [_end(message) for message in self._messages]
            outcomes = await DeferredList(verdicts, consumeErrors=True)
        _check([outcome for succeeded, outcome in outcomes if not succeeded], len(outcomes))

    def abort(self) -> None:
        _discard_all(self._messages)


def _check(failures: Sequence[Failure], recipients: int) -> None:
    """Raise what the failures of some of the recipients' messages come to. The guard logs what is no refusal."""
    if not failures:
        return
    unexpected = [failure for failure in failures if not failure.check(_smtp().SMTPServerError)]
    if not unexpected and len(failures) == recipients:
        refusals = [_refusal(failure.value) for failure in failures]
        raise Refused(min(refusals, key=lambda reply: reply.code // 100))
    raised = (unexpected or failures)[0]
    for failure in failures:
        if failure is not raised and not failure.check(CancelledError):
            _report(failure, "eomReceived")
    raised.raiseException()


def _end(message: Any) -> Deferred[Any]:
    """Its verdict. A message that cannot be asked for one keeps no other from its own."""
    try:
        end = message.eomReceived
    except FAULTS:
        # Whatever is put into the place of an IMessage.
        _discard(message)
        return fail()
    return asked(end)


def _discard_all(messages: Sequence[Any]) -> None:
    for message in messages:
        _discard(message)


def _discard(message: Any) -> None:
    ended = asked(lambda: message.connectionLost())  # noqa: PLW0108 - to look it up can fail too
    ended.addErrback(_report, "connectionLost")


def _log_out_again(login: tuple[object, object, Callable[[], object]]) -> None:
    _log_out(login[2])


def _log_out(logout: Callable[[], object]) -> None:
    asked(logout).addErrback(_report, "logout")


def _or_given_back(promised: Deferred[T], give_back: Callable[[T], None]) -> Deferred[T]:
    """What `promised` fires with; once cancelled, `give_back` gets that.

    `promised` itself is not cancelled: Deferreds without a canceller, as of threads and databases, fail at once
    then, and drop what comes of the work that goes on.
    """

    def hand_over(given: T) -> T:
        if taken is not None and taken.called:
            give_back(given)
        return given

    taken: Deferred[T] | None = None
    promised.addCallback(hand_over)
    taken = shielded(promised)
    return taken


def _report(failure: Failure, what: str) -> None:
    _log.failure("{what}() failed", failure, what=what)


@contextmanager
def _refusals() -> Iterator[None]:
    """SMTPServerError, of which SMTPBadSender and SMTPBadRcpt are kinds, becomes `Refused`."""
    try:
        yield
    except _smtp().SMTPServerError as error:
        raise Refused(_refusal(error)) from error


def _refusal(error: Any) -> Reply:
    """The reply of an SMTPServerError. An enhanced code that its text begins with is one here too."""
    text = error.resp or ""
    text = text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else str(text)
    found = _ENHANCED.match(text)
    enhanced = found[0] if found else ""
    lines = [f"{line} ".removeprefix(f"{enhanced} ").strip() for line in text.splitlines()]
    return Reply(error.code, enhanced, tuple(filter(None, lines)) or ("Refused",))


@contextmanager
def _addresses(malformed: Reply) -> Iterator[None]:
    """twisted.mail knows fewer addresses than RFC 5321: no address literals, no escaped quotes."""
    try:
        yield
    except _smtp().AddressError as error:
        raise Refused(malformed) from error
