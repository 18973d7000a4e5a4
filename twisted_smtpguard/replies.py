"""The catalogue of replies. Each reply of the guard stands here once: its line, the reason that the log gives, and when
it is sent.

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
MAX_CHALLENGE_LINE_OCTETS = 12288
"""The longest line with a challenge of AUTH (RFC 4954 4). One that is cut could not be decoded."""
"""The longest reply line, with its CRLF (RFC 5321 4.5.3.1.5)."""


_STRINGS = frozenset({str})


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
    is_accounted: bool = attrs.field(init=False, repr=False, eq=False)
    """Whether the reply is an error, which is counted and logged, or ends the session."""

    def __attrs_post_init__(self) -> None:
        # A delivery may make a reply for every message, so the usual types skip the full check.
        if not (
            type(self.code) is int
            and type(self.enhanced) is type(self.said) is str
            and type(self.lines) is tuple
            and {*map(type, self.lines)} <= _STRINGS
        ):
            check_fields(self)
        object.__setattr__(self, "wire", b"".join(_render(self)))
        object.__setattr__(self, "closes", self.code in (421, 521))
        object.__setattr__(self, "is_accounted", self.code >= 400 or self.code == 221)


ENHANCED_CODE = r"[245]\.[0-9]{1,3}\.[0-9]{1,3}"
"""The pattern of an enhanced status code (RFC 3463 2)."""

_ENHANCED = re.compile(ENHANCED_CODE)


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
        longest = MAX_CHALLENGE_LINE_OCTETS if reply.code == 334 else MAX_LINE_OCTETS
        yield line[: longest - 2].encode("ascii") + b"\r\n"


@attrs.frozen
class Entry:
    """A row of the catalogue."""

    name: str
    reply: Reply
    reason: str
    """The `reason` of the `reject` log line; "" if the reply refuses nothing."""


_REASONS: dict[Reply, str] = {}


def _reply(line: str, reason: str = "") -> Reply:
    """A reply of the catalogue, as the client reads it. The docstring after it says when it is sent."""
    code, text = line.split(" ", 1)
    first, _, rest = text.partition(" ")
    enhanced, text = (first, rest) if _ENHANCED.fullmatch(first) else ("", text)
    reply = Reply(int(code), enhanced, (text,))
    assert reply not in _REASONS, f"{reply} stands twice"
    _REASONS[reply] = reason
    return reply


def reason_of(reply: Reply) -> str:
    """The log reason of a refusal. A reply that is not in the catalogue comes from an upstream server or a delivery."""
    if reply.said:
        # The upstream server may use the very words of a reply of ours.
        return "upstream_refused"
    return _REASONS.get(reply, "delivery_refused")


def text_of(reply: Reply) -> str:
    """The codes and the text of a reply, in one line."""
    return " ".join(filter(None, [str(reply.code), reply.enhanced, *reply.lines]))


def words_of(reply: Reply) -> str:
    """The words of an upstream server, or of a delivery that chose its own reply; "" for a reply of the catalogue."""
    return reply.said or ("" if reply in _REASONS else text_of(reply))


def hint_of(reason: str, peer: str) -> str:
    """The option that would have avoided the refusal of `peer`, if the operator may have forgotten it; else ""."""
    return f"--proxy-protocol-from={peer}" if reason == "unexpected_proxy_header" else ""


def catalogue() -> Iterator[Entry]:
    """Every fixed reply, in the order of this file. A test checks docs/reference/replies.md against it and against the
    docstrings, which say when a reply is sent."""
    for name, value in list(globals().items()):
        if isinstance(value, Reply):
            yield Entry(name, value, _REASONS[value])


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


def challenge(text: str) -> Reply:
    """The challenge of an AUTH mechanism; `text` is base64 (RFC 4954 4)."""
    return Reply(334, "", (text,))


@cache
def deferral(text: str) -> Reply:
    """The reply to MAIL while the operator defers all mail, with the operator's text; "": that of the
    catalogue. ValueError: it is no text for one line of a reply."""
    if not text:
        return SERVICE_DEFERRED
    reply = attrs.evolve(SERVICE_DEFERRED, lines=(text,))
    if not (text.isascii() and text.isprintable() and len(text) + 12 <= MAX_LINE_OCTETS):
        longest = MAX_LINE_OCTETS - 12
        raise ValueError(f"at most {longest} printable characters of ASCII are expected, not {text[:40]!r}")
    return reply


def commands(*verbs: str) -> Reply:
    """The answer to HELP."""
    return Reply(214, "2.0.0", (" ".join(("Commands:", *verbs)),))


# Success.

OK = _reply("250 2.0.0 OK")
"""When: RSET and NOOP."""
SENDER_OK = _reply("250 2.1.0 Sender OK")
"""When: MAIL."""
RECIPIENT_OK = _reply("250 2.1.5 Recipient OK")
"""When: RCPT, unless the delivery gives its own text."""
MESSAGE_ACCEPTED = _reply("250 2.0.0 Message accepted")
"""When: the end of data, once the delivery says that the message is safe."""
START_DATA = _reply("354 End data with <CR><LF>.<CR><LF>")
"""When: DATA."""
READY_FOR_TLS = _reply("220 2.0.0 Ready to start TLS")
"""When: STARTTLS; the handshake follows."""
AUTHENTICATED = _reply("235 2.7.0 Authentication successful")
"""When: AUTH with valid credentials."""
GOODBYE = _reply("221 2.0.0 Closing connection")
"""When: QUIT."""
CANNOT_VERIFY = _reply("252 2.0.0 Cannot verify the user, but will accept a message and attempt delivery")
"""When: VRFY."""

# Admission.

TOO_MANY_CONNECTIONS = _reply("421 4.7.0 Too many connections, try again later", "max_connections")
"""When: a connection above the limit for all clients together."""
CONNECTION_REFUSED = _reply("421 4.7.0 Connection refused", "ip_filter")
"""When: an IP filter refuses the client, unless it gives its own 421 or 521."""
TOO_MANY_CONNECTIONS_OF_CLIENT = _reply(
    "421 4.7.0 Too many connections from your address, try again later", "max_connections_per_client"
)
"""When: before the greeting, for a connection above the limit per client."""
CONNECTION_RATE_EXCEEDED = _reply("421 4.7.0 Connection rate exceeded, try again later", "connection_rate")
"""When: before the greeting, for a connection above the client's connection rate."""
TOO_MANY_OFFENCES = _reply("421 4.7.0 Too many offences, try again later", "ban_after")
"""When: before the greeting, for a client that is banned, or is in a network that is."""
EARLY_TALKER = _reply("421 4.7.0 Protocol error: client spoke before the greeting", "early_talker")
"""When: input before the greeting, if the operator refuses early talkers."""
NOT_SMTP = _reply("421 4.7.0 Not an SMTP client, closing connection", "not_smtp")
"""When: the first line is an HTTP request, an SSH greeting, a TLS hello or a header field."""
UNEXPECTED_PROXY_HEADER = _reply(
    "421 4.7.0 Protocol error: unexpected PROXY header", "unexpected_proxy_header"
)
"""When: a PROXY header, of version 1 or 2, from an address that is not in --proxy-protocol-from."""

