"""The catalogue of replies. Each reply of the guard stands here once: its code, its text, when it is sent, and the
reason that the log gives.

The code, the tests and docs/reference/replies.md use these names. Texts and codes follow RFC 5321 4.2, RFC 2034 and
RFC 3463.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache

import attrs

from twisted_smtpguard.inputs.arguments import check_fields
from twisted_smtpguard.inputs.escaping import escape_text

MAX_LINE_OCTETS = 512
"""The longest reply line, with its CRLF (RFC 5321 4.5.3.1.5)."""


@attrs.frozen
class Reply:
    """One SMTP reply. `lines` holds the text without codes and line ends; each line is escaped, and cut to the longest
    reply line, when it is written.

    A 421 or 521 closes the session, whoever returns it. A 521 after the greeting is followed by a 421.
    """

    code: int
    enhanced: str
    """An enhanced status code such as `5.1.1` (RFC 3463), which is put on every line; "" for none."""
    lines: tuple[str, ...]
    said: str = attrs.field(default="", kw_only=True, eq=False, repr=False)
    """The upstream server's own code and words, for the log, if this reply passes them on; else ""."""

    wire: bytes = attrs.field(init=False, repr=False, eq=False)
    """The octets to write. They are made once, since most replies are written many times."""

    closes: bool = attrs.field(init=False, repr=False, eq=False)
    """Whether the session ends after this reply."""
    remarkable: bool = attrs.field(init=False, repr=False, eq=False)
    """Whether the reply is an error, which is counted and logged, or ends the session."""

    def __attrs_post_init__(self) -> None:
        # A delivery may make a reply for every message, so the usual types skip the full check.
        if not (
            type(self.code) is int
            and type(self.enhanced) is type(self.said) is str
            and _are_lines(self.lines)
        ):
            check_fields(self)
        object.__setattr__(self, "wire", b"".join(_render(self)))
        object.__setattr__(self, "closes", self.code in (421, 521))
        object.__setattr__(self, "remarkable", self.code >= 400 or self.code == 221)


def _are_lines(lines: object) -> bool:
    return type(lines) is tuple and all(type(line) is str for line in lines)


@attrs.frozen
class Step(Reply):
    """A reply after which the client sends no command: it starts TLS, or answers a challenge."""


_ENHANCED = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}")


