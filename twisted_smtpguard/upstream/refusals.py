"""Why there is no connection to the mail server behind, or no yes on it: what clients hear, and what the log says."""

from __future__ import annotations

from twisted_smtpguard.interfaces import Refused
from twisted_smtpguard.smtp import replies
from twisted_smtpguard.smtp.replies import Reply, text_of
from twisted_smtpguard.upstream.replies import UpstreamReply, for_client

GREETING = "CONNECT"
"""What a server greets is a connection. Postfix calls it so too, where it says which command was refused."""

PROXY = "PROXY"
"""The header, which a server answers with its greeting."""

_SHOWN = {PROXY: "the PROXY header"}


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


class CommandRefused(Explained):
    """The server refuses `command`, which is one of our own. That is never the client's fault: whatever the server
    says, the client hears a 451."""

    def __init__(self, command: str, reply: Reply, why: str) -> None:
        super().__init__(reply, why)
        self.command = command


class NotNow(CommandRefused):
    """A 4xx to a connection that is no client's: the server has too many, perhaps, and those that there are can be
    used."""


class ClientRefused(CommandRefused):
    """The server is there, and refuses a command that is about one client. What it says to others is not known."""


def refused_by(
    command: str, answer: UpstreamReply, kind: type[CommandRefused] = CommandRefused, remark: str = ""
) -> CommandRefused:
    """The refusal that the server's answer to `command` is."""
    does = "greets" if command == GREETING else f"answers {_SHOWN.get(command, command)}"
    return kind(command, not_now(answer).reply, f"it {does} with {answer.text}{remark}")


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
    return error.reply.said or text_of(error.reply)
