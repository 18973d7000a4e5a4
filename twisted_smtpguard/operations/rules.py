"""The networks that are denied, trusted or allowed: by --deny and --trust, and by an operator while the guard runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_network
from typing import Any, NamedTuple

from zope.interface import implementer

from twisted_smtpguard.admission.chain import FilterEntry
from twisted_smtpguard.filters.networklist import contains, parse_network
from twisted_smtpguard.filters.networktable import NetworkTable, TableBuilder
from twisted_smtpguard.inputs.escaping import escape_text
from twisted_smtpguard.interfaces import IExplainingFilter
from twisted_smtpguard.log.eventlog import utc
from twisted_smtpguard.records.records import MOST_OCTETS, Records
from twisted_smtpguard.values import PASS, TRUST, Peer, Record, Verdict, refuse

NAME = "deny/trust"
"""The filter's name in the log."""

_LAST_END = 1e11
"""No rule that is shared ends later, which is in some thousand years."""

MAX_RULES = 10_000
"""The most rules of operators at once. A rule costs less than a kilobyte, and each change makes the table anew."""

VERDICTS: Mapping[str, Verdict] = {"deny": refuse(), "trust": TRUST, "allow": PASS}

Network = tuple[int, int, int]
"""What `parse_network` returns."""


class _Rule(NamedTuple):
    verb: str
    origin: str
    """Who made it, or where it was configured."""
    ends_at: float
    """By the guard's clock; infinity: never."""
    configured: bool


