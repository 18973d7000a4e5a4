"""Questions to name servers and their answers, as octets. Pure but for the file with the addresses of name servers.

This file imports twisted.names, which the filter does only if lists are asked.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import ip_address

from twisted.names import dns

from twisted_smtpguard.filters.dnsbldecision import ERROR, Answer
from twisted_smtpguard.filters.dnsblsettings import DNS_PORT
from twisted_smtpguard.inputs.regularfile import open_regular

MAX_OCTETS = 4096
"""The longest answer that is read. Not even one with a hundred addresses has half as many."""

MAX_SERVERS = 3
"""As many as the resolver of the C library asks."""

RESOLV_CONF = "/etc/resolv.conf"
_MAX_FILE_OCTETS = 65536
_LOCAL = ("127.0.0.1", DNS_PORT)

_CODES = {dns.EFORMAT: "FORMERR", dns.ESERVER: "SERVFAIL", dns.ENOTIMP: "NOTIMP", dns.EREFUSED: "REFUSED"}


class Truncated(Exception):  # noqa: N818 - what it says of the answer
    """The answer did not fit into a datagram, and is to be asked for by TCP (RFC 7766)."""


def question_for(name: str, number: int) -> bytes:
    """The question for the A records of a name. `number` is its id."""
    message = dns.Message(number, recDes=1)
    message.addQuery(name.encode("ascii"), dns.A, dns.IN)
    return message.toStr()


def read_answer(octets: bytes, name: str, number: int) -> Answer | None:
    """The answer to the question for `name` with the id `number`; None if it is none to that, or is no DNS message.

    Truncated: it is not whole. A CNAME may lead out of the zone, so the names of the records say nothing.
    """
    if octets[:2] != number.to_bytes(2, "big"):
        # Who guesses ids does not get a message parsed for each guess.
        return None
    message = dns.Message()
    try:
        message.fromStr(octets)
    except Exception:  # noqa: BLE001 - a stranger may have made the octets, and the parser is not ours
        return None
    asked = [(query.name.name.lower(), query.type, query.cls) for query in message.queries]
    if not message.answer or asked != [(name.encode("ascii").lower(), dns.A, dns.IN)]:
        return None
    if message.trunc:
        raise Truncated
    if message.rCode not in (dns.OK, dns.ENAME):
        code = _CODES.get(message.rCode, f"the code {message.rCode}")
        return Answer(problem=f"the resolver answers {code}", outcome=ERROR)
    addresses: dict[int, None] = {}
    seconds = None
    if message.rCode == dns.OK:
        records = [each for each in message.answers if each.cls == dns.IN]
        for record in records:
            if isinstance(record.payload, dns.Record_A):
                addresses[int.from_bytes(record.payload.address, "big")] = None
        seconds = min((record.ttl for record in records), default=None)
    if not addresses:
        # For how long that holds is told by the zone (RFC 2308 5).
        times: list[int] = []
        for each in message.authority:
            soa = each.payload
            if isinstance(soa, dns.Record_SOA):
                times.append(min(each.ttl, soa.minimum))
        seconds = min(times, default=0)
    return Answer(tuple(addresses), seconds or 0)


def name_servers(lines: Iterable[bytes]) -> list[tuple[str, int]]:
    """The servers in the lines of a resolv.conf(5); 127.0.0.1 if there are none."""
    found = []
    for line in lines:
        words = line.split()
        if len(words) > 1 and words[0] == b"nameserver":
            host = words[1].decode("ascii", "replace")
            try:
                ip_address(host)
            except ValueError:
                continue
            found.append((host, DNS_PORT))
    return found[:MAX_SERVERS] or [_LOCAL]


def find_servers(resolver: tuple[str, int] | None, path: str = RESOLV_CONF) -> list[tuple[str, int]]:
    """The addresses and ports of the servers to ask: those of `resolver`, which may be the name of a host, or those in
    the file. Blocks, so it is called in a thread. ValueError says why there are none."""
    if resolver is None:
        try:
            with open_regular(path) as file:
                return name_servers(file.read(_MAX_FILE_OCTETS).splitlines())
        except FileNotFoundError:
            return [_LOCAL]
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from error
    host, port = resolver
    try:
        known = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except OSError as error:
        raise ValueError(f"the resolver {host} is not found: {error.strerror}") from error
    return [(str(address[0]), port) for *_, address in known][:MAX_SERVERS]
