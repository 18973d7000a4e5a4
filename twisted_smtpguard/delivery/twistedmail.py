"""`TwistedMailDelivery`: messages are handed to objects that were written for twisted.mail.smtp. They see what
twisted.mail's own SMTP class would show them."""

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

from twisted_smtpguard import replies
from twisted_smtpguard.delivery.trace import prepended
from twisted_smtpguard.delivery.twistedmailview import ProtocolView, client_host
from twisted_smtpguard.engine.hostnames import check_hostname
from twisted_smtpguard.hooks.later import call_hook
from twisted_smtpguard.inputs.arguments import checked
from twisted_smtpguard.interfaces import (
    IMailTransaction,
    IMessageSink,
    IPrependingTransaction,
    ISessionDelivery,
)
from twisted_smtpguard.replies import ENHANCED_CODE, Reply
from twisted_smtpguard.values import FAULTS, Client, Path, Refused

T = TypeVar("T")

_log = Logger()

MAX_LINE_OCTETS = 64 * 1024
"""The longest line of a message. IMessage takes whole lines, and a session must not hold more than this."""

_ENHANCED = re.compile(rf"{ENHANCED_CODE}(?!\S)")


def _smtp() -> Any:
    """The module twisted.mail.smtp. It is imported at its first use, since the import installs a reactor, which a
    module that plugins import must not do."""
    from twisted.mail import smtp  # noqa: PLC0415

    return smtp


@implementer(ISessionDelivery)
class TwistedMailDelivery:
    """Hands messages to `deliverer`, which was written for twisted.mail.smtp and is used unchanged. It is one of these:

    - An IMessageDelivery is used for all messages.
    - An IMessageDeliveryFactory is asked for a delivery at each MAIL.
    - A Portal of twisted.cred is used at the first MAIL of a session. If the client has logged in by AUTH, the realm is
      asked for the user's avatar, whichever checker accepted the password; else the portal is asked for a login of
      Anonymous(). The logout is at the end of the session. An AUTH after a message makes the next MAIL a logout and
      another login.

    Anything else is a TypeError. `hostname` is the domain of an address that has none, and `user.protocol.host`.

    Every answer may be a Deferred or a coroutine. It is cancelled when the client leaves; that of eomReceived() is
    cancelled only at the time limit. A login and the making of a message are never cancelled: an avatar that comes too
    late is logged out at once, and a message is told connectionLost(). SMTPServerError and its subclasses refuse with
    their code and text.

    The client gets a 250 when eomReceived() has succeeded for every recipient. If it raised SMTPServerError for every
    one, the client gets that code, a 4xx if there is one. Else the client gets a 451, and the recipients who have the
    message get it again when the client tries again.

    An IMessage cannot hold the client back: if it is slow it has to buffer its input. It takes whole lines, so a line
    above 64 KiB is refused; each line is one call for each recipient.
    """

    # twisted.mail's addresses are ASCII, so there is no SMTPUTF8. Its lines are text, so there is no BINARYMIME. It has
    # no place for the parameters of DSN. 8-bit text is lines like any other.
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
            origin = await call_hook(delivery.validateFrom, helo, address)
        if not origin:
            # twisted.mail would go on and refuse every recipient.
            raise ValueError(f"validateFrom() answered {origin!r}, not the sender's address")
        return _Mail(delivery, helo, origin, session)

    def session_ended(self, session: str) -> None:
        ended = self._sessions.pop(session, None)
        if ended is not None:
            ended.log_out()


