"""The declaration of a limit, read from its field of Limits: its unit, its replies, its value in the profile edge, and
its help, which is the docstring after it."""

from __future__ import annotations

import ast
import inspect
import sys
from functools import cache
from itertools import pairwise
from typing import Any

import attrs

from twisted_smtpguard.limits.units import Unit
from twisted_smtpguard.replies import catalogue


@attrs.frozen
class LimitSpec:
    """The declaration of a limit, without its value. `Limits.specs()` lists all of them."""

    name: str
    """The name of the field of Limits. If a refusal has this reason, the log has the limit's value too."""
    default: Any
    edge: Any
    """Its default in the profile edge."""
    unit: Unit[Any]
    dry_run: bool
    """Whether the limit has a dry run. A limit that bounds memory, disk or time has none."""
    other_replies: tuple[str, ...]
    owner: type
    """The class that has the field, or inherits it."""

    @property
    def option(self) -> str:
        """The command-line option without its dashes."""
        return self.name.replace("_", "-")

    @property
    def help(self) -> str:
        """The docstring of the field. "" if the package was installed without its source."""
        return next(filter(None, (_docstrings(each).get(self.name) for each in self.owner.__mro__)), "")

    @property
    def replies(self) -> tuple[str, ...]:
        """The names in replies.py of the replies that the client gets: those with the name of the limit as their
        reason, or others. Empty if there is none."""
        return self.other_replies or tuple(each.name for each in catalogue() if each.reason == self.name)


@cache
def _docstrings(cls: type) -> dict[str, str]:
    """The docstring after each field in the source of a class, in one line."""
    try:
        body = ast.parse(inspect.getsource(sys.modules[cls.__module__])).body
    except (OSError, TypeError):
        return {}
    nodes = [
        node
        for each in body
        if isinstance(each, ast.ClassDef) and each.name == cls.__name__
        for node in each.body
    ]
    found = {}
    for node, after in pairwise(nodes):
        match node, after:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                found[name] = " ".join(text.split())
    return found
