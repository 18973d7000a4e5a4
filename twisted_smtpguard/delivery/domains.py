"""`--accept-domain`: mail is accepted for these domains only, whatever the delivery itself would accept."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from io import TextIOWrapper
from itertools import takewhile
from pathlib import Path as FilePath
from typing import Any

from twisted.python.components import proxyForInterface
from zope.interface import alsoProvides, implementer

from twisted_smtpguard.delivery.lookahead import Beginning, Upcoming
from twisted_smtpguard.engine.hostnames import canonical, parse_domain
from twisted_smtpguard.hooks.later import answer_of, mapped
from twisted_smtpguard.hooks.parts import PartsOwner
from twisted_smtpguard.hooks.threads import OneThread, ThreadedReactor, yield_gil
from twisted_smtpguard.inputs.arguments import checked
from twisted_smtpguard.inputs.regularfile import FaultyFileError, open_regular
from twisted_smtpguard.interfaces import (
    IConnectingDelivery,
    IDelivery,
    IMailTransaction,
    IPreparedReload,
    IReadsFiles,
    IRelayDelivery,
    IRelayTransaction,
    IReloadable,
    IReportsHealth,
    IReservingDelivery,
    ISessionDelivery,
    Later,
)
from twisted_smtpguard.replies import RELAY_DENIED, Reply
from twisted_smtpguard.values import Client, Path, Refused, is_later

_OPTION = "accept-domain"
_COMMENT = re.compile(r"(^|\s)#.*")
_LINES_AT_ONCE = 256
"""How many lines of a file are read before the reactor's thread may run."""

_ROUTING = frozenset("@%!")
"""Characters by which a local part tells a server where to send the mail next (RFC 5321 3.6.1 and appendix F.2)."""


@implementer(ISessionDelivery, IRelayDelivery, IReservingDelivery, IPreparedReload, IReadsFiles)
class AcceptedDomains(PartsOwner):
    """Hands mail to `delivery` if it is for one of `domains`, or if the client has logged in.

    A domain with a "/" in it is the path of a file with one domain on each line. Files are read again at a reload: in
    one of the threads of `reactor`, if it is given, else in the reactor's own thread, which blocks. ValueError: a
    domain is not valid, or a file is faulty.
    """

    may_relay_for_all = False

    @checked
    def __init__(
        self, delivery: IDelivery, domains: Sequence[str], reactor: ThreadedReactor | None = None
    ) -> None:
        super().__init__()
        if not domains:
            raise ValueError("domains: one or more are expected, since no mail would be accepted without one")
        self.delivery = delivery
        self._given = tuple(domains)
        self._thread = None if reactor is None else OneThread(reactor)
        self._domains = _read(self._given)
        if IReportsHealth.providedBy(delivery):
            # Others tell nothing, which is not the same as being well.
            alsoProvides(self, IReportsHealth)
        self.adopt(delivery)

    async def _read_in_thread(self, given: Sequence[str]) -> frozenset[str]:
        return await self._thread.run(_read, given, yield_gil) if self._thread else _read(given)

    async def prepare_domains(self, domains: Sequence[str]) -> Callable[[], None]:
        """Read other domains than those that were given first. Answers with the function that switches to them.
        ValueError: one is not valid, or a file is faulty."""
        given = tuple(domains)
        read = await self._read_in_thread(given)

        def take() -> None:
            self._given, self._domains = given, read

        return take

    # What the wrapped delivery offers.

    @property
    def extensions(self) -> frozenset[str]:
        return self.delivery.extensions

    @property
    def max_message_octets(self) -> int:
        return self.delivery.max_message_octets

    @property
    def chunking(self) -> bool:
        return not IRelayDelivery.providedBy(self.delivery) or IRelayDelivery(self.delivery).chunking

    @property
    def max_connections(self) -> int:
        if not IConnectingDelivery.providedBy(self.delivery):
            return 0
        return IConnectingDelivery(self.delivery).max_connections

    def reserve(self, share: Fraction, guard: object) -> None:
        if IReservingDelivery.providedBy(self.delivery):
            IReservingDelivery(self.delivery).reserve(share, guard)

    @property
    def problem(self) -> str:
        return IReportsHealth(self.delivery).problem

    @property
    def connections_by_state(self) -> Mapping[str, int]:
        return IReportsHealth(self.delivery).connections_by_state

    def session_ended(self, session: str) -> None:
        if ISessionDelivery.providedBy(self.delivery):
            ISessionDelivery(self.delivery).session_ended(session)

    @property
    def files(self) -> Mapping[str, str]:
        """The files of the domains, and those of the delivery."""
        own = {str(file): _OPTION for file in _files(self._given)}
        return {**(IReadsFiles(self.delivery).files if IReadsFiles.providedBy(self.delivery) else {}), **own}

    async def prepare_reload(self) -> Callable[[], None]:
        """Read the domains and the data of the delivery, so that either both change or neither."""
        domains = await self._read_in_thread(self._given)
        inner: Any = self.delivery
        switch: Callable[[], None] | None = None
        if IPreparedReload.providedBy(inner):
            switch = await answer_of(inner.prepare_reload())
        elif IReloadable.providedBy(inner):
            await answer_of(inner.reload())

        def take() -> None:
            self._domains = domains
            if switch is not None:
                switch()

        return take

    async def reload(self) -> None:
        (await self.prepare_reload())()

    # A message.

    def begin(self, client: Client, sender: Path) -> Later[IMailTransaction]:
        begun = self.delivery.begin(client, sender)
        if client.identity is not None:
            return begun
        if isinstance(begun, Beginning):
            return begun.wrapped(self._with_check, self._accepted_of)
        if is_later(begun):
            return mapped(begun, self._with_check)  # type: ignore[arg-type]
        return self._with_check(begun)  # type: ignore[arg-type]

    def _with_check(self, mail: IMailTransaction) -> IMailTransaction:
        kind = _CheckedRelayTransaction if IRelayTransaction.providedBy(mail) else _CheckedTransaction
        return kind(mail, self.accepts)

    def _accepted_of(self, upcoming: Upcoming) -> Upcoming:
        """Nothing is sent ahead from the first recipient on that is not accepted: the server must not get it."""

        def accepted() -> Iterable[Path | None]:
            following = upcoming()
            return following and takewhile(lambda each: each is None or self.accepts(each), following)

        return accepted

    def accepts(self, recipient: Path) -> bool:
        """Whether mail for `recipient` is accepted from every client."""
        return is_for(recipient.address, self._domains)


