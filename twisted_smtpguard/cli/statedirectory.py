"""`--state`: the directory of what survives a restart. SQLite is imported only where the option is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from twisted.application.service import IServiceCollection

from twisted_smtpguard.limits.units import parse_path
from twisted_smtpguard.operations.changes import changes_of, make_changes
from twisted_smtpguard.records.recordtables import RecordTables
from twisted_smtpguard.service.service import SMTPGuardService


def check_state(text: str) -> None:
    """Check that a start could keep state in this directory. ValueError: it could not."""
    try:
        from twisted_smtpguard.state.database import check_directory  # noqa: PLC0415
    except ImportError as error:
        raise ValueError(f"it needs SQLite, which this Python does not have: {error}") from error
    check_directory(parse_path(text))


def keep_state(guard: SMTPGuardService, paths: Sequence[str], reactor: Any) -> None:
    """Have a guard of one process keep its state in the last of `paths`, if there is one."""
    operator = guard.operator
    changes, take = partial(changes_of, operator), partial(make_changes, operator)
    factory = guard.factory
    _keep(paths, reactor, operator, changes, take, factory.records, factory.context.events, guard)


def keep_state_of_workers(supervisor: Any, paths: Sequence[str], reactor: Any) -> None:
    """As `keep_state`, for a Supervisor, with whose changes its workers begin."""
    take = partial(setattr, supervisor, "changes")
    records, events = supervisor.records, supervisor.events
    _keep(paths, reactor, supervisor, lambda: supervisor.changes, take, records, events, supervisor)


def _keep(
    paths: Sequence[str],
    reactor: Any,
    keeper: Any,
    changes: Callable[[], Any],
    take: Callable[[Any], object],
    records: RecordTables,
    events: Any,
    parent: IServiceCollection,
) -> None:
    for path in paths[-1:]:
        from twisted_smtpguard.state.database import StateError  # noqa: PLC0415
        from twisted_smtpguard.state.stateservice import StateService  # noqa: PLC0415

        class StateOfProcess(StateService):
            """State that cannot be opened ends the process with one sentence."""

            def startService(self) -> None:
                try:
                    super().startService()
                except StateError as error:
                    raise SystemExit(f"--state: {error}") from error

        StateOfProcess(reactor, path, keeper, changes, take, records, events).setServiceParent(parent)
