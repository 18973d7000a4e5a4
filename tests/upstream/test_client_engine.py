"""The client side of SMTP as a state machine: each state and input, with no Twisted and no clock."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from twisted_smtpguard import replies
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.upstream.clientengine import ClientEngine, State, one_line
from twisted_smtpguard.upstream.refusals import as_temporary
from twisted_smtpguard.upstream.replyparser import UpstreamReply, for_client
from twisted_smtpguard.values import Refused

ROOT = Path(__file__).parents[2]
GARBLED, LOST, TIMED_OUT = replies.UPSTREAM_GARBLED, replies.UPSTREAM_LOST, replies.UPSTREAM_TIMED_OUT


class Effects(ClientEngine):
    """A host that writes down what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.effects: list[str] = []
        self.due_in = 0.0
        self.told: list[object] = []
        """What those were told who have asked: texts of replies, and problems."""

    def send(self, octets: bytes) -> None:
        self.sent += octets

    def deadline(self, seconds: float) -> None:
        self.due_in = seconds

    def ended(self) -> None:
        self.effects.append("ended")

    def abort(self) -> None:
        self.effects.append("abort")

    # Who asks.

    def listen(self, reply: UpstreamReply | None, problem: Reply | None) -> None:
        self.told.append(problem if reply is None else reply.text)


def nothing_asked(engine: Effects) -> None:
    """A connection that waits to be used."""


def one_command(engine: Effects) -> None:
    engine.ask(b"MAIL FROM:<>", engine.listen, 60)


def two_commands(engine: Effects) -> None:
    engine.ask_together([b"RSET", b"MAIL FROM:<>"], [(engine.listen, 10), (engine.listen, 60)])


def message(engine: Effects) -> None:
    engine.ask(b"DATA", lambda reply, problem: None, 60)
    engine.received(b"354 Go ahead\r\n")
    engine.start_data()
    engine.stream(b"Subject: x\r\n")


def no_room(engine: Effects) -> None:
    message(engine)
    engine.wait_for_room(engine.told.append, 60)


def verdicts(engine: Effects) -> None:
    message(engine)
    engine.end_data(b"\r\n.\r\n", [(engine.listen, 280)] * 2)


def last_chunk(engine: Effects) -> None:
    engine.chunk(b"x\r\n", [(engine.listen, 280)], last=True)


def handshake(engine: Effects) -> None:
    engine.ask(b"STARTTLS", lambda reply, problem: None, 60)
    engine.received(b"220 go\r\n")
    engine.start_handshake()


def ended(engine: Effects) -> None:
    engine.end(replies.SHUTTING_DOWN)


STATES: dict[Callable[[Effects], None], int] = {
    nothing_asked: 0,
    one_command: 1,
    two_commands: 2,
    message: 0,
    no_room: 0,
    verdicts: 2,
    last_chunk: 1,
    handshake: 0,
    ended: 0,
}
"""How many replies are due in each."""

OK, NO, BYE = "250 2.0.0 Ok", "550 5.1.1 No", "421 4.3.2 Bye"
INPUTS: dict[str, tuple[bytes, list[str], bool]] = {
    "a reply": (b"250 2.0.0 Ok\r\n", [OK], False),
    "a refusal": (b"550 5.1.1 No\r\n", [NO], False),
    "a farewell": (b"421 4.3.2 Bye\r\n", [BYE], False),
    "a reply without text": (b"250\r\n", ["250 "], False),
    "a reply of two lines": (b"250-a\r\n250 b\r\n", ["250 a b"], False),
    "a long reply": (b"250 " + b"x" * 500 + b"\r\n", ["250 " + "x" * 500], False),
    "two replies": (b"250 2.0.0 Ok\r\n550 5.1.1 No\r\n", [OK, NO], False),
    "three replies": (b"250 2.0.0 Ok\r\n550 5.1.1 No\r\n421 4.3.2 Bye\r\n", [OK, NO, BYE], False),
    "part of a reply": (b"250 2.0", [], False),
    "a line of a reply": (b"250-a\r\n", [], False),
    "a reply and part of one": (b"250 2.0.0 Ok\r\n421 4.", [OK], False),
    "no reply": (b"what?\r\n", [], True),
    "a reply and no reply": (b"250 2.0.0 Ok\r\n\xff\xfe\r\n", [OK], True),
    "a line without end": (b"2" * 3000, [], True),
    "a reply without end": (b"250-x\r\n" * 101, [], True),
    "codes that differ": (b"250-a\r\n251 b\r\n", [], True),
}
"""Octets, the replies in them, and whether something that is no reply follows."""


def whole(octets: bytes) -> Iterable[bytes]:
    yield octets


