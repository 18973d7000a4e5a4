"""The decoders and checks of one message: its end in DATA and BDAT, its limits, and the octets that the sink gets.

Everything works on whole pieces with the fastest searches that bytes have, never line by line. No result depends on
how the octets were split.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence, Set

import attrs

from twisted_smtpguard import replies
from twisted_smtpguard.inputs.arguments import derived
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.limits.units import no_limit
from twisted_smtpguard.replies import Reply

_CRLF = b"\r\n"
_CRLF_OCTETS = 2
_CRLF_DOT = b"\r\n."
_END_OF_DATA = b"\r\n.\r\n"
_END_OCTETS = 5
_PART_OF_AN_END = re.compile(rb"\r(?:\n(?:\.\r?)?)?\Z")

# A bare CR, or the CR of a CRLF that precedes a dot or ends the piece. The first search in the octets after DATA.
_SPECIAL_CR = re.compile(rb"\r(?!\n[^.])")

# Two searches, each for one literal octet, are five times as fast as one search for either.
_BARE_CR = re.compile(rb"\r(?!\n)")
_BARE_LF = re.compile(rb"\n(?<!\r\n)")

# The CRLF before a line that is neither a field (RFC 5322 2.2, with the blanks before the colon of 4.5) nor a
# continuation. A line without a colon in its first 999 octets is no field, so that no more of it need be kept.
_NO_FIELD = re.compile(rb"\r\n(?![ \t]|[!-9;-~]{1,900}[ \t]{0,98}:)")
_RECEIVED = re.compile(rb"\r\nReceived[ \t]{0,98}:", re.IGNORECASE)
_MAX_UNDECIDED_OCTETS = len(_CRLF) + 900 + 98
_INSIDE_A_LINE = b"\r\n "


@attrs.frozen
class MessageRules:
    """What a message has to satisfy; one value serves many messages. Limits are octets, and 0 is no limit.

    `normalize` turns a bare CR or LF into CRLF instead of refusing it; in a `binary` message (BODY=BINARYMIME) both are
    content. `dry_run_rules` has the rules of each limit in dry run, which are checked beside these.
    """

    max_octets: float = attrs.field(converter=no_limit)
    drain_octets: int
    max_header_octets: float = attrs.field(converter=no_limit)
    max_received: float = attrs.field(converter=no_limit)
    normalize: bool
    binary: bool
    dry_run_rules: tuple[MessageRules, ...] = ()
    max_swallowed: float = derived(
        lambda self: (
            self.max_octets + (max(self.max_octets, self.drain_octets) if self.drain_octets else math.inf)
        )
    )
    """The octets of a message beyond which the session ends, without waiting for the end of the message."""
    scans_header: bool = derived(lambda self: min(self.max_header_octets, self.max_received) < math.inf)
    refuses_bare: bool = derived(lambda self: not (self.normalize or self.binary))
    normalizes: bool = derived(lambda self: self.normalize and not self.binary)
    slow_at_first: bool = derived(
        lambda self: (
            self.scans_header or self.normalizes or any(each.slow_at_first for each in self.dry_run_rules)
        )
    )
    """Whether a message begins with `slow_to_read` set: single lines of its header or body may have to be read."""


# The class attributes below are initial values, so that a message only pays for the attributes that it changes.


class HeaderScan:
    """Measures the header section of one message: its length, and the number of its Received fields.

    The section ends at the first line that is neither a field nor a continuation, usually the empty line.
    """

    over = False
    """Whether the header section has ended, so that no more pieces are needed."""
    _received = 0
    _unfinished = _CRLF
    _offset = -len(_CRLF)
    """The offset in the message at which `_unfinished` begins: the unfinished line, with the CRLF before it."""

    def __init__(self, rules: MessageRules) -> None:
        self._rules = rules

    def take(self, piece: bytes) -> Reply | None:
        """Scan the next octets of the message, which never split a CRLF. Returns the refusal, or None."""
        text = self._unfinished + piece
        start = self._offset
        no_field = _NO_FIELD.search(text)
        if no_field is None:
            end = len(text)
            size = start + end
            # Even the unfinished line is known to be a field, so its rest can be scanned like a continuation line.
            self._unfinished = _INSIDE_A_LINE
            self._offset = size - len(_INSIDE_A_LINE)
        else:
            end = no_field.start()
            size = start + end + _CRLF_OCTETS
            self._offset += end
            self.over = len(text) - end > _MAX_UNDECIDED_OCTETS
            self._unfinished = b"" if self.over else text[end:]
        # Fields beyond the limit do not count, or the reply would depend on how the octets were split.
        rules = self._rules
        within = min(end, rules.max_header_octets - start)
        self._received += len(_RECEIVED.findall(text, 0, int(within)))
        if self._received > rules.max_received:
            return replies.ROUTING_LOOP
        return replies.HEADER_TOO_LARGE if size > rules.max_header_octets else None


class MessageCheck:
    """Checks one message against `rules`: the base of a session's message, and all that a limit in dry run needs."""

    octets = 0
    """The octets of the message so far, as the delivery sees them. Counted even after a refusal."""
    problem: Reply | None = None
    """The reply that refuses the message at its end; None while nothing is wrong."""
    dry_run_checks: Sequence[MessageCheck] = ()
    """A check for each limit in dry run, which gets the same octets."""
    exhausted = False
    """Whether the message is so far above the largest size that its end is not waited for."""
    slow_to_read = False
    """Whether the next octets may have to be read line by line, at some twenty times the cost of bulk data."""
    _dry_run_is_slow = False
    _header: HeaderScan | None = None
    """None if there is no limit on the header, and once it has ended."""

    def __init__(self, rules: MessageRules) -> None:
        self._rules = rules
        if rules.dry_run_rules:
            self.dry_run_checks = [MessageCheck(each) for each in rules.dry_run_rules]
        if rules.scans_header:
            self._header = HeaderScan(rules)
        self.slow_to_read = rules.slow_at_first

    def take(self, piece: bytes, no_bare_cr: bool = False) -> bytes:
        """Check the next octets, which never split a CRLF. Returns the octets for the sink: b"" once refused.

        Of several problems the size wins over the header, and the header over a bare newline. `no_bare_cr`: the caller
        knows that `piece` has no bare CR.
        """
        rules = self._rules
        if self.dry_run_checks:
            for check in self.dry_run_checks:
                check.take(piece)
            self._dry_run_is_slow = any(check.slow_to_read for check in self.dry_run_checks)
            self.slow_to_read = self._header is not None or rules.normalizes or self._dry_run_is_slow
        if rules.normalizes:
            piece = _normalize(piece)
        octets = self.octets = self.octets + len(piece)
        if octets > rules.max_octets:
            self.problem = replies.MESSAGE_TOO_LARGE
            self.exhausted = octets > rules.max_swallowed
            return b""
        problem, header = self.problem, self._header
        if header is not None and (problem is None or problem is replies.BARE_NEWLINE):
            problem = header.take(piece) or problem
            if header.over:
                self._header = None
                self.slow_to_read = rules.normalizes or self._dry_run_is_slow
        if problem is None:
            is_clean = no_bare_cr or _BARE_CR.search(piece) is None
            if (is_clean and _BARE_LF.search(piece) is None) or not rules.refuses_bare:
                return piece
            problem = replies.BARE_NEWLINE
        self.problem = problem
        return b""

    def expect(self, octets: int) -> None:
        """Refuse the message if the `octets` that a BDAT announces would make it too large."""
        if self.octets + octets > self._rules.max_octets:
            self.problem = replies.MESSAGE_TOO_LARGE

    def refuse(self, reply: Reply) -> None:
        """Refuse the message with `reply` unless it has a problem already. A later size problem still wins."""
        if self.problem is None:
            self.problem = reply


