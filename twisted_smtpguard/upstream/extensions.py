"""The extensions of the upstream server that the guard may offer to its own clients.

A server that sees the client's address may offer strangers less than it offers the guard. An extension that it did not
offer for one client is offered to no client for a while: mail that needs it would be put off at each attempt.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from twisted_smtpguard.upstream.hello import NO_EXTENSIONS, Hello

REMEMBER_SECONDS = 3600.0
"""How long an extension that was missing for one client is offered to no client."""

_MAY_BE_NEEDED = frozenset({"8BITMIME", "BINARYMIME", "CHUNKING", "DSN", "SMTPUTF8"})


class OfferedExtensions:
    """The extensions that one server offers, kept up to date with each answer to EHLO."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._offered_to_us: Hello = NO_EXTENSIONS
        self._missing: dict[str, float] = {}
        """When each extension was last missing."""
        self.hello: Hello = NO_EXTENSIONS
        """The extensions that may be offered."""

    def update(self, hello: Hello, *, by_client: bool = False) -> None:
        """Called with each answer to EHLO. `by_client`: the server was told of a client before."""
        now = self._clock.seconds()
        if by_client:
            self._missing.update(dict.fromkeys(_MAY_BE_NEEDED - hello.keywords.keys(), now))
        else:
            for word in hello.keywords.keys() - self._offered_to_us.keywords.keys():
                # The server has begun to offer it.
                self._missing.pop(word, None)
            self._offered_to_us = hello
        if self._missing:
            self._missing = {
                word: when for word, when in self._missing.items() if now - when < REMEMBER_SECONDS
            }
            hello = Hello({word: rest for word, rest in hello.keywords.items() if word not in self._missing})
        self.hello = hello
