"""The verdicts of an LMTP server, one a recipient, as the one reply that an SMTP client can be given. Pure.

| accepted | put off (4xx) | refused (5xx) | the client gets |
|---|---|---|---|
| all | none | none | 250 |
| any | some | any | 451: it tries again for all, so that those who have the message get it twice |
| none | none | all | the first 5xx |
| some | none | some | 554: it tells the sender, and the reply says who has the message and who has not |

So nothing is lost, and no refusal is kept from the sender.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted_smtpguard.smtp.replies import Reply, text_of

MAX_SHOWN = 20
"""Recipients that a reply tells of."""


def fold(verdicts: Sequence[tuple[str, Reply]]) -> Reply:
    """`verdicts` are the addresses and what the server said of each, in their order; one or more."""
    replies = [reply for _, reply in verdicts]
    if len(replies) == 1:
        return replies[0]
    # Those who do not have the message first: it is cut where it is long.
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
    """Some recipients have the message, and others have not."""
    return len({reply.code < 300 for _, reply in verdicts}) > 1


def _told(verdicts: Sequence[tuple[str, Reply]]) -> tuple[str, ...]:
    """A line a recipient, those who do not have the message first."""
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