# Commands.

UNRECOGNIZED_COMMAND = _reply("500 5.5.1 Command not recognized", "unrecognized_command")
"""When: an unknown verb."""
SYNTAX_ERROR = _reply("500 5.5.2 Syntax error", "syntax_error")
"""When: an empty line, a line with a NUL in it, or a verb that is not ASCII."""
LINE_TOO_LONG = _reply("500 5.5.2 Line too long", "max_command_line")
"""When: a command line above the limit."""
BAD_LINE_END = _reply("500 5.5.2 Line must end with <CR><LF>", "bad_line_end")
"""When: a command line that ends with LF alone, or has a bare CR in it; then each further LF up to the next CRLF."""
BAD_SEQUENCE = _reply("503 5.5.1 Bad sequence of commands", "bad_sequence")
"""When: a command out of sequence."""
TOO_MANY_INVALID_COMMANDS = _reply("421 4.4.0 Too many errors, closing connection", "max_invalid_commands")
"""When: after the reply to the last invalid command allowed; a line that never ends."""
TOO_MANY_ERRORS = _reply("421 4.7.0 Too many errors, closing connection", "max_errors")
"""When: after the last error allowed."""
BAD_ARGUMENTS = _reply("501 5.5.4 Syntax error in parameters or arguments", "bad_arguments")
"""When: malformed arguments, a bad value of a known parameter, or a parameter given twice."""
UNSUPPORTED_PARAMETER = _reply("555 5.5.4 Unsupported parameter", "unsupported_parameter")
"""When: a MAIL or RCPT parameter that was not advertised."""
BAD_SENDER_ADDRESS = _reply("501 5.1.7 Bad sender address syntax", "bad_sender_address")
"""When: MAIL with a malformed address."""
BAD_RECIPIENT_ADDRESS = _reply("501 5.1.3 Bad recipient address syntax", "bad_recipient_address")
"""When: RCPT with a malformed address."""
NON_ASCII_ADDRESS = _reply("553 5.6.7 Non-ASCII address needs SMTPUTF8", "non_ascii_address")
"""When: MAIL or RCPT with a non-ASCII address in a transaction without SMTPUTF8."""
EXPN_NOT_IMPLEMENTED = _reply("502 5.5.1 EXPN is not implemented", "expn")
"""When: EXPN."""
UNEXPECTED_PIPELINING = _reply(
    "421 4.7.0 Protocol error: unexpected pipelined input", "unexpected_pipelining"
)
"""When: input after EHLO, HELO, AUTH or DATA and before its reply, if the operator refuses it."""
INPUT_AFTER_STARTTLS = _reply("421 4.7.0 Protocol error: input after STARTTLS", "starttls_injection")
"""When: input after STARTTLS and before its reply, which would be mistaken for input under TLS."""
TLS_REQUIRED = _reply("530 5.7.0 Must issue a STARTTLS command first", "tls_required")
"""When: MAIL without TLS, if the operator requires TLS."""
AUTH_REQUIRED = _reply("530 5.7.0 Authentication required", "auth_required")
"""When: MAIL before AUTH, if the operator requires AUTH."""
ENCRYPTION_REQUIRED = _reply(
    "538 5.7.11 Encryption required for requested authentication mechanism", "encryption_required"
)
"""When: AUTH without TLS, unless the operator allows it."""
UNKNOWN_MECHANISM = _reply("504 5.5.4 Unrecognized authentication mechanism", "unknown_mechanism")
"""When: AUTH with a mechanism that was not offered."""
BAD_AUTH_RESPONSE = _reply("501 5.5.2 Cannot decode the response", "bad_auth_response")
"""When: an AUTH response that is not base64, or not what the mechanism expects."""
AUTH_CANCELLED = _reply("501 5.7.0 Authentication cancelled", "auth_cancelled")
"""When: the client sends * instead of an AUTH response."""
AUTH_FAILED = _reply("535 5.7.8 Authentication credentials invalid", "auth_failed")
"""When: AUTH with invalid credentials."""
AUTH_UNAVAILABLE = _reply("454 4.7.0 Temporary authentication failure", "auth_unavailable")
"""When: AUTH, when the credentials cannot be checked now, or the client has sent too many wrong ones."""
TOO_MANY_AUTH_FAILURES = _reply(
    "421 4.7.0 Too many authentication failures, closing connection", "max_auth_failures"
)
"""When: after the last failure allowed."""
TOO_MANY_RECIPIENTS = _reply("452 5.5.3 Too many recipients", "max_recipients")
"""When: RCPT above the recipients of one message."""
TOO_MANY_RECIPIENTS_STRICT = _reply("452 4.5.3 Too many recipients", "max_recipients")
"""When: the same with --strict-enhanced-codes (RFC 2034 4 requires that the classes agree)."""
TOO_MANY_REJECTED_RECIPIENTS = _reply(
    "421 4.7.0 Too many unknown recipients, closing connection", "max_rejected_recipients"
)
"""When: after the last refused recipient allowed."""
TOO_MANY_MESSAGES = _reply("421 4.7.0 Too many messages, please reconnect", "max_messages")
"""When: MAIL above the messages of one session."""
MESSAGE_RATE_EXCEEDED = _reply("450 4.7.1 Message rate exceeded, try again later", "message_rate")
"""When: MAIL above the client's message rate."""
RECIPIENT_RATE_EXCEEDED = _reply("450 4.7.1 Recipient rate exceeded, try again later", "recipient_rate")
"""When: RCPT above the client's recipient rate."""
NO_VALID_RECIPIENTS = _reply("554 5.5.1 No valid recipients", "no_valid_recipients")
"""When: DATA or BDAT when every recipient was refused."""