class _Check:
    """The part of a transaction that refuses recipients."""

    def __init__(self, original: IMailTransaction, accepts: Callable[[Path], bool]) -> None:
        self.original = original
        self._accepts = accepts

    def recipient(self, recipient: Path) -> Later[Reply | None]:
        if not self._accepts(recipient):
            raise Refused(RELAY_DENIED)
        return self.original.recipient(recipient)

    @property
    def prepend(self) -> Callable[[Sequence[str]], None]:
        """That of the original. AttributeError: it has none."""
        original: Any = self.original
        return original.prepend  # type: ignore[no-any-return]


class _CheckedTransaction(_Check, proxyForInterface(IMailTransaction)):  # type: ignore[misc]
    pass


class _CheckedRelayTransaction(_Check, proxyForInterface(IRelayTransaction)):  # type: ignore[misc]
    pass


def is_for(address: str, domains: frozenset[str]) -> bool:
    """Whether the recipient `address` is in one of `domains`, which are canonical.

    `Postmaster` without a domain always is. An address whose local part names another destination, such as
    `user%elsewhere@here`, never is: the server would relay the mail to that.
    """
    local, at, domain = address.rpartition("@")
    if not at:
        return True
    return not _ROUTING & set(local) and canonical(domain) in domains


def _files(given: Sequence[str]) -> list[FilePath]:
    return [FilePath(each) for each in given if "/" in each]


def _read(given: Sequence[str], yield_gil: Callable[[], object] = lambda: None) -> frozenset[str]:
    """The domains that are named in `given`, and those of the files there."""
    named = frozenset(parse_domain(each) for each in given if "/" not in each)
    files = _files(given)
    domains = named.union(*(read_domains(file, yield_gil) for file in files))
    if not domains:
        # The file may be half written. Without a domain no mail would be accepted.
        raise FaultyFileError(_OPTION, str(files[-1]), "there is no domain in it")
    return domains


def read_domains(path: FilePath, yield_gil: Callable[[], object] = lambda: None) -> Iterable[str]:
    """The domains of a file, one on each line. `yield_gil` is called after each short piece of work.

    FaultyFileError names the file and the line.
    """
    try:
        with TextIOWrapper(open_regular(path), encoding="utf-8-sig") as file:
            text = file.read()
    except OSError as error:
        raise FaultyFileError(_OPTION, str(path), str(error.strerror)) from error
    except UnicodeDecodeError as error:
        raise FaultyFileError(_OPTION, str(path), "the file is not UTF-8 text") from error
    domains = []
    for number, line in enumerate(text.split("\n"), 1):
        content = _COMMENT.sub("", line).strip()
        if content:
            try:
                domains.append(parse_domain(content))
            except ValueError as error:
                problem = f"line {number}: {error}"
                raise FaultyFileError(_OPTION, str(path), problem, f"{path} {problem}") from error
        if number % _LINES_AT_ONCE == 0:
            yield_gil()
    return domains