def with_enhanced_code(reply: Reply) -> Reply:
    """`reply`, from a delivery or an upstream server, with an enhanced code of the same class as its code (RFC 2034 4):
    the code it has, or x.0.0."""
    kind = str(reply.code // 100)
    if _ENHANCED.fullmatch(reply.enhanced) is None or reply.enhanced[0] != kind:
        return attrs.evolve(reply, enhanced=f"{kind}.0.0")
    return reply


def known_code(code: int) -> int:
    """The code to send for `code`, which a delivery or an upstream server chose. If RFC 5321 4.2.1 does not define its
    second digit, this is the plain code of its class: 250, 450 or 550."""
    return code if code // 10 % 10 <= 5 else code // 100 * 100 + 50


def with_known_code(reply: Reply) -> Reply:
    """`reply`, from a delivery or an upstream server, with a code that RFC 5321 defines."""
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
    """The `reason` of the `reject` log line; "" if the reply refuses nothing."""


_WHEN: dict[Reply, tuple[str, str]] = {}


def _reply(
    code: int, enhanced: str, text: str, when: str, reason: str = "", kind: type[Reply] = Reply
) -> Reply:
    reply = kind(code, enhanced, (text,))
    assert reply not in _WHEN, f"{reply} stands twice"
    _WHEN[reply] = (when, reason)
    return reply


def reason_of(reply: Reply) -> str:
    """The log reason of a refusal. A reply that is not in the catalogue comes from an upstream server or a delivery."""
    if reply.said:
        # The upstream server may use the very words of a reply of ours.
        return "upstream_refused"
    return _WHEN.get(reply, ("", "delivery_refused"))[1]


def text_of(reply: Reply) -> str:
    """The codes and the text of a reply in one line."""
    return " ".join(filter(None, [str(reply.code), reply.enhanced, *reply.lines]))


def words_of(reply: Reply) -> str:
    """The words of an upstream server, or of a delivery that chose its own reply; "" for a reply of the catalogue."""
    return reply.said or ("" if reply in _WHEN else text_of(reply))


def hint_of(reason: str, peer: str) -> str:
    """The option that the operator may have forgotten, if that would explain the refusal of `peer`; else ""."""
    return f"--proxy-protocol-from={peer}" if reason == "unexpected_proxy_header" else ""


def catalogue() -> Iterator[Entry]:
    """Every fixed reply, in the order of this file. A test checks docs/reference/replies.md against it."""
    for name, value in list(globals().items()):
        if isinstance(value, Reply):
            when, reason = _WHEN[value]
            yield Entry(name, value, when, reason)


# Replies whose text depends on the session.


def greeting(hostname: str) -> Reply:
    """The greeting. It carries no enhanced code and no version."""
    return Reply(220, "", (f"{hostname} ESMTP ready",))


def hello(hostname: str, keywords: Iterable[str] = ()) -> Reply:
    """The answer to HELO or, with the `keywords` of extensions, to EHLO (RFC 5321 4.1.1.1)."""
    return Reply(250, "", (hostname, *keywords))


def chunk_received(octets: int) -> Reply:
    """The answer to a BDAT that is not the last of its message (RFC 3030)."""
    return Reply(250, "2.0.0", (f"{octets} octets received",))


def challenge(text: str) -> Step:
    """The challenge of an AUTH mechanism; `text` is base64 (RFC 4954 4)."""
    return Step(334, "", (text,))


@cache
def commands(*, starttls: bool, auth: bool) -> Reply:
    """The answer to HELP: every command, with STARTTLS and AUTH only if they are offered."""
    more = "STARTTLS " * starttls + "AUTH " * auth
    text = f"Commands: EHLO HELO {more}MAIL RCPT DATA BDAT RSET NOOP VRFY EXPN HELP QUIT"
    return Reply(214, "2.0.0", (text,))


# Success.

OK = _reply(250, "2.0.0", "OK", "RSET and NOOP")
SENDER_OK = _reply(250, "2.1.0", "Sender OK", "MAIL")
RECIPIENT_OK = _reply(250, "2.1.5", "Recipient OK", "RCPT, unless the delivery gives its own text")
MESSAGE_ACCEPTED = _reply(
    250, "2.0.0", "Message accepted", "the end of data, once the delivery says that the message is safe"
)
START_DATA = _reply(354, "", "End data with <CR><LF>.<CR><LF>", "DATA")
READY_FOR_TLS = _reply(220, "2.0.0", "Ready to start TLS", "STARTTLS; the handshake follows", kind=Step)
AUTHENTICATED = _reply(235, "2.7.0", "Authentication successful", "AUTH with valid credentials")
GOODBYE = _reply(221, "2.0.0", "Closing connection", "QUIT")
CANNOT_VERIFY = _reply(
    252, "2.0.0", "Cannot verify the user, but will accept a message and attempt delivery", "VRFY"
)

# Admission.

TOO_MANY_CONNECTIONS = _reply(
    421,
    "4.7.0",
    "Too many connections, try again later",
    "a connection above the limit for all clients together",
    "max_connections",
)
CONNECTION_REFUSED = _reply(
    421,
    "4.7.0",
    "Connection refused",
    "an IP filter refuses the client, unless it gives its own 421 or 521",
    "ip_filter",
)
TOO_MANY_CONNECTIONS_OF_CLIENT = _reply(
    421,
    "4.7.0",
    "Too many connections from your address, try again later",
    "before the greeting, for a connection above the limit per client",
    "max_connections_per_client",
)
CONNECTION_RATE_EXCEEDED = _reply(
    421,
    "4.7.0",
    "Connection rate exceeded, try again later",
    "before the greeting, for a connection above the client's connection rate",
    "connection_rate",
)
EARLY_TALKER = _reply(
    421,
    "4.7.0",
    "Protocol error: client spoke before the greeting",
    "input before the greeting, if the operator refuses early talkers",
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
    "a PROXY header, of version 1 or 2, from an address that is not in --proxy-protocol-from",
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
    "an empty line, a line with a NUL in it, or a verb that is not ASCII",
    "syntax_error",
)
LINE_TOO_LONG = _reply(500, "5.5.2", "Line too long", "a command line above the limit", "max_command_line")
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
    "after the reply to the last invalid command allowed; a line that never ends",
    "max_invalid_commands",
)
TOO_MANY_ERRORS = _reply(
    421,
    "4.7.0",
    "Too many errors, closing connection",
    "after the last error allowed",
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
    "MAIL or RCPT with a non-ASCII address in a transaction without SMTPUTF8",
    "non_ascii_address",
)
EXPN_NOT_IMPLEMENTED = _reply(502, "5.5.1", "EXPN is not implemented", "EXPN", "expn")
UNEXPECTED_PIPELINING = _reply(
    421,
    "4.7.0",
    "Protocol error: unexpected pipelined input",
    "input after EHLO, HELO, AUTH or DATA and before its reply, if the operator refuses it",
    "unexpected_pipelining",
)
INPUT_AFTER_STARTTLS = _reply(
    421,
    "4.7.0",
    "Protocol error: input after STARTTLS",
    "input after STARTTLS and before its reply, which would be mistaken for input under TLS",
    "starttls_injection",
)
TLS_REQUIRED = _reply(
    530,
    "5.7.0",
    "Must issue a STARTTLS command first",
    "MAIL without TLS, if the operator requires TLS",
    "tls_required",
)
AUTH_REQUIRED = _reply(
    530,
    "5.7.0",
    "Authentication required",
    "MAIL before AUTH, if the operator requires AUTH",
    "auth_required",
)
ENCRYPTION_REQUIRED = _reply(
    538,
    "5.7.11",
    "Encryption required for requested authentication mechanism",
    "AUTH without TLS, unless the operator allows it",
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
    "an AUTH response that is not base64, or not what the mechanism expects",
    "bad_auth_response",
)
AUTH_CANCELLED = _reply(
    501,
    "5.7.0",
    "Authentication cancelled",
    "the client sends * instead of an AUTH response",
    "auth_cancelled",
)
AUTH_FAILED = _reply(
    535,
    "5.7.8",
    "Authentication credentials invalid",
    "AUTH with invalid credentials",
    "auth_failed",
)
AUTH_UNAVAILABLE = _reply(
    454,
    "4.7.0",
    "Temporary authentication failure",
    "AUTH, when the credentials cannot be checked now",
    "auth_unavailable",
)
TOO_MANY_AUTH_FAILURES = _reply(
    421,
    "4.7.0",
    "Too many authentication failures, closing connection",
    "after the last failure allowed",
    "max_auth_failures",
)
TOO_MANY_RECIPIENTS = _reply(
    452, "5.5.3", "Too many recipients", "RCPT above the recipients of one message", "max_recipients"
)
TOO_MANY_RECIPIENTS_STRICT = _reply(
    452,
    "4.5.3",
    "Too many recipients",
    "the same with --strict-enhanced-codes (RFC 2034 4 requires that the classes agree)",
    "max_recipients",
)
TOO_MANY_REJECTED_RECIPIENTS = _reply(
    421,
    "4.7.0",
    "Too many unknown recipients, closing connection",
    "after the last refused recipient allowed",
    "max_rejected_recipients",
)
TOO_MANY_MESSAGES = _reply(
    421,
    "4.7.0",
    "Too many messages, please reconnect",
    "MAIL above the messages of one session",
    "max_messages",
)
MESSAGE_RATE_EXCEEDED = _reply(
    450,
    "4.7.1",
    "Message rate exceeded, try again later",
    "MAIL above the client's message rate",
    "message_rate",
)
RECIPIENT_RATE_EXCEEDED = _reply(
    450,
    "4.7.1",
    "Recipient rate exceeded, try again later",
    "RCPT above the client's recipient rate",
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
    "data so far above the maximum that the guard stops reading it",
    "oversize_drain",
)
BARE_NEWLINE = _reply(
    550,
    "5.5.2",
    "Bare <CR> or <LF> received",
    "after the end of data, if bare newlines are refused",
    "bare_newline",
)
HEADER_TOO_LARGE = _reply(
    552,
    "5.3.4",
    "Message header too large",
    "after the end of data, for a header above the maximum",
    "max_header_size",
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
    "after the end of data, if the delivery takes whole lines and one of them is above 64 KiB",
    "max_message_line",
)
MALFORMED_BDAT = _reply(
    421,
    "4.7.0",
    "Protocol error: malformed BDAT",
    "after the 501 to a malformed BDAT, since the end of its chunk is unknown",
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
    "MAIL when the disk has less than the minimum of free space; the end of data on a full disk",
    "insufficient_storage",
)
TOO_MANY_PENDING = _reply(
    451,
    "4.3.2",
    "Too many deliveries pending, try again later",
    "MAIL while too many deliveries are pending whose clients have disconnected",
    "max_pending_deliveries",
)

