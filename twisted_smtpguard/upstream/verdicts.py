"""How the verdicts of an LMTP server, one for each recipient, become the one reply that an SMTP client can get. Pure.

| accepted | put off (4xx) | refused (5xx) | the client gets |
|---|---|---|---|
| all | none | none | 250 |
| any | some | any | 451: the client tries again for all, so that those who have the message get it twice |
| none | none | all | the first 5xx |
| some | none | some | 554: the client tells the sender, and the reply says who has the message and who has not |

So no message is lost, and no refusal is hidden from the sender.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted_smtpguard.replies import Reply, text_of

MAX_SHOWN = 20
"""How many recipients a reply lists."""


def combine(verdicts: Sequence[tuple[str, Reply]]) -> Reply:
    """The one reply for the client. `verdicts` has the address and the server's reply of each recipient, in order; one
    or more."""
    replies = [reply for _, reply in verdicts]
    if len(replies) == 1:
        return replies[0]
    # Recipients without the message come first, since a long text is cut.
    ordered = sorted(replies, key=lambda reply: reply.code < 300)
    said = "; ".join([reply.said or text_of(reply) for reply in ordered])
    refused = [reply for reply in replies if reply.code >= 500]
    if max(reply.code for reply in replies) < 300:
        return Reply(250, "2.0.0", (f"Delivered to {len(replies)} recipients",), said=said)
    if len(set(replies)) == 1:
        return replies[0]
    code, enhanced = 554, "5.3.0"
    if len(refused) == len(replies):
        code, enhanced = refused[0].code, refused[0].enhanced
    elif any(400 <= reply.code < 500 for reply in replies):
        code, enhanced = 451, "4.3.0"
    return Reply(code, enhanced, tuple(listed(verdicts, MAX_SHOWN, _line)), said=said)


def is_mixed(verdicts: Sequence[tuple[str, Reply]]) -> bool:
    """Whether some recipients have the message and others do not."""
    return len({reply.code < 300 for _, reply in verdicts}) > 1


def listed(verdicts: Sequence[tuple[str, Reply]], most: int, show: Callable[[str, Reply], str]) -> list[str]:
    """The texts that `show` makes of the first `most` verdicts, and one that says how many more there are. Recipients
    without the message come first."""
    ordered = sorted(verdicts, key=lambda verdict: verdict[1].code < 300)
    shown = [show(address, reply) for address, reply in ordered[:most]]
    if len(ordered) > most:
        shown.append(f"and {len(ordered) - most} more recipients")
    return shown


def _line(address: str, reply: Reply) -> str:
    if reply.code < 300:
        return f"<{address}> has the message"
    words = " ".join(filter(None, [str(reply.code), reply.enhanced, reply.lines[0]]))
    return f"<{address}> {words}"
