"""Reading the data of filters and deliveries anew: all of them first, then all change at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.python.reflect import safe_str

from twisted_smtpguard.hooks.later import FAULTS, CallLater, HookCancelledError, asked, explained, within
from twisted_smtpguard.inputs.regularfile import FaultyFileError
from twisted_smtpguard.interfaces import IPreparedReload, IReadsFiles, IReloadable
from twisted_smtpguard.log.events import Events

_SECONDS = 120
"""For one part to read its data. One that never answers must not keep the others from ever changing."""


@attrs.frozen
class Part:
    """What may have data to read anew."""

    what: str
    """What the log calls it."""
    option: str
    """The option of the command line that it comes from, without its dashes."""
    it: Any

    @property
    def files(self) -> Mapping[str, str]:
        """What it says it reads: of each path the option."""
        if not IReadsFiles.providedBy(self.it):
            return {}
        return {path: option or self.option for path, option in IReadsFiles(self.it).files.items()}


class Reloading:
    """Of `parts` those that provide IReloadable. One reading at a time. `reloaded` is called when all have read."""

    def __init__(
        self,
        parts: Iterable[Part],
        events: Events,
        call_later: CallLater,
        reloaded: Callable[[], object] = lambda: None,
    ) -> None:
        self._parts = [part for part in parts if IReloadable.providedBy(part.it)]
        self._events = events
        self._reloaded = reloaded
        self._call_later = call_later
        self._waiting: list[Deferred[None]] = []
        self._readings: list[Deferred[Callable[[], object] | BaseException]] = []
        self._busy = False

    def reload(self) -> Deferred[None]:
        """Fires when the data have been read that there were at this call. Never fails: what goes wrong with one
        is logged, and that one keeps its old data."""
        done: Deferred[None] = Deferred()
        self._waiting.append(done)
        if not self._busy:
            Deferred.fromCoroutine(self._run())
        return done

    def give_up(self) -> None:
        """The parts stop: nothing is read any more, and whoever waits for it hears that it is over."""
        waiting, self._waiting = self._waiting, []
        # It ends the reload that is going on, and those who have asked for another would begin one.
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
            except Exception:  # noqa: BLE001 - whoever waits is told, and the next reload can begin
                self._events.failure(Failure(), "the data could not be read anew")
            # What was read may be large.
            self._readings = []
            for done in waiting:
                done.callback(None)
        self._busy = False

    async def _reload_all(self) -> None:
        self._readings = [self._read(part.it) for part in self._parts]
        switches: list[tuple[Part, Callable[[], object]]] = []
        for part, reading in zip(self._parts, self._readings, strict=True):
            outcome = await reading
            if isinstance(outcome, TimeoutError):
                self._events.reload_failed(part.what, part.option, f"no answer in {_SECONDS} seconds")
            elif isinstance(outcome, CancelledError) and not isinstance(outcome, HookCancelledError):
                self._events.reload_failed(part.what, part.option, "given up before it was read")
            elif isinstance(outcome, BaseException):
                self._failed(part, Failure(outcome))
            else:
                switches.append((part, outcome))
        for part, switch in switches:
            try:
                switch()
                files = part.files
            except FAULTS:
                self._failed(part, explained(Failure()))
                continue
            for file, option in files.items():
                self._events.reloaded(part.what, option, file)
            if not files:
                self._events.reloaded(part.what, part.option)
        self._reloaded()

    def _failed(self, part: Part, failure: Failure) -> None:
        error = failure.value
        if isinstance(error, FaultyFileError):
            self._events.reload_failed(part.what, error.option or part.option, error.problem, error.file)
        else:
            self._events.reload_failed(part.what, part.option, safe_str(error) or type(error).__name__)

    def _read(self, part: Any) -> Deferred[Callable[[], object] | BaseException]:
        """Begin to read. Fires with what takes the new data, or with what went wrong."""
        prepared = IPreparedReload.providedBy(part)
        # To look the hook up can fail too.
        reading = asked(lambda: part.prepare_reload() if prepared else part.reload())
        return within(_SECONDS, self._call_later, reading).addCallbacks(
            lambda switch: switch if prepared else _nothing, lambda failure: failure.value
        )


def _nothing() -> None:
    """It has taken its new data already."""
