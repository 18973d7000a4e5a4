"""The interfaces of those who let users log in by other mechanisms than a name with a password. interfaces.py has them
too."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TypeAlias, TypeVar

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from twisted_smtpguard.values import Challenge, LoggedIn, LoginClient

T = TypeVar("T")
Later: TypeAlias = T | Deferred[T] | Awaitable[T]
"""What any hook may answer: its value at once, or later."""


class ISaslExchange(Interface):
    """One login of one client, by one mechanism of SASL (RFC 4422)."""

    def respond(response: bytes | None) -> Later[Challenge | LoggedIn]:
        """Called with what the client has sent along with AUTH, None if that is nothing, and then with its response to
        each Challenge. Cancelling the answer ends the exchange.

        UnauthorizedLogin: the credentials are wrong, and the client gets a 535. `Refused`: the response is malformed,
        and the client gets its reply. Any other exception is as that of a checker: `454 4.7.0`.
        """

    def abort() -> None:
        """Called instead of the next `respond()`, if the client cancels or leaves. It must not raise."""


class ISaslMechanisms(Interface):
    """Lets users log in by mechanisms of SASL. It is given among the checkers, and may be a checker of twisted.cred
    too."""

    mechanisms: Sequence[str] = Attribute(
        """The names of its mechanisms, in upper case; read at each EHLO and AUTH. EXTERNAL is offered to clients that
        have shown a certificate only. For PLAIN, and for LOGIN if it has PLAIN, it is asked in its turn among the
        checkers, with the message of PLAIN."""
    )

    def begin(mechanism: str, client: LoginClient) -> ISaslExchange:
        """Called once for each login by one of its mechanisms."""
