"""The argument of `--ip-filter dnsbl:`, which names lists of clients in the DNS (RFC 5782). Pure.

    ZONE[=FILTER][*WEIGHT],…[;option=value…]

A zone's name may have a key in it that its provider has given to one customer. So neither a message of an error nor
anything else shows a zone: a list is shown by its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any

import attrs

from twisted_smtpguard.limits.units import parse_seconds
from twisted_smtpguard.replies import Reply

MAX_LISTS = 16
MAX_WEIGHT = 1000
MAX_TEXT_CHARACTERS = 300

LONGEST_TIMEOUT_SECONDS = 9.0
"""An IP filter that has not answered in `--ip-filter-timeout`, by default 10 s, has failed."""

LONGEST_TTL_SECONDS = 7 * 86400.0

_MAX_ZONE_CHARACTERS = 253 - 64
"""The labels of an IPv6 address, with their dots, have 64 of the 253 characters of a name."""

_MAX_LISTS_SHOWN = 5
"""How many lists a client is told."""

_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ENTRY = re.compile(r"([^=*]+)(?:=([^*]*))?(?:\*(.*))?")
_WEIGHT = re.compile(r"-?[0-9]{1,9}")
_RANGE = re.compile(r"([0-9]{1,3})(?:\.\.([0-9]{1,3}))?")
_OCTET = re.compile(r"\[([^\[\]]*)\]|([0-9]{1,3})")
_PORT = re.compile("[0-9]{1,5}")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")

DNS_PORT = 53


@attrs.frozen
class Codes:
    """The answers of a list that count: for each of the four octets its values."""

    octets: tuple[frozenset[int], ...]

    def has(self, code: int) -> bool:
        """Whether the IPv4 address with the number `code` is one of them."""
        return all(
            octet in allowed for octet, allowed in zip(code.to_bytes(4, "big"), self.octets, strict=True)
        )


@attrs.frozen
class DnsList:
    """A list in the DNS."""

    zone: str
    """Its zone, without a final dot. It is never shown."""
    name: str
    """What it is called wherever something is shown."""
    weight: int = 1
    """What it adds to the score of a client that it lists. Negative for an allow list."""
    codes: Codes | None = None
    """The answers that count; None: all that are a listing."""


@attrs.frozen(kw_only=True)
class DnsblSettings:
    """The lists, and how they are asked."""

    lists: tuple[DnsList, ...]
    threshold: int = 1
    """The score from which on a client is refused."""
    timeout: float = 2.0
    """How long, in seconds, a client waits for the answers of all lists together."""
    resolver: tuple[str, int] | None = None
    """The host and port of the resolver; None: those in /etc/resolv.conf."""
    ttl: tuple[float, float] = (60.0, 3600.0)
    """The shortest and the longest time, in seconds, for which an answer is kept."""
    code: int = 521
    text: str = "Your address is listed by {lists}"
    """What a client is told. The names of the lists stand in place of `{lists}`."""

    def reply(self, lists: Sequence[str]) -> Reply:
        """The reply to a client that is listed by `lists`."""
        named = ", ".join(lists[:_MAX_LISTS_SHOWN])
        return Reply(self.code, f"{self.code // 100}.7.1", (self.text.replace("{lists}", named),))


def parse_dnsbl(argument: str) -> DnsblSettings:
    """Parse the argument. ValueError is a sentence that says what is expected, and shows no zone."""
    first, *options = _split(argument, ";")
    values: dict[str, Any] = {}
    for option in options:
        name, equals, value = (part.strip() for part in option.partition("="))
        if name not in _OPTIONS or not equals:
            known = ", ".join(f"{each}=" for each in _OPTIONS)
            raise ValueError(f"one of {known} is expected after each semicolon of dnsbl")
        if name in values:
            raise ValueError(f"{name}= is given twice")
        try:
            values[name] = _OPTIONS[name](value)
        except ValueError as error:
            raise ValueError(f"{name}=: {error}, not {value!r}") from error
    entries = [entry.strip() for entry in _split(first, ",")]
    if entries == [""]:
        raise ValueError("dnsbl needs a list, such as dnsbl:bl.example or dnsbl:bl.example=127.0.0.[2..11]*2")
    if len(entries) > MAX_LISTS:
        raise ValueError(f"at most {MAX_LISTS} lists are expected")
    names = values.pop("name", ())
    if names and len(names) != len(entries):
        raise ValueError(f"name=: {len(entries)} names are expected, one for each list, not {len(names)}")
    lists = []
    for number, entry in enumerate(entries, 1):
        try:
            lists.append(_list(entry))
        except ValueError as error:
            raise ValueError(f"list {number}: {error}") from error
    zones = [each.zone for each in lists]
    if len({*zones}) != len(zones):
        raise ValueError(f"list {_second(zones)} has the zone of another; all codes of a zone are one list")
    if "refuse" in values:
        values["code"] = values.pop("refuse")
    settings = DnsblSettings(lists=_named(lists, names), **values)
    most = sum(each.weight for each in lists if each.weight > 0)
    if most < settings.threshold:
        raise ValueError(
            f"the weights of all lists together are {most}, so that none is refused with threshold={settings.threshold}"
        )
    return settings


def _named(lists: Sequence[DnsList], names: Sequence[str]) -> tuple[DnsList, ...]:
    """The lists with their names. Without `names` a list is called by the last two labels of its zone, in which no
    key stands, and if others are called so too, by their number as well."""
    if not names:
        names = [".".join(each.zone.split(".")[-2:]) for each in lists]
        names = [f"{name}-{i}" if names.count(name) > 1 else name for i, name in enumerate(names, 1)]
    return tuple(attrs.evolve(each, name=name) for each, name in zip(lists, names, strict=True))


def _second(zones: Sequence[str]) -> int:
    """The number of the first list whose zone stood before."""
    return next(number for number, zone in enumerate(zones, 1) if zone in zones[: number - 1])


def _split(text: str, separator: str) -> list[str]:
    """Split at each separator that does not stand in brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "[") - (character == "]")
        if character == separator and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _list(entry: str) -> DnsList:
    match = _ENTRY.fullmatch(entry)
    if match is None:
        raise ValueError("ZONE, ZONE=FILTER, ZONE*WEIGHT or ZONE=FILTER*WEIGHT is expected")
    zone = match[1].strip().removesuffix(".").lower()
    if len(zone) > _MAX_ZONE_CHARACTERS or not all(map(_LABEL.fullmatch, zone.split("."))):
        raise ValueError("a zone such as bl.example is expected")
    codes = None if match[2] is None else parse_codes(match[2].strip())
    weight = 1 if match[3] is None else _weight(match[3].strip())
    return DnsList(zone, "", weight, codes)


