"""The extensions that a server offers in its answer to EHLO or LHLO, and those that the guard may offer to its own
clients.

A server that sees the client's address may offer strangers less than it offers the guard. An extension that it did not
offer for one client is offered to no client for a while: a message that needs it would get a 451 at each attempt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs
from twisted.internet.interfaces import IReactorTime

from twisted_smtpguard.upstream.replyparser import UpstreamReply

REMEMBER_SECONDS = 3600.0
"""How long an extension that was missing for one client is offered to no client."""

_MAY_BE_NEEDED = frozenset({"8BITMIME", "BINARYMIME", "CHUNKING", "DSN", "SMTPUTF8"})
"""The extensions without which a message that uses them cannot be passed on."""

_PASSED_ON = frozenset({"8BITMIME", "SMTPUTF8", "DSN"})
"""The extensions that the guard can offer whenever the server does."""


@attrs.frozen
class Hello:
    """The answer to EHLO: each keyword, in upper case, with the parameters after it."""

    keywords: Mapping[str, str]

    def __contains__(self, keyword: str) -> bool:
        return keyword in self.keywords

    @property
    def size(self) -> int:
        """The largest message that the server accepts (RFC 1870); 0: it states no maximum."""
        text = self.keywords.get("SIZE", "").strip()
        return int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else 0

    @property
    def extensions(self) -> frozenset[str]:
        """The extensions that the guard can offer to its own clients, in the words of IDelivery.extensions."""
        offered = _PASSED_ON & self.keywords.keys()
        # BINARYMIME needs BDAT (RFC 3030 3).
        if {"BINARYMIME", "CHUNKING", "8BITMIME"} <= self.keywords.keys():
            offered |= {"BINARYMIME"}
        return frozenset(offered)

    def words(self, keyword: str) -> frozenset[str]:
        """The words after a keyword, in upper case, such as the mechanisms of AUTH."""
        return frozenset(self.keywords.get(keyword, "").upper().split())


NO_EXTENSIONS = Hello({})
"""The state before the first EHLO, and after a HELO."""


def parse_hello(reply: UpstreamReply) -> Hello:
    """Read the answer to EHLO. Its first line is a greeting, which is skipped. `AUTH=LOGIN`, as old servers write it,
    is read as `AUTH LOGIN`."""
    keywords: dict[str, str] = {}
    for line in reply.lines[1:]:
        keyword, _, rest = re.sub("^AUTH=", "AUTH ", line).strip().partition(" ")
        keywords.setdefault(keyword.upper(), rest)
    return Hello(keywords)


class OfferedExtensions:
    """The extensions that one server offers, kept up to date with each answer to EHLO."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._offered_to_us: Hello = NO_EXTENSIONS
        """The server's last answer to the guard itself, before it was told of any client."""
        self._missing: dict[str, float] = {}
        """When each extension was last missing."""
        self.hello: Hello = NO_EXTENSIONS
        """The extensions that may be offered."""

    def update(self, hello: Hello, *, by_client: bool = False) -> None:
        """Called with each answer to EHLO. `by_client`: whether the server knew a client's address when it answered."""
        now = self._clock.seconds()
        if by_client:
            self._missing.update(dict.fromkeys(_MAY_BE_NEEDED - hello.keywords.keys(), now))
        else:
            for word in hello.keywords.keys() - self._offered_to_us.keywords.keys():
                # The server did not offer this extension to the guard before, and now does.
                self._missing.pop(word, None)
            self._offered_to_us = hello
        if self._missing:
            self._missing = {
                word: when for word, when in self._missing.items() if 0 <= now - when < REMEMBER_SECONDS
            }
            hello = Hello({word: rest for word, rest in hello.keywords.items() if word not in self._missing})
        self.hello = hello
