"""The assertions of the checks."""

from __future__ import annotations

from zope.interface import Interface, Invalid
from zope.interface.verify import verifyObject


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
