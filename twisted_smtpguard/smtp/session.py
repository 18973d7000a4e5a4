"""One SMTP session: its phase, its counts, its transaction. Lines and octets come in, answers go out.

It knows no transport and never writes. The protocol calls `execute` for a line, `incoming.receive` for message data,
`account` for each reply before it is written, and `end` once.
"""

from __future__ import annotations

from typing import Any

from twisted.python.failure import Failure

from twisted_smtpguard.admission.visitor import Visitor
from twisted_smtpguard.faults import safely
from twisted_smtpguard.interfaces import Client, ISessionDelivery, Path, Refused
from twisted_smtpguard.smtp import grammar, lenient, replies
from twisted_smtpguard.smtp.auth import Authentication
from twisted_smtpguard.smtp.commands import COMMANDS, Command
from twisted_smtpguard.smtp.conduct import Conduct
from twisted_smtpguard.smtp.farewell import Farewell
from twisted_smtpguard.smtp.phases import IN_TRANSACTION, Phase
from twisted_smtpguard.smtp.reception import Reception
from twisted_smtpguard.smtp.replies import Reply
from twisted_smtpguard.smtp.sasl import MECHANISMS
from twisted_smtpguard.smtp.site import Site
from twisted_smtpguard.smtp.transaction import Answer, Transaction

_NOBODY = Path("", {})
_NOTHING: frozenset[str] = frozenset()
_NO_RECIPIENTS: list[str] = []
"""Of a session before its first MAIL, which brings a list of its own."""


