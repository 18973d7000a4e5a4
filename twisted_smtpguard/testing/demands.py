"""What the checks have in common: saying what is wrong, and taking an answer however it comes."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from zope.interface import Interface, Invalid
from zope.interface.verify import verifyObject

from twisted_smtpguard.engine.port import is_later
from twisted_smtpguard.hooks.later import as_deferred


def require(condition: bool, problem: str) -> None:
    """AssertionError with `problem` as its text, unless `condition`."""
    if not condition:
        raise AssertionError(problem)


def verify(interface: type[Interface], candidate: object, what: str) -> None:
    """AssertionError unless `candidate` provides `interface`, with all its methods and attributes."""
    try:
        verifyObject(interface, candidate)
    except Invalid as error:
        raise AssertionError(f"{what}: {error}") from error


def later(answer: Any) -> Deferred[Any]:
    """The answer of a hook, now, later or to be awaited, as a Deferred."""
    return as_deferred(answer) if is_later(answer) else succeed(answer)
