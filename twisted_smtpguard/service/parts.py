"""Parts of a service that are services themselves, such as a delivery with a pool of connections: who starts and stops
them."""

from __future__ import annotations

from twisted.application.service import IService, MultiService


class PartsOwner(MultiService):
    """A service that starts and stops the parts it is made of, where they are services."""

    def adopt(self, part: object) -> None:
        """`part` becomes a child, if it is a service and has no parent: somebody else's it stays.

        ValueError: it is the child of another PartsOwner, which would stop it while it is used here.
        """
        if not IService.providedBy(part):
            return
        service = IService(part)
        if service.parent is None:
            service.setServiceParent(self)
        elif isinstance(service.parent, PartsOwner) and service.parent is not self:
            raise ValueError(
                f"{type(part).__name__} would be stopped by another guard that has it already; what several share "
                "needs a parent of its own, by setServiceParent(), before the first of them is made"
            )
