"""Why there is no connection to the mail server behind, or no yes on it: what clients hear, and what the log says."""

from __future__ import annotations

from twisted_smtpguard.interfaces import Refused
from twisted_smtpguard.smtp import replies
from twisted_smtpguard.smtp.replies import Reply, text_of
from twisted_smtpguard.upstream.replies import UpstreamReply, for_client


class Explained(Refused):
    """`why` is for the log, and not for clients."""

    def __init__(self, reply: Reply, why: str) -> None:
        super().__init__(reply)
        self.why = why


class Unsuitable(Explained):
    """The server cannot do what the operator asked for."""

    def __init__(self, why: str) -> None:
        super().__init__(replies.UPSTREAM_UNSUITABLE, why)


class HandshakeFailed(Explained):
    """No common protocol, a certificate that is not the right one, or no answer."""

    def __init__(self, reply: Reply, why: str) -> None:
        super().__init__(reply, f"TLS failed: {why or text_of(reply)}")


class Unreachable(Refused):
    """There is no connection at all."""


class NotNow(Refused):
    """The server greets with a 4xx: it has too many connections, perhaps, and those that there are can be used."""


class ClientRefused(Refused):
    """The server is there, and will have nothing to do with this client."""


class Crowded(Refused):
    """The server takes no more connections than there are: one of those is to be waited for."""


def verdict_of(reply: UpstreamReply) -> Refused:
    """A refusal as our client gets it. What refuses nothing where only a refusal is left is no proper answer."""
    return Refused(for_client(reply) if reply.code >= 400 else replies.UPSTREAM_GARBLED)


def not_now(reply: UpstreamReply) -> Refused:
    """What the server says of us, not of a client or a message: for the client it is a 451 whatever it is."""
    if reply.code < 400:
        return Refused(replies.UPSTREAM_GARBLED)
    told = for_client(reply)
    enhanced = f"4{told.enhanced[1:]}" if told.enhanced else "4.3.0"
    return Refused(Reply(451, enhanced, told.lines, said=told.said))


def describe(error: Refused) -> str:
    """What an operator is told of a connection that did not come about."""
    if isinstance(error, Explained):
        return error.why
    if error.__cause__ is not None:
        return str(error.__cause__) or type(error.__cause__).__name__
    return text_of(error.reply)
