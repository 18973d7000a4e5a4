"""The checkers that `--auth` may name: the guard's own, and those of other distributions that Twisted's strcred
finds."""

from __future__ import annotations

from typing import Any

from twisted.cred import strcred

from twisted_smtpguard.checkers.builtin import BuiltinChecker, builtin_checkers
from twisted_smtpguard.checkers.checking import takes_passwords


def make_checker(specification: str, reactor: Any) -> Any:
    """Make the checker for NAME[:ARGS]. ValueError is a sentence that does not repeat ARGS, which may be a password."""
    name, _, argument = specification.partition(":")
    factory = _factory(name)
    if isinstance(factory, BuiltinChecker):
        return factory.make(argument, reactor)
    if not takes_passwords(factory):
        raise ValueError(f"{name} does not check user names with passwords")
    try:
        return factory.generateChecker(argument)
    except Exception as error:  # whatever a plugin raises
        detail = f"the argument after the colon must be: {factory.argStringFormat}"
        raise ValueError(f"{name}: {detail}") from error


def checkers_table() -> str:
    """One line for each checker, with the argument after its colon, or why it cannot be used here."""
    lines = {name: factory.argStringFormat for name, factory in _others().items()}
    for each in builtin_checkers():
        lines[each.name] = f"Not here: {each.why_unusable}." if each.why_unusable else each.argument_format
    width = max(map(len, lines))
    return "\n".join(f"{name.ljust(width)}  {lines[name]}" for name in sorted(lines))


def checker_description(name: str) -> str:
    """The help text of one checker."""
    factory = _factory(name)
    if isinstance(factory, BuiltinChecker):
        about, text = factory.argument_format, factory.help
        if factory.why_unusable:
            text += f"\nIt cannot be used here: {factory.why_unusable}."
    else:
        about, text = factory.argStringFormat, factory.authHelp
    return "\n".join([f"{name}: {about}", *(line.rstrip() for line in text.strip().splitlines())])


def _others() -> dict[str, Any]:
    """The checkers of other distributions that take passwords. Of two with one name strcred uses the first."""
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