# Session policies.

POLICY_REFUSED = _reply("554 5.7.1 Access denied", "policy")
"""When: a policy answers REJECT, unless it gives its own text."""
POLICY_DEFERRED = _reply("450 4.7.1 Service unavailable", "policy")
"""When: a policy answers DEFER, DEFER_IF_PERMIT or DEFER_IF_REJECT, unless it gives its own text."""
POLICY_FAILED = _reply("451 4.3.0 Policy check failed, try again later", "policy_failed")
"""When: a policy that does not fail open has not answered in time, or cannot judge."""
POLICY_FAILED_CLOSING = _reply("421 4.3.0 Policy check failed, try again later", "policy_failed")
"""When: the same before the greeting."""
POLICY_MISCONFIGURED = _reply("451 4.3.5 Server configuration error", "policy_misconfigured")
"""When: a policy server answers with an action that is not known."""

# Messages.

MESSAGE_TOO_LARGE = _reply("552 5.3.4 Message size exceeds fixed maximum message size", "max_message_size")
"""When: MAIL with a SIZE above the maximum, or after the end of the data."""
DATA_NEVER_ENDS = _reply("421 4.3.0 Message too large, closing connection", "oversize_drain")
"""When: data so far above the maximum that the guard stops reading it."""
BARE_NEWLINE = _reply("550 5.5.2 Bare <CR> or <LF> received", "bare_newline")
"""When: after the end of data, if bare newlines are refused."""
HEADER_TOO_LARGE = _reply("552 5.3.4 Message header too large", "max_header_size")
"""When: after the end of data, for a header above the maximum."""
ROUTING_LOOP = _reply("554 5.4.6 Routing loop detected", "max_received_fields")
"""When: after the end of data with too many Received fields."""
MESSAGE_LINE_TOO_LONG = _reply("554 5.6.0 Message line too long", "max_message_line")
"""When: after the end of data, if the delivery takes whole lines and one of them is above 64 KiB."""
MALFORMED_BDAT = _reply("421 4.7.0 Protocol error: malformed BDAT", "malformed_bdat")
"""When: after the 501 to a malformed BDAT, since the end of its chunk is unknown."""
SESSION_REFUSED = _reply("421 4.7.0 Session refused, closing connection", "delivery_refused")
"""When: after a 521 that the delivery chose."""
INSUFFICIENT_STORAGE = _reply("452 4.3.1 Insufficient system storage", "insufficient_storage")
"""When: MAIL when the disk has less than the minimum of free space; the end of data on a full disk."""
TOO_MANY_PENDING = _reply("451 4.3.2 Too many deliveries pending, try again later", "max_pending_deliveries")
"""When: MAIL while too many deliveries are pending whose clients have disconnected."""

