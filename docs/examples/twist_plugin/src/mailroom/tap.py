"""The command line of `twist mailroom`, and the service that it asks for."""

from typing import Any, BinaryIO

from twisted.internet.endpoints import serverFromString
from twisted.python import usage

from twisted_smtpguard import (
    CallableDelivery,
    Envelope,
    Limits,
    NetworksFile,
    ProcessService,
    Refused,
    Reply,
    SMTPGuardService,
)


class Options(usage.Options):
    optParameters = [  # noqa: N815, RUF012 - as Twisted wants it
        ["listen", "l", "tcp:2525:interface=127.0.0.1", "The endpoint to listen on."],
        ["max-connections", None, 500, "Connections at once.", int],
        ["networks", None, None, "A file of networks to deny or trust, read again on SIGHUP."],
    ]

    def __init__(self) -> None:
        super().__init__()
        self["mailbox"] = []

    def opt_mailbox(self, address: str) -> None:
        """An address that has a mailbox; may be given several times."""
        self["mailbox"].append(address)


def makeService(options: Options) -> ProcessService:  # noqa: N802 - Twisted's name
    """Called by `twist`, which has chosen the reactor."""
    from twisted.internet import reactor  # noqa: PLC0415 - not before it is chosen

    try:
        guard = make_guard(options, reactor)
    except (ValueError, OSError) as error:
        # One sentence and status 1, not a traceback.
        raise SystemExit(f"mailroom: {error}") from error
    # Your other services, such as a database, are parts: started before the guard, stopped after its last session.
    return ProcessService(reactor, [guard], parts=[])


def make_guard(options: Options, reactor: Any) -> SMTPGuardService:
    async def receive(envelope: Envelope, body: BinaryIO) -> None:
        for recipient in envelope.recipients:
            if recipient.address not in options["mailbox"]:
                raise Refused(Reply(550, "5.1.1", ("No such mailbox",)))
        print(f"mail from {envelope.sender.address}: {len(body.read())} octets", flush=True)

    return SMTPGuardService(
        reactor,
        [serverFromString(reactor, options["listen"])],
        CallableDelivery(receive, reactor),
        limits=Limits(max_connections=options["max-connections"]),
        ip_filters=[NetworksFile(options["networks"], reactor)] if options["networks"] else [],
        names=[options["listen"]],
    )
