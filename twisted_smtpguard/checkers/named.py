"""What `--auth` may name: the guard's own checkers, and those that Twisted's strcred finds of other distributions."""

from __future__ import annotations

from typing import Any

from twisted.cred import strcred

from twisted_smtpguard.checkers.builtin import BuiltinChecker, builtin_checkers
from twisted_smtpguard.checkers.checking import takes_passwords


def make_checker(specification: str, reactor: Any) -> Any:
    """The checker that NAME[:ARGS] asks for. ValueError is a sentence; it does not repeat ARGS, which may be a
    password."""
    name, _, argument = specification.partition(":")
    factory = _factory(name)
    if isinstance(factory, BuiltinChecker):
        return factory.make(argument, reactor)
    if not takes_passwords(factory):
        raise ValueError(f"{name} does not check user names with passwords")
    try:
        return factory.generateChecker(argument)
    except Exception as error:  # whatever a plugin raises
        detail = f"what stands behind the colon is expected to be: {factory.argStringFormat}"
        raise ValueError(f"{name}: {detail}") from error


def checkers_table() -> str:
    """A line for each, with what may stand after its colon, or why it cannot be used here."""
    lines = {name: factory.argStringFormat for name, factory in _others().items()}
    for each in builtin_checkers():
        lines[each.name] = f"Not here: {each.why_unusable}." if each.why_unusable else each.argument_format
    width = max(map(len, lines))
    return "\n".join(f"{name.ljust(width)}  {lines[name]}" for name in sorted(lines))


def checker_description(name: str) -> str:
    """All that one of them says of itself."""
    factory = _factory(name)
    if isinstance(factory, BuiltinChecker):
        about, text = factory.argument_format, factory.help
        if factory.why_unusable:
            text += f"\nIt cannot be used here: {factory.why_unusable}."
    else:
        about, text = factory.argStringFormat, factory.authHelp
    return "\n".join([f"{name}: {about}", *(line.rstrip() for line in text.strip().splitlines())])


def _others() -> dict[str, Any]:
    """Those of other distributions that take passwords. Of two with one name strcred takes the first."""
    ours = {each.name for each in builtin_checkers()}
    found: dict[str, Any] = {}
    for factory in strcred.findCheckerFactories():
        if takes_passwords(factory) and factory.authType not in ours:
            found.setdefault(factory.authType, factory)
    return found


def _factory(name: str) -> Any:
    for each in builtin_checkers():
        if each.name == name:
            return each
    try:
        return strcred.findCheckerFactory(name)
    except strcred.InvalidAuthType as error:
        known = ", ".join(sorted([*_others(), *(each.name for each in builtin_checkers())]))
        raise ValueError(f"one of {known} is expected, not {name!r}") from error