def _normalize(piece: bytes) -> bytes:
    return piece.replace(_CRLF, b"\n").replace(b"\r", b"\n").replace(b"\n", _CRLF)


class IncomingMessage(MessageCheck):
    """The message that a session receives: its checks and its progress."""

    chunked = False
    """Whether the message comes by BDAT."""
    ended = False
    """Whether the message, or its current chunk, is complete, so that the next octets are a command."""
    last = True
    """Whether the end of this chunk is the end of the message. Always so for DATA."""
    chunk_octets = 0
    """The octets that the last BDAT announced."""
    _refused_by_sink: Reply | None = None
    """The sink's refusal, which is sent at the end of the message; None if there is none."""
    _refusal: Reply | None = None
    """The refusal of an earlier chunk; None if there is none."""

    def keep_refusal(self, reply: Reply) -> None:
        """Answer every further chunk of the message with `reply`, as one chunk has been."""
        self._refusal = reply
        self.refuse(reply)

    def refuse_for_sink(self, reply: Reply) -> None:
        """Refuse the message with the `reply` of the delivery's sink."""
        self._refused_by_sink = reply
        self.refuse(reply)

    def settle(self, problem: Reply) -> Reply:
        """The reply to a message that has a `problem`. The reply to an earlier chunk wins over the largest size, and
        that over the sink's refusal."""
        if self._refusal is None and problem is not replies.MESSAGE_TOO_LARGE:
            return self._refused_by_sink or problem
        return self._refusal or problem


