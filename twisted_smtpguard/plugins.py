"""From `NAME:ARGS` to what it names: built-ins from our own tables, others by Twisted's plugin discovery.

Everything wrong, the plugins of other distributions included, is a ValueError of one sentence for the person
who starts the guard. Nothing here is called once the guard listens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeVar

from twisted_smtpguard.delivery.discard import DiscardFactory
from twisted_smtpguard.delivery.maildir import MaildirFactory
from twisted_smtpguard.interfaces import IDelivery, IDeliveryFactory
from twisted_smtpguard.limits import Limits

_NAME = re.compile("[a-z][a-z0-9-]*")


class Factory(Protocol):
    """What every kind of factory has."""

    name: str
    summary: str
    argument_format: str


F = TypeVar("F", bound=Factory)


def builtin_deliveries(hostname: str, limits: Limits) -> list[IDeliveryFactory]:
    """The deliveries that come with the guard."""
    return [MaildirFactory(hostname, limits), DiscardFactory()]


def delivery_factories(hostname: str, limits: Limits) -> dict[str, IDeliveryFactory]:
    """Every delivery that `--deliver` can name, ours and those of other distributions."""
    return by_name([*builtin_deliveries(hostname, limits), *discover(IDeliveryFactory)])


def make_delivery(
    specification: str, reactor: object, factories: Mapping[str, IDeliveryFactory]
) -> IDelivery:
    """The delivery that `specification`, such as `maildir:./Maildir`, asks for."""
    name, argument = split_specification(specification)
    factory = look_up("delivery", name, factories)
    delivery = factory.make_delivery(argument, reactor)
    if not IDelivery.providedBy(delivery):
        raise ValueError(f"{_origin(factory)} made {delivery!r}, which does not provide IDelivery")
    return delivery


def discover(interface: Any) -> list[Any]:
    """The plugins of all installed distributions that provide `interface`."""
    from twisted.plugin import getPlugins  # noqa: PLC0415 - slow, and an embedded guard needs none

    return list(getPlugins(interface))


def by_name(factories: Iterable[F]) -> dict[str, F]:
    """`factories` by their names. Two of one name, or a name that is none, is a ValueError."""
    named: dict[str, F] = {}
    for factory in factories:
        name = getattr(factory, "name", None)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                f"the plugin {_origin(factory)} has the name {name!r}; lower-case letters, digits and "
                "hyphens are expected, a letter first"
            )
        if name in named:
            raise ValueError(f"{_origin(named[name])} and {_origin(factory)} both have the name {name!r}")
        named[name] = factory
    return named


def split_specification(specification: str) -> tuple[str, str]:
    """`NAME:ARGS` at its first colon only: what stands behind it may have colons of its own."""
    name, _, argument = specification.partition(":")
    return name, argument


def look_up(kind: str, name: str, factories: Mapping[str, F]) -> F:
    """The factory called `name`. ValueError lists those that there are; `kind` says what they make."""
    if name not in factories:
        raise ValueError(f"there is no {kind} called {name!r}; known are {', '.join(sorted(factories))}")
    return factories[name]


def table(factories: Mapping[str, Factory]) -> str:
    """One line each, name and summary: the text of --help-deliveries."""
    width = max(map(len, factories), default=0)
    return "\n".join(f"{name:{width}}  {factories[name].summary}" for name in sorted(factories))


def description(factory: Factory) -> str:
    """What may stand behind the colon: the text of --help-delivery NAME."""
    return f"{factory.name}: {factory.summary}\n\n{factory.argument_format}"


def _origin(factory: object) -> str:
    return f"{type(factory).__module__}.{type(factory).__qualname__}"
