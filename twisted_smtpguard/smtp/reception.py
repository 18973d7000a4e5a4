"""One message on its way from the client's octets through a decoder to the delivery's sink."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from twisted_smtpguard.limits import Limits
from twisted_smtpguard.smtp import replies
from twisted_smtpguard.smtp.maildata import ChunkDecoder, DataDecoder, MessageCheck, MessageRules
from twisted_smtpguard.smtp.replies import Reply
from twisted_smtpguard.smtp.transaction import Transaction

_LIMITS = frozenset({"max_message_size", "bare_newline", "max_header_size", "max_received_fields"})


def message_rules(limits: Limits, max_octets: int, *, binary: bool) -> MessageRules:
    """What messages must satisfy. `binary`: BODY=BINARYMIME, where bare newlines are data (RFC 3030).

    Of limits that are only tried, the `shadows` say what each would have done. Bare newlines that are not refused are
    made CRLF even then: what stands behind the guard must not read more messages than it did.
    """
    tried = limits.dry_run & _LIMITS
    shadows = []
    for limit in sorted(tried):
        octets = limits.max_message_size if limit == "max_message_size" else 0
        newlines_matter = limit == "bare_newline" and limits.bare_newline == "reject" and not binary
        shadows.append(_rules(limits, {limit}, octets, normalize=False, binary=not newlines_matter))
    normalize = limits.bare_newline == "normalize" or "bare_newline" in tried
    rules = _rules(limits, _LIMITS - tried, max_octets, normalize=normalize, binary=binary)
    return attrs.evolve(rules, shadows=tuple(shadows))


def _rules(limits: Limits, held: Set[str], max_octets: int, *, normalize: bool, binary: bool) -> MessageRules:
    """Those that hold a message to `held`, some of _LIMITS."""
    return MessageRules(
        max_octets=max_octets,
        drain_octets=limits.oversize_drain,
        max_header_octets=limits.max_header_size if "max_header_size" in held else 0,
        max_received=limits.max_received_fields if "max_received_fields" in held else 0,
        normalize=normalize,
        binary=binary,
    )


class Reception:
    """A message, by DATA or by any number of BDATs. `transaction` None: its octets are only swallowed."""

    last = True
    """The end of this part is the end of the message."""
    chunk_octets = 0
    """What the last BDAT announced."""

    def __init__(
        self,
        check: MessageCheck,
        transaction: Transaction | None,
        *,
        chunked: bool,
        refusal: Reply | None = None,
    ) -> None:
        self._check = check
        self._transaction = transaction
        self._decoder = ChunkDecoder(check) if chunked else DataDecoder(check)
        self._refusal = refusal
        if refusal is not None:
            check.refuse(refusal)
        self.open = not chunked
        """What the client sends now belongs to the message."""

    def start_chunk(self, octets: int, last: bool) -> None:
        """A BDAT: the next `octets` octets belong to the message."""
        assert isinstance(self._decoder, ChunkDecoder)
        self._decoder.start(octets, last)
        self.open, self.last = not self._decoder.ended, last
        self.chunk_octets = octets

    @property
    def octets(self) -> int:
        """Of the message so far."""
        return self._check.octets

    def ends_within(self, octets: bytes) -> bool:
        """Whether the data, or this chunk, ends in `octets`, which come next."""
        return self._decoder.ends_within(octets)

    @property
    def slow_to_read(self) -> bool:
        """Each line of what comes next may have to be looked at."""
        return self._check.slow_to_read

    @property
    def exhausted(self) -> bool:
        """The client sent so much above the maximum that the session has to end."""
        return self._check.exhausted

    @property
    def problem(self) -> Reply | None:
        """Why the message is refused. The maximum size wins over any other reason."""
        if self._refusal is not None:
            return self._refusal
        problem = self._check.problem
        if problem is replies.MESSAGE_TOO_LARGE or self._transaction is None:
            return problem
        return self._transaction.refusal or problem

    @property
    def tried_problems(self) -> list[Reply]:
        """Why the message would have been refused by limits that are only tried."""
        return [shadow.problem for shadow in self._check.shadows if shadow.problem is not None]

    def keep_refusal(self, reply: Reply) -> None:
        """A chunk was answered with `reply`: every further chunk of the message gets the same."""
        self._refusal = reply
        self.settle()

    def feed(self, data: bytes) -> tuple[int, Deferred[Any] | None]:
        """Take what belongs to the message: (octets taken, what holds the client back or None). To be settled then."""
        decoder, transaction = self._decoder, self._transaction
        octets, taken = decoder.feed(data)
        self.open = not decoder.ended
        if octets and transaction is not None and self._refusal is None and transaction.refusal is None:
            return taken, transaction.write(octets)
        return taken, None

    def settle(self) -> Reply | None:
        """The problem. A refused message is aborted at once, and from then on its octets are only counted."""
        problem = self.problem
        if problem is not None:
            self._check.refuse(problem)
            if self._transaction is not None:
                self._transaction.end()
        return problem
