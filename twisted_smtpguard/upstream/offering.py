"""What a guard may offer its clients of what the mail server behind offers.

A server that is told of clients may offer strangers less than it offers us. What it has lacked for one client is
offered to none for a while: mail that needs it would be put off each time it is tried.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from twisted_smtpguard.upstream.hello import NOTHING, Hello

REMEMBERED_SECONDS = 3600.0
"""For which what one client was not offered is offered to no other."""

_MAY_BE_NEEDED = frozenset({"8BITMIME", "BINARYMIME", "CHUNKING", "DSN", "SMTPUTF8"})


class Offering:
    """Follows what one server says."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._to_us: Hello = NOTHING
        self._lacked: dict[str, float] = {}
        """When each was last found lacking."""
        self.hello: Hello = NOTHING
        """What may be offered."""

    def heard(self, hello: Hello, *, by_client: bool = False) -> None:
        """The server offers this to us, or to a client that it was told of."""
        now = self._clock.seconds()
        if by_client:
            self._lacked.update(dict.fromkeys(_MAY_BE_NEEDED - hello.keywords.keys(), now))
        else:
            for word in hello.keywords.keys() - self._to_us.keywords.keys():
                # It is new there.
                self._lacked.pop(word, None)
            self._to_us = hello
        if self._lacked:
            self._lacked = {
                word: when for word, when in self._lacked.items() if now - when < REMEMBERED_SECONDS
            }
            hello = Hello({word: rest for word, rest in hello.keywords.items() if word not in self._lacked})
        self.hello = hello
