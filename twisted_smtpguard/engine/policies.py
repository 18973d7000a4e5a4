"""The policies of a session: they are asked stage by stage, in their order, and the first that decides wins.

A policy is asked when the guard's own limits have let a step pass, and before the delivery is. What it says that a
later step needs, such as a header field to prepend, is kept in the session's `PolicyState`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from twisted_smtpguard import replies
from twisted_smtpguard.engine import counts
from twisted_smtpguard.engine.engine import Engine
from twisted_smtpguard.engine.hooks import shown_answer, wait_for
from twisted_smtpguard.engine.port import Cancelled, Expired
from twisted_smtpguard.engine.refusal import Refusal
from twisted_smtpguard.engine.stages import ENDED, Stage
from twisted_smtpguard.inputs.fieldlines import folded
from twisted_smtpguard.limits.limits import POLICY
from twisted_smtpguard.policyvalues import PolicyRequest, PolicyUnavailable, PolicyVerdict
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.values import FAULTS, Path, is_awaitable

MAX_PREPENDED_OCTETS = 64 * 1024
"""The most octets of header fields that policies may put before one message. What comes above that is left out."""

_HELD = ("connect", "helo", "mail")
"""The stages at which DEFER_IF_PERMIT waits for the recipients: nothing is permitted before."""

_VERDICTS = {"defer_if_permit": "defer", "defer_if_reject": "defer"}
"""The word in the metrics for a kind of verdict, unless it is the kind itself."""


class Decision(NamedTuple):
    """The refusal of a step by a policy."""

    reply: Reply
    reason: str
    """The reason in the log."""
    policy: str
    """The name of the policy."""
    action: str
    """Its verdict, in its own words."""
    strangers_only: bool = False
    """Whether the policy is not asked about clients that have logged in."""


class PolicyState:
    """What the policies of one session have said, as far as later steps need it."""

    __slots__ = ("decision", "deferrals", "fields", "if_reject", "name", "number", "stage")

    def __init__(self, name: str) -> None:
        self.name = name
        """The beginning of every `PolicyRequest.instance` of the session."""
        self.stage = ""
        """The stage that was reached last."""
        self.number = 0
        """Counts the HELO, EHLO and MAIL commands that policies may have been asked about."""
        self.deferrals: dict[str, Decision] = {}
        """The DEFER_IF_PERMIT of each stage before RCPT."""
        self.fields: dict[str, list[str]] = {}
        """The header fields that each stage has prepended."""
        self.if_reject: Decision | None = None
        """The DEFER_IF_REJECT of this recipient."""
        self.decision: Decision | None = None
        """The latest refusal, until it is logged."""

    @property
    def instance(self) -> str:
        return f"{self.name}.{self.number:x}"

    def forget(self, *stages: str) -> None:
        """Forget what was said at these stages, since they come again."""
        for stage in stages:
            self.deferrals.pop(stage, None)
            self.fields.pop(stage, None)

    def prepend(self, stage: str, field: str) -> str:
        """Keep a header field. Returns "", or why it is left out."""
        if stage == "end-of-data":
            return "it is too late"
        if not folded(field):
            return "it is too long for a line"
        octets = sum(len(each.encode("utf-8", "replace")) for each in (*self.prepended(), field))
        if octets > MAX_PREPENDED_OCTETS:
            return "there are too many"
        self.fields.setdefault(stage, []).append(field)
        return ""

    def prepended(self) -> list[str]:
        """The header fields for the message, in the order in which they were prepended."""
        return [field for fields in self.fields.values() for field in fields]


GoOn = Callable[[Engine], Reply | None]
"""Carries out a step that the policies have let pass. Returns the reply, or None if it comes later or there is none."""

Refuse = Callable[[Engine, Reply], Reply | None]
"""Refuses a step with the reply of a policy, and returns the reply for the client."""


def _as_it_is(engine: Engine, reply: Reply) -> Reply:
    return reply


def ask(
    engine: Engine, stage: str, go_on: GoOn, refuse: Refuse = _as_it_is, *, helo: str = ""
) -> Reply | None:
    """Ask the policies of a stage about the step that the session is at, then `go_on` or `refuse`. Returns the reply,
    or None if it comes later. `helo` is the name that is judged at `helo`."""
    state, asked = engine.policed, engine.context.policies.get(stage)
    if state is None:
        if stage == "connect" and not asked:
            return go_on(engine)
        state = engine.policed = PolicyState(engine.name or engine.context.guard.next_session_name())
    # Before the greeting the session has no name.
    state.name = engine.name or state.name
    state.stage = stage
    if stage == "mail":
        state.number += 1
        state.forget("mail", "rcpt", "data")
    elif stage == "helo":
        state.number += 1
        # If the name is refused, the one before it still counts, and so does what was said about that.
        refuse = partial(_restore, state, state.deferrals.pop("helo", None), state.fields.pop("helo", None))
    state.if_reject = None
    if not asked and not (stage == "rcpt" and state.deferrals):
        return go_on(engine)
    return _Inquiry(engine, state, stage, go_on, refuse, helo).advance(engine)


def _restore(
    state: PolicyState, deferral: Decision | None, fields: list[str] | None, engine: Engine, reply: Reply
) -> Reply:
    """Refuse a HELO or EHLO. What was said about the name before is kept."""
    state.forget("helo")
    if deferral is not None:
        state.deferrals["helo"] = deferral
    if fields is not None:
        state.fields["helo"] = fields
    return reply


def softened(engine: Engine, reply: Reply) -> Reply:
    """The reply to a recipient that is refused: that of a policy with DEFER_IF_REJECT instead of a 5xx."""
    state = engine.policed
    if reply.code < 500 or state is None or state.if_reject is None:
        return reply
    decision: Decision = state.if_reject
    state.decision = decision
    return decision.reply


def _refuse_connection(engine: Engine, decision: Decision) -> None:
    reply, code = decision.reply, 421 if decision.reply.code < 500 else 521
    if reply is replies.POLICY_FAILED:
        reply = replies.POLICY_FAILED_CLOSING
    elif reply.code != code:
        # RFC 5321 3.1: after a 554 the guard would have to wait for QUIT.
        reply = Reply(code, reply.enhanced, reply.lines)
    engine.refuse(Refusal(reply, decision.reason, policy=decision.policy, rule=decision.action))


class _Inquiry:
    """One step of a session, about which the policies of its stage are asked."""

    def __init__(
        self, engine: Engine, state: PolicyState, stage: str, go_on: GoOn, refuse: Refuse, helo: str
    ) -> None:
        self._state = state
        self._stage = stage
        self._go_on = go_on
        self._refuse = refuse
        self._left = iter(engine.context.policies.get(stage, ()))
        self._request = _request(engine, state, stage, helo)
        self._entry: Any = None
        """The `PolicyEntry` that is asked."""
        self._asked_at = 0.0
        self._refusal: Decision | None = None
        self._if_permit: Decision | None = None
        if stage == "rcpt":
            logged_in = engine.user is not None
            held = (each for each in state.deferrals.values() if not (logged_in and each.strangers_only))
            self._if_permit = next(held, None)

    def advance(self, engine: Engine) -> Reply | None:
        """Ask the policies that are left. Returns the reply to the step, or None if it comes later."""
        for entry in self._left:
            if entry.strangers_only and (engine.trusted or engine.user is not None):
                continue
            self._entry = entry
            answer, error = None, None
            try:
                answer = entry.policy.check(self._request)
                later = is_awaitable(type(answer))
            except FAULTS as raised:
                error, later = raised, False
            if later:
                self._asked_at = engine.context.seconds()
                limit = engine.context.limits.policy_timeout if entry.timeout is None else entry.timeout
                stage = Stage.ADMISSION if self._stage == "connect" else Stage.ANSWER
                return wait_for(engine, answer, self._answered, self._raised, stage=stage, seconds=limit)
            if self._is_over(engine, answer, error, 0):
                break
        return self._end(engine)

    def _answered(self, engine: Engine, answer: Any) -> Reply | None:
        return self._take_later(engine, answer, None)

    def _raised(self, engine: Engine, error: BaseException) -> Reply | None:
        return self._take_later(engine, None, error)

    def _take_later(self, engine: Engine, answer: Any, error: BaseException | None) -> Reply | None:
        if engine.stage in ENDED:
            return None
        over = self._is_over(engine, answer, error, engine.context.seconds() - self._asked_at)
        return self._end(engine) if over else self.advance(engine)

    def _end(self, engine: Engine) -> Reply | None:
        decision = self._refusal or self._if_permit
        if decision is None:
            return self._go_on(engine)
        if self._stage == "connect":
            _refuse_connection(engine, decision)
            return None
        self._state.decision = decision
        return self._refuse(engine, decision.reply)

    def _is_over(self, engine: Engine, answer: Any, error: BaseException | None, seconds: float) -> bool:
        """Take the answer of a policy, or what it has raised. Returns whether no other is asked."""
        if error is None and not isinstance(answer, PolicyVerdict):
            error = TypeError(f"{shown_answer(answer)} is no PolicyVerdict")
        verdict = _VERDICTS.get(answer.kind, answer.kind) if error is None else "error"
        if isinstance(error, Expired):
            verdict = "timeout"
        engine.context.measured.policies[self._entry.name, self._stage, verdict].observe(seconds)
        if error is not None:
            return self._failed(engine, error)
        kind, name = answer.kind, self._entry.name
        if kind in ("prepend", "note"):
            self._keep(engine, answer)
        if answer.reply is None:
            return bool(kind == "ok")
        reply = replies.with_enhanced_code(replies.with_known_code(answer.reply))
        decision = Decision(reply, POLICY, name, answer.action or kind, self._entry.strangers_only)
        if kind == "refuse":
            return self._refuses(engine, decision)
        if kind == "defer_if_reject":
            # It refuses nobody, so a dry run has nothing to log.
            if not _is_in_dry_run(engine, name):
                self._state.if_reject = self._state.if_reject or decision
            return False
        if self._in_dry_run(engine, decision):
            return False
        if self._stage in _HELD:
            self._state.deferrals.setdefault(self._stage, decision)
        else:
            self._if_permit = self._if_permit or decision
        return False

    def _refuses(self, engine: Engine, decision: Decision) -> bool:
        if self._in_dry_run(engine, decision):
            return False
        if self._state.if_reject is not None and decision.reply.code >= 500:
            decision = self._state.if_reject
        self._refusal = decision
        return True

    def _in_dry_run(self, engine: Engine, decision: Decision) -> bool:
        """Whether refusals of this policy are only logged, as this one is then."""
        if not _is_in_dry_run(engine, decision.policy):
            return False
        if self._stage == "connect":
            refusal = Refusal(decision.reply, decision.reason, policy=decision.policy, rule=decision.action)
            refusal.log(engine, engine.context.events, engine.context.limits, dry_run=True)
        else:
            by = decision.policy, decision.action
            counts.log(engine, decision.reason, dry_run=True, by=by)
        return True

    def _failed(self, engine: Engine, error: BaseException) -> bool:
        """Log that a policy cannot judge. Returns whether the step is refused: its policy does not fail open."""
        entry, events = self._entry, engine.context.events
        reply, reason, problem, text = replies.POLICY_FAILED, "policy_failed", "exception", ""
        if isinstance(error, Expired):
            reason, problem = "policy_timeout", "timeout"
        elif isinstance(error, PolicyUnavailable):
            problem, text = "unavailable", str(error)
            if error.misconfigured:
                reply, reason, problem = replies.POLICY_MISCONFIGURED, "policy_misconfigured", "misconfigured"
        elif isinstance(error, Cancelled):
            problem, text = "cancelled", "it has cancelled itself"
        else:
            engine.log_failure(error, f"policy {entry.name}")
        passes = entry.fail_open and reply is replies.POLICY_FAILED
        decision = Decision(reply, reason, entry.name, problem)
        in_dry_run = not passes and self._in_dry_run(engine, decision)
        outcome = "passed" if passes or in_dry_run else "refused"
        events.policy_failed(
            entry.name, self._stage, engine.peer_name, problem, text, session=engine.name, outcome=outcome
        )
        if passes or in_dry_run:
            return False
        self._refusal = decision
        return True

    def _keep(self, engine: Engine, verdict: PolicyVerdict) -> None:
        """Keep a header field for the message, or log a note."""
        events, name = engine.context.events, self._entry.name
        if verdict.kind == "note":
            events.policy_note(name, self._stage, engine.peer_name, verdict.text, session=engine.name)
            return
        problem = self._state.prepend(self._stage, verdict.text)
        if problem:
            events.field_left_out(engine.name, engine.peer_name, problem, policy=name)


def _is_in_dry_run(engine: Engine, policy: str) -> bool:
    return not engine.context.limits.dry_run.isdisjoint((POLICY, f"{POLICY}:{policy}"))


def _request(engine: Engine, state: PolicyState, stage: str, helo: str) -> PolicyRequest:
    """What a policy is asked at this stage."""
    begun = stage not in ("connect", "helo")
    recipient: Path | None = None
    if stage == "rcpt" and engine.recipient is not None:
        recipient = Path(engine.recipient, {})
    elif begun and stage != "mail" and len(engine.recipients) == 1:
        recipient = Path(engine.recipients[0], {})
    octets = 0
    if begun:
        octets = int(engine.sender.parameters.get("SIZE") or 0)
    if stage == "end-of-data":
        octets = engine.message.octets
    user = engine.user
    return PolicyRequest(
        stage=stage,
        peer=engine.peer,
        instance=state.instance,
        session=engine.name,
        helo=helo or engine.helo,
        esmtp=bool(engine.offered),
        by_ehlo=helo != "" and engine.command.verb == "EHLO",
        sender=engine.sender if begun else None,
        recipient=recipient,
        recipients=len(engine.recipients) if begun and stage != "mail" else 0,
        octets=octets,
        identity=None if user is None else user.name,
        mechanism="" if user is None else engine.mechanism,
        tls=engine.tls,
        tls_bits=engine.host.cipher_bits() if engine.secure else 0,
        trusted=engine.trusted,
        stress=engine.context.stressed,
    )
