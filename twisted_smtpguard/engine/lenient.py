"""The malformed addresses that old printers, scanners and alarm systems send in MAIL and RCPT, put into SMTP's form.

Pure: octets in, octets out. Nothing is accepted here: the result is parsed like any other line, so that a delivery and
the trace fields see only valid addresses. No regular expression here may need more than linear time, because an
attacker may write the line.
"""

from __future__ import annotations

import re
from itertools import pairwise

_QUOTED = rb'"(?:[^"\\]|\\.)*"'
_ARGUMENT = re.compile(rb"(FROM|TO)[ \t]*:[ \t]*(?P<path>.*)", re.IGNORECASE | re.DOTALL)
_BRACKETED = re.compile(rb'<((?:[^<>"]|' + _QUOTED + rb")*)>(.*)", re.DOTALL)
_BARE = re.compile(rb'((?:[^ \t<>"]|' + _QUOTED + rb")+)((?:[ \t].*)?)", re.DOTALL)
_WORD = re.compile(rb'(?:[^ \t"]|' + _QUOTED + rb")+", re.DOTALL)
_MAILBOX = re.compile(rb'(@[^:"]*:)?([^"@\\()\[\],:; \t]+|' + _QUOTED + rb")@([^@]+)", re.DOTALL)


def proper_form(argument: bytes) -> bytes | None:
    """Rewrite the argument of a MAIL or RCPT that the grammar has refused. None if that would change nothing, or if no
    address can be found in it.

    Angle brackets are added. Blanks are removed around the colon, at both ends of the address, and around its @ and
    its dots; so is the final dot of a domain. A local part that begins or ends with a dot, or has two in a row, is
    quoted (RFC 5321 4.1.2).
    """
    parts = _ARGUMENT.fullmatch(argument)
    if parts is None:
        return None
    path = (_BRACKETED if parts["path"].startswith(b"<") else _BARE).fullmatch(parts["path"])
    if path is None:
        return None
    address = _without_blanks(path[1])
    if address is None:
        return None
    mailbox = _MAILBOX.fullmatch(address)
    if mailbox is not None:
        route, local, domain = mailbox.groups(b"")
        if b".." in local or local[:1] == b"." or local[-1:] == b".":
            local = local if local.startswith(b'"') else b'"%b"' % local
        if not domain.endswith(b"]."):
            domain = domain.removesuffix(b".")
        address = b"%b%b@%b" % (route, local, domain)
    proper = b"%b:<%b>%b" % (parts[1], address, path[2])
    return None if proper == argument else proper


def _without_blanks(address: bytes) -> bytes | None:
    """The address without its blanks, or None if a blank stands anywhere but beside an @ or a dot: two words are not
    one address."""
    words: list[bytes] = _WORD.findall(address)
    for left, right in pairwise(words):
        if left[-1:] not in b"@." and right[:1] not in b"@.":
            return None
    return b"".join(words)