def octet_by_octet(octets: bytes) -> Iterable[bytes]:
    return (bytes([octet]) for octet in octets)


def parsed(text: str) -> UpstreamReply:
    return UpstreamReply(int(text[:3]), (text[4:],))


@pytest.mark.parametrize("cut", [whole, octet_by_octet])
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_each_reply_goes_to_who_asked_and_what_was_not_asked_for_ends_the_connection(
    state: Callable[[Effects], None], name: str, cut: Callable[[bytes], Iterable[bytes]]
) -> None:
    octets, said, bad = INPUTS[name]
    engine = Effects()
    state(engine)
    before, owed = engine.problem, STATES[state]
    for piece in cut(octets):
        engine.received(piece)
    problem: Reply | None = None
    if state is handshake:
        problem = GARBLED
    elif len(said) > owed and state in (message, no_room) and said[0][0] in "45":
        problem = for_client(parsed(said[0]))
    elif len(said) > owed:
        problem = as_temporary(parsed(said[owed])).reply
    elif bad:
        problem = GARBLED
    told: list[object] = [*said[:owed]]
    if problem is not None and before is None:
        told += [problem] * (owed - len(told) + (state is no_room))
    assert engine.told == (told if before is None else [])
    assert engine.problem is (problem if before is None else before) or engine.problem == problem
    if before is None:
        assert engine.effects == (["ended", "abort"] if problem is not None else [])
        assert (engine.state is State.ENDED) == (problem is not None)


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
@pytest.mark.parametrize(
    ("ends", "problem", "aborts"),
    [
        (ClientEngine.lost, LOST, False),
        (ClientEngine.timed_out, TIMED_OUT, True),
        (lambda engine: engine.end(replies.SHUTTING_DOWN), replies.SHUTTING_DOWN, True),
    ],
    ids=["lost", "timed out", "ended"],
)
def test_at_the_end_of_a_connection_everybody_who_waits_is_told_once(
    state: Callable[[Effects], None], ends: Callable[[Effects], None], problem: Reply, aborts: bool
) -> None:
    engine = Effects()
    state(engine)
    before = engine.problem
    if state is handshake and problem is LOST:
        problem = replies.UPSTREAM_UNSUITABLE
    if problem is TIMED_OUT and not STATES[state] and state not in (no_room, handshake, ended):
        # Nothing is due: it is the deadline of something that came in time.
        ends(engine)
        assert engine.usable
        return
    for _ in range(2):
        ends(engine)
        assert engine.told == [problem] * (STATES[state] + (state is no_room))
        assert engine.problem == (before or problem)
        if before is None:
            assert engine.effects == ["ended", *(["abort"] if aborts else [])]
    engine.received(b"250 late\r\n")
    engine.room()
    assert len(engine.told) == STATES[state] + (state is no_room)


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_who_gives_up_is_not_told_and_nobody_gets_the_late_reply(state: Callable[[Effects], None]) -> None:
    engine = Effects()
    state(engine)
    engine.forsake()
    engine.received(b"250 late\r\n")
    assert engine.told == []
    assert not engine.usable


def test_verdicts_are_understood_wherever_they_are_cut() -> None:
    octets = b"250 2.0.0 a\r\n550-5.1.1 b\r\n550 5.1.1 c\r\n"
    for first in range(len(octets) + 1):
        for second in range(first, len(octets) + 1):
            engine = Effects()
            verdicts(engine)
            for piece in (octets[:first], octets[first:second], octets[second:]):
                engine.received(piece)
            assert engine.told == ["250 2.0.0 a", "550 5.1.1 b 5.1.1 c"]
            assert engine.usable


def test_a_connection_is_known_to_be_over_before_a_reply_is_told_that_came_with_the_farewell() -> None:
    engine = Effects()
    usable: list[bool] = []
    engine.ask(b"DATA", lambda reply, problem: usable.append(engine.usable), 60)
    engine.received(b"354 Go ahead\r\n421 4.3.2 Bye\r\n")
    assert usable == [False]
    with pytest.raises(Refused):
        engine.start_data()


def test_who_is_told_may_ask_again_or_end_the_connection() -> None:
    engine = Effects()

    def again(reply: UpstreamReply | None, problem: Reply | None) -> None:
        engine.ask(b"RCPT TO:<b@c>", engine.listen, 60)

    engine.ask_together([b"RSET", b"MAIL FROM:<>"], [(again, 10), (engine.listen, 60)])
    engine.received(b"250 one\r\n250 two\r\n")
    engine.received(b"250 three\r\n")
    assert engine.told == ["250 two", "250 three"]
    engine.ask_together(
        [b"RSET", b"MAIL FROM:<>"], [(lambda *_: engine.end(TIMED_OUT), 10), (engine.listen, 60)]
    )
    engine.received(b"550 no\r\n250 yes\r\n")
    assert engine.told[2:] == [TIMED_OUT]


