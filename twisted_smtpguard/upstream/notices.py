"""What the log says of a mail server behind."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_smtpguard.escaping import escape_text
from twisted_smtpguard.smtp.replies import Reply

_log = Logger()


def reply_text(reply: Reply) -> str:
    """One line."""
    return " ".join([str(reply.code), reply.enhanced, *reply.lines])


class Notices:
    """Of the server that is called `upstream`. `problem` is anything, the server's own words too."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream

    def down(self, problem: str) -> None:
        """It cannot be reached, or cannot be used as configured. Once until it can, or until that changes."""
        _log.warn(
            "upstream_down upstream={upstream} {problem}",
            upstream=self._upstream,
            problem=escape_text(problem),
        )

    def up(self) -> None:
        """It can be reached again."""
        _log.warn("upstream_up upstream={upstream} it can be reached again", upstream=self._upstream)

    def full(self, connections: int, problem: str) -> None:
        """It takes no more connections than these. Once until it does."""
        _log.warn(
            "upstream_full upstream={upstream} connections={connections} {problem}",
            upstream=self._upstream,
            connections=connections,
            problem=escape_text(problem),
        )

    def in_clear(self, problem: str) -> None:
        """Opportunistic TLS has failed, and mail goes on in clear. Once until it succeeds."""
        _log.warn(
            "upstream_in_clear upstream={upstream} {problem}",
            upstream=self._upstream,
            problem=escape_text(problem),
        )

    def mixed(self, session: str, told: Reply, verdicts: Sequence[tuple[str, Reply]]) -> None:
        """A message was accepted for some and refused for others of its recipients. `told`: what the client hears."""
        _log.warn(
            "a message of session {session} was accepted for some and refused for others, and the client told "
            "{code}: {told}",
            session=session,
            code=told.code,
            told=escape_text("; ".join(f"<{address}> {reply_text(reply)}" for address, reply in verdicts)),
        )

    def may_come_twice(self, session: str) -> None:
        """It has the whole message, as far as we know, and has not said all that became of it."""
        _log.warn(
            "The mail server behind gave no verdict on a message of session {session}, whose client is told to "
            "try again: it may come twice",
            session=session,
        )

    def failed(self, failure: Failure) -> None:
        """A connection could not be tried, and that is no answer of the server's."""
        _log.failure("A connection to {upstream} could not be tried", failure, upstream=self._upstream)
