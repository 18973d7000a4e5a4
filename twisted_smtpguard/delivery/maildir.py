"""`--deliver maildir:PATH`: messages are stored in one Maildir, each in its own file.

A message is written to tmp/, synchronised to disk, and renamed into new/; then new/ is synchronised, and only then is
the message accepted. So new/ never has a part of a message, and every accepted message survives a crash. All of it
happens in threads. Small messages that come at the same time share a trip to a thread and a synchronisation of new/.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from pathlib import Path as FilePath
from typing import cast

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_smtpguard.delivery.envelope import Envelope, EnvelopeTransaction
from twisted_smtpguard.delivery.freespace import FreeSpace
from twisted_smtpguard.delivery.maildirfile import (
    MessageFile,
    NotTakenBack,
    check_maildir,
    prepare_maildir,
    sync_directory,
    unique_names,
)
from twisted_smtpguard.delivery.spool import Spool, refuse_if_full
from twisted_smtpguard.delivery.storing import StoringThreads
from twisted_smtpguard.delivery.trace import delivered_to, prepended, received, return_path
from twisted_smtpguard.engine.hostnames import check_hostname
from twisted_smtpguard.hooks.threads import ThreadedReactor
from twisted_smtpguard.inputs.arguments import checked
from twisted_smtpguard.interfaces import ICheckingDeliveryFactory, IDelivery, IMailTransaction, IMessageSink
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.limits.units import parse_path
from twisted_smtpguard.replies import INSUFFICIENT_STORAGE, LOCAL_ERROR
from twisted_smtpguard.values import Client, Path, Refused

_log = Logger()


@implementer(IMessageSink)
class _MaildirSink:
    """One message that is stored in `maildir`."""

    def __init__(self, maildir: MaildirDelivery, envelope: Envelope) -> None:
        self._maildir = maildir
        self._envelope = envelope
        self._when = maildir._reactor.seconds()
        self._spool = Spool(maildir._reactor, self._open)
        self._answer: Deferred[None]
        """Of `finish`."""

    def write(self, data: bytes) -> Deferred[None] | None:
        return self._spool.write(data)

    def finish(self) -> Deferred[None]:
        self._answer = Deferred(self._cancel)
        small = self._spool.in_memory() is not None
        self._spool.hand_over()
        threads = self._maildir._threads
        (threads.store if small else threads.store_alone)(self)
        return self._answer

    def abort(self) -> None:
        self._spool.discard()

    def _cancel(self, _: object) -> None:
        self.abort()
        self._maildir._threads.forget(self)

    # What StoringThreads calls.

    def fill(self, *, together: bool) -> None:
        self._spool.fill()
        if together:
            self._spool.use(MessageFile.start_writeback)

    def complete(self) -> None:
        self._spool.use(lambda file: file.deliver(self._spool.keep))

    def take_back(self, error: Exception) -> None:
        self._spool.use(MessageFile.take_back)
        refuse_if_full(error)

    def answer(self, outcome: Failure | None) -> None:
        if isinstance(outcome, Failure):
            if outcome.check(NotTakenBack):
                self._may_come_twice()
        elif self._answer.called:
            # It was cancelled: the client has got a 451 and will send the message again, although it was stored, since
            # its rename had begun.
            self._may_come_twice()
        if not self._answer.called:
            self._answer.callback(outcome)

    def _open(self) -> MessageFile:
        maildir, envelope, to = self._maildir, self._envelope, self._envelope.recipients
        trace = received(envelope.client, maildir._hostname, to, self._when)
        by_policies = prepended(envelope.prepended)
        header = b"".join([return_path(envelope.sender), *map(delivered_to, to), by_policies, trace])
        while True:
            # Another process may use the same name; the next name is tried then.
            with suppress(FileExistsError):
                return MessageFile(maildir._path, maildir._new_name(), header)

    def _may_come_twice(self) -> None:
        _log.warn(
            "Maildir {path}: a message of session {session} was refused with a temporary error, but is in new/: "
            "it may come twice",
            path=str(self._maildir._path),
            session=self._envelope.client.session,
        )


@implementer(IDelivery)
class MaildirDelivery:
    """Stores every message in the Maildir at `path`, for all recipients.

    `hostname` is the guard's name in Received fields and file names. MAIL is refused if less than `min_free_space`
    octets of the disk would be free after a message of the declared size; 0: the free space is not checked.
    ValueError: `path` cannot be used.
    """

    extensions = frozenset({"8BITMIME", "SMTPUTF8"})
    max_message_octets = 0

    @checked
    def __init__(
        self, path: str | os.PathLike[str], reactor: ThreadedReactor, *, hostname: str, min_free_space: int
    ) -> None:
        self._path = FilePath(path).absolute()
        prepare_maildir(self._path)
        self._reactor = reactor
        self._hostname = check_hostname(hostname)
        if min_free_space < 0:
            raise ValueError(f"min_free_space must be 0 or more, not {min_free_space}")
        self._new_name = unique_names(hostname, reactor.seconds)
        self._min_free_space = min_free_space
        new = self._path / "new"
        self._threads = StoringThreads(reactor, partial(sync_directory, new))
        # new/ is asked about, not the Maildir itself, so that MAIL is refused if the disk is no longer mounted.
        self._free_space = FreeSpace(reactor, new)

    def begin(self, client: Client, sender: Path) -> IMailTransaction | Deferred[IMailTransaction]:
        mail = EnvelopeTransaction(client, sender, partial(_MaildirSink, self))
        if not self._min_free_space:
            return mail
        free = self._free_space.octets()
        if isinstance(free, Deferred):
            return free.addCallback(self._begin_with, mail, sender)
        return self._begin_with(free, mail, sender)

    def _begin_with(self, free: int | None, mail: IMailTransaction, sender: Path) -> IMailTransaction:
        if free is None:
            raise Refused(LOCAL_ERROR)
        if free - int(sender.parameters.get("SIZE") or 0) < self._min_free_space:
            raise Refused(INSUFFICIENT_STORAGE)
        return mail


@implementer(ICheckingDeliveryFactory)
class MaildirFactory:
    """`--deliver maildir:PATH`, made from the guard's hostname and limits."""

    name = "maildir"
    summary = "Store messages in a Maildir."
    argument_format = (
        "The path of the Maildir, such as maildir:/var/mail/guard. A missing or empty directory becomes one."
    )

    def __init__(self, hostname: str, limits: Limits) -> None:
        self._hostname = hostname
        self._limits = limits

    def make_delivery(self, argument: str, reactor: object) -> IDelivery:
        return MaildirDelivery(
            _path(argument),
            cast(ThreadedReactor, reactor),
            hostname=self._hostname,
            min_free_space=self._limits.min_free_space,
        )

    def check_delivery(self, argument: str, reactor: object) -> None:
        check_maildir(FilePath(_path(argument)).absolute())


def _path(argument: str) -> str:
    if not argument:
        raise ValueError("maildir needs a path, such as maildir:./Maildir")
    return parse_path(argument)
