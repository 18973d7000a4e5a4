"""The extensions that a server offers in its answer to EHLO or LHLO. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from twisted_smtpguard.upstream.replyparser import UpstreamReply

_PASSED_ON = frozenset({"8BITMIME", "SMTPUTF8", "DSN"})


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
        keyword, _, rest = line.replace("=", " ", 1).partition(" ") if line[:5] == "AUTH=" else _split(line)
        keywords.setdefault(keyword.upper(), rest)
    return Hello(keywords)


def _split(line: str) -> tuple[str, str, str]:
    return line.strip().partition(" ")
