"""`lmtp:ENDPOINT`: messages are passed to an LMTP server (RFC 2033), and its verdicts, one for each recipient, are
combined into one."""

from __future__ import annotations

from twisted_smtpguard.delivery.smtp import SmtpFactory
from twisted_smtpguard.delivery.upstream import UpstreamDelivery, UpstreamTransaction
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.upstream.verdicts import combine, is_mixed
from twisted_smtpguard.values import Refused


class LmtpDelivery(UpstreamDelivery):
    """Passes messages to an upstream LMTP server."""

    lmtp = True

    async def verdict(self, mail: UpstreamTransaction) -> Reply:
        verdicts: list[tuple[str, Reply]] = []
        for recipient in mail.recipients:
            try:
                reply = await mail.verdict()
            except Refused as refused:
                # If the connection has ended before this verdict, `reply` is a 451, so that the client tries again.
                reply = refused.reply
            verdicts.append((recipient.address, reply))
        folded = combine(verdicts)
        if is_mixed(verdicts):
            self.notices.mixed(mail.client.session, folded, verdicts)
        if folded.code >= 300:
            raise Refused(folded)
        return folded


class LmtpFactory(SmtpFactory):
    """
    recipients=N                    recipients of one message; with 1 each gets its own verdict. Default: 0, no limit.
    """

    kind = LmtpDelivery
    name = "lmtp"
    summary = "Pass messages to an upstream LMTP server, such as Dovecot."
    example = "lmtp:unix:/run/dovecot/lmtp or lmtp:tcp:127.0.0.1:24"
