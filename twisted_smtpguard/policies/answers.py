"""The answers of Postfix's SMTPD_POLICY protocol: octets of a policy server become a verdict. Pure.

An answer is attributes, one on each line, and an empty line. The only one that counts is `action`; access(5) of
Postfix says what it may be.
"""

from __future__ import annotations

import re

from twisted_smtpguard.policyvalues import PolicyUnavailable, PolicyVerdict
from twisted_smtpguard.replies import ENHANCED_CODE, POLICY_DEFERRED, POLICY_REFUSED, Reply

MAX_ANSWER_OCTETS = 16 * 1024
"""The longest answer. Header fields that servers prepend are shorter."""

_END = re.compile(rb"\n\r?\n|\A\r?\n")
_ATTRIBUTE = re.compile(rb"([A-Za-z0-9_:-]{1,100})=(.*)", re.DOTALL)
_CODE = re.compile(r"[45][0-9]{2}")
_ENHANCED = re.compile(ENHANCED_CODE)
_SHOWN = 200
"""How much of an answer that is not understood the log shows."""


class AnswerParser:
    """Parses one answer, however its octets are split."""

    def __init__(self) -> None:
        self._octets = b""
        self.rest = b""
        """The octets after the answer. A server that sends any is not asked again on this connection."""

    @property
    def begun(self) -> bool:
        """Whether any octet of the answer has come."""
        return bool(self._octets)

    def feed(self, octets: bytes) -> str | None:
        """Take the next octets. Returns the action when the answer is whole, else None. PolicyUnavailable: this is no
        answer, or it is too long."""
        searched = max(0, len(self._octets) - 2)
        self._octets += octets[: MAX_ANSWER_OCTETS + 1]
        end = _END.search(self._octets, searched)
        if end is None or end.end() > MAX_ANSWER_OCTETS:
            if len(self._octets) > MAX_ANSWER_OCTETS:
                raise PolicyUnavailable(
                    f"the policy server's answer has more than {MAX_ANSWER_OCTETS} octets"
                )
            return None
        self.rest = self._octets[end.end() :] + octets[MAX_ANSWER_OCTETS + 1 :]
        return _action(self._octets[: end.start()])


def _action(octets: bytes) -> str:
    actions = []
    for line in octets.split(b"\n"):
        attribute = _ATTRIBUTE.fullmatch(line.removesuffix(b"\r"))
        if attribute is None:
            raise PolicyUnavailable(
                f"the policy server's answer has a line {_shown(line)}, which is no attribute"
            )
        if attribute[1] == b"action":
            actions.append(attribute[2])
    if len(actions) != 1:
        raise PolicyUnavailable(f"the policy server's answer has {len(actions)} actions, and one is expected")
    return actions[0].decode("utf-8", "replace").strip()


def verdict_of(action: str) -> PolicyVerdict:
    """The verdict that an action stands for. PolicyUnavailable, which is `misconfigured`: there is no such action."""
    word, text = [*action.split(None, 1), "", ""][:2]
    kind = word.upper()
    if kind == "DUNNO":
        return PolicyVerdict.dunno()
    if kind == "OK":
        return PolicyVerdict.ok(action)
    if kind in ("WARN", "INFO"):
        return PolicyVerdict.note(action, action)
    if kind == "REJECT":
        return PolicyVerdict.refuse(_reply(POLICY_REFUSED, text), action)
    if kind == "DEFER":
        return PolicyVerdict.refuse(_reply(POLICY_DEFERRED, text), action)
    if kind == "DEFER_IF_PERMIT":
        return PolicyVerdict.defer_if_permit(_reply(POLICY_DEFERRED, text), action)
    if kind == "DEFER_IF_REJECT":
        return PolicyVerdict.defer_if_reject(_reply(POLICY_DEFERRED, text), action)
    if _CODE.fullmatch(word):
        usual = POLICY_REFUSED if word[0] == "5" else POLICY_DEFERRED
        return PolicyVerdict.refuse(_reply(usual, text, int(word)), action)
    if kind == "PREPEND":
        try:
            return PolicyVerdict.prepend(text, action)
        except ValueError:
            # It is no header field.
            pass
    raise PolicyUnavailable(
        f"the policy server answered with the action {_shown(action)}", misconfigured=True
    )


def _reply(usual: Reply, text: str, code: int = 0) -> Reply:
    """The reply with `text`, which may begin with an enhanced status code, or with the usual text. `code` replaces the
    usual one."""
    first, rest = [*text.split(None, 1), "", ""][:2]
    enhanced = usual.enhanced
    if _ENHANCED.fullmatch(first):
        # A code of another class than the reply's would contradict it (RFC 2034 4).
        enhanced, text = f"{usual.enhanced[0]}{first[1:]}", rest
    return Reply(code or usual.code, enhanced, (text,) if text else usual.lines)


def _shown(text: str | bytes) -> str:
    return repr(text[:_SHOWN])
