"""The deliveries, IP filters and session policies that `NAME:ARGS` can name: the guard's own, and those of plugins that
Twisted finds.

Every mistake, even one in a plugin of another distribution, is a ValueError whose text is a sentence for the operator.
Nothing here is called after the guard has begun to listen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from twisted_smtpguard.admission.chain import FilterEntry
from twisted_smtpguard.delivery.discard import DiscardDelivery, DiscardFactory
from twisted_smtpguard.delivery.lmtp import LmtpFactory
from twisted_smtpguard.delivery.maildir import MaildirFactory
from twisted_smtpguard.delivery.smtp import SmtpFactory
from twisted_smtpguard.filters.dnsbl import DnsblFactory
from twisted_smtpguard.filters.networks import NetworksFactory
from twisted_smtpguard.interfaces import (
    ICheckingDeliveryFactory,
    IDelivery,
    IDeliveryFactory,
    IIPFilter,
    IIPFilterFactory,
    ISessionPolicy,
    ISessionPolicyFactory,
)
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.policies.policyentry import PolicyEntry

_FAIL_OPEN = "fail-open"
"""The prefix of an IP filter or session policy that lets a client pass if it cannot judge."""

_CALLED = "name="
"""The prefix with the name of one in the log."""

_LOG_NAME = re.compile("[A-Za-z0-9._-]{1,64}")
_NAME = re.compile("[a-z][a-z0-9-]*")


F = TypeVar("F")
"""A factory: an IDeliveryFactory, an IIPFilterFactory or an ISessionPolicyFactory."""
T = TypeVar("T")


def builtin_deliveries(hostname: str, limits: Limits) -> list[IDeliveryFactory]:
    """The deliveries that come with the guard."""
    return [MaildirFactory(hostname, limits), SmtpFactory(hostname), LmtpFactory(hostname), DiscardFactory()]


def delivery_factories(hostname: str, limits: Limits) -> dict[str, IDeliveryFactory]:
    """Every delivery that `--deliver` can name: the guard's own, and those of other distributions."""
    return by_name([*builtin_deliveries(hostname, limits), *discover(IDeliveryFactory)])


def make_delivery(
    specification: str, reactor: object, factories: Mapping[str, IDeliveryFactory], *, trial: bool = False
) -> IDelivery:
    """Make the delivery for `specification`, such as `maildir:./Maildir`. `trial`: it will not be started, and one that
    would write something when it is made is not made, but looked at, and another one takes its place."""
    name, argument = split_specification(specification)
    factory = look_up("delivery", name, factories)

    def make() -> IDelivery:
        if trial and ICheckingDeliveryFactory.providedBy(factory):
            ICheckingDeliveryFactory(factory).check_delivery(argument, reactor)
            return DiscardDelivery()
        return factory.make_delivery(argument, reactor)

    return _made(IDelivery, factory, make)


def builtin_filters() -> list[IIPFilterFactory]:
    """The IP filters that come with the guard."""
    return [NetworksFactory(), DnsblFactory()]


def filter_factories() -> dict[str, IIPFilterFactory]:
    """Every IP filter that `--ip-filter` can name: the guard's own, and those of other distributions."""
    return _without_prefix("filters", by_name([*builtin_filters(), *discover(IIPFilterFactory)]))


def make_filter(
    specification: str, reactor: object, factories: Mapping[str, IIPFilterFactory]
) -> FilterEntry:
    """Make the IP filter for `specification`, such as `networks:/etc/smtpguard/networks`. The argument, which may
    contain a key, is never logged."""
    called, fail_open, name, argument = _prefixed(specification)
    factory = look_up("IP filter", name, factories)
    made = _made(IIPFilter, factory, lambda: factory.make_filter(argument, reactor))
    return FilterEntry(made, called or name, fail_open=fail_open)


def policy_factories() -> dict[str, ISessionPolicyFactory]:
    """Every policy that `--policy-plugin` can name: those of other distributions."""
    return _without_prefix("policies", by_name(discover(ISessionPolicyFactory)))


def policies_table() -> str:
    """The text of --help-policies."""
    return table(policy_factories()) or "No installed distribution has a session policy for --policy-plugin."


def make_policy(
    specification: str, reactor: object, factories: Mapping[str, ISessionPolicyFactory]
) -> PolicyEntry:
    """Make the session policy for `specification`, which is written as that of an IP filter is."""
    called, fail_open, name, argument = _prefixed(specification)
    factory = look_up("session policy", name, factories)
    made = _made(ISessionPolicy, factory, lambda: factory.make_policy(argument, reactor))
    return PolicyEntry(made, called or name, fail_open=fail_open)


