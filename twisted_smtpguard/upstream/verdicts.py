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

from collections.abc import Sequence

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
    put_off = [reply for reply in replies if 400 <= reply.code < 500]
    refused = [reply for reply in replies if reply.code >= 500]
    if not put_off and not refused:
        return Reply(250, "2.0.0", (f"Delivered to {len(replies)} recipients",), said=said)
    if len(set(replies)) == 1:
        return replies[0]
    if len(refused) == len(replies):
        return Reply(refused[0].code, refused[0].enhanced, _told(verdicts), said=said)
    if put_off:
        return Reply(451, "4.3.0", _told(verdicts), said=said)
    return Reply(554, "5.3.0", _told(verdicts), said=said)


def is_mixed(verdicts: Sequence[tuple[str, Reply]]) -> bool:
    """Whether some recipients have the message and others do not."""
    return len({reply.code < 300 for _, reply in verdicts}) > 1


def _told(verdicts: Sequence[tuple[str, Reply]]) -> tuple[str, ...]:
    """One line for each recipient; recipients without the message come first."""
    ordered = sorted(verdicts, key=lambda verdict: verdict[1].code < 300)
    lines = [_line(address, reply) for address, reply in ordered[:MAX_SHOWN]]
    if len(ordered) > MAX_SHOWN:
        lines.append(f"and {len(ordered) - MAX_SHOWN} more recipients")
    return tuple(lines)


def _line(address: str, reply: Reply) -> str:
    if reply.code < 300:
        return f"<{address}> has the message"
    words = " ".join(filter(None, [str(reply.code), reply.enhanced, reply.lines[0]]))
    return f"<{address}> {words}"