class DataDecoder(IncomingMessage):
    """Decodes the octets after DATA (RFC 5321 4.1.1.4, 4.5.2). Only CRLF . CRLF is the end of data.

    A laxer end would allow SMTP smuggling: two servers must not disagree on where a message ends.
    """

    # The first line may be the final dot, so the CRLF of the DATA command is put before the data.
    _held = _CRLF
    _virtual = _CRLF_OCTETS

    def feed(self, data: bytes) -> tuple[bytes, int]:
        """Decode `data`. Returns the octets for the sink, and how many octets of `data` were consumed.

        Octets after the end of data are not consumed. Must not be called once `ended`.
        """
        text = self._held + data
        # Most pieces of most messages have no such CR, and need no other search.
        special = _SPECIAL_CR.search(text)
        first = len(text) if special is None else special.start()
        dot = text.find(_CRLF_DOT, first)
        end = text.find(_END_OF_DATA, dot) if dot >= 0 else -1
        if end >= 0:
            self.ended = True
            cut = end + _CRLF_OCTETS
            consumed = end + _END_OCTETS - len(self._held)
        else:
            part = _PART_OF_AN_END.search(text, len(text) - _END_OCTETS + 1)
            cut = part.start() if part else len(text)
            consumed = len(data)
            self._held = text[cut:]
        # `cut` is never inside a CRLF, nor between a CRLF and a dot.
        piece = text[:cut]
        if 0 <= dot < cut - _CRLF_OCTETS:
            piece = piece.replace(_CRLF_DOT, _CRLF)
        if self._virtual and piece:
            piece = piece[self._virtual :]
            self._virtual = 0
        return self.take(piece, first >= cut or first == end), consumed

    def ends_within(self, data: bytes) -> bool:
        """Whether the end of data is in `data`, which is not consumed."""
        return _END_OF_DATA in self._held + data


class ChunkDecoder(IncomingMessage):
    """Decodes the chunks of a message after BDAT (RFC 3030). Dots are not stuffed, and chunks may split a CRLF.

    Call `start()` for each BDAT, then `feed()` until `ended`, at least once: with b"" for an empty chunk.
    """

    chunked = True
    last = False
    ended = True
    """Whether the current chunk is complete."""
    _held = b""
    _left = 0

    def start(self, octets: int, last: bool) -> None:
        """Begin the chunk of a BDAT. If its `octets` make the message too large it is refused before they come."""
        self.expect(len(self._held) + octets)
        self._left = octets
        self.last = last
        self.chunk_octets = octets
        self.ended = octets == 0

    def feed(self, data: bytes) -> tuple[bytes, int]:
        """As `DataDecoder.feed`; consumes no octet after the chunk."""
        piece = data[: self._left]
        consumed = len(piece)
        self._left -= consumed
        self.ended = self._left == 0
        piece = self._held + piece
        self._held = b""
        # The LF that belongs to this CR may still come, even in the next chunk.
        if piece.endswith(b"\r") and not (self.ended and self.last):
            self._held = b"\r"
            piece = piece[:-1]
        return self.take(piece), consumed

    def ends_within(self, data: bytes) -> bool:
        """Whether the end of this chunk is in `data`, which is not consumed."""
        return len(data) >= self._left


# The rules of a guard.

_LIMITS = frozenset({"max_message_size", "bare_newline", "max_header_size", "max_received_fields"})


def message_rules(limits: Limits, max_octets: int, *, binary: bool) -> MessageRules:
    """The rules that messages have to satisfy. `binary`: BODY=BINARYMIME, where bare newlines are data (RFC 3030).

    A limit in dry run goes to `dry_run_rules`. If that is `bare_newline`, bare newlines are still made CRLF: the next
    server must not find more messages in the octets than the guard did (SMTP smuggling).
    """
    in_dry_run = limits.dry_run & _LIMITS
    dry_run_rules = []
    for limit in sorted(in_dry_run):
        octets = limits.max_message_size if limit == "max_message_size" else 0
        newlines_matter = limit == "bare_newline" and limits.bare_newline == "reject" and not binary
        dry_run_rules.append(_rules(limits, {limit}, octets, normalize=False, binary=not newlines_matter))
    normalize = limits.bare_newline == "normalize" or "bare_newline" in in_dry_run
    rules = _rules(limits, _LIMITS - in_dry_run, max_octets, normalize=normalize, binary=binary)
    return attrs.evolve(rules, dry_run_rules=tuple(dry_run_rules))


def _rules(limits: Limits, held: Set[str], max_octets: int, *, normalize: bool, binary: bool) -> MessageRules:
    """The rules that enforce the limits in `held`, a subset of _LIMITS."""
    return MessageRules(
        max_octets=max_octets,
        drain_octets=limits.oversize_drain,
        max_header_octets=limits.max_header_size if "max_header_size" in held else 0,
        max_received=limits.max_received_fields if "max_received_fields" in held else 0,
        normalize=normalize,
        binary=binary,
    )