def _without_prefix(kind: str, factories: dict[str, F]) -> dict[str, F]:
    """`factories`. ValueError: one has the name of the prefix that fails open."""
    if _FAIL_OPEN in factories:
        raise ValueError(
            f"the plugin {_origin(factories[_FAIL_OPEN])} has the name {_FAIL_OPEN!r}, which is reserved for {kind} "
            "that fail open"
        )
    return factories


def _prefixed(specification: str) -> tuple[str, bool, str, str]:
    """The name in the log ("" for that of the plugin), whether it fails open, the name of the plugin, and its argument.
    `specification` may begin with `fail-open:`, and before that with `name=WORD:`."""
    name, argument = split_specification(specification)
    called = ""
    if name.startswith(_CALLED):
        called = name.removeprefix(_CALLED)
        if not _LOG_NAME.fullmatch(called):
            raise ValueError(
                f"1 to 64 letters, digits, dots, hyphens or underscores are expected after {_CALLED}, not {called!r}"
            )
        name, argument = split_specification(argument)
    fail_open = name == _FAIL_OPEN and ":" in specification
    if fail_open:
        name, argument = split_specification(argument)
    if not name or name.startswith(_CALLED):
        raise ValueError("NAME:ARGS is expected, or in this order name=WORD:fail-open:NAME:ARGS")
    return called, fail_open, name, argument


def shown_filter(entry: FilterEntry | PolicyEntry) -> str:
    """The name of `entry` for the log at start, with `fail-open:` before it if it fails open."""
    return f"{_FAIL_OPEN}:{entry.name}" if entry.fail_open else entry.name


def shown_delivery(specification: str) -> str:
    """`specification` for the log: whole if the delivery is one of the guard's own, whose arguments have no secrets,
    else its name alone."""
    name, _ = split_specification(specification)
    ours = {factory.name for factory in builtin_deliveries("localhost", Limits())}
    return specification if name in ours else name


def discover(interface: Any) -> list[Any]:
    """The plugins of all installed distributions that provide `interface`."""
    from twisted.plugin import getPlugins  # noqa: PLC0415 - slow, and an embedded guard does not need it

    return list(getPlugins(interface))


def by_name(factories: Iterable[F]) -> dict[str, F]:
    """`factories` by their names. ValueError: two have the same name, a name is not valid, or a help text is
    missing."""
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
        for text in ("summary", "argument_format"):
            if not isinstance(getattr(factory, text, None), str):
                raise ValueError(f"the plugin {_origin(factory)} has no text called {text!r}")
        named[name] = factory
    return named


def split_specification(specification: str) -> tuple[str, str]:
    """Split `NAME:ARGS` at its first colon. ARGS may contain colons too."""
    name, _, argument = specification.partition(":")
    return name, argument


def look_up(kind: str, name: str, factories: Mapping[str, F]) -> F:
    """The factory called `name`. ValueError lists the known names; `kind` says what the factories make."""
    if name not in factories:
        raise ValueError(f"there is no {kind} called {name!r}; known are {', '.join(sorted(factories))}")
    return factories[name]


def table(factories: Mapping[str, Any]) -> str:
    """One line for each factory, with its name and summary: the text of --help-deliveries and --help-ip-filters."""
    width = max(map(len, factories), default=0)
    return "\n".join(f"{name:{width}}  {factories[name].summary}" for name in sorted(factories))


def description(kind: str, name: str, factories: Mapping[str, Any]) -> str:
    """The description of the factory called `name` and its argument: the text of --help-delivery NAME and
    --help-ip-filter NAME."""
    factory = look_up(kind, name, factories)
    return f"{factory.name}: {factory.summary}\n\n{factory.argument_format}"


def _made(interface: type[T], factory: object, make: Callable[[], T]) -> T:
    """The result of `make`. ValueError: it does not provide `interface`, or the plugin failed."""
    try:
        made = make()
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"{_origin(factory)} failed with {type(error).__name__}: {error}") from error
    if not interface.providedBy(made):  # type: ignore[attr-defined]
        raise ValueError(f"{_origin(factory)} made {made!r}, which does not provide {interface.__name__}")
    return made


def _origin(factory: object) -> str:
    return f"{type(factory).__module__}.{type(factory).__qualname__}"
