"""The parser of a list of networks. Every mistake in a list is a ValueError of one sentence.

A line is `allow NETWORK`, `trust NETWORK` or `deny NETWORK [reply]`; in a list that only names networks it is one of
them. Blank lines are skipped. A comment begins with a `#` at the beginning of a line or after a space.
"""

from __future__ import annotations

import os
import re
from codecs import BOM_UTF8
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Network, IPv6Network
from socket import AF_INET, AF_INET6, inet_pton

from twisted_smtpguard.filters.networktable import (
    ALLOWED,
    FIRST_REFUSAL,
    IPV4_BITS,
    IPV6_BITS,
    MAPPED,
    TRUSTED,
    NetworkTable,
    TableBuilder,
)
from twisted_smtpguard.inputs.regularfile import open_regular
from twisted_smtpguard.replies import CONNECTION_REFUSED, Reply
from twisted_smtpguard.values import Address, Verdict, refuse

MAX_LINE_OCTETS = 4096

_COMMENT = re.compile("(?:^| )#.*")
_REPLY = re.compile(r"(?:([45][0-9]{2})(?: +|$))?(?:([0-9]\.[0-9]{1,3}\.[0-9]{1,3})(?: +|$))?(.*)")
_LENGTHS = {str(length): length for length in range(IPV6_BITS + 1)}
_LINES_AT_ONCE = 256


def parse_network(text: str) -> tuple[int, int, int]:
    """Parse an address or CIDR. Returns IPV4_BITS or IPV6_BITS, the first address as a number, and the prefix length.
    An IPv4-mapped network is returned as the IPv4 network."""
    address, slash, prefix = text.partition("/")
    family, bits = (AF_INET6, IPV6_BITS) if ":" in address else (AF_INET, IPV4_BITS)
    try:
        start = int.from_bytes(inet_pton(family, address), "big")
    except (OSError, ValueError):
        raise ValueError(
            f"{_shown(text)} is not a network; one such as 192.0.2.0/24, 192.0.2.1 or 2001:db8::/32 is expected"
        ) from None
    length = _LENGTHS.get(prefix, IPV6_BITS + 1) if slash else bits
    if length > bits:
        raise ValueError(f"{_shown(text)} must have a number from 0 to {bits} after its slash")
    if bits == IPV6_BITS and length >= 96 and start >> 32 == MAPPED:
        bits, start, length = IPV4_BITS, start & 0xFFFFFFFF, length - 96
    if start & ((1 << bits - length) - 1):
        network = (IPv4Network if bits == IPV4_BITS else IPv6Network)((start, length), strict=False)
        raise ValueError(f"{_shown(text)} has bits set after its prefix; {network} is expected")
    return bits, start, length


def contains(network: tuple[int, int, int], address: Address) -> bool:
    """Whether an address, which is not IPv4-mapped, is in a network, which is as `parse_network` returns it."""
    bits, start, length = network
    family = IPV4_BITS if address.version == 4 else IPV6_BITS
    return bits == family and int(address) >> bits - length == start >> bits - length


def parse_reply(text: str) -> Reply:
    """The reply in `text`, such as `521 5.7.1 Go away`. Without codes they are 421 and 4.7.0."""
    match = _REPLY.fullmatch(text)
    assert match is not None
    code = match[1] or "421"
    enhanced = match[2] or f"{code[0]}.7.0"
    if code not in ("421", "521"):
        raise ValueError(f"a connection is refused with 421 or 521, not {code}")
    if enhanced[0] != code[0]:
        raise ValueError(
            f"an enhanced code beginning with {code[0]} is expected after {code}, not {enhanced}"
        )
    return Reply(int(code), enhanced, (match[3],) if match[3] else CONNECTION_REFUSED.lines)


def read_table(path: str | os.PathLike[str], yield_gil: Callable[[], object] = lambda: None) -> NetworkTable:
    """The table of the list in the file `path`. `yield_gil` is called after each short piece of work.

    ValueError names the file, and the line that is wrong.
    """
    builder = TableBuilder()
    # The index of each reply text: most lines of a list have the same text.
    refusals: dict[str, int] = {}
    _read(path, partial(_add, builder, refusals), yield_gil)
    return builder.build(yield_gil)


def read_networks(
    path: str | os.PathLike[str], yield_gil: Callable[[], object] = lambda: None
) -> NetworkTable:
    """The table of the networks that the file `path` names, one on each line: its verdict on their addresses is TRUST.
    `yield_gil` and ValueError are as for `read_table`."""
    builder = TableBuilder()
    _read(path, partial(_add_network, builder), yield_gil)
    return builder.build(yield_gil)


