"""`smtp:ENDPOINT`: messages are passed to an upstream SMTP server, and the guard is its proxy."""

from __future__ import annotations

import inspect
from typing import Any

from twisted.internet.endpoints import clientFromString
from zope.interface import implementer

from twisted_smtpguard.delivery.upstream import UpstreamDelivery
from twisted_smtpguard.hooks.endpointfaults import client_hint
from twisted_smtpguard.interfaces import IDelivery, IDeliveryFactory
from twisted_smtpguard.upstream.parameters import parse_upstream


class SmtpDelivery(UpstreamDelivery):
    """Passes messages to an upstream SMTP server."""


@implementer(IDeliveryFactory)
class SmtpFactory:
    r"""The endpoint is a Twisted client endpoint string. Settings follow it, with a comma before each; a comma in the
    endpoint is written \,. Times are written as for limits: 30, 1.5 or 5m. On SIGHUP the files of tls-ca= and auth= are
    read again; files that the endpoint itself names, such as trustRoots= of a tls: endpoint, are not.

    tls=off|opportunistic|required  STARTTLS; required checks the certificate. Default: off.
    tls-name=NAME                   the name that the certificate must have. Default: the host of the endpoint.
    tls-ca=FILE                     PEM certificates to trust. Default: those of the system.
    auth=FILE                       the login for the server: a file with one line user:password.
    helo=NAME                       the guard's name in EHLO or LHLO. Default: --hostname.
    connections=N                   connections at once. Default: 50.
    messages=N                      messages that one connection is used for. Default: 100.
    idle=TIME                       how long an unused connection is kept. Default: 30.
    wait=TIME                       how long a client waits for a free connection. Default: 10.
    connect=TIME                    limit for TCP and for the greeting; three times that until MAIL. Default: 10.
    timeout=TIME                    limit for the reply to a command, and for room to send more data. Default: 60.
    verdict=TIME                    limit for the reply to a message. Default: 280.
    bdat=client|small               small: a message below 16 KiB goes on by BDAT also if it came by DATA, if the server
                                    has CHUNKING: one round trip less, and the guard itself says 354. Default: client.
    announce=received|xclient|xforward|proxy|proxy-v1
                                    how the server learns who the client is. Default: received, a header field.
    """

    kind: type[UpstreamDelivery] = SmtpDelivery
    name = "smtp"
    summary = "Pass messages to an upstream SMTP server, and its replies to the client."
    example = "smtp:tcp:10.0.0.5:25,tls=required,announce=xclient"

    @property
    def argument_format(self) -> str:
        """The docstrings of the class and of those that it inherits from, since they are the help of the keys."""
        docstrings = [inspect.getdoc(each) or "" for each in reversed(type(self).__mro__[:-1])]
        return "\n".join([f"ENDPOINT[,key=value...], such as {self.example}\n", *docstrings])

    def __init__(self, hostname: str) -> None:
        self._hostname = hostname

    def make_delivery(self, argument: str, reactor: Any) -> IDelivery:
        upstream = parse_upstream(self.name, argument)
        try:
            endpoint = clientFromString(reactor, upstream.endpoint)
        except Exception as error:  # parsers, which may be plugins, raise what they like
            raise ValueError(
                f"{upstream.endpoint!r} is no client endpoint such as tcp:127.0.0.1:25 "
                f"({client_hint(upstream.endpoint) or error})"
            ) from error
        return self.kind(
            endpoint,
            reactor,
            hostname=self._hostname,
            options=upstream.options,
            name=f"{self.name}:{upstream.endpoint}",
            host=upstream.host,
        )