class _Session:
    """The login of one session, and the source of its deliveries."""

    def __init__(self, deliverer: object, protocol: ProtocolView) -> None:
        self.protocol = protocol
        self._portal = deliverer if isinstance(deliverer, Portal) else None
        self._source: Any = None if self._portal else deliverer
        self._is_factory = IMessageDeliveryFactory.providedBy(deliverer)
        self._user: Client | None = None
        """The client as it was at its login to the portal."""
        self._logouts: list[Callable[[], object]] = []
        self.pending = 0
        """How many messages have no verdict yet. A message may have none at the next MAIL, even after its time limit;
        then no login is ended, since the message may still need its avatar."""

    async def delivery(self, client: Client, sender: object) -> Any:
        """The delivery for the next message, or None. SMTPBadSender: the portal refused the login."""
        if self._portal is not None and not _is_same_user(self._user, client):
            # If this login is refused, the session must not go on as the previous user.
            self._user = self._source = None
            if not self.pending:
                self.log_out()
            await self._log_in(self._portal, client, sender)
        return await call_hook(self._source.getMessageDelivery) if self._is_factory else self._source

    async def _log_in(self, portal: Portal, client: Client, sender: object) -> None:
        interfaces = (IMessageDeliveryFactory, IMessageDelivery)
        try:
            login: Callable[..., Any] = portal.login
            credentials: Any = Anonymous()
            if client.identity is not None:
                # This is the second half of Portal.login(). The password was checked at AUTH and is not kept.
                login, credentials = portal.realm.requestAvatar, client.avatar_id
            logged_in = call_hook(login, credentials, None, *interfaces)
            interface, avatar, logout = await _or_returned_late(logged_in, lambda late: _log_out(late[2]))
        except UnauthorizedLogin as error:
            raise _smtp().SMTPBadSender(sender) from error
        except UnhandledCredentials as error:
            raise _smtp().SMTPBadSender(sender, resp="Unauthenticated senders not allowed") from error
        # The logout is kept before the avatar is checked, since a login that cannot be used must be ended too.
        self._logouts.append(logout)
        if not any(interface.isOrExtends(each) for each in interfaces):
            raise TypeError(f"the realm answered with {interface!r}, which it was not asked for")
        self._is_factory = interface.isOrExtends(IMessageDeliveryFactory)
        self._source, self._user = avatar, client

    def log_out(self) -> None:
        """Log out every login of the session."""
        logouts, self._logouts = self._logouts, []
        for logout in logouts:
            _log_out(logout)


def _log_out(logout: Callable[[], object]) -> None:
    call_hook(logout).addErrback(_report, "logout")


def _is_same_user(before: Client | None, now: Client) -> bool:
    """Whether both are the same user after the same AUTH, or neither has logged in."""
    return before is not None and before.identity == now.identity and before.avatar_id is now.avatar_id


@implementer(IPrependingTransaction)
class _Mail:
    def __init__(self, delivery: Any, helo: tuple[bytes, bytes], origin: object, session: _Session) -> None:
        self._delivery = delivery
        self._helo = helo
        self._origin = origin
        self._session = session
        self._recipients: list[tuple[object, Callable[[], object]]] = []
        self._prepended: list[bytes] = []

    async def recipient(self, recipient: Path) -> None:
        address = b"<%b>" % recipient.address.encode()
        with _addresses(replies.BAD_RECIPIENT_ADDRESS):
            user = _smtp().User(address, self._helo, self._session.protocol, self._origin)
        with _refusals():
            make_message = await call_hook(self._delivery.validateTo, user)
        self._recipients.append((user, make_message))

    def prepend(self, fields: Sequence[str]) -> None:
        self._prepended = prepended(fields).split(b"\r\n")[:-1]

    async def data(self) -> IMessageSink:
        messages: list[Any] = []
        ask_received = self._delivery.receivedHeader
        try:
            with _refusals():
                for user, make_message in self._recipients:
                    message: Any = await _or_returned_late(call_hook(make_message), _discard)
                    messages.append(message)
                    for line in self._prepended:
                        message.lineReceived(line)
                    received = await call_hook(ask_received, self._helo, self._origin, [user])
                    if received:
                        message.lineReceived(received)
        except BaseException:
            _discard_all(messages)
            raise
        return _Sink(messages, self._session)

    def abort(self) -> None:
        """There is nothing to undo before DATA."""


