"""`lmtp:ENDPOINT`: messages are passed to an LMTP server (RFC 2033), and its verdicts, one for each recipient, are
combined into one."""

from __future__ import annotations

from collections.abc import Sequence

from zope.interface import implementer

from twisted_smtpguard import replies
from twisted_smtpguard.delivery.smtp import KEYS, make_upstream_delivery
from twisted_smtpguard.delivery.upstream import Lease, UpstreamDelivery
from twisted_smtpguard.interfaces import IDelivery, IDeliveryFactory
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.upstream.verdicts import combine, is_mixed
from twisted_smtpguard.values import Path, Refused


class LmtpDelivery(UpstreamDelivery):
    """Passes messages to an upstream LMTP server."""

    lmtp = True

    def check_recipients(self, recipients: int) -> None:
        if 0 < self.options.recipients <= recipients:
            raise Refused(replies.TOO_MANY_LMTP_RECIPIENTS)

    def verdicts_due(self, recipients: Sequence[Path]) -> int:
        return len(recipients)

    async def verdict(self, lease: Lease, recipients: Sequence[Path]) -> Reply:
        verdicts: list[tuple[str, Reply]] = []
        for recipient in recipients:
            verdicts.append((recipient.address, await self._one(lease)))
        folded = combine(verdicts)
        if is_mixed(verdicts):
            self.notices.mixed(lease.client.session, folded, verdicts)
        if folded.code >= 300:
            raise Refused(folded)
        return folded

    async def _one(self, lease: Lease) -> Reply:
        """The verdict for one recipient. If the connection ends before it, it is a 451, so that the client tries
        again."""
        try:
            return await lease.verdict(self.options.verdict)
        except Refused as refused:
            return refused.reply


@implementer(IDeliveryFactory)
class LmtpFactory:
    """`--deliver lmtp:ENDPOINT[,key=value...]`."""

    name = "lmtp"
    summary = "Pass messages to an upstream LMTP server, such as Dovecot."
    argument_format = (
        "ENDPOINT[,key=value...], such as lmtp:unix:/run/dovecot/lmtp or lmtp:tcp:127.0.0.1:24\n\n"
        f"{KEYS}\n"
        "announce=received|xclient|xforward|proxy|proxy-v1\n"
        "                                how the server learns who the client is. Default: received, a header field.\n"
        "recipients=N                    recipients of one message; with 1 each gets its own verdict. Default: 0, no\n"
        "                                limit."
    )

    def __init__(self, hostname: str) -> None:
        self._hostname = hostname

    def make_delivery(self, argument: str, reactor: object) -> IDelivery:
        return make_upstream_delivery(LmtpDelivery, self.name, self._hostname, argument, reactor)
