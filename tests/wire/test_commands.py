"""What every command does in every phase: its code, the phase it leads to, whether it counts as invalid."""

from __future__ import annotations

import pytest
from fakes import Conversation, Guard, codes, delivery_without_nobody

from twisted_smtpguard.engine.commands import COMMANDS
from twisted_smtpguard.engine.stages import Phase

EHLO, MAIL = "EHLO client.example", "MAIL FROM:<a@b.example>"
REACH: dict[str, tuple[str, ...]] = {
    "connected": (),
    "ready": (EHLO,),
    "sender": (EHLO, MAIL),
    "refused": (EHLO, MAIL, "RCPT TO:<nobody@d.example>"),
    "recipients": (EHLO, MAIL, "RCPT TO:<c@d.example>"),
    "chunks": (EHLO, MAIL, "RCPT TO:<c@d.example>", "BDAT 2\r\n"),  # the chunk is the CRLF that `say` adds
}

# A cell: the code, "!" where it counts as an invalid command, and the phase afterwards where it is another.
TABLE = r"""
                           | connected | ready      | sender         | refused        | recipients     | chunks
HELO client.example        | 250 ready | 250        | 250 ready      | 250 ready      | 250 ready      | 250 ready
EHLO client.example        | 250 ready | 250        | 250 ready      | 250 ready      | 250 ready      | 250 ready
MAIL FROM:<a@b.example>    | 503!      | 250 sender | 503!           | 503!           | 503!           | 503!
RCPT TO:<c@d.example>      | 503!      | 503!       | 250 recipients | 250 recipients | 250            | 503!
RCPT TO:<nobody@d.example> | 503!      | 503!       | 550 refused    | 550            | 550            | 503!
DATA                       | 503!      | 503!       | 503!           | 554            | 354            | 503!
BDAT 0                     | 503!      | 503!       | 503! chunks    | 554 chunks     | 250 chunks     | 250
BDAT 0 LAST                | 503!      | 503!       | 503! ready     | 554 ready      | 250 ready      | 250 ready
RSET                       | 250       | 250        | 250 ready      | 250 ready      | 250 ready      | 250 ready
NOOP                       | 250       | 250        | 250            | 250            | 250            | 250
NOOP any argument          | 250       | 250        | 250            | 250            | 250            | 250
VRFY c                     | 252       | 252        | 252            | 252            | 252            | 252
EXPN c                     | 502       | 502        | 502            | 502            | 502            | 502
HELP                       | 214       | 214        | 214            | 214            | 214            | 214
QUIT                       | 221       | 221        | 221 ready      | 221 ready      | 221 ready      | 221 ready
BREW coffee                | 500!      | 500!       | 500!           | 500!           | 500!           | 500!
AUTH PLAIN AGEAYg==        | 500!      | 500!       | 500!           | 500!           | 500!           | 500!
STARTTLS                   | 500!      | 500!       | 500!           | 500!           | 500!           | 500!
                           | 500!      | 500!       | 500!           | 500!           | 500!           | 500!
NO\x00OP                   | 500!      | 500!       | 500!           | 500!           | 500!           | 500!
N\xd6\xd6P                 | 500!      | 500!       | 500!           | 500!           | 500!           | 500!
NOOP\n                     | 500!      | 500!       | 500!           | 500!           | 500!           | 500!
NO\rOP                     | 500!      | 500!       | 500!           | 500!           | 500!           | 500!
NOOP{2048 blanks}          | 500!      | 500!       | 500!           | 500!           | 500!           | 500!
HELO                       | 501       | 501        | 501            | 501            | 501            | 501
EHLO two words             | 501       | 501        | 501            | 501            | 501            | 501
MAIL                       | 501       | 501        | 501            | 501            | 501            | 501
MAIL FROM:<a@>             | 501       | 501        | 501            | 501            | 501            | 501
MAIL FROM:<a@b> X=1        | 555       | 555        | 555            | 555            | 555            | 555
MAIL FROM:<\xe4@b>         | 553       | 553        | 553            | 553            | 553            | 553
RCPT TO:c                  | 501       | 501        | 501            | 501            | 501            | 501
RCPT TO:<c@d> X=1          | 555       | 555        | 555            | 555            | 555            | 555
DATA now                   | 501       | 501        | 501            | 501            | 501            | 501
BDAT                       | 501       | 501        | 501            | 501            | 501            | 501
RSET now                   | 501       | 501        | 501            | 501            | 501            | 501
VRFY                       | 501       | 501        | 501            | 501            | 501            | 501
QUIT now                   | 501       | 501        | 501            | 501            | 501            | 501
"""
HEAD, *ROWS = ([cell.strip() for cell in row.split("|")] for row in TABLE.strip("\n").split("\n"))
CELLS = [
    pytest.param(phase, command, cell, id=f"{phase}-{command}")
    for command, *cells in ROWS
    for phase, cell in zip(REACH, cells, strict=True)
]


