"""`--accept-domain`: mail for these domains and no other, whatever the delivery behind would do with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

from zope.interface import implementer

from twisted_smtpguard.arguments import checked
from twisted_smtpguard.delivery.domainlist import is_for, parse_domain, read_domains
from twisted_smtpguard.interfaces import (
    Client,
    IConnectingDelivery,
    IDelivery,
    IMailTransaction,
    IMessageSink,
    IPreparedReload,
    IReadsFiles,
    IRelayDelivery,
    IRelayTransaction,
    IReloadable,
    ISessionDelivery,
    Later,
    Path,
    Refused,
)
from twisted_smtpguard.later import answer_of, as_deferred, is_later
from twisted_smtpguard.parts import PartsOwner
from twisted_smtpguard.regularfile import FaultyFileError
from twisted_smtpguard.smtp.replies import RELAY_DENIED, SENDER_OK, Reply
from twisted_smtpguard.threads import OneThread, ThreadedReactor, let_others_run


@implementer(ISessionDelivery, IRelayDelivery, IConnectingDelivery, IPreparedReload, IReadsFiles)
class AcceptedDomains(PartsOwner):
    """Hands on to `delivery` what is for one of `domains`, and everything from a client that has logged in.

    What has a "/" in it is a file with one domain a line, which is read again at a reload: in one of the threads of
    `reactor`, if it is given, else where everything else has to wait for it. ValueError: a domain is none, or a file
    is faulty.
    """

    may_relay_for_all = False

    @checked
    def __init__(
        self, delivery: IDelivery, domains: Sequence[str], reactor: ThreadedReactor | None = None
    ) -> None:
        super().__init__()
        if not domains:
            raise ValueError("domains: one or more are expected, else nobody could get mail")
        self.delivery = delivery
        self._named = frozenset(parse_domain(domain) for domain in domains if "/" not in domain)
        self._files = [FilePath(domain) for domain in domains if "/" in domain]
        self._thread = None if reactor is None else OneThread(reactor)
        self._domains = self._read()
        self.adopt(delivery)

    def _read(self, rest: Callable[[], object] = lambda: None) -> frozenset[str]:
        domains = self._named.union(*(self._read_file(file, rest) for file in self._files))
        if not domains:
            # Such as a file that is just being written. Nobody could get mail.
            file, problem = str(self._files[-1]), "there is no domain in it"
            raise FaultyFileError("accept-domain", file, problem, f"{file}: {problem}")
        return domains

    def _read_file(self, file: FilePath, rest: Callable[[], object]) -> Iterable[str]:
        try:
            return read_domains(file, rest)
        except ValueError as error:
            problem = str(error).removeprefix(str(file)).removeprefix(":").lstrip()
            raise FaultyFileError("accept-domain", str(file), problem, str(error)) from error

    # What the delivery is.

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

    def session_ended(self, session: str) -> None:
        if ISessionDelivery.providedBy(self.delivery):
            ISessionDelivery(self.delivery).session_ended(session)

    @property
    def files(self) -> Mapping[str, str]:
        """Its own, and those of the delivery."""
        own = {str(file): "accept-domain" for file in self._files}
        return {**(IReadsFiles(self.delivery).files if IReadsFiles.providedBy(self.delivery) else {}), **own}

    async def prepare_reload(self) -> Callable[[], None]:
        """Both change, or neither."""
        domains = await self._thread.run(self._read, let_others_run) if self._thread else self._read()
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
        if is_later(begun):
            return as_deferred(begun).addCallback(self._watched)  # type: ignore[arg-type]
        return self._watched(begun)  # type: ignore[arg-type]

    def _watched(self, mail: IMailTransaction) -> IMailTransaction:
        kind = _WatchedRelay if IRelayTransaction.providedBy(mail) else _Watched
        return kind(mail, self.accepts)

    def accepts(self, recipient: Path) -> bool:
        """Whether mail for `recipient` comes from anybody."""
        return is_for(recipient.address, self._domains)


@implementer(IMailTransaction)
class _Watched:
    def __init__(self, mail: Any, accepts: Callable[[Path], bool]) -> None:
        self._mail = mail
        self._accepts = accepts

    def recipient(self, recipient: Path) -> Later[Reply | None]:
        if not self._accepts(recipient):
            raise Refused(RELAY_DENIED)
        answer: Later[Reply | None] = self._mail.recipient(recipient)
        return answer

    def data(self) -> Later[IMessageSink]:
        sink: Later[IMessageSink] = self._mail.data()
        return sink

    def abort(self) -> None:
        self._mail.abort()


@implementer(IRelayTransaction)
class _WatchedRelay(_Watched):
    begun = SENDER_OK

    def __init__(self, mail: Any, accepts: Callable[[Path], bool]) -> None:
        super().__init__(mail, accepts)
        self.begun = mail.begun

    def data_in_chunks(self) -> Later[IMessageSink]:
        sink: Later[IMessageSink] = self._mail.data_in_chunks()
        return sink