def test_each_reply_has_its_own_time_from_the_one_before() -> None:
    engine = Effects()
    two_commands(engine)
    assert engine.due_in == 10
    engine.ask(b"NOOP", engine.listen, 5)
    assert engine.due_in == 10
    engine.received(b"250 a\r\n")
    assert engine.due_in == 60
    engine.received(b"250 b\r\n")
    assert engine.due_in == 5


def test_of_replies_that_come_together_the_last_begins_the_time_of_the_next() -> None:
    engine = Effects()
    due = [(engine.listen, seconds) for seconds in (10, 60, 280)]
    engine.ask_together([b"RSET", b"MAIL FROM:<>", b"RCPT TO:<b@c>"], due)
    engine.received(b"250 a\r\n250 b\r\n")
    assert engine.due_in == 280


def test_what_is_asked_of_a_server_amid_a_reply_is_not_sent() -> None:
    engine = Effects()
    engine.received(b"421 4.3.2 Shut")
    one_command(engine)
    assert engine.sent == b""
    assert engine.told == [GARBLED]


@pytest.mark.parametrize("ends", ["chunk", "end_data"])
def test_the_end_of_a_message_is_not_sent_to_a_server_amid_a_reply(ends: str) -> None:
    engine = Effects()
    (nothing_asked if ends == "chunk" else message)(engine)
    sent = engine.sent
    engine.received(b"421 4.3.2 Shut")
    with pytest.raises(Refused) as refused:
        getattr(engine, ends)(b"x", [(engine.listen, 1)])
    assert refused.value.reply is GARBLED
    assert engine.sent == sent
    assert engine.told == []


def test_what_is_sent_together_is_one_write_and_each_is_one_line() -> None:
    engine = Effects()
    two_commands(engine)
    assert engine.sent == b"RSET\r\nMAIL FROM:<>\r\n"
    with pytest.raises(ValueError, match="a command is one line"):
        engine.ask_together([b"RSET", b"MAIL\r\nQUIT"], [(engine.listen, 1)] * 2)
    assert engine.sent == b"RSET\r\nMAIL FROM:<>\r\n"
    assert one_line(b"NOOP") == b"NOOP\r\n"


def test_a_chunk_and_its_command_are_one_write() -> None:
    engine = Effects()
    engine.chunk(b"abc", [(engine.listen, 60)])
    last_chunk(engine)
    assert engine.sent == b"BDAT 3\r\nabcBDAT 3 LAST\r\nx\r\n"


@pytest.mark.parametrize("sends", ["chunk", "start_data", "stream", "end_data"])
def test_nothing_of_a_message_is_sent_on_a_connection_that_has_ended(sends: str) -> None:
    engine = Effects()
    ended(engine)
    arguments = {"start_data": (), "stream": (b"x",)}.get(sends, (b"x", [(engine.listen, 1)]))
    with pytest.raises(Refused) as refused:
        getattr(engine, sends)(*arguments)
    assert refused.value.reply is replies.SHUTTING_DOWN
    assert engine.sent == b""
    assert engine.told == []


def test_room_is_told_once() -> None:
    engine = Effects()
    no_room(engine)
    assert engine.due_in == 60
    engine.room()
    engine.room()
    assert engine.told == [None]
    engine.timed_out()
    assert engine.usable
    ended(engine)
    engine.wait_for_room(engine.told.append, 60)
    assert engine.told == [None, replies.SHUTTING_DOWN]


def test_only_a_handshake_that_was_begun_is_complete() -> None:
    engine = Effects()
    assert not engine.secured()
    handshake(engine)
    assert engine.secured()
    assert not engine.secured()
    two_commands(engine)
    engine.received(b"250 a\r\n250 b\r\n")
    assert engine.told == ["250 a", "250 b"]


def test_it_is_imported_where_twisted_cannot_be() -> None:
    """The package's own __init__ imports the public names, most of which need Twisted: a bare module stands for it."""
    program = f"""
import sys, types

class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("twisted", "zope", "OpenSSL"):
            raise ImportError(name)

sys.meta_path.insert(0, Nowhere())
package = types.ModuleType("twisted_smtpguard")
package.__path__ = [{str(ROOT / "twisted_smtpguard")!r}]
sys.modules["twisted_smtpguard"] = package
from twisted_smtpguard.upstream.clientengine import ClientEngine
print(ClientEngine().usable)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr
