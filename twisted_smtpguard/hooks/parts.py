"""The start and stop of a service's parts that are services themselves, such as a delivery with a pool of
connections."""

from __future__ import annotations

from typing import Any

from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.python.failure import Failure

from twisted_smtpguard.hooks.faults import at_debug


class PartsOwner(MultiService):
    """A service that starts and stops those of its parts that are services."""

    def adopt(self, part: object) -> None:
        """Make `part` a child of this service, if it is a service without a parent.

        ValueError: `part` is the child of another PartsOwner, which would stop it while it is used here.
        """
        if not IService.providedBy(part):
            return
        service = IService(part)
        if service.parent is None:
            service.setServiceParent(self)
        elif isinstance(service.parent, PartsOwner) and service.parent is not self:
            raise ValueError(
                f"{type(part).__name__} belongs to another guard already, which would stop it; a part that several "
                "guards share needs its own parent, by setServiceParent(), before the first guard is made"
            )

    def stopService(self) -> Deferred[Any]:  # noqa: N802 - Twisted's name
        """As `stop_parts`."""
        return stop_parts(self)


def stop_parts(service: MultiService) -> Deferred[Any]:
    """Stop `service` and each of its children, even if one fails. Fires when all have ended: with None, or with the
    first failure. Further failures are logged at debug.

    MultiService itself would drop the failures, and the log would have them only when the garbage collector runs.
    """
    Service.stopService(service)
    stopping = [maybeDeferred(part.stopService) for part in reversed(list(service))]
    return DeferredList(stopping, consumeErrors=True).addCallback(_first_failure)


def _first_failure(outcomes: list[tuple[bool, Any]]) -> Failure | None:
    failures = [outcome for succeeded, outcome in outcomes if not succeeded]
    for failure in failures[1:]:
        at_debug(failure, "another part could not be stopped")
    return failures[0] if failures else None
