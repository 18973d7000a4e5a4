"""The clients that are known: mail of theirs was accepted lately, or the operator has named them.

A client becomes known by the first of its mails that the delivery accepts, and is known for `Limits.known_for` after
the last one. A mail that the delivery refuses as junk ends that. Whom the operator has named is always known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.records.records import Records, renewed_after
from twisted_smtpguard.values import Address, Record


class Standing(NamedTuple):
    """Why a client is known, and until when."""

    listed: bool
    """Whether the operator has named it, so that it stays known."""
    accepted_at: float | None
    """When a mail of it was accepted, up to a day ago of the last one, in seconds since 1970; None: not lately."""
    until: float | None
    """When it is forgotten without another mail; None: never."""


class KnownClients:
    """The known clients of a guard. `records` has those that are known by their mail. The value of a record is for how
    long, in seconds: its end is by the clock of whoever has it, and so is then the time of the mail. A store that
    guards share is told how long a record still lives, and tells the same: a clock that is a day off makes nobody known
    for longer or for less. `seconds` returns the time, in seconds since 1970."""

    def __init__(self, limits: Limits, records: Records, seconds: Callable[[], float]) -> None:
        self.records = records
        self.is_listed: Callable[[Address], bool] | None = None
        """Whether the operator has named an address; None: he has named none."""
        self._seconds = seconds
        self.set_limits(limits)

    def set_limits(self, limits: Limits) -> None:
        """Swap the limits. A client whose last mail is too old for a shorter time is not known any more."""
        self._seconds_known = limits.known_for
        self.records.set_most(limits.max_known_clients)

    @property
    def are_some(self) -> bool:
        """Whether any client may be known. It costs next to nothing, for a flood of strangers."""
        return self.is_listed is not None or len(self.records) > 0

    def has(self, key: str, address: Address | None) -> bool:
        """Whether the client with this key and this address is known; None: a UNIX socket."""
        return self._until(key) is not None or self._names(address)

    def _names(self, address: Address | None) -> bool:
        return address is not None and self.is_listed is not None and self.is_listed(address)

    def _until(self, key: str) -> float | None:
        record = self.records.get(key)
        if record is None:
            return None
        # The end was set by the limit of another time, or of another guard.
        until = min(record.end, _accepted_at(record) + self._seconds_known)
        return until if until > self._seconds() else None

    def accepted(self, key: str) -> None:
        """Called when the delivery has accepted a mail of a client. It changes something once a day."""
        now, seconds = self._seconds(), self._seconds_known
        record = self.records.get(key)
        if seconds and (record is None or now - _accepted_at(record) >= renewed_after(seconds)):
            self.records.put(key, f"{seconds:.0f}", now + seconds)

    def refused(self, key: str) -> None:
        """Called when the delivery has refused a mail of a client as junk."""
        self.records.remove(key)

    def forget(self, key: str) -> bool:
        """Forget a client until its next mail is accepted. Returns whether it was known by its mail."""
        return self.records.remove(key) is not None

    def standing(self, key: str, address: Address | None) -> Standing | None:
        """Why a client is known; None: it is not."""
        listed, until = self._names(address), self._until(key)
        record = self.records.get(key)
        if until is None or record is None:
            return Standing(listed, None, None) if listed else None
        return Standing(listed, _accepted_at(record), None if listed else until)

    def by_mail(self) -> Iterator[tuple[str, Standing]]:
        """The key of each client that is known by its mail. Others may become known meanwhile."""
        for key in [key for key, _ in self.records.items()]:
            standing = self.standing(key, None)
            if standing is not None:
                yield key, standing


def _accepted_at(record: Record) -> float:
    """When the mail of a record was accepted. Another program may have written it: then that is long past."""
    return record.end - float(record.value) if record.value.isdecimal() else 0.0
