"""What operators have changed in a running guard, as a value that another process can take over.

It is made of what JSON has, and grows with the rules of operators only. A rule keeps its end.
"""

from __future__ import annotations

from typing import Any

from twisted_smtpguard.operations.limitsettings import check_settable
from twisted_smtpguard.operations.operator import Operator
from twisted_smtpguard.operations.rules import check_rule
from twisted_smtpguard.replies import deferral

Changes = dict[str, Any]

NO_CHANGES: Changes = {"set": {}, "rules": [], "defer": None}
"""Those of a guard in which nobody has changed anything."""


def changes_of(operator: Operator) -> Changes:
    """All changes that are in force in the guard of `operator`."""
    deferring = operator.context.deferral
    return {
        "set": operator.settings.exported(),
        "rules": operator.networks.exported(),
        "defer": None if deferring is None else " ".join(deferring.lines),
    }


def make_changes(operator: Operator, changes: Changes) -> None:
    """Bring the changes of another guard into force. Called before this one listens, and logs nothing.

    ValueError: these are no changes, or one of them is unknown here, as one of another version may be. Then none is in
    force.
    """
    try:
        limits, rules, deferring = (changes[each] for each in NO_CHANGES)
        for option, (value, _, end) in limits.items():
            check_settable(option, value)
            _check_end(end)
        for verb, network, end, _ in rules:
            check_rule(verb, network)
            _check_end(end)
        reply = None if deferring is None else deferral(deferring)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"what operators have changed cannot be read: {error!r}") from error
    operator.settings.restore(limits)
    operator.networks.restore(rules)
    if reply is not None:
        operator.context.defer(reply)


def _check_end(end: object) -> None:
    if not (end is None or isinstance(end, (int, float))):
        raise TypeError(f"{end!r} is no time")
