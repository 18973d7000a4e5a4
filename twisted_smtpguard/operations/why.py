"""`why`: what would happen to an address now, what has happened to it, and what would let it in.

What would happen is told by a rehearsal of its connection, which the code that decides about all others carries out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from ipaddress import ip_network
from typing import Any

from twisted.internet.defer import Deferred

from twisted_smtpguard.admission.clients import PER_CLIENT, total_place
from twisted_smtpguard.admission.loginattempts import OF_CLIENT, OF_USER
from twisted_smtpguard.admission.offences import BAN_AFTER, points_of
from twisted_smtpguard.admission.seats import RESERVED
from twisted_smtpguard.inputs.escaping import escape_text
from twisted_smtpguard.limits.limits import POLICY, Limits, LimitSpec
from twisted_smtpguard.limits.units import Rate
from twisted_smtpguard.log.eventlog import utc
from twisted_smtpguard.operations import standings
from twisted_smtpguard.operations.rules import NAME as RULES
from twisted_smtpguard.operations.rules import NetworkRules
from twisted_smtpguard.policyvalues import POLICY_STAGES
from twisted_smtpguard.transport.factory import SMTPGuardFactory
from twisted_smtpguard.transport.rehearsal import ARRIVAL, Outcome, rehearse
from twisted_smtpguard.values import Address

TOTAL_PLACE = total_place()
_SPECS = {spec.name: spec for spec in Limits.specs()}
_TIMES = ("time", "ended")

Row = dict[str, Any]


def why(factory: SMTPGuardFactory, rules: NetworkRules, address: str) -> Deferred[Row]:
    """What would happen to a client at `address` (`unix` for UNIX sockets) that connected now and sent a mail.

    Fires with a dict of what JSON has, when the filters and the counter store have answered; their time limits bound
    that. Nothing is counted, and the delivery is not asked. ValueError: this is no address.
    """
    return Deferred.fromCoroutine(_why(factory, rules, standings.parsed_address(address)))


async def _why(factory: SMTPGuardFactory, rules: NetworkRules, address: Address | None) -> Row:
    context = factory.context
    name = "unix" if address is None else str(address)
    outcome = await rehearse(factory, address)
    key = factory.clients.key_of(address)
    counts = await _counts(factory, key)
    refused = outcome.refused
    history = context.events.history
    answer: Row = {
        "address": name,
        "client": key,
        "outcome": _outcome(refused),
        **(refused or {}),
        "trusted": outcome.trusted,
        "stress": context.stressed,
        "known": standings.shown(factory.known.standing(key, address)),
        "bans": [*standings.ban_rows(factory.bans.holding(key))],
        "replies": {
            step: said for step, said in outcome.replies.items() if step in (ARRIVAL, "AUTH", "MAIL", "RCPT")
        },
        "in_dry_run": [each for each in outcome.refusals if each["dry_run"]],
        "demands": _demands(factory),
        "greet_delay_seconds": factory.greet_delay(),
        "is_proxy": factory.proxies is not None and factory.proxies.has(address),
        "filters": outcome.filters,
        "policies": list(_policies(factory, trusted=outcome.trusted)),
        "counts_alone": factory.counting.is_away,
        "counts": counts,
        "problems": outcome.problems,
        "recent_refusals": [timed(row) for row in history.refusals.of(name)],
        "recent_sessions": [timed(row) for row in history.sessions.of(name)],
        "would_help": list(_remedies(factory, rules, name.partition("%")[0], outcome)),
    }
    answer.pop("dry_run", None)
    return answer


def _policies(factory: SMTPGuardFactory, *, trusted: bool) -> Iterator[Row]:
    """The session policies in their order. None is asked: a greylist would take the question for a first try."""
    dry_run = factory.context.limits.dry_run
    for entry in factory.policies:
        yield {
            "policy": escape_text(entry.name),
            "stages": [stage for stage in POLICY_STAGES if stage in entry.stages],
            "asks_this_client": not (trusted and entry.strangers_only),
            "fail_open": entry.fail_open,
            "dry_run": not dry_run.isdisjoint((POLICY, f"{POLICY}:{entry.name}")),
        }


def _outcome(refused: Mapping[str, object] | None) -> str:
    """In one word."""
    if refused is None:
        return "accepted"
    return "refused" if refused["step"] == ARRIVAL else "deferred"


def _demands(factory: SMTPGuardFactory) -> list[str]:
    """What a client has to do before MAIL."""
    context = factory.context
    return [
        word for word, demanded in (("tls", context.require_tls), ("auth", context.require_auth)) if demanded
    ]


async def _counts(factory: SMTPGuardFactory, key: str) -> list[Row]:
    """What there is of each limit on clients, for the client and for each of its networks, and when that clears."""
    counting, limits, now = factory.counting, factory.context.limits, factory.context.seconds()
    wanted = [TOTAL_PLACE, *([points_of(key)] if limits.ban_after else [])]
    for spec in Limits.specs():
        if spec.name == OF_CLIENT and factory.context.identify is None:
            # Nobody can log in here.
            continue
        limit = factory.clients.limit(spec.name) if _is_per_client(spec) else None
        if limit is not None:
            wanted += limit.wanted(key)
    looks = counting.look(wanted)
    rows = []
    for each, (seen, left) in zip(wanted, await looks if isinstance(looks, Deferred) else looks, strict=True):
        of_all = each is TOTAL_PLACE
        row: Row = {
            "limit": _SPECS[each.counter].option,
            "of": "all clients" if of_all else "this client" if each.client == key else each.client,
            "allowed": limits.shown(each.counter, each.client),
            "count": factory.connections if of_all and not counting.shared else seen,
            "dry_run": each.counter in limits.dry_run,
        }
        if left:
            row["clears"] = utc(math.ceil(now + left))
        rows.append(row)
    return rows


def timed(row: Row) -> Row:
    """A row of the history with its times as texts."""
    shown = {name: utc(value) if name in _TIMES else value for name, value in row.items()}
    return {**shown, "seconds": round(row["seconds"], 3)} if "seconds" in row else shown


def _remedies(
    factory: SMTPGuardFactory, rules: NetworkRules, address: str, outcome: Outcome
) -> Iterator[str]:
    """What would let the client in: commands, or a sentence where none does."""
    refused = outcome.refused
    if refused is None:
        return
    reason, limits = str(refused["reason"]), factory.context.limits
    spec = _SPECS.get(reason)
    if reason == "shutdown":
        yield "smtpguardctl resume"
    elif reason == "deferred":
        yield "smtpguardctl defer off"
    elif reason == BAN_AFTER:
        yield f"smtpguardctl unban {address}"
    elif reason == RESERVED:
        yield "smtpguardctl set reserved-connections 0"
        yield from _trust(address)
    elif spec is not None:
        yield f"smtpguardctl set {spec.option} {_more(limits, reason, refused)}"
        if _is_per_client(spec):
            yield from _trust(address)
    elif "filter" in refused:
        yield from _past_filter(rules, address, refused, outcome)


def _is_per_client(spec: LimitSpec) -> bool:
    """Whether the limit is counted by client, so that a trusted one is exempt from it."""
    return spec.name == PER_CLIENT or (isinstance(spec.default, Rate) and spec.name != OF_USER)


def _more(limits: Limits, name: str, refused: Mapping[str, Any]) -> str:
    """A value of the limit that is half as much again, and enough, also for the network that has reached it."""
    value, times = getattr(limits, name), limits.times(str(refused.get("network", "")))
    count = -(-int(refused.get("value") or 0) // times)
    if isinstance(value, Rate):
        return str(Rate(max(count, value.events * 3 // 2), value.seconds))
    return str(max(count, value * 3 // 2))


def _past_filter(
    rules: NetworkRules, address: str, refused: Mapping[str, Any], outcome: Outcome
) -> Iterator[str]:
    rule = str(refused.get("rule", ""))
    others = [
        row for row in outcome.filters if row["filter"] != RULES and row["verdict"] in ("refuse", "failed")
    ]
    if refused["filter"] != RULES:
        yield from _trust(address)
        decides = [
            row for row in outcome.filters if row["asked"] and "because" in row and row["verdict"] == "refuse"
        ]
        yield from (f"{row['because']} must go, and then: smtpguardctl reload" for row in decides)
        return
    denied = ip_network(rule)
    row = next((each for each in rules.rows() if ip_network(each["network"]) == denied), None)
    if row is not None and row["until"]:
        yield f"smtpguardctl remove {row['network']}"
    elif row is not None and denied == ip_network(address):
        yield f"the deny of {row['network']} in {row['from']} must go, and then: smtpguardctl reload"
    elif others:
        yield from _trust(address)
    else:
        yield f"smtpguardctl allow {address} --for 1h"


def _trust(address: str) -> Iterator[str]:
    if address != "unix":
        yield f"smtpguardctl trust {address} --for 1h"
