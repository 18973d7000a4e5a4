"""DNS messages: which octets answer a question, and what they say."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nameserver import NXDOMAIN, REFUSED, SERVFAIL, Said, message, name_in

from twisted_smtpguard.filters.dnsbldecision import ERROR, Answer
from twisted_smtpguard.filters.dnsmessages import (
    Truncated,
    find_servers,
    name_servers,
    question_for,
    read_answer,
)

NAME, NUMBER = "1.2.0.192.bl.example", 0x1234
QUERY = question_for(NAME, NUMBER)


def read(said: Said) -> Answer | None:
    return read_answer(message(said, QUERY, NAME), NAME, NUMBER)


def numbers(*addresses: str) -> tuple[int, ...]:
    return tuple(int(IPv4Address(each)) for each in addresses)


def test_a_question_asks_a_resolver_for_the_addresses_of_one_name() -> None:
    assert struct.unpack("!6H", QUERY[:12]) == (NUMBER, 0x0100, 1, 0, 0, 0)
    assert (name_in(QUERY), QUERY[-4:]) == (NAME, b"\0\1\0\1")


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (Said(["127.0.0.2"], ttl=60), Answer(numbers("127.0.0.2"), 60)),
        (Said(["127.0.0.2", "127.0.0.2", "127.0.0.4"]), Answer(numbers("127.0.0.2", "127.0.0.4"), 300)),
        (Said(["127.0.0.2"], ttl=0), Answer(numbers("127.0.0.2"), 0)),
        (Said(["127.0.0.2"], ttl=7 * 86400), Answer(numbers("127.0.0.2"), 604800)),
        (Said(["127.0.0.2"], cname="listed.example.net"), Answer(numbers("127.0.0.2"), 300)),
        (Said(cname="listed.example.net"), Answer((), 0)),
        (
            Said([f"127.0.1.{i}" for i in range(100)]),
            Answer(numbers(*(f"127.0.1.{i}" for i in range(100))), 300),
        ),
        (Said(code=NXDOMAIN), Answer((), 0)),
        (Said(code=NXDOMAIN, minimum=150), Answer((), 150)),
        (Said(minimum=2_000_000), Answer((), 86400)),
        (Said(code=SERVFAIL), Answer(problem="the resolver answers SERVFAIL", outcome=ERROR)),
        (Said(code=REFUSED), Answer(problem="the resolver answers REFUSED", outcome=ERROR)),
        (Said(code=9), Answer(problem="the resolver answers the code 9", outcome=ERROR)),
        (Said(["127.0.0.2"], other_question="2.2.0.192.bl.example"), None),
        (Said(["127.0.0.2"], other_number=True), None),
    ],
)
def test_an_answer_is_read(said: Said, answer: Answer | None) -> None:
    assert read(said) == answer


def test_the_case_of_letters_in_the_question_may_be_another() -> None:
    whole = message(Said(["127.0.0.2"]), QUERY, NAME).replace(b"example", b"EXAMPLE", 1)
    assert read_answer(whole, NAME, NUMBER) == Answer(numbers("127.0.0.2"), 300)


def test_a_truncated_answer_is_told_as_such_whatever_it_has() -> None:
    with pytest.raises(Truncated):
        read_answer(message(Said(["127.0.0.2"]), QUERY, NAME, truncated=True), NAME, NUMBER)


def test_a_question_is_no_answer() -> None:
    assert read_answer(QUERY, NAME, NUMBER) is None


def test_a_message_with_another_id_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twisted.names.dns.Message.fromStr", lambda *_: pytest.fail("it was parsed"))
    assert read_answer(b"\x12\x35" + QUERY[2:], NAME, NUMBER) is None
    assert read_answer(b"\x12", NAME, NUMBER) is None


def test_a_truncated_answer_to_another_question_is_none() -> None:
    other = Said(other_question="2.2.0.192.bl.example")
    assert read_answer(message(other, QUERY, NAME, truncated=True), NAME, NUMBER) is None


@pytest.mark.parametrize("said", [Said(["127.0.0.2"]), Said(code=NXDOMAIN, minimum=60), Said(cname="a.b")])
def test_no_part_of_an_answer_lists_anybody_who_the_whole_does_not(said: Said) -> None:
    whole = message(said, QUERY, NAME)
    for end in range(len(whole)):
        part = read_answer(whole[:end], NAME, NUMBER)
        assert part is None or part.addresses in ((), numbers(*said.addresses))


@given(st.binary(max_size=600))
def test_any_octets_are_read_without_an_exception(octets: bytes) -> None:
    assert read_answer(octets, NAME, NUMBER) is None


@given(st.data())
def test_an_answer_with_any_octets_changed_is_read_without_an_exception(data: st.DataObject) -> None:
    whole = bytearray(message(Said(["127.0.0.2", "127.0.0.3"], cname="x.example", minimum=60), QUERY, NAME))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        answer = read_answer(bytes(whole), NAME, NUMBER)
    except Truncated:
        return
    assert answer is None or isinstance(answer, Answer)


def test_names_that_point_at_themselves_end() -> None:
    whole = message(Said(["127.0.0.2"]), QUERY, NAME)
    loop = whole[: len(QUERY)] + b"\xc0" + bytes([len(QUERY)]) + whole[len(QUERY) + 2 :]
    assert read_answer(loop, NAME, NUMBER) in (None, Answer())


# Which servers are asked.


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("nameserver 192.0.2.53\n", [("192.0.2.53", 53)]),
        (
            "# a comment\nsearch example.org\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 \nnameserver ::1\n"
            "nameserver 192.0.2.4\n",
            [("192.0.2.1", 53), ("2001:db8::1", 53), ("::1", 53)],
        ),
        ("nameserver fe80::1%eth0\n", [("fe80::1%eth0", 53)]),
        ("nameserver\nnameserver nonsense\nnameserver \xff\n#nameserver 192.0.2.1\n", [("127.0.0.1", 53)]),
        ("", [("127.0.0.1", 53)]),
    ],
)
def test_the_servers_of_the_system_stand_in_resolv_conf(
    tmp_path: Path, text: str, servers: list[tuple[str, int]]
) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(text, "latin-1")
    assert find_servers(None, str(path)) == servers == name_servers(text.encode("latin-1").splitlines())


def test_without_the_file_it_is_this_host_and_a_directory_is_a_mistake(tmp_path: Path) -> None:
    assert find_servers(None, str(tmp_path / "none")) == [("127.0.0.1", 53)]
    with pytest.raises(ValueError, match=r" cannot be read: "):
        find_servers(None, str(tmp_path))


def test_a_named_resolver_has_the_addresses_of_its_name() -> None:
    assert find_servers(("192.0.2.1", 5353)) == [("192.0.2.1", 5353)]
    assert find_servers(("::1", 53)) == [("::1", 53)]
    assert {host for host, _ in find_servers(("localhost", 53))} <= {"127.0.0.1", "::1"}
    with pytest.raises(ValueError, match=r"^the resolver no\.such\.host\.invalid is not found: "):
        find_servers(("no.such.host.invalid", 53))
