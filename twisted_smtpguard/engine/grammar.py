"""The grammar of command lines: octets in, values out, `Refused` for a line that SMTP does not allow.

The functions are pure and follow RFC 5321 4.1 (with RFC 1870, 3030, 3461, 6152 and 6531). No regular expression here
may need more than linear time, because an attacker may write the line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import AddressValueError, IPv6Address
from types import MappingProxyType

from twisted_smtpguard import replies
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.values import NO_PARAMETERS, Path, Refused

_BLANKS = re.compile(rb"[ \t]+")
_HELLO = re.compile(rb"[!-~]{1,255}")
_BDAT = re.compile(rb"([0-9]{1,20})(?:[ \t]+(LAST))?", re.IGNORECASE)

# UTF8-non-ascii of RFC 6531 3.3 is what is not ASCII and not here. Here are the C1 controls and the line separators of
# Unicode (RFC 5198 2), since a value that is written into a header field must not look like a new line to any reader,
# and the lone surrogates that octets become which are no UTF-8. A set of characters that has UTF-8 names what it has
# not: to compile a set of a million characters takes ten times as long, and every start of a guard would wait for it.
_NO_UTF8 = r"\x7f-\x9f\u2028\u2029\ud800-\udfff"
_ATOM = rf'[^\0- "(),.:;<>@\[-\]{_NO_UTF8}]+'
_DOT_STRING = rf"{_ATOM}(?:\.{_ATOM})*"
_QUOTED_STRING = rf'"(?:[^\0-\x1f"\\{_NO_UTF8}]|\\[ -~])*"'
# No RFC allows the underscore, but many host names have one, and Postfix accepts it too.
_NO_LETTER = rf"\0-,./:-@\[-^`{{-~{_NO_UTF8}"
_LABEL = rf"[^{_NO_LETTER}-](?:[^{_NO_LETTER}]{{0,61}}[^{_NO_LETTER}-])?"
_DOMAIN = rf"{_LABEL}(?:\.{_LABEL})*"
_SOURCE_ROUTE = rf"@{_DOMAIN}(?:,@{_DOMAIN})*:"
_PATH = re.compile(
    rf"[ \t]*<(?:(?:{_SOURCE_ROUTE})?"
    rf"(?P<address>(?:{_DOT_STRING}|{_QUOTED_STRING})@(?:(?P<domain>{_DOMAIN})|\[(?P<literal>[!-Z^-~]+)\]))"
    r"|(?P<bare>[A-Za-z]+))?>"
)
_MAX_DOMAIN_OCTETS = 255

_PLAIN_ATOMS = rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
_PLAIN_LABEL = rb"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_PLAIN_MAILBOX = rb"<(" + _PLAIN_ATOMS + rb"@" + _PLAIN_LABEL + rb"(?:\." + _PLAIN_LABEL + rb")*)>"

PLAIN_LINE_OCTETS = 512
"""No line that `plain_line` matches is longer, its CRLF included."""

plain_line = re.compile(
    rb"(MAIL|RCPT|DATA|RSET|QUIT|NOOP|EHLO|HELO)"
    rb"(?: (?:(?:(?<=MAIL )(?i:FROM)|(?<=RCPT )(?i:TO)):(?!.{256})"
    + _PLAIN_MAILBOX
    + rb"|([!-~]{1,255})))?\r\n"
).match
"""Matches nearly every command line, its CRLF included, and so parses it in one step without decoding. The groups are
the verb, the plain address of MAIL or RCPT, and any other argument of one word. `parse_command` parses all lines, these
with the same result."""

_IPV4 = re.compile(r"(?:(?:[01]?[0-9]?[0-9]|2[0-4][0-9]|25[0-5])(?:\.(?!\Z)|\Z)){4}")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]{2,45}")
_GENERAL_LITERAL = re.compile(r"(?:[A-Za-z0-9-]*[A-Za-z0-9]):.+")

_WORD = re.compile(r"[^ \t]+")
_PARAMETER = re.compile(rf"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([^\0- ={_NO_UTF8}]+))?")
# RFC 3461 4: the hexadecimal digits are upper case. Encoded controls are left out: decoded, they could end a line where
# the value is written.
_XTEXT = r"(?:[!-*,-<>-~]|\+(?!7F)[2-9A-F][0-9A-F])+"
# RFC 6533 3: all code points but the controls and the surrogates.
_EMBEDDED = (
    r"\\x\{(?i:[2-6][0-9A-F]|7[0-9A-E]|[A-F][0-9A-F]"
    r"|[1-9A-F][0-9A-F]{2}|(?:[1-9A-CEF][0-9A-F]|D[0-7])[0-9A-F]{2}|[1-9A-F][0-9A-F]{4}|10[0-9A-F]{4})\}"
)
_UTF8_ADDRESS = rf"(?:{_EMBEDDED}|[^\0- +=\\{_NO_UTF8}]|\+(?!7F)[2-9A-F][0-9A-F])+"
_EVENT = "(?:SUCCESS|FAILURE|DELAY)"
_VALUES = {
    "SIZE": re.compile(r"[0-9]{1,20}"),
    "BODY": re.compile(r"7BIT|8BITMIME|BINARYMIME"),
    "SMTPUTF8": None,
    # RFC 3461 4. A value in xtext is passed on as sent.
    "RET": re.compile(r"FULL|HDRS"),
    "ENVID": re.compile(rf"(?=.{{1,100}}\Z){_XTEXT}"),
    "NOTIFY": re.compile(rf"NEVER|{_EVENT}(?:,{_EVENT}){{0,2}}"),
    "ORCPT": re.compile(rf"(?i:utf-8);{_UTF8_ADDRESS}|(?!(?i:utf-8);)[A-Za-z0-9-]+;{_XTEXT}"),
    # The submitter, as the client names it (RFC 4954 5). The parameter has to be accepted and need not be believed.
    "AUTH": re.compile(_XTEXT),
}
_CASE_COUNTS = frozenset({"AUTH", "ENVID", "ORCPT"})
_MAX_ORCPT_OCTETS = 500
_MAIL = frozenset({"SIZE", "BODY", "SMTPUTF8", "AUTH"})
_MAIL_DSN = frozenset({"RET", "ENVID"})
_RCPT_DSN = frozenset({"NOTIFY", "ORCPT"})

# The third alternative is the token of RFC 9110 5.6.2 and a colon, which follows no SMTP verb. In the last one four
# verbs are left out, because free text follows them, which may look like the rest of an HTTP request line.
_NOT_SMTP = re.compile(
    rb"\x16\x03"
    rb"|SSH-"
    rb"|[!#$%&'*+.^_`|~0-9A-Za-z-]+:"
    rb"|(?!(?:NOOP|HELP|VRFY|EXPN) )[!-~]+ [!-~\x80-\xff]+ HTTP/[0-9]\.[0-9]",
    re.IGNORECASE,
)


class UnsupportedParameter(Refused):
    """Refuses an unsupported parameter of MAIL or RCPT. The log shows its `keyword`."""

    def __init__(self, keyword: str) -> None:
        super().__init__(replies.UNSUPPORTED_PARAMETER)
        self.keyword = keyword


def is_not_smtp(start: bytes) -> bool:
    """Whether `start`, the first line of a connection or its beginning, belongs to another protocol: an HTTP request
    line, an SSH greeting, a TLS ClientHello or a header field. False for every legal SMTP command."""
    return _NOT_SMTP.match(start) is not None


def parse_command(line: bytes) -> tuple[bytes, bytes]:
    """Split a command line, which comes without its CRLF, into the verb in upper case and the argument.

    Blanks (spaces and tabs) at the end and between verb and argument belong to neither; the rest of the argument is as
    sent. Raises Refused for an empty line, a NUL, or a verb that is not ASCII.
    """
    line = line.rstrip(b" \t")
    verb, _, argument = line.partition(b" ")
    if b"\t" in verb:
        verb, argument = _BLANKS.split(line, maxsplit=1)
    if not verb or b"\0" in line or not verb.isascii():
        raise Refused(replies.SYNTAX_ERROR)
    return verb.upper(), argument.lstrip(b" \t")


def parse_hello(argument: bytes, *_: object) -> str:
    """Parse the argument of HELO or EHLO: one word of 1 to 255 octets of printable ASCII."""
    if _HELLO.fullmatch(argument) is None:
        raise Refused(replies.BAD_ARGUMENTS)
    return argument.decode("ascii")


def parse_bdat(argument: bytes, *_: object) -> tuple[int, bool]:
    """Parse the argument of BDAT: the octets of the chunk, and whether it is the last (RFC 3030 2)."""
    match = _BDAT.fullmatch(argument)
    if match is None:
        raise Refused(replies.BAD_ARGUMENTS)
    return int(match[1]), match[2] is not None


def parse_mail(argument: bytes, offered: frozenset[str], *_: object) -> Path:
    """Parse the argument of MAIL: the reverse-path with its parameters (RFC 5321 4.1.1.2).

    `offered` has the parameters that may be used (SIZE, BODY, SMTPUTF8, AUTH), BINARYMIME if BODY may have that value,
    and DSN for RET and ENVID.
    """
    if argument[:5].upper() != b"FROM:":
        raise Refused(replies.BAD_ARGUMENTS)
    path, address, rest = _parse_path(argument[5:], replies.BAD_SENDER_ADDRESS)
    if address is None:
        if path["bare"] is not None:
            raise Refused(replies.BAD_SENDER_ADDRESS)
        address = ""
    parameters = _parse_parameters(rest, offered, _MAIL_DSN, ignorable="AUTH")
    if not path[0].isascii() and "SMTPUTF8" not in parameters:
        raise Refused(replies.NON_ASCII_ADDRESS)
    return Path(address, parameters)


def parse_rcpt(argument: bytes, offered: frozenset[str], utf8: bool) -> Path:
    """Parse the argument of RCPT: the forward-path with its parameters (RFC 5321 4.1.1.3).

    `offered` has DSN if NOTIFY and ORCPT may be used; `utf8` says whether the transaction's MAIL had SMTPUTF8.
    """
    if argument[:3].upper() != b"TO:":
        raise Refused(replies.BAD_ARGUMENTS)
    path, address, rest = _parse_path(argument[3:], replies.BAD_RECIPIENT_ADDRESS)
    if address is None:
        # Postmaster is the only local part that needs no domain (RFC 5321 4.1.1.3).
        address = path["bare"]
        if address is None or address.lower() != "postmaster":
            raise Refused(replies.BAD_RECIPIENT_ADDRESS)
    parameters = _parse_parameters(rest, offered - _MAIL, _RCPT_DSN, utf8=utf8)
    if not utf8 and not path[0].isascii():
        raise Refused(replies.NON_ASCII_ADDRESS)
    return Path(address, parameters)


def _parse_path(octets: bytes, bad_address: Reply) -> tuple[re.Match[str], str | None, str]:
    """Return the match of `_PATH`, the mailbox without its source route (None if there is none), and the text after
    the closing bracket. Raises Refused with `bad_address`."""
    text = octets.decode("utf-8", "surrogateescape")
    path = _PATH.match(text)
    if path is None:
        raise Refused(bad_address)
    address, domain, literal = path.group("address", "domain", "literal")
    if domain is not None and len(domain.encode()) > _MAX_DOMAIN_OCTETS:
        raise Refused(bad_address)
    if literal is not None and not _is_address_literal(literal):
        raise Refused(bad_address)
    return path, address, text[path.end() :]


def _is_address_literal(text: str) -> bool:
    """Whether `text` may stand between square brackets in place of a domain (RFC 5321 4.1.3)."""
    if text[:5].upper() != "IPV6:":
        return _IPV4.fullmatch(text) is not None or _GENERAL_LITERAL.fullmatch(text) is not None
    if _IPV6.fullmatch(text, 5) is None:
        return False
    try:
        IPv6Address(text[5:])
    except AddressValueError:
        return False
    return True


def _parse_parameters(
    rest: str, offered: frozenset[str], dsn: frozenset[str], ignorable: str = "", *, utf8: bool = False
) -> Mapping[str, str | None]:
    """Parse the ESMTP parameters after a path. Returns their values by upper-case keyword.

    `offered` has the parameters that may be used, and `dsn` those that DSN adds if it is among them. The parameter
    `ignorable` is dropped if it is not offered and its value is <>. `utf8`: an ORCPT of type utf-8 may contain UTF-8.
    """
    if not rest:
        return NO_PARAMETERS
    if rest[0] not in " \t":
        raise Refused(replies.BAD_ARGUMENTS)
    if "DSN" in offered:
        offered |= dsn
    parameters: dict[str, str | None] = {}
    dropped = False
    # The words are taken one at a time, so that a line of many parameters costs nothing after its first faulty one.
    for word in _WORD.finditer(rest):
        match = _PARAMETER.fullmatch(word[0])
        if match is None:
            raise Refused(replies.BAD_ARGUMENTS)
        keyword, value = match[1].upper(), match[2]
        drop = keyword == ignorable and value == "<>" and keyword not in offered
        if not drop and (keyword not in offered or keyword not in _VALUES):
            raise UnsupportedParameter(match[1])
        if keyword in parameters or (drop and dropped):
            raise Refused(replies.BAD_ARGUMENTS)
        if value is not None and not value.isascii() and not (utf8 and keyword == "ORCPT"):
            # This is checked before `upper()`, which turns some non-ASCII letters into ASCII.
            raise Refused(replies.BAD_ARGUMENTS)
        if drop:
            dropped = True
            continue
        parameters[keyword] = _parse_value(keyword, value, offered)
    return MappingProxyType(parameters) if parameters else NO_PARAMETERS


def _parse_value(keyword: str, value: str | None, offered: frozenset[str]) -> str | None:
    form = _VALUES[keyword]
    if form is None and value is None:
        return None
    if (
        form is None
        or value is None
        or form.fullmatch(value if keyword in _CASE_COUNTS else value.upper()) is None
    ):
        raise Refused(replies.BAD_ARGUMENTS)
    if value.upper() == "BINARYMIME" and "BINARYMIME" not in offered:
        raise Refused(replies.BAD_ARGUMENTS)
    if keyword == "ORCPT" and len(value.encode()) > _MAX_ORCPT_OCTETS:
        raise Refused(replies.BAD_ARGUMENTS)
    if keyword == "NOTIFY":
        # Repeated words are removed, because some servers refuse them.
        return ",".join(dict.fromkeys(value.upper().split(",")))
    return value if keyword in _CASE_COUNTS else value.upper()
