"""The commands that the client has sent already, and that the engine has not come to.

A delivery that passes commands on to a server may send these ahead, and so spare a round trip for each. The engine
carries out one command at a time all the same. So replies, counts and limits do not depend on what was sent ahead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from twisted_smtpguard.engine.connection import Connection
from twisted_smtpguard.limits.units import no_limit
from twisted_smtpguard.values import Path, plain_path

_MOST = 32
"""The most commands that are looked at, so that a long burst does not cost more than linear time."""


def upcoming(engine: Connection) -> Iterable[Path | None]:
    """The recipients of the RCPTs after the MAIL or RCPT that the delivery is being asked about, and None for a DATA
    after these. A line that has not arrived, or is not plain, ends them.

    The delivery will be asked about all of them, in this order, unless the mail transaction ends before: the engine
    leaves out what its own limits could refuse, whatever the delivery says to the commands before. The exception is
    DATA, about which it does not ask if no recipient was accepted.
    """
    # Mostly there is nothing.
    return _upcoming(engine) if engine.offset < len(engine.buffer) else ()


def _upcoming(engine: Connection) -> Iterator[Path | None]:
    context, limits = engine.context, engine.context.limits
    policed = engine.policed
    if context.policies and (context.policies.get("rcpt") or (policed is not None and policed.deferrals)):
        return
    buffer, start = engine.buffer, engine.offset
    # At MAIL the recipients are still those of the last message.
    known = 0 if engine.mail is None else len(engine.recipients) + 1
    left: float = _MOST
    if not engine.trusted:
        if context.recipient_rate is not None:
            return
        asked = engine.mail is not None
        rejected = no_limit(limits.max_rejected_recipients) - engine.rejected_recipients
        errors = no_limit(limits.max_errors) - engine.errors
        left = min(left, rejected - asked, errors - asked)
    while left > 0:
        plain = context.plain_line(buffer, start)
        if plain is None:
            return
        verb, address, word = plain.groups()
        start = plain.end()
        if verb == b"DATA":
            # Octets after DATA are no message that waits for the 354, and a limit may end the session for them.
            binary = engine.sender.parameters.get("BODY") == "BINARYMIME"
            asks = context.policies.get("data")
            if known and word is None and start == len(buffer) and not (binary or asks):
                yield None
            return
        known += 1
        if verb != b"RCPT" or address is None or known > context.max_recipients:
            return
        yield plain_path(address)
        left -= 1
