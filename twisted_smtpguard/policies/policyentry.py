"""A session policy with its settings, and the table of policies by the stage at which they are asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import attrs

from twisted_smtpguard.inputs.arguments import check_fields
from twisted_smtpguard.interfaces import ISessionPolicy
from twisted_smtpguard.policyvalues import POLICY_STAGES


@attrs.frozen
class PolicyEntry:
    """A session policy and its configuration."""

    policy: ISessionPolicy
    name: str = attrs.field(default=attrs.Factory(lambda self: type(self.policy).__name__, takes_self=True))
    """Its name in the log; by default the name of its class."""
    fail_open: bool = attrs.field(default=False, kw_only=True)
    """Whether the next policy is asked if this one cannot judge. By default the client is refused with a 4xx."""
    timeout: float | None = attrs.field(default=None, kw_only=True)
    """Its time to answer, in seconds; 0 for no limit. None: `Limits.policy_timeout`."""
    strangers_only: bool = attrs.field(default=False, kw_only=True)
    """Whether it is not asked about clients that an IP filter trusts, or that have logged in."""
    stages: frozenset[str] = attrs.field(
        default=attrs.Factory(lambda self: getattr(self.policy, "stages", frozenset()), takes_self=True),
        kw_only=True,
    )
    """The stages at which it is asked; by default those of the policy."""

    def __attrs_post_init__(self) -> None:
        check_fields(self)
        if not self.stages or not self.stages <= {*POLICY_STAGES}:
            raise ValueError(
                f"{self.name}: stages must be some of {', '.join(POLICY_STAGES)}, not {self.stages}"
            )
        if self.timeout is not None and self.timeout < 0:
            raise ValueError(f"{self.name}: timeout must be 0 or more, not {self.timeout}")


def entries_of(policies: Iterable[ISessionPolicy | PolicyEntry]) -> Sequence[PolicyEntry]:
    """The policies as entries, each with its settings or the usual ones."""
    return [each if isinstance(each, PolicyEntry) else PolicyEntry(each) for each in policies]


def by_stage(entries: Sequence[PolicyEntry]) -> Mapping[str, Sequence[PolicyEntry]]:
    """The entries that are asked at each stage, in their order. A stage without one has no key."""
    stages = {stage: [entry for entry in entries if stage in entry.stages] for stage in POLICY_STAGES}
    return {stage: asked for stage, asked in stages.items() if asked}
