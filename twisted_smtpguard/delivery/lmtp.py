"""`lmtp:ENDPOINT`: messages to an LMTP server (RFC 2033), whose verdicts, one a recipient, become one."""

from __future__ import annotations

from collections.abc import Sequence

from zope.interface import implementer

from twisted_smtpguard.delivery.smtp import KEYS, make_upstream_delivery
from twisted_smtpguard.delivery.upstream import UpstreamDelivery, Use
from twisted_smtpguard.interfaces import IDelivery, IDeliveryFactory, Path, Refused
from twisted_smtpguard.smtp import replies
from twisted_smtpguard.smtp.replies import Reply
from twisted_smtpguard.upstream.folding import fold, is_mixed


class LmtpDelivery(UpstreamDelivery):
    """Messages to an LMTP server behind the guard."""

    lmtp = True

    def check_recipients(self, recipients: int) -> None:
        if 0 < self.options.recipients <= recipients:
            raise Refused(replies.TOO_MANY_LMTP_RECIPIENTS)

    def verdicts_due(self, recipients: Sequence[Path]) -> int:
        return len(recipients)

    async def verdict(self, use: Use, recipients: Sequence[Path]) -> Reply:
        verdicts: list[tuple[str, Reply]] = []
        for recipient in recipients:
            verdicts.append((recipient.address, await self._one(use)))
        folded = fold(verdicts)
        if is_mixed(verdicts):
            self.notices.mixed(use.client.session, folded, verdicts)
        if folded.code >= 300:
            raise Refused(folded)
        return folded

    async def _one(self, use: Use) -> Reply:
        """Of one recipient. Those that are missing once the connection has ended are to be tried again."""
        try:
            return await use.verdict(self.options.verdict)
        except Refused as refused:
            return refused.reply


@implementer(IDeliveryFactory)
class LmtpFactory:
    """`--deliver lmtp:ENDPOINT[,key=value...]`."""

    name = "lmtp"
    summary = "Hand messages to an LMTP server behind, such as Dovecot."
    argument_format = (
        "ENDPOINT[,key=value...], such as lmtp:unix:/run/dovecot/lmtp or lmtp:tcp:127.0.0.1:24\n\n"
        f"{KEYS}\n"
        "announce=received|xclient|xforward|proxy|proxy-v1\n"
        "                                how the server learns who the client is. Default: received, a header field.\n"
        "recipients=N                    of one message; with 1 each has a verdict of its own. Default: 0, no limit."
    )

    def __init__(self, hostname: str) -> None:
        self._hostname = hostname

    def make_delivery(self, argument: str, reactor: object) -> IDelivery:
        return make_upstream_delivery(LmtpDelivery, self.name, self._hostname, argument, reactor)
