"""`--policy STAGE=ENDPOINT[,key=value…]`: policy servers, and at which stages they are asked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import attrs
from twisted.internet.endpoints import clientFromString
from twisted.internet.interfaces import IStreamClientEndpoint

from twisted_smtpguard.cli.configuration import Setting
from twisted_smtpguard.cli.plugins import make_policy, policy_factories
from twisted_smtpguard.cli.settings import parse_dry_run
from twisted_smtpguard.hooks.endpointfaults import wrong_string
from twisted_smtpguard.limits.limits import POLICY, Limits
from twisted_smtpguard.limits.units import FLAG, SECONDS, one_of, parse_path
from twisted_smtpguard.policies.policyentry import PolicyEntry
from twisted_smtpguard.policies.policyserver import PolicyServer
from twisted_smtpguard.policyvalues import POLICY_STAGES

Given: TypeAlias = Mapping[str, Sequence[Setting]]
"""The operator's settings of each option."""

_COMMA = re.compile(r"(?<!\\\\),")
_OPTION = re.compile(r"([a-z-]+)=(.*)")
_NAME = re.compile("[A-Za-z0-9._-]{1,64}")
_ON_ERROR = one_of("defer", "pass")


def parse_name(text: str) -> str:
    """Parse the name of a policy in the log."""
    if _NAME.fullmatch(text) is None:
        raise ValueError("1 to 64 letters, digits, dots, hyphens or underscores are expected after name=")
    return text


_PARSERS = {
    "timeout": SECONDS.parse,
    "on-error": _ON_ERROR.parse,
    "name": parse_name,
    "strangers-only": FLAG.parse,
}


@attrs.frozen
class PolicyOption:
    """One `--policy`, parsed. ValueError, when it is: a sentence."""

    stage: str
    endpoint: str
    """A client endpoint string."""
    options: dict[str, Any]

    @classmethod
    def parse(cls, text: str) -> PolicyOption:
        stage, equals, rest = text.partition("=")
        if not equals or stage not in POLICY_STAGES:
            stages = ", ".join(POLICY_STAGES)
            raise ValueError(
                f"STAGE=ENDPOINT such as rcpt=unix:/run/postgrey.sock is expected, with one of {stages} as STAGE"
            )
        endpoint, *words = _COMMA.split(rest)
        options: dict[str, Any] = {}
        for word in words:
            option = _OPTION.fullmatch(word)
            parse = _PARSERS.get(option[1]) if option is not None else None
            if option is None or parse is None or option[1] in options:
                raise ValueError(
                    f"after the endpoint each of {', '.join(_PARSERS)} may stand once, not {word!r}"
                )
            try:
                options[option[1]] = parse(option[2])
            except ValueError as error:
                raise ValueError(f"{option[1]}: {error}") from error
        if endpoint.startswith("inet:"):
            # As Postfix writes it.
            endpoint = f"tcp:{endpoint.removeprefix('inet:')}"
        return cls(stage, endpoint, options)


def policies_of(given: Given, limits: Limits, reactor: Any) -> list[PolicyEntry]:
    """The policies of --policy, then those of --policy-plugin, in the order in which they are asked. UsageError: the
    mistake, in a sentence."""
    servers = _Servers(limits, reactor)
    entries = []
    for setting in given["policy"]:
        with setting.blamed():
            entries.append(servers.entry(PolicyOption.parse(setting.text)))
    for setting in given["policy-plugin"]:
        with setting.blamed():
            entries.append(make_policy(setting.text, reactor, policy_factories()))
    _check_dry_run(given["dry-run"], entries)
    return entries


class _Servers:
    """The policy servers, one for each endpoint, so that several stages share its connections."""

    def __init__(self, limits: Limits, reactor: Any) -> None:
        self._most = limits.max_policy_connections
        self._timeout = limits.policy_timeout
        self._reactor = reactor
        self._servers: dict[str, PolicyServer] = {}

    def entry(self, option: PolicyOption) -> PolicyEntry:
        server = self._servers.get(option.endpoint)
        if server is None:
            endpoint = _endpoint(option.endpoint, self._reactor)
            server = PolicyServer(endpoint, self._reactor, max_connections=self._most)
            self._servers[option.endpoint] = server
        options = option.options
        # The shortest of those that share it. 0 is no limit.
        server.timeout = min(server.timeout, options.get("timeout", self._timeout) or server.timeout)
        return PolicyEntry(
            server,
            options.get("name") or option.endpoint,
            fail_open=options.get("on-error") == "pass",
            timeout=options.get("timeout"),
            strangers_only=options.get("strangers-only", False),
            stages=frozenset({option.stage}),
        )


def _endpoint(text: str, reactor: object) -> IStreamClientEndpoint:
    """The endpoint for a string. The path of a `unix:` endpoint may begin with `~`."""
    kind, colon, place = text.partition(":")
    try:
        endpoint: IStreamClientEndpoint = clientFromString(
            reactor, f"{kind}{colon}{parse_path(place) if kind == 'unix' else place}"
        )
    except Exception as error:  # parsers, which may be plugins, raise what they like
        raise ValueError(wrong_string(text, error)) from error
    return endpoint


def _check_dry_run(settings: Sequence[Setting], entries: Sequence[PolicyEntry]) -> None:
    """Refuse a --dry-run of a policy that there is not."""
    known = {f"{POLICY}:{entry.name}" for entry in entries}
    for setting in settings:
        for name in sorted(setting.value(parse_dry_run)):
            if name.startswith(f"{POLICY}:") and name not in known:
                there = ", ".join(sorted(known)) or "there is none"
                raise setting.wrong(f"one of the policies is expected after policy:, not {name!r} ({there})")
