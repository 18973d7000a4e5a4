"""What a session policy is told, and what it may answer. Like the other values they know neither Twisted nor
sessions."""

from __future__ import annotations

import re

import attrs

from twisted_smtpguard.inputs.arguments import check_fields
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.values import Path, Peer, is_short


class PolicyUnavailable(Exception):  # noqa: N818 - what it says of the policy
    """Raised by a session policy that cannot judge now: its server is away, say. The message is logged, without a
    traceback, so it must contain no secret. Of any other exception the log has the traceback too.

    `misconfigured`: it cannot judge before somebody has changed something. The client then gets a `451 4.3.5`, also
    if the policy fails open.
    """

    def __init__(self, problem: str, *, misconfigured: bool = False) -> None:
        super().__init__(problem)
        self.misconfigured = misconfigured


POLICY_STAGES = ("connect", "helo", "mail", "rcpt", "data", "end-of-data")
"""The stages of a session at which policies are asked, in their order."""


@attrs.frozen(kw_only=True)
class PolicyRequest:
    """What a session policy is asked about: one step of a session, with all that is known of it then."""

    stage: str
    """One of POLICY_STAGES: `connect` before the greeting; `helo`, `mail` and `rcpt` at HELO or EHLO, MAIL and RCPT,
    within the guard's own limits; `data` at DATA or the first BDAT; `end-of-data` at the end of the message."""
    peer: Peer
    instance: str
    """A word that all requests about one message share, and no other request has. Those before MAIL have another."""
    session: str = ""
    """The id of the session in the log; "" at `connect`."""
    helo: str = ""
    """The name in HELO or EHLO, one printable word; "" before that. At `helo` it is the one that is judged."""
    esmtp: bool = False
    """Whether the last HELO or EHLO that was accepted was EHLO."""
    by_ehlo: bool = False
    """At `helo`, whether the name that is judged came by EHLO."""
    sender: Path | None = None
    """The reverse-path of MAIL; None before that."""
    recipient: Path | None = None
    """At `rcpt` the recipient that is judged; later the one that was accepted, if there is only one."""
    recipients: int = 0
    """How many recipients have been accepted."""
    octets: int = 0
    """The size of the message: at `end-of-data` what has come, before that what MAIL has declared; 0: unknown."""
    identity: str | None = None
    """The authenticated user. None: the client has not logged in."""
    mechanism: str = ""
    """The mechanism of that AUTH, such as `PLAIN`."""
    tls: str = ""
    """The TLS version and cipher, such as `TLSv1.3 TLS_AES_256_GCM_SHA384`; "" without TLS."""
    tls_bits: int = 0
    """The size of the cipher's key; 0 if it is unknown, as for TLS that ends at a proxy, and without TLS."""
    trusted: bool = False
    """Whether an IP filter trusts the client."""
    stress: bool = False
    """Whether the guard is in stress."""

    def __attrs_post_init__(self) -> None:
        check_fields(self)
        if self.stage not in POLICY_STAGES:
            raise ValueError(f"stage must be one of {', '.join(POLICY_STAGES)}, not {self.stage!r}")


_FIELD = re.compile(r"[!-9;-~]{1,76}:[^\0-\x08\x0a-\x1f\x7f]*[^\0-\x20\x7f][^\0-\x08\x0a-\x1f\x7f]*")
"""One header field (RFC 5322 2.2) in one line, with something in it."""

_POLICY_REFUSALS = {
    "refuse": range(400, 600),
    "defer_if_permit": range(400, 500),
    "defer_if_reject": range(400, 500),
}


@attrs.frozen
class PolicyVerdict:
    """The verdict of a session policy. Its class methods make one; anything else is a ValueError."""

    kind: str
    reply: Reply | None = None
    text: str = ""
    """The header field of `prepend`, or the text of `note`."""
    action: str = attrs.field(default="", eq=False)
    """What the log calls it, such as the words of a policy server. Verdicts that differ only in it are equal."""

    def __attrs_post_init__(self) -> None:
        if not (isinstance(self.text, str) and isinstance(self.action, str)):
            raise ValueError(f"text and action are texts, not {self.text!r} and {self.action!r}")
        codes = _POLICY_REFUSALS.get(self.kind)
        if codes is not None:
            reply = self.reply
            if not isinstance(reply, Reply) or reply.code not in codes or not is_short(reply.lines):
                raise ValueError(
                    f"{self.kind} needs a short reply of {codes[0]} to {codes[-1]}, not {reply!r}"
                )
        elif self.kind not in ("dunno", "ok", "prepend", "note") or self.reply is not None:
            raise ValueError(f"there is no verdict {self.kind!r} with the reply {self.reply!r}")
        if self.kind == "prepend" and _FIELD.fullmatch(self.text) is None:
            raise ValueError(
                f"one header field in one line is expected, `Name: value`, not {self.text[:100]!r}"
            )

    @classmethod
    def dunno(cls) -> PolicyVerdict:
        """No opinion: the next policy of the stage is asked."""
        return cls("dunno")

    @classmethod
    def ok(cls, action: str = "") -> PolicyVerdict:
        """No other policy of the stage is asked. Later stages, and the delivery, may still refuse."""
        return cls("ok", action=action)

    @classmethod
    def refuse(cls, reply: Reply, action: str = "") -> PolicyVerdict:
        """Refuse with `reply`, a 4xx or 5xx. A 421 or 521 ends the session. At `connect` every refusal does, and is
        sent as a 421 or 521."""
        return cls("refuse", reply, action=action)

    @classmethod
    def defer_if_permit(cls, reply: Reply, action: str = "") -> PolicyVerdict:
        """Refuse with `reply`, a 4xx, unless a later policy refuses for good. At `connect`, `helo` and `mail` each
        recipient is refused so; at other stages the step itself. The delivery is not asked then, since it could not
        take its answer back."""
        return cls("defer_if_permit", reply, action=action)

    @classmethod
    def defer_if_reject(cls, reply: Reply, action: str = "") -> PolicyVerdict:
        """If a later policy of the stage, or at `rcpt` the delivery, refuses with a 5xx, the client gets `reply`, a
        4xx, instead."""
        return cls("defer_if_reject", reply, action=action)

    @classmethod
    def prepend(cls, field: str, action: str = "") -> PolicyVerdict:
        """Put the header field `field`, one line without its end, before the message, and ask the next policy. It is
        too late for that at `end-of-data`. One of `connect` or `helo` comes before every message."""
        return cls("prepend", text=field, action=action)

    @classmethod
    def note(cls, text: str, action: str = "") -> PolicyVerdict:
        """Write `text` into the log, and ask the next policy."""
        return cls("note", text=text, action=action)