@implementer(IExplainingFilter)
class NetworkRules:
    """One table of all rules, in which the longest prefix decides. If there are rules of an operator and configured
    ones for the same network, the operator's counts, unless the configured one denies. `allow` means that the other
    filters decide.

    `seconds` returns the time. `ask_first` is called with the filter while there are any rules, else with None: a guard
    without rules asks no filter.
    """

    def __init__(
        self, seconds: Callable[[], float], ask_first: Callable[[FilterEntry | None], object]
    ) -> None:
        self._seconds = seconds
        self._ask_first = ask_first
        self._configured: dict[Network, _Rule] = {}
        self._rules: dict[Network, _Rule] = {}
        self._in_force: dict[Network, _Rule] = {}
        self._table = TableBuilder().build(lambda: None)
        self._next_end = math.inf
        """When the table has to be made again."""
        self._asked = False
        self._records: Records | None = None
        self._host = ""

    def share(self, records: Records, host: str) -> None:
        """Share the rules of operators that have an end with other guards, in `records`. There they are by somebody on
        `host`."""
        self._records, self._host = records, host
        records.set_most(MAX_RULES)
        records.on_learnt(self._learnt)

    def check(self, peer: Peer) -> Verdict:
        """The verdict on a client, at this time."""
        if self._next_end <= self._seconds():
            self._make_table()
        return PASS if peer.address is None else self._table.verdict(peer.address)

    def explain(self, peer: Peer) -> str:
        """The rule that gives the verdict on a client; "" for none."""
        if peer.address is None:
            return ""
        kind = self.check(peer).kind
        found = [
            key
            for key, rule in self._in_force.items()
            if VERDICTS[rule.verb].kind == kind and contains(key, peer.address)
        ]
        if not found:
            return ""
        narrowest = max(found, key=_length)
        row = _row(narrowest, self._in_force[narrowest])
        until = f" until {row['until']}" if row["until"] else ""
        return f"{row['rule']} {row['network']}, {row['from']}{until}"

    def configure(self, deny: Mapping[str, str], trust: Mapping[str, str]) -> None:
        """Replace the configured networks. Both arguments name, for each network, where it was given. ValueError: one
        is no network."""
        configured = {}
        for verb, networks in (("trust", trust), ("deny", deny)):
            for network, origin in networks.items():
                configured[parse_network(network)] = _Rule(verb, origin, math.inf, configured=True)
        self._configured = configured
        self._make_table()

    def add(self, verb: str, network: str, seconds: float | None, by: str) -> dict[str, Any]:
        """Make a rule of an operator, in place of the one that there is for this network. `verb` is deny, trust or
        allow; None for `seconds`: until the process ends. Returns its row."""
        key, now = parse_network(network), self._seconds()
        if seconds is not None and not seconds > 0:
            raise ValueError("the time of a rule must be more than 0")
        self._drop_ended()
        if len(self._rules) >= MAX_RULES and key not in self._rules:
            raise ValueError(f"there are {MAX_RULES} rules already, and no more are kept")
        over = self._configured.get(key)
        if over is not None and over.verb == "deny" != verb:
            raise ValueError(
                f"{network_text(key)} is denied by {over.origin}, which wins over a rule for the same network"
            )
        ends_at = math.inf if seconds is None else now + seconds
        self._rules[key] = _Rule(verb, by, ends_at, configured=False)
        self._tell(key)
        self._make_table()
        return _row(key, self._rules[key])

    def remove(self, network: str) -> dict[str, Any]:
        """Remove the rule of an operator for a network. Returns the row that it had."""
        key = parse_network(network)
        self._drop_ended()
        rule = self._rules.pop(key, None)
        if rule is None:
            raise ValueError(f"no operator has made a rule for {network_text(key)}")
        self._tell(key)
        self._make_table()
        return _row(key, rule)

    def lift(self, address: str) -> dict[str, Any]:
        """Remove the deny of an operator, or of a program such as fail2ban, for one address. Returns its row."""
        rule = self._rules.get(parse_network(address))
        if rule is None or rule.verb != "deny":
            raise ValueError(f"no operator has denied {network_text(parse_network(address))}")
        return self.remove(address)

    def exported(self) -> list[list[Any]]:
        """The rules of operators, for `restore` of another process: of each its verb, network, end and maker."""
        self._drop_ended()
        return [
            [rule.verb, network_text(key), None if rule.ends_at == math.inf else rule.ends_at, rule.origin]
            for key, rule in self._rules.items()
        ]

    def restore(self, exported: Iterable[Sequence[Any]]) -> None:
        """Take the rules that operators have made elsewhere, in place of those made here."""
        self._rules = {
            parse_network(network): _Rule(verb, by, math.inf if end is None else end, configured=False)
            for verb, network, end, by in exported
        }
        if self._records is not None:
            # Others have them already, unless they have lost them.
            for key in self._rules:
                record = self._record(key)
                if record is not None:
                    self._records.learn(network_text(key), record)
        self._make_table()

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row for each rule in force, by network."""
        if self._next_end <= self._seconds():
            self._make_table()
        return (_row(key, rule) for key, rule in sorted(self._in_force.items()))

    def _tell(self, key: Network) -> None:
        """Tell other guards of a rule that an operator has made or removed. They keep none that has no end."""
        if self._records is not None:
            record = self._record(key)
            if record is None:
                self._records.remove(network_text(key))
            else:
                self._records.put(network_text(key), *record)

    def _record(self, key: Network) -> Record | None:
        rule = self._rules.get(key)
        if rule is None or rule.ends_at == math.inf:
            return None
        by = rule.origin if " on " in rule.origin else f"{rule.origin} on {self._host}"
        # Of a name that an application has chosen there may be any number of characters.
        return Record(f"{rule.verb} {escape_text(by)[: MOST_OCTETS - 10]}", min(rule.ends_at, _LAST_END))

    def _learnt(self, network: str, record: Record | None) -> None:
        """Called with each rule that an operator of another guard has made, or removed. The table is made when the next
        client comes, since there may be many."""
        try:
            key = parse_network(network)
            verb, _, by = (record.value if record is not None else "allow").partition(" ")
            check_rule(verb, network)
        except ValueError:
            # Another program has written it.
            return
        if record is None:
            self._rules.pop(key, None)
        elif record == self._record(key):
            return
        elif key in self._rules or len(self._rules) < MAX_RULES:
            self._rules[key] = _Rule(verb, by, record.end, configured=False)
        self._next_end = -math.inf
        if not self._asked:
            self._make_table()

    def _drop_ended(self) -> None:
        now = self._seconds()
        self._rules = {key: rule for key, rule in self._rules.items() if rule.ends_at > now}

    def _make_table(self) -> None:
        self._drop_ended()
        denied = {key: rule for key, rule in self._configured.items() if rule.verb == "deny"}
        self._in_force = {**self._configured, **self._rules, **denied}
        self._next_end = min((rule.ends_at for rule in self._rules.values()), default=math.inf)
        self._table = _table(self._in_force)
        if bool(self._in_force) != self._asked:
            self._asked = bool(self._in_force)
            self._ask_first(FilterEntry(self, NAME) if self._asked else None)


def check_rule(verb: str, network: str) -> None:
    """ValueError: there is no such rule."""
    parse_network(network)
    if verb not in VERDICTS:
        raise ValueError(f"one of {', '.join(VERDICTS)} is expected, not {verb[:40]!r}")


def _table(rules: Mapping[Network, _Rule]) -> NetworkTable:
    builder = TableBuilder()
    indexes = {verb: builder.index(verdict) for verb, verdict in VERDICTS.items()}
    for key, rule in rules.items():
        builder.add(*key, indexes[rule.verb])
    return builder.build(lambda: None)


def _length(key: Network) -> int:
    return key[2]


def network_text(key: Network) -> str:
    """A network as `client_key` writes it: `192.0.2.0/24`, or an address alone."""
    bits, start, length = key
    octets = start.to_bytes(bits // 8, "big")
    network = ip_network((octets, length))
    return str(network.network_address) if length == bits else str(network)


def _row(key: Network, rule: _Rule) -> dict[str, Any]:
    until = "restart" if rule.ends_at == math.inf else utc(rule.ends_at)
    return {
        "network": network_text(key),
        "rule": rule.verb,
        "until": "" if rule.configured else until,
        "from": rule.origin,
    }
