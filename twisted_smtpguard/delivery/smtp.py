"""`smtp:ENDPOINT`: the guard as a proxy in front of an SMTP server."""

from __future__ import annotations

from typing import Any

from twisted.internet.endpoints import clientFromString
from zope.interface import implementer

from twisted_smtpguard.delivery.upstream import UpstreamDelivery
from twisted_smtpguard.endpointfaults import client_hint
from twisted_smtpguard.interfaces import IDelivery, IDeliveryFactory
from twisted_smtpguard.upstream.options import parse_upstream

KEYS = """\
Behind the endpoint, a Twisted client endpoint string, stand settings with a comma before each; a comma in the endpoint
is written \\,. Times are as for limits: 30, 1.5 or 5m. On SIGHUP the files of tls-ca= and auth= are read again; what
the endpoint itself names, such as trustRoots= of a tls: one, is not.

tls=off|opportunistic|required  STARTTLS; required looks at the certificate. Default: off.
tls-name=NAME                   whom the certificate has to name. Default: the host of the endpoint.
tls-ca=FILE                     PEM certificates to trust. Default: those of the system.
auth=FILE                       log in as the file says, one line user:password.
helo=NAME                       what the guard calls itself there. Default: --hostname.
connections=N                   at once. Default: 50.
messages=N                      a connection is used for. Default: 100.
idle=TIME                       an unused connection is kept. Default: 30.
wait=TIME                       for a connection, all being in use. Default: 10.
connect=TIME                    for TCP, and for the greeting; three times that until MAIL. Default: 10.
timeout=TIME                    for an answer to a command, and for room to send on. Default: 60.
verdict=TIME                    for the answer to a message. Default: 280."""


def make_upstream_delivery(
    kind: type[UpstreamDelivery], name: str, hostname: str, argument: str, reactor: Any
) -> UpstreamDelivery:
    """The delivery that `argument` describes. ValueError: it describes none."""
    upstream = parse_upstream(name, argument)
    try:
        endpoint = clientFromString(reactor, upstream.endpoint)
    except Exception as error:  # parsers, which may be plugins, raise what they like
        raise ValueError(
            f"{upstream.endpoint!r} is no client endpoint such as tcp:127.0.0.1:25 "
            f"({client_hint(upstream.endpoint) or error})"
        ) from error
    return kind(
        endpoint,
        reactor,
        hostname=hostname,
        options=upstream.options,
        name=f"{name}:{upstream.endpoint}",
        host=upstream.host,
    )


class SmtpDelivery(UpstreamDelivery):
    """Messages to an SMTP server behind the guard."""


@implementer(IDeliveryFactory)
class SmtpFactory:
    """`--deliver smtp:ENDPOINT[,key=value...]`."""

    name = "smtp"
    summary = "Hand messages to an SMTP server behind, with its own verdicts."
    argument_format = (
        "ENDPOINT[,key=value...], such as smtp:tcp:10.0.0.5:25,tls=required,announce=xclient\n\n"
        f"{KEYS}\n"
        "announce=received|xclient|xforward|proxy|proxy-v1\n"
        "                                how the server learns who the client is. Default: received, a header field."
    )

    def __init__(self, hostname: str) -> None:
        self._hostname = hostname

    def make_delivery(self, argument: str, reactor: object) -> IDelivery:
        return make_upstream_delivery(SmtpDelivery, self.name, self._hostname, argument, reactor)
