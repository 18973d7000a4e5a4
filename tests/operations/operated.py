"""A guard in memory whose operator is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fakes import FakeDelivery, codes
from twisted.internet.task import Clock

from twisted_smtpguard import Limits, SMTPGuardService
from twisted_smtpguard.testing import Clients


class Operated(Clients):
    """A guard whose operator is asked."""

    def __init__(
        self,
        *,
        ip_filters: Sequence[Any] = (),
        checkers: Sequence[Any] = (),
        proxy_protocol_from: Sequence[str] = (),
        counters: Any = None,
        auth_without_tls: bool = True,
        require_auth: bool = False,
        policies: Sequence[Any] = (),
        **limits: Any,
    ) -> None:
        clock = Clock()
        self.service = SMTPGuardService(
            clock,
            [],
            FakeDelivery(),
            limits=Limits(**limits),
            hostname="guard.example",
            ip_filters=ip_filters,
            counters=counters,
            checkers=checkers,
            auth_without_tls=auth_without_tls,
            require_auth=require_auth,
            proxy_protocol_from=proxy_protocol_from,
            policies=policies,
        )
        self.operator = self.service.operator
        super().__init__(self.service.factory, clock)

    def row(self, limit: str) -> dict[str, object]:
        (row,) = [row for row in self.operator.limits() if row["limit"] == limit]
        return row

    def tries(self, host: str = "192.0.2.1") -> int:
        """The code that a new client hears."""
        return codes(self.connect(host).heard())[0]