@implementer(IMessageSink)
class _Sink:
    """The message for all recipients, passed on line by line."""

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
            # A line that comes an octet at a time must not be searched from its beginning for each octet.
            self._partial += data
        # Only the first line can have begun before these octets, so only it can be too long.
        unfinished = len(self._partial) - self._partial.endswith(b"\r")
        if max(unfinished, len(lines[0]) if lines else 0) > MAX_LINE_OCTETS:
            raise Refused(replies.MESSAGE_LINE_TOO_LONG)
        self._pass_on(lines)

    def _pass_on(self, lines: Sequence[bytes]) -> None:
        """Pass whole lines on to the message object of each recipient."""
        with _refusals():
            if lines and not self._begun:
                self._begun = True
                if lines[0] and b":" not in lines[0]:
                    # The message has no header. As in twisted.mail, an empty line is put after the Received field.
                    self._pass_on([b""])
            for line in lines:
                for message in self._messages:
                    message.lineReceived(line)

    async def finish(self) -> None:
        if self._partial:
            try:
                self._pass_on([bytes(self._partial)])
            except BaseException:
                self.abort()
                raise
        self._session.pending += 1
        try:
            verdicts = [_end(message) for message in self._messages]
            outcomes = await DeferredList(verdicts, consumeErrors=True)
        finally:
            self._session.pending -= 1
        _raise_failures([outcome for succeeded, outcome in outcomes if not succeeded], len(outcomes))

    def abort(self) -> None:
        _discard_all(self._messages)


def _raise_failures(failures: Sequence[Failure], recipients: int) -> None:
    """Raise one exception for the failures of some recipients. The guard logs it unless it is `Refused`; the others are
    logged here."""
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
    """Ask `message` for its verdict. An object without eomReceived() fails alone, so that the other recipients still
    get the message."""
    try:
        end = message.eomReceived
    except FAULTS:
        # The object is no IMessage.
        _discard(message)
        return fail()
    return call_hook(end)


def _discard_all(messages: Sequence[Any]) -> None:
    for message in messages:
        _discard(message)


def _discard(message: Any) -> None:
    ended = call_hook(lambda: message.connectionLost())  # noqa: PLW0108 - the attribute may be missing
    ended.addErrback(_report, "connectionLost")


def _or_returned_late(promised: Deferred[T], give_back: Callable[[T], None]) -> Deferred[T]:
    """A Deferred that fires as `promised` does. If it is cancelled before that, `give_back` gets the late result.

    `promised` itself is not cancelled: a Deferred without a canceller, such as one of a thread or a database, would
    fail at once and lose the result of the work, which goes on.
    """

    taken: Deferred[T] = Deferred()

    def hand_over(outcome: Any) -> None:
        if not taken.called:
            taken.callback(outcome)
        elif not isinstance(outcome, Failure):
            give_back(outcome)

    promised.addBoth(hand_over)
    return taken


def _report(failure: Failure, what: str) -> None:
    _log.failure("{what}() failed", failure, what=what)


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn SMTPServerError, and so SMTPBadSender and SMTPBadRcpt, into `Refused`."""
    try:
        yield
    except _smtp().SMTPServerError as error:
        raise Refused(_refusal(error)) from error


def _refusal(error: Any) -> Reply:
    """The reply for an SMTPServerError. If its text begins with an enhanced code, the reply has that code."""
    text = error.resp or ""
    text = text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else str(text)
    found = _ENHANCED.match(text)
    enhanced = found[0] if found else ""
    lines = [f"{line} ".removeprefix(f"{enhanced} ").strip() for line in text.splitlines()]
    return Reply(error.code, enhanced, tuple(filter(None, lines)) or ("Refused",))


@contextmanager
def _addresses(malformed: Reply) -> Iterator[None]:
    """Turn AddressError into `Refused`. twisted.mail knows fewer addresses than RFC 5321: no address literals and no
    escaped quotes."""
    try:
        yield
    except _smtp().AddressError as error:
        raise Refused(malformed) from error