def find_line(
    path: str | os.PathLike[str],
    address: Address,
    verdict: Verdict,
    yield_gil: Callable[[], object] = lambda: None,
) -> str:
    """The line of the list in the file `path` that gives `verdict` on `address`, such as `PATH line 7: deny
    192.0.2.0/24`; "" if there is none. Of several the narrowest network does, and the first of equal ones."""
    finder = _LineFinder(address, verdict)
    _read(path, finder.take, yield_gil)
    return f"{os.fspath(path)} line {finder.found}: {finder.words}" if finder.found else ""


class _LineFinder:
    """Takes the lines of a list, as a TableBuilder takes their networks."""

    def __init__(self, address: Address, verdict: Verdict) -> None:
        self._address = address
        self._index = {"pass": ALLOWED, "trust": TRUSTED}.get(verdict.kind, FIRST_REFUSAL)
        self._refusals: dict[str, int] = {}
        self._line = 0
        self._octets = b""
        self._length = -1
        self.found = 0
        """The number of the line; 0 for none."""
        self.words = ""
        """Its keyword and its network."""

    def take(self, octets: bytes) -> None:
        self._line += 1
        self._octets = octets
        _add(self, self._refusals, octets)

    def index(self, verdict: Verdict) -> int:
        """Called by `_add`."""
        return FIRST_REFUSAL

    def add(self, bits: int, start: int, length: int, index: int) -> None:
        """Called by `_add`."""
        narrower = index == self._index and length > self._length
        if narrower and contains((bits, start, length), self._address):
            self._length, self.found = length, self._line
            self.words = " ".join(_text(self._octets).split()[:2])


def _read(
    path: str | os.PathLike[str], take: Callable[[bytes], object], yield_gil: Callable[[], object]
) -> None:
    """Call `take` with each line of the file."""
    number = 0
    try:
        with open_regular(path) as file:
            # A line may never end, so no more of it is read than shows that it is too long.
            while line := file.readline(MAX_LINE_OCTETS + 1):
                number += 1
                try:
                    take(line if number > 1 else line.removeprefix(BOM_UTF8))
                except ValueError as error:
                    raise ValueError(f"{os.fspath(path)} line {number}: {error}") from None
                if number % _LINES_AT_ONCE == 0:
                    yield_gil()
    except OSError as error:
        raise ValueError(f"{os.fspath(path)} cannot be read: {error.strerror}") from error


def _add(builder: TableBuilder | _LineFinder, refusals: dict[str, int], octets: bytes) -> None:
    words = _words(octets)
    if not words:
        return
    keyword, *arguments = words
    text = arguments[1].rstrip() if len(words) == 3 else ""
    if keyword == "deny":
        index = refusals.get(text)
        if index is None:
            index = refusals[text] = builder.index(refuse(parse_reply(text)))
    elif keyword not in ("allow", "trust"):
        raise ValueError(f"allow, trust or deny is expected, not {_shown(keyword)}")
    elif text:
        raise ValueError(f"nothing but a comment is expected after the network of {keyword}")
    else:
        index = ALLOWED if keyword == "allow" else TRUSTED
    if not arguments:
        raise ValueError(f"{keyword} needs a network, such as {keyword} 192.0.2.0/24")
    builder.add(*parse_network(arguments[0]), index)


def _add_network(builder: TableBuilder, octets: bytes) -> None:
    words = _words(octets)
    if len(words) > 1:
        raise ValueError(
            f"one network is expected in a line, and nothing but a comment after {_shown(words[0])}"
        )
    if words:
        builder.add(*parse_network(words[0]), TRUSTED)


def _words(octets: bytes) -> list[str]:
    """The first two words of a line without its comment, and the rest."""
    line = _text(octets)
    if "#" in line:
        line = _COMMENT.sub("", line)
    # After this check, ordinary spaces are the only characters that `split` takes for spaces.
    if not line.isprintable():
        raise ValueError("control characters and spaces other than ordinary ones are not expected")
    return line.split(None, 2)


def _text(octets: bytes) -> str:
    if len(octets) > MAX_LINE_OCTETS:
        raise ValueError(f"at most {MAX_LINE_OCTETS} octets are expected in a line")
    try:
        line = octets.rstrip(b"\r\n").decode()
    except UnicodeDecodeError:
        raise ValueError("UTF-8 is expected") from None
    # Some systems end a line with CR alone: a comment would hide all lines after it.
    if "\0" in line or "\r" in line:
        raise ValueError("neither NUL nor a CR within a line is expected")
    return line.replace("\t", " ")


def _shown(word: str) -> str:
    return repr(word if len(word) <= 60 else f"{word[:57]}...")