def reach(phase: str, **limits: int) -> Conversation:
    """A client whose session is in this phase."""
    client = Guard(delivery_without_nobody(), **limits).connect()
    client.say(*REACH[phase])
    assert client.protocol.engine.phase.value == phase
    assert not client.closed
    client.heard()
    return client


def line(command: str) -> str:
    """What the table writes as text."""
    return command.replace("{2048 blanks}", " " * 2048).encode().decode("unicode_escape")


@pytest.mark.parametrize("bytewise", [False, True], ids=["at-once", "bytewise"])
@pytest.mark.parametrize(("phase", "command", "cell"), CELLS)
def test_every_command_in_every_phase(phase: str, command: str, cell: str, bytewise: bool) -> None:
    code, _, afterwards = cell.replace("!", "").partition(" ")
    client = reach(phase)
    assert codes(client.say(line(command), bytewise=bytewise))[0] == int(code)
    assert client.protocol.engine.phase.value == (afterwards or phase)
    assert client.closed is (command in {"QUIT", "BDAT"})


@pytest.mark.parametrize(("phase", "command", "cell"), CELLS)
def test_every_command_counts_as_invalid_or_not(phase: str, command: str, cell: str) -> None:
    said = reach(phase, max_invalid_commands=1).say(line(command))
    counted = said.endswith("421 4.4.0 Too many errors, closing connection\r\n")
    assert counted is ("!" in cell)


def test_the_table_has_every_command_and_every_phase() -> None:
    assert {command.split(" ")[0].encode() for command, *_ in ROWS} >= set(COMMANDS)
    assert [phase.value for phase in Phase] == list(REACH) == HEAD[1:]


@pytest.mark.parametrize("starttls", [False, True])
@pytest.mark.parametrize("auth", [False, True])
def test_help_names_every_command_that_is_offered_in_the_order_of_the_table(
    starttls: bool, auth: bool
) -> None:
    client = Guard().connect()
    context = client.guard.factory.context
    context.starttls, context.identify, context.auth_without_tls = starttls, (str if auth else None), True
    client.heard()
    more = "STARTTLS " * starttls + "AUTH " * auth
    verbs = f"EHLO HELO {more}MAIL RCPT DATA BDAT RSET NOOP VRFY EXPN HELP QUIT"
    assert client.say("HELP") == f"214 2.0.0 Commands: {verbs}\r\n"
    withheld = {verb for verb, offered in ((b"STARTTLS", starttls), (b"AUTH", auth)) if not offered}
    assert verbs.encode().split() == [verb for verb in COMMANDS if verb not in withheld]


def test_commands_are_read_without_regard_to_case_and_trailing_blanks() -> None:
    client = Guard().connect()
    client.heard()
    assert (
        client.codes("ehlo x \t", "mail from:<a@b.example>  ", "rcpt to:<c@d.example>\t", "rSeT ", "nOoP\t")
        == [250] * 5
    )


@pytest.mark.parametrize("command", ["EHLO client.example", "HELO client.example", "RSET", "QUIT"])
@pytest.mark.parametrize("phase", ["sender", "refused", "recipients"])
def test_a_transaction_that_is_reset_is_aborted_once(phase: str, command: str) -> None:
    client = reach(phase)
    client.say(command)
    client.disconnect()
    assert client.guard.delivery.calls.count("transaction.abort") == 1


def test_a_message_in_chunks_that_is_reset_is_aborted_once() -> None:
    client = reach("chunks")
    client.say("RSET")
    client.disconnect()
    assert client.guard.delivery.calls[-1] == "sink.abort"
    assert client.guard.delivery.calls.count("sink.abort") == 1
    assert "transaction.abort" not in client.guard.delivery.calls
