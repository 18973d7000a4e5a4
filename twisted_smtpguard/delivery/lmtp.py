"""`lmtp:ENDPOINT`: messages are passed to an LMTP server (RFC 2033), and its verdicts, one for each recipient, are
combined into one."""

from __future__ import annotations

from collections.abc import Sequence

from twisted_smtpguard.delivery.smtp import SmtpFactory
from twisted_smtpguard.delivery.upstream import UpstreamDelivery
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.upstream.verdicts import combine, is_mixed
from twisted_smtpguard.values import Client, Path


class LmtpDelivery(UpstreamDelivery):
    """Passes messages to an upstream LMTP server."""

    lmtp = True

    def _combined(self, client: Client, recipients: Sequence[Path], verdicts: Sequence[Reply]) -> Reply:
        # If the connection has ended before a verdict, that is a 451, so that the client tries again.
        named = [(recipient.address, reply) for recipient, reply in zip(recipients, verdicts, strict=True)]
        told = combine(named)
        if is_mixed(named):
            self.notices.mixed(client.session, told, named)
        return told


class LmtpFactory(SmtpFactory):
    """
    recipients=N                    recipients of one message; with 1 each gets its own verdict. Default: 0, no limit.
    """

    kind = LmtpDelivery
    name = "lmtp"
    summary = "Pass messages to an upstream LMTP server, such as Dovecot."
    example = "lmtp:unix:/run/dovecot/lmtp or lmtp:tcp:127.0.0.1:24"