RELAY_DENIED = _reply("550 5.7.1 Relay access denied", "relay_denied")
"""When: RCPT to a domain that is not in --accept-domain, from a client that has not logged in."""

# The upstream server.

UPSTREAM_UNAVAILABLE = _reply(
    "451 4.4.1 Upstream server unavailable, try again later", "upstream_unavailable"
)
"""When: MAIL while the upstream server cannot be reached."""
UPSTREAM_BUSY = _reply(
    "451 4.3.2 Too many connections to the upstream server, try again later", "upstream_busy"
)
"""When: MAIL while every connection to the upstream server that the client may have is in use."""
UPSTREAM_LOST = _reply("451 4.4.2 Upstream server closed the connection, try again later", "upstream_lost")
"""When: a command or the end of data, if the upstream server closed the connection before it answered."""
UPSTREAM_TIMED_OUT = _reply(
    "451 4.4.2 Upstream server did not answer in time, try again later", "upstream_timeout"
)
"""When: a command or the end of data that the upstream server did not answer in time; message data that it did not
read."""
UPSTREAM_GARBLED = _reply(
    "451 4.5.0 Upstream server sent an invalid reply, try again later", "upstream_garbled"
)
"""When: a command or the end of data, if the upstream server violated the protocol."""
UPSTREAM_CHANGED = _reply(
    "451 4.5.1 Upstream server no longer offers that extension, try again later", "upstream_changed"
)
"""When: MAIL or RCPT with a parameter of an extension that the upstream server offered before and offers no longer."""
UPSTREAM_UNSUITABLE = _reply(
    "451 4.3.5 Upstream server cannot be used as configured, try again later", "upstream_unsuitable"
)
"""When: MAIL while the upstream server lacks the TLS, certificate, login or XCLIENT that the operator requires."""
TOO_MANY_LMTP_RECIPIENTS = _reply(
    "452 4.5.3 Too many recipients for one message, send the rest separately", "lmtp_recipients"
)
"""When: RCPT above recipients= of the delivery lmtp:."""