def _weight(text: str) -> int:
    if not _WEIGHT.fullmatch(text) or not 0 < abs(int(text)) <= MAX_WEIGHT:
        raise ValueError(
            f"a whole number from -{MAX_WEIGHT} to {MAX_WEIGHT} other than 0 is expected after *, not {text!r}"
        )
    return int(text)


def parse_codes(text: str) -> Codes:
    """Parse `127.0.0.2` or `127.0.[0..255].[2;4..11]`. ValueError says what is expected."""
    octets = [_octet(part) for part in _split(text, ".")]
    if len(octets) != 4 or not all(octets):
        raise ValueError(
            "an answer such as 127.0.0.2 or 127.0.0.[2;4..11], of numbers up to 255, is expected after =, "
            f"not {text!r}"
        )
    codes = Codes(tuple(octets))
    if 127 not in octets[0]:
        raise ValueError(f"only an answer that begins with 127 is a listing, and {text!r} does not")
    if octets[1] == octets[2] == {255}:
        raise ValueError(f"an answer that begins with 127.255.255 is an error of a list, not {text!r}")
    return codes


def _octet(text: str) -> frozenset[int]:
    """The values of one octet; empty if it is none."""
    match = _OCTET.fullmatch(text)
    if match is None:
        return frozenset()
    values: set[int] = set()
    for part in (match[1] or match[2] or "").split(";"):
        found = _RANGE.fullmatch(part.strip())
        if found is None:
            return frozenset()
        low, high = int(found[1]), int(found[2] or found[1])
        if not low <= high <= 255:
            return frozenset()
        values.update(range(low, high + 1))
    return frozenset(values)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(each.strip() for each in text.split(","))
    if not all(map(_NAME.fullmatch, names)) or len({*names}) != len(names):
        raise ValueError(
            "different names of letters, digits, dots, hyphens and underscores, with commas between them, are expected"
        )
    return names


def _threshold(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or not int(text):
        raise ValueError("a whole number from 1 on is expected")
    return int(text)


def _timeout(text: str) -> float:
    seconds = parse_seconds(text)
    if not 0 < seconds <= LONGEST_TIMEOUT_SECONDS:
        raise ValueError(f"a time of at most {LONGEST_TIMEOUT_SECONDS:g} s is expected")
    return seconds


def _ttl(text: str) -> tuple[float, float]:
    shortest, _, longest = text.partition("-")
    try:
        times = parse_seconds(shortest.strip()), parse_seconds(longest.strip())
    except ValueError:
        times = 0, 0
    if not 1 <= times[0] <= times[1] <= LONGEST_TTL_SECONDS:
        raise ValueError("the shortest and the longest time, such as 60-3600, from 1 s to 7 d, are expected")
    return times


def _refuse(text: str) -> int:
    if text not in ("421", "521"):
        raise ValueError("421 or 521 is expected")
    return int(text)


def _text(text: str) -> str:
    if not 0 < len(text) <= MAX_TEXT_CHARACTERS or not (text.isascii() and text.isprintable()):
        raise ValueError(f"a text of at most {MAX_TEXT_CHARACTERS} ASCII characters is expected")
    return text


def parse_host(text: str) -> tuple[str, int]:
    """Parse HOST, HOST:PORT, an IPv6 address or [ADDRESS]:PORT. ValueError says what is expected."""
    host, port = text, ""
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
        well = ":" in host and _is_address(host)
    elif text.count(":") > 1:
        well = _is_address(text)
    else:
        host, colon, port = text.partition(":")
        well = _HOST.fullmatch(host) is not None and bool(port) == bool(colon)
    if not well or (port and not (_PORT.fullmatch(port) and 0 < int(port) < 65536)):
        raise ValueError("a host such as 127.0.0.1, [::1]:5353 or unbound:53 is expected")
    return host, int(port or DNS_PORT)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


_OPTIONS: Mapping[str, Callable[[str], Any]] = {
    "threshold": _threshold,
    "timeout": _timeout,
    "resolver": parse_host,
    "ttl": _ttl,
    "refuse": _refuse,
    "text": _text,
    "name": _names,
}
