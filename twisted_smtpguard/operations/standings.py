"""Which clients are known, which are banned, and which limits would suit them, as an operator reads it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from twisted_smtpguard.admission.bans import Ban, BanList
from twisted_smtpguard.admission.clients import ClientLimits
from twisted_smtpguard.admission.known import KnownClients, Standing
from twisted_smtpguard.admission.offences import Offences
from twisted_smtpguard.admission.peaks import NOTED_LIMITS
from twisted_smtpguard.filters.networklist import parse_network
from twisted_smtpguard.log.eventlog import utc, word
from twisted_smtpguard.operations import suggestions
from twisted_smtpguard.operations.rules import network_text
from twisted_smtpguard.values import Address, unmapped

_MAX_CHARACTERS = 60
"""No address with the name of an interface is longer."""

Row = dict[str, Any]


def parsed_address(text: str) -> Address | None:
    """Parse an address as an operator writes it; None for `unix`, which stands for UNIX sockets. ValueError: it is
    none."""
    if text == "unix":
        return None
    try:
        # Anything may stand in the zone of an IPv6 address, after its percent sign.
        if len(text) <= _MAX_CHARACTERS and text.isascii() and text.isprintable():
            return unmapped(ip_address(text))
    except ValueError:
        pass
    raise ValueError(
        f"{text[:_MAX_CHARACTERS]!r} is no address; one such as 192.0.2.1 or 2001:db8::1 is expected, or unix"
    )


def client_at(clients: ClientLimits, text: str) -> tuple[str, Address | None]:
    """The key of the client at an address as an operator writes it, and the address."""
    address = parsed_address(text)
    return clients.key_of(address), address


def rows(known: KnownClients) -> Iterator[Row]:
    """One row for each client that is known by its mail."""
    return ({"client": key, **shown(standing)} for key, standing in known.by_mail())


def ban_rows(bans: Iterable[Ban]) -> Iterator[Row]:
    """One row for each ban, of a client or of a network. `because` has the offences, with the points of each."""
    return (
        {
            "banned": ban.key,
            "until": utc(ban.until),
            "times": ban.times,
            "points": None if ban.is_of_network else ban.points,
            "because": f"{ban.points} of its clients are banned" if ban.is_of_network else word(ban.reasons),
            "dry_run": ban.dry_run,
        }
        for ban in bans
    )


def unban(bans: BanList, offences: Offences, clients: ClientLimits, text: str) -> list[str]:
    """Lift the ban of the client at an address, with its points, and those of its networks; or that of a network.
    Returns the keys of those that were banned."""
    key = network_text(parse_network(text)) if "/" in text else client_at(clients, text)[0]
    lifted = [*bans.lift(key)]
    offences.forgive(key)
    return lifted


def shown(standing: Standing | None) -> Row:
    """Whether a client is known. `by` is `mail`, `file`, or "" where it is not; `until` is "" where it stays known."""
    if standing is None:
        return {"known": False, "by": "", "accepted": "", "until": ""}
    return {
        "known": True,
        "by": "file" if standing.listed else "mail",
        "accepted": "" if standing.accepted_at is None else utc(standing.accepted_at),
        "until": "" if standing.until is None else utc(standing.until),
    }


async def suggested(clients: ClientLimits, clock: IReactorTime) -> Iterator[Row]:
    """One row for each limit per client, with values that would suit the clients. Each limit is looked at in a turn of
    the reactor, since there may be ten thousands of clients."""
    found = []
    for name in NOTED_LIMITS:
        peaks = clients.peaks
        found.append(suggestions.row(clients.limits, name, peaks.of_limit(name), utc(peaks.since)))
        await deferLater(clock, 0)
    return iter(found)