# Time limits, and the guard's own faults.

READ_TIMED_OUT = _reply("421 4.4.2 Timeout waiting for client, closing connection", "read_timeout")
"""When: the client sends no whole command, or no more data, within the read timeout."""
DATA_TOO_SLOW = _reply("421 4.4.2 Data transfer too slow, closing connection", "min_data_rate")
"""When: message data below the minimum rate."""
SESSION_TOO_LONG = _reply("421 4.4.2 Session time limit reached, closing connection", "max_session_time")
"""When: between transactions, after the maximum session time."""
DELIVERY_TIMED_OUT = _reply("451 4.3.0 Delivery timed out, try again later", "delivery_timeout")
"""When: the delivery did not answer in time."""
LOCAL_ERROR = _reply("451 4.3.0 Internal error, try again later", "internal_error")
"""When: an unexpected error in a mail transaction."""
LOCAL_ERROR_CLOSING = _reply("421 4.3.0 Internal error, try again later", "internal_error")
"""When: an unexpected error outside a mail transaction."""
MADE_ROOM = _reply("421 4.3.2 Server busy, closing idle connection", "made_room")
"""When: another client comes, all its seats are taken, and the session of a stranger has been idle for 5 seconds or
more."""
SHUTTING_DOWN = _reply("421 4.3.2 Server shutting down", "shutdown")
"""When: the service stops."""
SERVICE_DEFERRED = _reply("451 4.3.2 Service temporarily unavailable", "deferred")
"""When: MAIL while the operator defers all mail."""
SESSION_ENDED = _reply("421 4.3.2 Session ended by the operator, try again later", "ended_by_operator")
"""When: an operator ends the session."""
