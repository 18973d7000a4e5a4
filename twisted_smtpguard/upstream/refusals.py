"""Why the upstream server gave no connection, or refused a command: the reply for the client and the text for the
log."""

from __future__ import annotations

from twisted_smtpguard import replies
from twisted_smtpguard.replies import Reply, text_of
from twisted_smtpguard.upstream.replyparser import UpstreamReply, for_client
from twisted_smtpguard.values import Client, Refused

GREETING = "CONNECT"
"""The name of the connection itself, which the server answers with its greeting. Postfix uses the same word."""

PROXY = "PROXY"
"""The name of the PROXY header, which the server answers with its greeting."""

PROXY_HINT = ": does it expect a PROXY header?"


class Explained(Refused):
    """A refusal with an explanation. `why` is for the log and never for clients."""

    def __init__(self, reply: Reply, why: str) -> None:
        super().__init__(reply)
        self.why = why


class Unsuitable(Explained):
    """The server cannot be used as the operator configured it."""

    def __init__(self, why: str) -> None:
        super().__init__(replies.UPSTREAM_UNSUITABLE, why)


class HandshakeFailed(Explained):
    """A TLS handshake failed: there is no common protocol, the certificate is not accepted, or there was no answer."""

    def __init__(self, reply: Reply, why: str) -> None:
        super().__init__(reply, f"TLS failed: {why or text_of(reply)}")


class Unreachable(Refused):
    """The endpoint could not connect at all."""


class CommandRefused(Explained):
    """The server refused `command`, which is the guard's own. That is never the client's fault: whatever the code, the
    client gets a 451."""

    def __init__(self, command: str, reply: Reply, why: str) -> None:
        super().__init__(reply, why)
        self.command = command


class ConnectionPutOff(CommandRefused):
    """The server answered a connection that is for no client with a 4xx. It may have too many connections; those that
    are open can be used."""


class ClientRefused(CommandRefused):
    """The server refused a command that is about one client. It may accept other clients."""


def refused_by(command: str, answer: UpstreamReply, client: Client | None) -> CommandRefused:
    """The refusal for the server's `answer` to `command`, which is about `client`, or with None about the guard
    alone."""
    does = {GREETING: "greets", PROXY: "answers the PROXY header"}.get(command, f"answers {command}")
    kind, remark = CommandRefused, ""
    if client is not None:
        kind = ClientRefused
    elif 400 <= answer.code < 500:
        kind = ConnectionPutOff
    elif command == PROXY:
        remark = PROXY_HINT
    return kind(command, as_temporary(answer).reply, f"it {does} with {answer.text}{remark}")


class ServerFull(Refused):
    """The server accepts no more connections than are open. The transaction has to wait for one of them."""


def verdict_of(reply: UpstreamReply) -> Refused:
    """The server's refusal as the client gets it. A reply below 400 refuses nothing, and so is an invalid one here."""
    return Refused(for_client(reply) if reply.code >= 400 else replies.UPSTREAM_GARBLED)


def as_temporary(reply: UpstreamReply) -> Refused:
    """A refusal that is about the guard, not about a client or a message. The client gets a 451, whatever the code."""
    if reply.code < 400:
        return Refused(replies.UPSTREAM_GARBLED)
    told = for_client(reply)
    enhanced = f"4{told.enhanced[1:]}" if told.enhanced else "4.3.0"
    return Refused(Reply(451, enhanced, told.lines, said=told.said))


def describe(error: Refused) -> str:
    """Why a connection failed, for the log."""
    if isinstance(error, Explained):
        return error.why
    if error.__cause__ is not None:
        return str(error.__cause__) or type(error.__cause__).__name__
    return error.reply.said or text_of(error.reply)
