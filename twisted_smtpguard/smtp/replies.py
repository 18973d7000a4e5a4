"""Every reply the guard makes, once: its code, its text, when it is sent, and the reason that the log gives.

Code, tests and docs/reference/replies.md use these names. Texts and codes: RFC 5321 4.2, RFC 2034, RFC 3463.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache

import attrs

from twisted_smtpguard.arguments import check_fields
from twisted_smtpguard.escaping import escape_text

MAX_LINE_OCTETS = 512
"""RFC 5321 4.5.3.1.5: a reply line, its CRLF included."""


@attrs.frozen
class Reply:
    """One SMTP reply. `lines` is text without code and line end; it is escaped and cut when written.

    A 421 or 521 closes the session after the line, whoever returns it. A 521 after the greeting is followed by a 421.
    """

    code: int
    enhanced: str
    """An enhanced status code such as `5.1.1` (RFC 3463), put on every line; "" for none."""
    lines: tuple[str, ...]
    said: str = attrs.field(default="", kw_only=True, eq=False, repr=False)
    """The code and words of an upstream server, for the log, where this passes on what it said. "": this does not."""

    wire: bytes = attrs.field(init=False, repr=False, eq=False)
    """The octets to write, made once: most replies are written many times."""

    closes: bool = attrs.field(init=False, repr=False, eq=False)
    """Whether the session ends after this reply."""

    def __attrs_post_init__(self) -> None:
        # A delivery may make one for every message.
        if not (
            type(self.code) is int
            and type(self.enhanced) is type(self.said) is str
            and _are_lines(self.lines)
        ):
            check_fields(self)
        object.__setattr__(self, "wire", b"".join(_render(self)))
        object.__setattr__(self, "closes", self.code in (421, 521))


def _are_lines(lines: object) -> bool:
    return type(lines) is tuple and all(type(line) is str for line in lines)


@attrs.frozen
class Step(Reply):
    """A reply behind which what the client sends is no command: TLS, or an answer to a question."""


_ENHANCED = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}")


def with_enhanced_code(reply: Reply) -> Reply:
    """Somebody else's reply with an enhanced code of its class (RFC 2034 4): its own, or x.0.0."""
    kind = str(reply.code // 100)
    if _ENHANCED.fullmatch(reply.enhanced) is None or reply.enhanced[0] != kind:
        return attrs.evolve(reply, enhanced=f"{kind}.0.0")
    return reply


def known_code(code: int) -> int:
    """A code that somebody else chose as it may go out: where the second digit is none of RFC 5321 4.2.1, the plain
    code of its class, 250, 450 or 550."""
    return code if code // 10 % 10 <= 5 else code // 100 * 100 + 50


def with_known_code(reply: Reply) -> Reply:
    """Somebody else's reply with a code that there is."""
    code = known_code(reply.code)
    return reply if code == reply.code else attrs.evolve(reply, code=code)


def _render(reply: Reply) -> Iterator[bytes]:
    lines = reply.lines or ("",)
    for number, text in enumerate(lines, 1):
        mark = " " if number == len(lines) else "-"
        code = f"{reply.enhanced} " if reply.enhanced else ""
        line = escape_text(f"{reply.code}{mark}{code}{text}")
        yield line[: MAX_LINE_OCTETS - 2].encode("ascii") + b"\r\n"


@attrs.frozen
class Entry:
    """A row of the catalogue."""

    name: str
    reply: Reply
    when: str
    reason: str
    """What a `reject` log line gives as its reason; "" where the reply refuses nothing."""


_WHEN: dict[Reply, tuple[str, str]] = {}


def _reply(
    code: int, enhanced: str, text: str, when: str, reason: str = "", kind: type[Reply] = Reply
) -> Reply:
    reply = kind(code, enhanced, (text,))
    assert reply not in _WHEN, f"{reply} stands twice"
    _WHEN[reply] = (when, reason)
    return reply


def reason_of(reply: Reply) -> str:
    """The log reason of a refusal. A reply that is not ours is an upstream server's, or the delivery's own."""
    if reply.said:
        # It may say word for word what we say.
        return "upstream_refused"
    return _WHEN.get(reply, ("", "delivery_refused"))[1]


def text_of(reply: Reply) -> str:
    """A reply in one line."""
    return " ".join(filter(None, [str(reply.code), reply.enhanced, *reply.lines]))


def words_of(reply: Reply) -> str:
    """What somebody else said: an upstream server, or a delivery that chose its reply. "": the reply is ours."""
    return reply.said or ("" if reply in _WHEN else text_of(reply))


def hint_of(reason: str, peer: str) -> str:
    """The option that is missing, perhaps, where a refusal of `peer` comes from a mistake of the operator's own."""
    return f"--proxy-protocol-from={peer}" if reason == "unexpected_proxy_header" else ""


def catalogue() -> Iterator[Entry]:
    """Every fixed reply in the order of this file. The reference documentation is checked against it."""
    for name, value in list(globals().items()):
        if isinstance(value, Reply):
            when, reason = _WHEN[value]
            yield Entry(name, value, when, reason)


# Replies that are made for the occasion.


def greeting(hostname: str) -> Reply:
    """The first line. It carries no enhanced code and no version."""
    return Reply(220, "", (f"{hostname} ESMTP ready",))


def hello(hostname: str, keywords: Iterable[str] = ()) -> Reply:
    """The answer to HELO, or with `keywords` to EHLO (RFC 5321 4.1.1.1)."""
    return Reply(250, "", (hostname, *keywords))


def chunk_received(octets: int) -> Reply:
    """The answer to a BDAT that was not the last (RFC 3030)."""
    return Reply(250, "2.0.0", (f"{octets} octets received",))


def challenge(text: str) -> Step:
    """A question of an AUTH mechanism, in base64 (RFC 4954 4)."""
    return Step(334, "", (text,))


@cache
def commands(*, starttls: bool, auth: bool) -> Reply:
    """The answer to HELP: the commands that there are, those two where they are offered."""
    more = "STARTTLS " * starttls + "AUTH " * auth
    text = f"Commands: EHLO HELO {more}MAIL RCPT DATA BDAT RSET NOOP VRFY EXPN HELP QUIT"
    return Reply(214, "2.0.0", (text,))


# Success.

OK = _reply(250, "2.0.0", "OK", "RSET and NOOP")
SENDER_OK = _reply(250, "2.1.0", "Sender OK", "MAIL")
RECIPIENT_OK = _reply(250, "2.1.5", "Recipient OK", "RCPT, unless the delivery brings its own text")
MESSAGE_ACCEPTED = _reply(
    250, "2.0.0", "Message accepted", "end of data, once the delivery says that the message is safe"
)
START_DATA = _reply(354, "", "End data with <CR><LF>.<CR><LF>", "DATA")
READY_FOR_TLS = _reply(220, "2.0.0", "Ready to start TLS", "STARTTLS; the handshake follows", kind=Step)
AUTHENTICATED = _reply(235, "2.7.0", "Authentication successful", "AUTH, when the credentials are right")
GOODBYE = _reply(221, "2.0.0", "Closing connection", "QUIT")
CANNOT_VERIFY = _reply(
    252, "2.0.0", "Cannot verify the user, but will accept a message and attempt delivery", "VRFY"
)

# Admission.

TOO_MANY_CONNECTIONS = _reply(
    421,
    "4.7.0",
    "Too many connections, try again later",
    "at accept, above the cap of all connections",
    "max_connections",
)
CONNECTION_REFUSED = _reply(
    421,
    "4.7.0",
    "Connection refused",
    "an IP filter refuses, unless it brings a 421 or 521 of its own",
    "ip_filter",
)
TOO_MANY_CONNECTIONS_OF_CLIENT = _reply(
    421,
    "4.7.0",
    "Too many connections from your address, try again later",
    "before the greeting, above the cap of the client's connections",
    "max_connections_per_client",
)
CONNECTION_RATE_EXCEEDED = _reply(
    421,
    "4.7.0",
    "Connection rate exceeded, try again later",
    "before the greeting, above the client's rate of connections",
    "connection_rate",
)
EARLY_TALKER = _reply(
    421,
    "4.7.0",
    "Protocol error: client spoke before the greeting",
    "input before the greeting, where the operator refuses it",
    "early_talker",
)
NOT_SMTP = _reply(
    421,
    "4.7.0",
    "Not an SMTP client, closing connection",
    "the first line is an HTTP request, an SSH greeting, a TLS hello or a header field",
    "not_smtp",
)
UNEXPECTED_PROXY_HEADER = _reply(
    421,
    "4.7.0",
    "Protocol error: unexpected PROXY header",
    "a PROXY header, of version 1 or 2, begins a connection from where --proxy-protocol-from names no proxy",
    "unexpected_proxy_header",
)

# Commands.

UNRECOGNIZED_COMMAND = _reply(
    500,
    "5.5.1",
    "Command not recognized",
    "an unknown verb",
    "unrecognized_command",
)
SYNTAX_ERROR = _reply(
    500,
    "5.5.2",
    "Syntax error",
    "an empty line, a NUL anywhere in it, or a verb that is not ASCII",
    "syntax_error",
)
LINE_TOO_LONG = _reply(500, "5.5.2", "Line too long", "an over-long command line", "max_command_line")
BAD_LINE_END = _reply(
    500,
    "5.5.2",
    "Line must end with <CR><LF>",
    "a command line that ends with LF alone, or has a bare CR in it; then each further LF up to the next CRLF",
    "bad_line_end",
)
BAD_SEQUENCE = _reply(503, "5.5.1", "Bad sequence of commands", "a command out of sequence", "bad_sequence")
TOO_MANY_INVALID_COMMANDS = _reply(
    421,
    "4.4.0",
    "Too many errors, closing connection",
    "behind the reply to the last invalid command allowed; a line that never ends",
    "max_invalid_commands",
)
TOO_MANY_ERRORS = _reply(
    421,
    "4.7.0",
    "Too many errors, closing connection",
    "behind the last error allowed",
    "max_errors",
)
BAD_ARGUMENTS = _reply(
    501,
    "5.5.4",
    "Syntax error in parameters or arguments",
    "malformed arguments, a bad value of a known parameter, or a parameter given twice",
    "bad_arguments",
)
UNSUPPORTED_PARAMETER = _reply(
    555,
    "5.5.4",
    "Unsupported parameter",
    "a MAIL or RCPT parameter that was not advertised",
    "unsupported_parameter",
)
BAD_SENDER_ADDRESS = _reply(
    501, "5.1.7", "Bad sender address syntax", "MAIL with a malformed address", "bad_sender_address"
)
BAD_RECIPIENT_ADDRESS = _reply(
    501, "5.1.3", "Bad recipient address syntax", "RCPT with a malformed address", "bad_recipient_address"
)
NON_ASCII_ADDRESS = _reply(
    553,
    "5.6.7",
    "Non-ASCII address needs SMTPUTF8",
    "MAIL or RCPT with a non-ASCII address, the transaction being without SMTPUTF8",
    "non_ascii_address",
)
EXPN_NOT_IMPLEMENTED = _reply(502, "5.5.1", "EXPN is not implemented", "EXPN", "expn")
UNEXPECTED_PIPELINING = _reply(
    421,
    "4.7.0",
    "Protocol error: unexpected pipelined input",
    "input behind EHLO, HELO, AUTH or DATA before its reply, where the operator refuses it",
    "unexpected_pipelining",
)
INPUT_AFTER_STARTTLS = _reply(
    421,
    "4.7.0",
    "Protocol error: input after STARTTLS",
    "input behind STARTTLS before its reply: it would be taken for what was said under TLS",
    "starttls_injection",
)
TLS_REQUIRED = _reply(
    530,
    "5.7.0",
    "Must issue a STARTTLS command first",
    "MAIL in clear, where the operator requires TLS",
    "tls_required",
)
AUTH_REQUIRED = _reply(
    530,
    "5.7.0",
    "Authentication required",
    "MAIL before AUTH, where the operator requires it",
    "auth_required",
)
ENCRYPTION_REQUIRED = _reply(
    538,
    "5.7.11",
    "Encryption required for requested authentication mechanism",
    "AUTH in clear, unless the operator says otherwise",
    "encryption_required",
)
UNKNOWN_MECHANISM = _reply(
    504,
    "5.5.4",
    "Unrecognized authentication mechanism",
    "AUTH with a mechanism that was not offered",
    "unknown_mechanism",
)
BAD_AUTH_RESPONSE = _reply(
    501,
    "5.5.2",
    "Cannot decode the response",
    "a response in AUTH that is no base64, or not what the mechanism expects",
    "bad_auth_response",
)
AUTH_CANCELLED = _reply(
    501, "5.7.0", "Authentication cancelled", "a * in the place of a response in AUTH", "auth_cancelled"
)
AUTH_FAILED = _reply(
    535,
    "5.7.8",
    "Authentication credentials invalid",
    "AUTH, when the credentials are wrong",
    "auth_failed",
)
AUTH_UNAVAILABLE = _reply(
    454,
    "4.7.0",
    "Temporary authentication failure",
    "AUTH, when they cannot be checked now",
    "auth_unavailable",
)
TOO_MANY_AUTH_FAILURES = _reply(
    421,
    "4.7.0",
    "Too many authentication failures, closing connection",
    "behind the last failure allowed",
    "max_auth_failures",
)
TOO_MANY_RECIPIENTS = _reply(
    452, "5.5.3", "Too many recipients", "RCPT above the cap of recipients", "max_recipients"
)
TOO_MANY_RECIPIENTS_STRICT = _reply(
    452,
    "4.5.3",
    "Too many recipients",
    "the same with --strict-enhanced-codes (RFC 2034 4: the classes agree)",
    "max_recipients",
)
TOO_MANY_REJECTED_RECIPIENTS = _reply(
    421,
    "4.7.0",
    "Too many unknown recipients, closing connection",
    "behind the last refused recipient allowed",
    "max_rejected_recipients",
)
TOO_MANY_MESSAGES = _reply(
    421, "4.7.0", "Too many messages, please reconnect", "MAIL above the cap of messages", "max_messages"
)
MESSAGE_RATE_EXCEEDED = _reply(
    450,
    "4.7.1",
    "Message rate exceeded, try again later",
    "MAIL above the client's rate of messages",
    "message_rate",
)
RECIPIENT_RATE_EXCEEDED = _reply(
    450,
    "4.7.1",
    "Recipient rate exceeded, try again later",
    "RCPT above the client's rate of recipients",
    "recipient_rate",
)
NO_VALID_RECIPIENTS = _reply(
    554,
    "5.5.1",
    "No valid recipients",
    "DATA or BDAT when every recipient was refused",
    "no_valid_recipients",
)

# Messages.

MESSAGE_TOO_LARGE = _reply(
    552,
    "5.3.4",
    "Message size exceeds fixed maximum message size",
    "MAIL with a SIZE above the maximum, or after the end of the data",
    "max_message_size",
)
DATA_NEVER_ENDS = _reply(
    421,
    "4.3.0",
    "Message too large, closing connection",
    "data so far above the maximum that it is no longer read to its end",
    "oversize_drain",
)
BARE_NEWLINE = _reply(
    550,
    "5.5.2",
    "Bare <CR> or <LF> received",
    "after the end of data, where bare newlines are refused",
    "bare_newline",
)
HEADER_TOO_LARGE = _reply(
    552, "5.3.4", "Message header too large", "after the end of data", "max_header_size"
)
ROUTING_LOOP = _reply(
    554,
    "5.4.6",
    "Routing loop detected",
    "after the end of data with too many Received fields",
    "max_received_fields",
)
MESSAGE_LINE_TOO_LONG = _reply(
    554,
    "5.6.0",
    "Message line too long",
    "after the end of data, where the delivery takes whole lines and one is above 64 KiB",
    "max_message_line",
)
MALFORMED_BDAT = _reply(
    421,
    "4.7.0",
    "Protocol error: malformed BDAT",
    "behind the 501: where the chunk ends cannot be known",
    "malformed_bdat",
)
SESSION_REFUSED = _reply(
    421,
    "4.7.0",
    "Session refused, closing connection",
    "after a 521 that the delivery chose",
    "delivery_refused",
)
INSUFFICIENT_STORAGE = _reply(
    452,
    "4.3.1",
    "Insufficient system storage",
    "MAIL below the free space to keep; end of data on a full disk",
    "insufficient_storage",
)
TOO_MANY_PENDING = _reply(
    451,
    "4.3.2",
    "Too many deliveries pending, try again later",
    "MAIL while too many verdicts are pending whose clients are gone",
    "max_pending_deliveries",
)

RELAY_DENIED = _reply(
    550,
    "5.7.1",
    "Relay access denied",
    "RCPT to a domain that is not among --accept-domain, from a client that has not logged in",
    "relay_denied",
)

# The mail server behind.

UPSTREAM_UNAVAILABLE = _reply(
    451,
    "4.4.1",
    "Mail server behind is not available, try again later",
    "MAIL while the mail server behind cannot be reached",
    "upstream_unavailable",
)
UPSTREAM_BUSY = _reply(
    451,
    "4.3.2",
    "Too many connections to the mail server behind, try again later",
    "MAIL while every connection to the mail server behind is in use",
    "upstream_busy",
)
UPSTREAM_LOST = _reply(
    451,
    "4.4.2",
    "Mail server behind closed the connection, try again later",
    "a command or the end of data, where the mail server behind ended its connection before its verdict",
    "upstream_lost",
)
UPSTREAM_TIMED_OUT = _reply(
    451,
    "4.4.2",
    "Mail server behind did not answer in time, try again later",
    "a command or the end of data without a verdict in time; a message that is not read",
    "upstream_timeout",
)
UPSTREAM_GARBLED = _reply(
    451,
    "4.5.0",
    "Mail server behind gave no proper answer, try again later",
    "the mail server behind does not keep to the protocol",
    "upstream_garbled",
)
UPSTREAM_CHANGED = _reply(
    451,
    "4.5.1",
    "Mail server behind no longer offers that extension, try again later",
    "MAIL or RCPT with a parameter that the mail server behind offered before, and not now",
    "upstream_changed",
)
UPSTREAM_UNSUITABLE = _reply(
    451,
    "4.3.5",
    "Mail server behind cannot be used as configured, try again later",
    "MAIL while the mail server behind lacks the TLS, certificate, log-in or XCLIENT that the operator asks for",
    "upstream_unsuitable",
)
TOO_MANY_LMTP_RECIPIENTS = _reply(
    452,
    "4.5.3",
    "Too many recipients for one message, send the rest separately",
    "RCPT above what the delivery lmtp: takes in one message",
    "lmtp_recipients",
)

# Time, and our own faults.

READ_TIMED_OUT = _reply(
    421,
    "4.4.2",
    "Timeout waiting for client, closing connection",
    "no whole command, or no progress in the data, within the read timeout",
    "read_timeout",
)
DATA_TOO_SLOW = _reply(
    421,
    "4.4.2",
    "Data transfer too slow, closing connection",
    "data below the minimum rate",
    "min_data_rate",
)
SESSION_TOO_LONG = _reply(
    421,
    "4.4.2",
    "Session time limit reached, closing connection",
    "between transactions, past the session time",
    "max_session_time",
)
DELIVERY_TIMED_OUT = _reply(
    451,
    "4.3.0",
    "Delivery timed out, try again later",
    "the delivery did not answer in time",
    "delivery_timeout",
)
LOCAL_ERROR = _reply(
    451,
    "4.3.0",
    "Internal error, try again later",
    "an unexpected error in a transaction",
    "internal_error",
)
LOCAL_ERROR_CLOSING = _reply(
    421,
    "4.3.0",
    "Internal error, try again later",
    "an unexpected error outside a transaction",
    "internal_error",
)
SHUTTING_DOWN = _reply(421, "4.3.2", "Server shutting down", "the service stops", "shutdown")
