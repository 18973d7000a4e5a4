"""The interfaces of those who keep the counts and records of clients, which several guards may share. interfaces.py has
them too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from zope.interface import Attribute, Interface

from twisted_smtpguard.authinterfaces import Later
from twisted_smtpguard.values import Record, RecordsSince, Wanted


class ICounterStore(Interface):
    """Keeps the counts for the limits on connections and clients. The guard's own store is in its memory; one that
    several processes or hosts share may answer with Deferreds.

    An `owner` is one run of a guard: a word that no other run has. A method that cannot do its work raises
    `CounterStoreUnavailable`. After any exception, and after 50 ms without an answer to `take()`, the guard goes on
    with its own counts. It calls nothing but `renew()` then, once a second, and `look(())` when that has answered,
    until the latter answers within 50 ms. No call is cancelled.
    """

    lease_seconds: float = Attribute(
        """How long places are held without `renew()`, in seconds; 0: until they are given back."""
    )

    def take(owner: str, wanted: Sequence[Wanted]) -> Later[Sequence[int]]:
        """Take all that is wanted, or nothing if one count would exceed its limit. Called once for each decision.
        One counter may be wanted for a client and for its networks, each with its own limit.

        The answer has the count of each, with what is wanted now, whether it was taken or not.
        """

    def give_back(owner: str, taken: Sequence[Wanted]) -> Later[None]:
        """Give back what was taken: places, and events that should not have been counted. A place that is not held, and
        an event of a window that is over, changes nothing."""

    def look(wanted: Sequence[Wanted]) -> Later[Sequence[tuple[int, float]]]:
        """Take nothing, and answer the present count of each, and the seconds until its window ends; 0 for places and
        where there is no window."""

    def renew(owner: str, places: Mapping[tuple[str, str], int]) -> Later[None]:
        """Hold these places, and no others of this owner, for `lease_seconds` from now. A key is a counter and a
        client. Called several times in that time, unless it is 0, and when a store is back. A store that has lost its
        data has them again."""


class IConnectingCounterStore(ICounterStore):
    """A counter store that says when it has connected, so that a guard does not find that out by asking."""

    connected: bool = Attribute("""Whether it can be asked now.""")

    def on_connected(call: Callable[[], object]) -> None:
        """Call `call()` whenever the store has connected, before it is asked anything else: it calls `renew()`, since
        the data may have been lost. Called once by each guard, when it is made."""


class IRecordStore(ICounterStore):
    """A counter store that also keeps records of clients, such as bans, for all guards that share it. Optional: without
    it each guard has its own records.

    A record has a `kind`, which is a word, and a key: the network of a client, or a digest. It is kept until its end,
    or until there are too many of its kind. Ends are by the clock of this guard: a store of several hosts sees to it
    that those of others are translated. Nobody waits for an answer; after an exception, or a second without an answer,
    the same is asked again later.
    """

    def put_records(kind: str, records: Mapping[str, Record | None], only_new: bool) -> Later[None]:
        """Keep these records, of which there are at most 100, each in place of the one with its key; None: forget that
        one. `only_new`: change nothing where there is a record, or was one that has been forgotten."""

    def records_since(kind: str, mark: str) -> Later[RecordsSince]:
        """Answer what has been put and forgotten since the answer that had this `mark`, the earliest first, and at most
        as much at once as does not hold up others; "": everything. What this guard has put may be in it. Called about
        once a second."""
