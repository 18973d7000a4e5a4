"""How a client behaves: what a session counts against it, and when that is enough."""

from __future__ import annotations

from twisted_smtpguard.limits import Limits
from twisted_smtpguard.smtp import replies
from twisted_smtpguard.smtp.replies import Reply


class Conduct:
    """The counts of one session. A limit N trips at the N-th event."""

    __slots__ = ("errors", "invalid_commands", "junk", "rejected_recipients")

    def __init__(self) -> None:
        self.invalid_commands = 0
        """Unrecognized, malformed as lines, or out of sequence; in the whole session."""
        self.rejected_recipients = 0
        """Refused for good by the delivery; in the whole session."""
        self.errors = 0
        """Error replies, and junk commands above their limit, since the last accepted message."""
        self.junk = 0
        """Commands that bring no message closer, since the last accepted message."""

    def count_reply(self, limits: Limits, *, error: bool, junk: bool) -> None:
        """The reply to a command: an error, or to a junk command, which is one above its limit. Once in any case."""
        self.junk += junk
        if error or (junk and 0 < limits.max_junk_commands < self.junk):
            self.errors += 1

    def message_accepted(self) -> None:
        """An accepted message makes up for errors and junk."""
        self.errors = self.junk = 0

    def verdict(self, limits: Limits) -> tuple[Reply, int] | None:
        """What ends the session, with the count that did; None while all is well.

        The limit on invalid commands goes first: where one command trips two limits its reply wins.
        """
        if limits.max_invalid_commands and self.invalid_commands >= limits.max_invalid_commands:
            return replies.TOO_MANY_INVALID_COMMANDS, self.invalid_commands
        if limits.max_rejected_recipients and self.rejected_recipients >= limits.max_rejected_recipients:
            return replies.TOO_MANY_REJECTED_RECIPIENTS, self.rejected_recipients
        if limits.max_errors and self.errors >= limits.max_errors:
            return replies.TOO_MANY_ERRORS, self.errors
        return None
