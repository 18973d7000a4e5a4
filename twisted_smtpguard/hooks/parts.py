"""The start and stop of a service's parts that are services themselves, such as a delivery with a pool of
connections."""

from __future__ import annotations

from twisted.application.service import IService, MultiService


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
