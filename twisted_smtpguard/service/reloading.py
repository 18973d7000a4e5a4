"""The reload of the data of filters, deliveries and other parts: all are read first, then all change at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.python.reflect import safe_str

from twisted_smtpguard.hooks.later import CallLater, HookCancelledError, call_hook, explained, within
from twisted_smtpguard.inputs.regularfile import FaultyFileError
from twisted_smtpguard.interfaces import IPreparedReload, IReadsFiles, IReloadable
from twisted_smtpguard.log.events import Events
from twisted_smtpguard.values import FAULTS

_SECONDS = 120
"""How long one part may take to read its data. One that never answers must not keep the others from changing."""


@attrs.frozen
class Part:
    """A part of the guard that may have data to reload."""

    what: str
    """Its name in the log."""
    option: str
    """The command-line option that it comes from, without dashes."""
    target: Any
    """The object that reads the data."""

    @property
    def files(self) -> Mapping[str, str]:
        """For each file that the part reads, the option that names it. If the part names no file: `""`, and its own
        option."""
        files = IReadsFiles(self.target).files if IReadsFiles.providedBy(self.target) else {}
        return {path: option or self.option for path, option in (files or {"": ""}).items()}


class Reloader:
    """Reloads those of `parts` that provide IReloadable, one reload at a time. `reloaded` is called after each."""

    def __init__(
        self,
        parts: Iterable[Part],
        events: Events,
        call_later: CallLater,
        reloaded: Callable[[], object],
    ) -> None:
        self._parts: list[Part] = []
        for part in parts:
            self.add(part)
        self._events = events
        self._reloaded = reloaded
        self._call_later = call_later
        self._waiting: list[Deferred[None]] = []
        self._readings: list[Deferred[Callable[[], object] | BaseException]] = []
        self._busy = False

    def add(self, part: Part) -> None:
        """Reload one more part, if it has something to reload. Its data change after those of the others."""
        if IReloadable.providedBy(part.target):
            self._parts.append(part)

    @property
    def names(self) -> list[str]:
        """The names of the parts that are reloaded."""
        return [part.what for part in self._parts]

    def reload(self) -> Deferred[None]:
        """Reload all parts. Fires after a reload that began after this call. It never fails: a part that cannot be
        reloaded keeps its old data, and that is logged."""
        done: Deferred[None] = Deferred()
        self._waiting.append(done)
        if not self._busy:
            Deferred.fromCoroutine(self._run())
        return done

    def stop(self) -> None:
        """End the reload that is going on, and drop those that wait for it. Called when the parts stop."""
        waiting, self._waiting = self._waiting, []
        # The queue is emptied first, since the end of this reload would begin the next.
        for reading in self._readings:
            reading.cancel()
        for done in waiting:
            done.callback(None)

    async def _run(self) -> None:
        self._busy = True
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            try:
                await self._reload_all()
            except Exception:  # noqa: BLE001 - the callers get their answer, and the next reload can begin
                self._events.failure(Failure(), "the data could not be reloaded")
            # The data may be large, and the switch functions would keep them alive.
            self._readings = []
            for done in waiting:
                done.callback(None)
        self._busy = False

    async def _reload_all(self) -> None:
        self._events.measured.failed_reloads.clear()
        self._readings = [self._read(part.target) for part in self._parts]
        switches: list[tuple[Part, Callable[[], object]]] = []
        for part, reading in zip(self._parts, self._readings, strict=True):
            outcome = await reading
            if isinstance(outcome, BaseException):
                self._failed(part, outcome)
            else:
                switches.append((part, outcome))
        for part, switch in switches:
            try:
                switch()
                files = part.files
            except FAULTS:
                self._failed(part, explained(Failure()).value)
                continue
            for file, option in files.items():
                self._events.reloaded(part.what, option, file)
        self._reloaded()

    def _failed(self, part: Part, error: BaseException | None) -> None:
        option, file = part.option, ""
        if isinstance(error, TimeoutError):
            problem = f"no answer in {_SECONDS} seconds"
        elif isinstance(error, CancelledError) and not isinstance(error, HookCancelledError):
            problem = "the reload was cancelled by a stop"
        elif isinstance(error, FaultyFileError) and error.option:
            option, problem, file = error.option, error.problem, error.file
        elif isinstance(error, OSError) and error.strerror and isinstance(error.filename, str):
            problem, file = error.strerror, error.filename
        else:
            problem = safe_str(error) or type(error).__name__
        self._events.reload_failed(part.what, option, problem, file)

    def _read(self, part: Any) -> Deferred[Callable[[], object] | BaseException]:
        """Begin to read. Fires with the function that switches to the new data, or with the exception. For a part that
        has `reload()` only, that function does nothing, since the part has switched already."""
        prepared = IPreparedReload.providedBy(part)
        # Looking up the hook can fail too.
        reading = call_hook(lambda: part.prepare_reload() if prepared else part.reload())
        return within(_SECONDS, self._call_later, reading).addCallbacks(
            lambda switch: switch if prepared else lambda: None, lambda failure: failure.value
        )
