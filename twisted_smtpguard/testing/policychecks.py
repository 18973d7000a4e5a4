"""`check_policy` does to a session policy what a guard and its clients can do to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter

import attrs
from twisted.internet.defer import Deferred

from twisted_smtpguard.interfaces import ISessionPolicy
from twisted_smtpguard.policyvalues import POLICY_STAGES, PolicyRequest, PolicyVerdict
from twisted_smtpguard.testing.demands import require, verify
from twisted_smtpguard.testing.filters import PEERS
from twisted_smtpguard.testing.judging import checked_judge
from twisted_smtpguard.values import Path

_SENDER, _RECIPIENT = Path("sender@example.com", {}), Path("recipient@example.org", {})
_FIRST = PolicyRequest(stage="connect", peer=PEERS["IPv4"], instance="check.0")
_STEPS = {
    "connect": _FIRST,
    "helo": attrs.evolve(_FIRST, stage="helo", session="check", helo="client.example", by_ehlo=True),
    "mail": attrs.evolve(
        _FIRST, stage="mail", session="check", helo="client.example", esmtp=True, sender=_SENDER, octets=1000
    ),
}
_STEPS["rcpt"] = attrs.evolve(_STEPS["mail"], stage="rcpt", recipient=_RECIPIENT)
_STEPS["data"] = attrs.evolve(_STEPS["rcpt"], stage="data", recipients=1)
_STEPS["end-of-data"] = attrs.evolve(_STEPS["data"], stage="end-of-data", octets=1234)

_UTF8 = Path("gr\u00fcn@b\u00fccher.example", {"SMTPUTF8": None})


def requests_of(stage: str) -> Mapping[str, PolicyRequest]:
    """Every kind of request at this stage: of each kind of peer, and of each kind of session."""
    step = _STEPS[stage]
    found = {f"{peer} at {stage}": attrs.evolve(step, peer=PEERS[peer]) for peer in PEERS}
    if stage == "connect":
        return found
    found[f"HELO at {stage}"] = attrs.evolve(step, esmtp=False, by_ehlo=False)
    found[f"an address literal at {stage}"] = attrs.evolve(step, helo="[192.0.2.1]")
    found[f"TLS at {stage}"] = attrs.evolve(step, tls="TLSv1.3 TLS_AES_256_GCM_SHA384", tls_bits=256)
    found[f"a trusted client at {stage}"] = attrs.evolve(step, trusted=True)
    found[f"stress at {stage}"] = attrs.evolve(step, stress=True)
    if stage == "helo":
        return found
    found[f"a user at {stage}"] = attrs.evolve(step, identity="user", mechanism="PLAIN")
    found[f"the null sender at {stage}"] = attrs.evolve(step, sender=Path("", {}))
    found[f"SMTPUTF8 at {stage}"] = attrs.evolve(step, sender=_UTF8)
    found[f"a quoted sender at {stage}"] = attrs.evolve(step, sender=Path('"a=b c"@example.com', {}))
    found[f"an unknown size at {stage}"] = attrs.evolve(step, octets=0)
    if stage == "rcpt":
        found["a UTF-8 recipient at rcpt"] = attrs.evolve(step, recipient=_UTF8)
        found["Postmaster at rcpt"] = attrs.evolve(step, recipient=Path("Postmaster", {}))
        found["the hundredth recipient at rcpt"] = attrs.evolve(step, recipients=99)
    elif stage in ("data", "end-of-data"):
        found[f"several recipients at {stage}"] = attrs.evolve(step, recipient=None, recipients=3)
    return found


def check_policy(policy: ISessionPolicy, *, seconds: Callable[[], float] = perf_counter) -> Deferred[int]:
    """Check that `policy` keeps its contract: with every kind of request of its stages, with many at once, with clients
    that leave while they wait, and with a reload if it has one. A policy that is a service must have been started.
    `seconds` is the clock, in seconds.

    The Deferred fires with the number of verdicts, of any kind and at once or later. It fails with an AssertionError
    that says what the policy did wrong, and with which request. It never fires if a check that was not cancelled never
    answers.
    """
    return Deferred.fromCoroutine(_check(policy, seconds))


async def _check(policy: ISessionPolicy, seconds: Callable[[], float]) -> int:
    verify(ISessionPolicy, policy, "the policy")
    stages = policy.stages
    require(
        isinstance(stages, frozenset) and bool(stages) and stages <= {*POLICY_STAGES},
        f"the policy: stages must be a frozenset of some of {', '.join(POLICY_STAGES)}, not {stages!r}",
    )
    cases = {name: each for stage in _STEPS if stage in stages for name, each in requests_of(stage).items()}
    return await checked_judge(policy, "the policy", cases, PolicyVerdict, seconds)
