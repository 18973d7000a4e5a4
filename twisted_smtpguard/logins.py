"""What `--auth` may name: the checkers that Twisted's strcred finds, its own and those of other distributions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.cred import strcred

from twisted_smtpguard.smtp.checking import takes_passwords


def make_checker(specification: str) -> Any:
    """The checker that NAME[:ARGS] asks for. ValueError is a sentence; it does not repeat ARGS, which may be a
    password."""
    name, _, argument = specification.partition(":")
    factory = _factory(name)
    if not takes_passwords(factory):
        raise ValueError(f"{name} does not check user names with passwords")
    if name == "file" and argument.strip() and not Path(argument).is_file():
        raise ValueError(f"there is no file {argument!r}")
    try:
        return factory.generateChecker(argument)
    except Exception as error:  # whatever a plugin raises
        detail = f"what stands behind the colon is expected to be: {factory.argStringFormat}"
        raise ValueError(f"{name}: {detail}") from error


def checkers_table() -> str:
    """A line for each, with what may stand behind its colon."""
    names = {factory.authType: factory.argStringFormat for factory in _factories()}
    width = max(map(len, names), default=0)
    return "\n".join(f"{name.ljust(width)}  {names[name]}" for name in sorted(names))


def checker_description(name: str) -> str:
    """All that one of them says of itself."""
    factory = _factory(name)
    lines = [line.rstrip() for line in factory.authHelp.strip().splitlines()]
    return "\n".join([f"{name}: {factory.argStringFormat}", *lines])


def _factories() -> list[Any]:
    return [factory for factory in strcred.findCheckerFactories() if takes_passwords(factory)]


def _factory(name: str) -> Any:
    try:
        return strcred.findCheckerFactory(name)
    except strcred.InvalidAuthType as error:
        known = ", ".join(sorted(factory.authType for factory in _factories()))
        raise ValueError(f"one of {known} is expected, not {name!r}") from error