RELAY_DENIED = _reply(
    550,
    "5.7.1",
    "Relay access denied",
    "RCPT to a domain that is not in --accept-domain, from a client that has not logged in",
    "relay_denied",
)

# The upstream server.

UPSTREAM_UNAVAILABLE = _reply(
    451,
    "4.4.1",
    "Upstream server unavailable, try again later",
    "MAIL while the upstream server cannot be reached",
    "upstream_unavailable",
)
UPSTREAM_BUSY = _reply(
    451,
    "4.3.2",
    "Too many connections to the upstream server, try again later",
    "MAIL while every connection to the upstream server is in use",
    "upstream_busy",
)
UPSTREAM_LOST = _reply(
    451,
    "4.4.2",
    "Upstream server closed the connection, try again later",
    "a command or the end of data, if the upstream server closed the connection before it answered",
    "upstream_lost",
)
UPSTREAM_TIMED_OUT = _reply(
    451,
    "4.4.2",
    "Upstream server did not answer in time, try again later",
    "a command or the end of data that the upstream server did not answer in time; message data that it did not read",
    "upstream_timeout",
)
UPSTREAM_GARBLED = _reply(
    451,
    "4.5.0",
    "Upstream server sent an invalid reply, try again later",
    "a command or the end of data, if the upstream server violated the protocol",
    "upstream_garbled",
)
UPSTREAM_CHANGED = _reply(
    451,
    "4.5.1",
    "Upstream server no longer offers that extension, try again later",
    "MAIL or RCPT with a parameter of an extension that the upstream server offered before and offers no longer",
    "upstream_changed",
)
UPSTREAM_UNSUITABLE = _reply(
    451,
    "4.3.5",
    "Upstream server cannot be used as configured, try again later",
    "MAIL while the upstream server lacks the TLS, certificate, login or XCLIENT that the operator requires",
    "upstream_unsuitable",
)
TOO_MANY_LMTP_RECIPIENTS = _reply(
    452,
    "4.5.3",
    "Too many recipients for one message, send the rest separately",
    "RCPT above recipients= of the delivery lmtp:",
    "lmtp_recipients",
)

# Time limits, and the guard's own faults.

READ_TIMED_OUT = _reply(
    421,
    "4.4.2",
    "Timeout waiting for client, closing connection",
    "the client sends no whole command, or no more data, within the read timeout",
    "read_timeout",
)
DATA_TOO_SLOW = _reply(
    421,
    "4.4.2",
    "Data transfer too slow, closing connection",
    "message data below the minimum rate",
    "min_data_rate",
)
SESSION_TOO_LONG = _reply(
    421,
    "4.4.2",
    "Session time limit reached, closing connection",
    "between transactions, after the maximum session time",
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
    "an unexpected error in a mail transaction",
    "internal_error",
)
LOCAL_ERROR_CLOSING = _reply(
    421,
    "4.3.0",
    "Internal error, try again later",
    "an unexpected error outside a mail transaction",
    "internal_error",
)
SHUTTING_DOWN = _reply(421, "4.3.2", "Server shutting down", "the service stops", "shutdown")
