"""What the log says of a refusal: its reason, the limit it went against, and what there was."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import Guard, delivery_without_nobody

MAIL, RCPT, NOBODY = "MAIL FROM:<a@b>", "RCPT TO:<c@d>", "RCPT TO:<nobody@d.example>"
DATA = (MAIL, RCPT, "DATA")


@pytest.mark.parametrize(
    ("limits", "lines", "refusal"),
    [
        (
            {"max_invalid_commands": 2},
            ["BREW", "DATA"],
            "max_invalid_commands code=421 limit=2 value=2 command=DATA",
        ),
        ({"max_errors": 2}, ["EXPN", "MAIL"], "max_errors code=421 limit=2 value=2 command=MAIL"),
        (
            {"max_rejected_recipients": 1},
            [MAIL, NOBODY],
            "max_rejected_recipients code=421 limit=1 value=1 command=RCPT sender=a@b recipient=nobody@d.example",
        ),
        (
            {"max_recipients": 1},
            [MAIL, RCPT, RCPT],
            "max_recipients code=452 limit=1 value=2 command=RCPT sender=a@b recipient=c@d",
        ),
        (
            {"max_messages": 1},
            [MAIL, "RSET", MAIL],
            "max_messages code=421 limit=1 value=2 command=MAIL sender=a@b",
        ),
        (
            {"max_message_size": 9},
            ["MAIL FROM:<> SIZE=10"],
            "max_message_size code=552 limit=9 value=10 command=MAIL",
        ),
        (
            {"max_message_size": 9},
            [*DATA, "12345678", "."],
            "max_message_size code=552 limit=9 value=10 command=DATA sender=a@b",
        ),
        (
            {"max_message_size": 9, "oversize_drain": 1},
            [*DATA, "x" * 19],
            "oversize_drain code=421 limit=1 value=19 command=DATA sender=a@b",
        ),
        ({}, [*DATA, "\n", "."], "bare_newline code=550 limit=reject command=DATA sender=a@b"),
        (
            {"max_header_size": 9},
            [*DATA, "a: bcdefgh", "", "."],
            "max_header_size code=552 limit=9 command=DATA sender=a@b",
        ),
        (
            {"max_received_fields": 1},
            [
                *DATA,
                "Received: x",
                "received:",
                ".",
            ],
            "max_received_fields code=554 limit=1 command=DATA sender=a@b",
        ),
        ({}, ["BDAT"], "malformed_bdat code=421 command=BDAT"),
        ({"max_command_line": 20}, ["x" * 20], "max_command_line code=500 limit=20"),
        ({}, ["brew coffee"], "unrecognized_command code=500 command=BREW"),
        ({}, ["BREW", "NOOP", ""], "syntax_error code=500"),
        ({"max_invalid_commands": 1}, ["BREW"], "max_invalid_commands code=421 limit=1 value=1 command=BREW"),
        (
            {},
            ["MAIL FROM:<a@b> size=1 Xspam=y"],
            "unsupported_parameter code=555 command=MAIL parameter=Xspam",
        ),
        ({}, ["MAIL FROM:<a@b> X", "MAIL FROM:a"], "bad_sender_address code=501 command=MAIL"),
        (
            {},
            [MAIL, "RCPT TO:<c@d> AUTH=<>"],
            "unsupported_parameter code=555 command=RCPT parameter=AUTH sender=a@b",
        ),
        ({}, ["NO\nOP"], "bad_line_end code=500"),
        ({}, [RCPT], "bad_sequence code=503 command=RCPT"),
        ({}, [MAIL, NOBODY], "delivery_refused code=550 command=RCPT sender=a@b recipient=nobody@d.example"),
        (
            {"unexpected_pipelining": "refuse"},
            ["EHLO x", "NOOP"],
            "unexpected_pipelining code=421 limit=refuse command=EHLO",
        ),
    ],
)
def test_a_refusal_is_logged_with_its_reason_and_its_limit(
    limits: dict[str, Any], lines: list[str], refusal: str
) -> None:
    guard = Guard(delivery_without_nobody(), **limits)
    logged: list[str] = []

    def reject(peer: str, reason: str, **fields: Any) -> None:
        fields["code"] = fields.pop("reply").code
        assert (peer, fields.pop("session")) == ("192.0.2.1", client.protocol.engine.name)
        names = ("code", "limit", "value", "command", "parameter", "sender", "recipient")
        logged.append(" ".join([reason, *(f"{name}={fields[name]}" for name in names if fields[name])]))

    client = guard.greeted()
    guard.factory.context.events.reject = reject  # type: ignore[method-assign]
    client.say(*lines)
    assert logged[-1] == refusal


@pytest.mark.parametrize(
    "lines",
    [
        ("AUTH LOGIN", "cGFzc3dvcmQ"),
        ("AUTH CRAM", "cGFzc3dvcmQ"),
        ("AUTH PLAIN", "NOT*BASE64", "cGFzc3dvcmQ"),
        ("AUTH", "more", "cGFzc3dvcmQ"),
    ],
)
def test_what_may_be_a_password_is_no_kind_of_command(lines: tuple[str, ...]) -> None:
    """A client that does not heed the reply to its AUTH goes on with its credentials."""
    client = Guard().greeted()
    commands: list[str] = []
    client.guard.factory.context.events.reject = (  # type: ignore[method-assign]
        lambda *_, command, **__: commands.append(command)
    )
    client.say(*lines, "NOOP", "BREW")
    assert commands == [commands[0], *[""] * (len(lines) - 1), "BREW"]
    assert commands[0] == "AUTH"
