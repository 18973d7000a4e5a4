"""The common parts of the checks: the assertions, and the answers of hooks, at once or later."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from zope.interface import Interface, Invalid
from zope.interface.verify import verifyObject

from twisted_smtpguard.hooks.later import as_deferred
from twisted_smtpguard.values import is_later


def require(condition: bool, problem: str) -> None:
    """Raise AssertionError with the text `problem` unless `condition` is true."""
    if not condition:
        raise AssertionError(problem)


def verify(interface: type[Interface], candidate: object, what: str) -> None:
    """Raise AssertionError unless `candidate` provides `interface`, with all its methods and attributes."""
    try:
        verifyObject(interface, candidate)
    except Invalid as error:
        raise AssertionError(f"{what}: {error}") from error


def later(answer: Any) -> Deferred[Any]:
    """The answer of a hook as a Deferred, whether it is a value, a Deferred or another awaitable."""
    return as_deferred(answer) if is_later(answer) else succeed(answer)