class Session:
    """The state of one session, between the wire and the delivery."""

    __slots__ = (
        "_client",
        "_helo",
        "auth",
        "began_at",
        "conduct",
        "ended",
        "ends_group",
        "farewell",
        "messages",
        "name",
        "offered",
        "phase",
        "quit",
        "reception",
        "recipients",
        "sender",
        "site",
        "tls",
        "transaction",
        "transactions",
        "utf8",
        "visitor",
    )

    def __init__(self, site: Site, name: str, visitor: Visitor, tls: str = "") -> None:
        self.site = site
        self.name = name
        self.visitor = visitor
        self.tls = visitor.tls = tls
        """How what is said is encrypted; "": it is not."""
        self.phase = Phase.CONNECTED
        self.offered = _NOTHING
        """MAIL parameters that may be used: none before EHLO."""
        self.quit = False
        self.ended = False
        self.messages = 0
        """Accepted ones."""
        self.conduct = Conduct(site, name, visitor)
        self._helo = ""
        self._client: Client | None = None
        """As most messages of the session know it."""
        self.transactions = 0
        """That were begun."""
        self.farewell: Farewell | None = None
        """Where the delivery wants to hear of the end."""
        self.auth: Authentication | None = None
        """There is one from the first AUTH on."""
        self.ends_group = False
        """The command whose reply is still to come does (RFC 2920 3.1)."""
        # Of the transaction:
        self.transaction: Transaction | None = None
        self.sender = _NOBODY
        self.recipients = _NO_RECIPIENTS
        """Accepted ones."""
        self.utf8 = False
        """It was begun with SMTPUTF8."""
        self.began_at = 0.0
        """Its MAIL was accepted, by the guard's clock."""
        self.reception: Reception | None = None
        """There is one between DATA or the first BDAT and the verdict."""

    # What the protocol asks.

    @property
    def receiving(self) -> bool:
        """What the client sends now is message data, not a command."""
        return self.reception is not None and self.reception.open

    def cuts_message_off(self, octets: bytes) -> bool:
        """Whether message data is due, and does not end within `octets`, the last that there are."""
        return self.receiving and self.reception is not None and not self.reception.ends_within(octets)

    @property
    def slow_to_read(self) -> bool:
        """Message data that may take long to read has to come in small pieces."""
        return self.reception is not None and self.reception.slow_to_read

    @property
    def amid_message(self) -> bool:
        """Message data has begun and is not complete: it is expected, though perhaps behind another BDAT."""
        return self.receiving or self.phase is Phase.CHUNKS

    @property
    def in_transaction(self) -> bool:
        """Between MAIL and the verdict."""
        return self.phase in IN_TRANSACTION

    @property
    def finishing(self) -> bool:
        """The delivery is deciding on a whole message; nobody may interrupt it."""
        return self.transaction is not None and self.transaction.finishing

    def execute(self, line: bytes, pipelined: bool) -> Answer:
        """Carry out one command line without its CRLF. `pipelined`: more input stands behind it."""
        plain = grammar.plain_path(line)
        if plain is not None:
            command = COMMANDS[line[:4]]
            parsed: Any = Path(plain[1].decode("ascii"), grammar.NO_PARAMETERS)
        else:
            try:
                verb, parsed = grammar.parse_command(line)
            except Refused as refused:
                return self.invalid_line(refused.reply)
            if verb not in COMMANDS:
                return self.invalid_line(replies.UNRECOGNIZED_COMMAND, verb)
            command = COMMANDS[verb]
        phase, conduct = self.phase, self.conduct
        conduct.begin(
            command,
            command.junk or (command.junk_again and self._helo != ""),
            self.sender.address if phase in IN_TRANSACTION else None,
        )
        if self.site.draining:
            conduct.unremarkable = False
            if phase not in command.phases_while_draining:
                return replies.SHUTTING_DOWN
        self.ends_group = command.ends_group
        if pipelined and command.ends_group and self.refuses_pipelining():
            return replies.UNEXPECTED_PIPELINING
        try:
            if plain is None:
                parsed = self._parse(command, parsed)
            if phase not in command.phases:
                return command.misplaced(self, parsed) if command.misplaced else self.misplaced()
            return command.run(self, parsed)
        except Refused as refused:
            if refused.reply is replies.BAD_ARGUMENTS:
                self.conduct.behind = command.malformed
            elif isinstance(refused, grammar.UnsupportedParameter):
                self.conduct.parameter = refused.keyword
            return refused.reply

    def _parse(self, command: Command, argument: bytes) -> Any:
        try:
            return command.parse(argument, self.offered, self.utf8)
        except Refused:
            proper = lenient.proper_form(argument) if command.has_path and self._is_lenient else None
            if proper is None:
                raise
            return command.parse(proper, self.offered, self.utf8)

    @property
    def _is_lenient(self) -> bool:
        whom = self.site.limits.lenient_addresses
        return whom == "all" or (whom == "trusted" and self.visitor.trusted)

    def respond(self, line: bytes, pipelined: bool) -> Answer:
        """A line behind a challenge of AUTH."""
        auth = self.auth
        if auth is None or not auth.awaits_response:
            return self.execute(line, pipelined)
        self.ends_group = True
        if self.site.draining or (pipelined and self.refuses_pipelining()):
            auth.cancel()
            return replies.SHUTTING_DOWN if self.site.draining else replies.UNEXPECTED_PIPELINING
        return auth.respond(line)

    def refuses_pipelining(self) -> bool:
        """Whether the input that stands behind the last command, before its reply, ends the session
        (RFC 2920 3.1)."""
        refuses = self.ends_group and self.site.limits.unexpected_pipelining == "refuse"
        return refuses and self.conduct.trips("unexpected_pipelining", once=True)

    def invalid_line(self, reply: Reply, verb: bytes = b"") -> Reply:
        """A line that is no command at all. `verb`: what it looks like one with."""
        if self.auth is not None:
            self.auth.cancel()
        if self.site.draining:
            return replies.SHUTTING_DOWN
        self.conduct.begin(None, False, None)
        self.conduct.unknown = verb
        return self.conduct.invalid(reply)

    @property
    def unremarkable(self) -> bool:
        """No reply below 400 to the last command needs an account."""
        return self.conduct.unremarkable and not (self.quit or self.site.draining)

    def account(self, reply: Reply, reason: str = "") -> Reply | None:
        """Count and log a reply that is about to be written; what comes back ends the session behind it.

        `reason` stands in for the one that the reply has in the catalogue.
        """
        if self.quit:
            return None
        return self.conduct.account(reply, reason, between=self.phase not in IN_TRANSACTION)

    def broken(self, failure: Failure, *, amid_data: bool = False) -> Reply:
        """Our own fault: logged with its traceback; the process and the other sessions go on.

        `amid_data`: while message data was read. How much of it was is not known, and the rest of a message must
        never be taken for commands.
        """
        self.site.events.failure(failure, "the session failed", self.name, self.visitor.name)
        if amid_data or self.receiving or not self.in_transaction:
            return replies.LOCAL_ERROR_CLOSING
        self.reset()
        return replies.LOCAL_ERROR

    def expire(self) -> None:
        """A hook had its time. The answer that is pending comes now."""
        if self.auth is not None:
            self.auth.expire()
        if self.transaction is not None:
            self.transaction.expire()

    def end(self) -> None:
        """The connection is closing or gone: nothing is delivered any more, but what is being finished is."""
        if self.ended:
            return
        self.ended = True
        if self.finishing:
            self.site.orphans += 1
        elif self.transaction is not None:
            self.transaction.end()
            self.transaction = None
        if self.auth is not None:
            self.auth.end()
        if self.farewell is not None:
            self.farewell.session_ended()

    # What a row of COMMANDS asks.

    def greet(self, name: str, *, extended: bool) -> Reply:
        """HELO or EHLO, which also resets a transaction (RFC 5321 4.1.4)."""
        self._helo = self.visitor.helo = name
        self._client = None
        self.reset()
        if extended:
            offer = self.site.offer(self.tls != "")
            self.offered = offer.mail_parameters
            return offer.reply
        self.offered = _NOTHING
        return self.site.hello

    def start_tls(self) -> Reply:
        """STARTTLS (RFC 3207). Where it is granted `secured` follows."""
        if not self.site.starttls:
            return self.conduct.invalid(replies.UNRECOGNIZED_COMMAND)
        if self.tls:
            return self.misplaced()
        self.reset()
        return replies.READY_FOR_TLS

    def secured(self, tls: str) -> None:
        """TLS has begun. What was said in clear may have been anybody's; what was counted stays (RFC 3207 4.2)."""
        self.tls = self.visitor.tls = tls
        if self.auth is not None:
            self.auth.forget()
        self._helo = self.visitor.helo = ""
        self.offered = _NOTHING
        self.reset()

    def authenticate(self, mechanism: str, initial: bytes | None) -> Answer:
        """AUTH: once in a session, between transactions, behind EHLO (RFC 4954 4)."""
        site = self.site
        if self.phase is not Phase.READY or not self.offered or self.identity is not None:
            return self.misplaced()
        if not (self.tls or site.auth_without_tls):
            return replies.ENCRYPTION_REQUIRED
        if mechanism not in MECHANISMS:
            return replies.UNKNOWN_MECHANISM
        self._client = None
        if self.auth is None:
            self.auth = Authentication(self)
        return self.auth.begin(mechanism, initial)

    @property
    def identity(self) -> str | None:
        """The user who has logged in."""
        return None if self.auth is None else self.auth.identity

    def reset(self) -> None:
        """No transaction any more; what was begun is aborted."""
        if self.transaction is not None:
            self.transaction.end()
        self.transaction = self.reception = None
        self.utf8 = False
        self.phase = Phase.READY if self._helo else Phase.CONNECTED

    def client(self, utf8: bool) -> Client:
        """The session as the delivery knows it, for a message with or without SMTPUTF8."""
        if not utf8 and self._client is not None:
            return self._client
        client = Client(
            peer=self.visitor.peer,
            session=self.name,
            helo=self._helo,
            protocol=self._protocol_word(utf8),
            identity=self.identity,
            trusted=self.visitor.trusted,
            tls=self.tls,
            avatar_id=None if self.auth is None or self.auth.user is None else self.auth.user.avatar_id,
        )
        if not utf8:
            self._client = client
        return client

    def _protocol_word(self, utf8: bool) -> str:
        """RFC 3848 and RFC 6531 4.3: what stands behind "with"."""
        marks = "S" if self.tls else ""
        if self.auth is not None and self.auth.identity is not None:
            marks += "A"
        if utf8:
            return f"UTF8SMTP{marks}"
        return f"ESMTP{marks}" if self.offered else "SMTP"

    @property
    def binary(self) -> bool:
        """The transaction was begun with BODY=BINARYMIME (RFC 3030)."""
        return self.in_transaction and self.sender.parameters.get("BODY") == "BINARYMIME"

    def misplaced(self) -> Reply:
        """A command out of sequence."""
        return self.conduct.invalid(replies.BAD_SEQUENCE)

    # What a transaction is told to call.

    def say_farewell(self) -> None:
        """The session is over for the delivery."""
        delivery = ISessionDelivery(self.site.delivery)
        safely(self.delivery_failed, "session_ended() raised", lambda: delivery.session_ended(self.name))

    def delivery_failed(self, failure: Failure, what: str) -> None:
        """Log what the delivery did wrong."""
        self.site.events.failure(failure, f"the delivery failed: {what}", self.name, self.visitor.name)
