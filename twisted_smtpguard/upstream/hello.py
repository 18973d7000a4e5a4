"""What a server offers in its answer to EHLO or LHLO. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from twisted_smtpguard.upstream.replies import UpstreamReply

_PASSED_ON = frozenset({"8BITMIME", "SMTPUTF8", "DSN"})


@attrs.frozen
class Hello:
    """The keywords, in upper case, and what stands behind each."""

    keywords: Mapping[str, str]

    def __contains__(self, keyword: str) -> bool:
        return keyword in self.keywords

    @property
    def size(self) -> int:
        """The largest message (RFC 1870); 0: it does not say."""
        text = self.keywords.get("SIZE", "").strip()
        return int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else 0

    @property
    def extensions(self) -> frozenset[str]:
        """What a guard in front of it can offer, of the words that IDelivery.extensions has."""
        offered = _PASSED_ON & self.keywords.keys()
        # RFC 3030 3: BINARYMIME is nothing without BDAT.
        if {"BINARYMIME", "CHUNKING", "8BITMIME"} <= self.keywords.keys():
            offered |= {"BINARYMIME"}
        return frozenset(offered)

    def words(self, keyword: str) -> frozenset[str]:
        """The upper-case words behind a keyword, such as the mechanisms of AUTH."""
        return frozenset(self.keywords.get(keyword, "").upper().split())


NOTHING = Hello({})
"""Before the first EHLO, and after a HELO."""


def parse_hello(reply: UpstreamReply) -> Hello:
    """The first line is a name and a greeting. `AUTH=LOGIN` is how servers of old wrote it."""
    keywords: dict[str, str] = {}
    for line in reply.lines[1:]:
        keyword, _, rest = line.replace("=", " ", 1).partition(" ") if line[:5] == "AUTH=" else _split(line)
        keywords.setdefault(keyword.upper(), rest)
    return Hello(keywords)


def _split(line: str) -> tuple[str, str, str]:
    return line.strip().partition(" ")
