"""What a line of a list of networks may say, and what is said of one that is wrong."""

from __future__ import annotations

import os
import re
import tracemalloc
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twisted_smtpguard.filters.networklist import MAX_LINE_OCTETS, parse_network, parse_reply, read_table
from twisted_smtpguard.interfaces import PASS, TRUST, Verdict, refuse
from twisted_smtpguard.replies import CONNECTION_REFUSED, Reply

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "filters.md"


@pytest.fixture
def read(tmp_path):
    """Read a list with this content."""

    def read(content):
        path = tmp_path / "list"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_table(path)

    return read


def verdict(table, address):
    return table.verdict(ip_address(address))


# Networks.


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("192.0.2.1", "192.0.2.1/32"),
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:db8::1", "2001:db8::1/128"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("2001:0db8:0::/33", "2001:db8::/33"),
        ("::/0", "::/0"),
        ("::/80", "::/80"),
        ("::192.0.2.1", "::192.0.2.1/128"),
        ("::ffff:192.0.2.1", "192.0.2.1/32"),
        ("::ffff:c000:201/128", "192.0.2.1/32"),
        ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
    ],
)
def test_a_network_is_an_address_or_cidr(text, network):
    network = ip_network(network)
    assert parse_network(text) == (network.max_prefixlen, int(network.network_address), network.prefixlen)


NO_NETWORKS = [
    "",
    "/",
    "/24",
    "x",
    "192.0.2",
    "192.0.2.0.0",
    "192.0.2.256",
    "192.0.2.01",
    "0300.0.2.1",
    "0x7f.0.0.1",
    "3221225985",
    "192.0.2.1.",
    " 192.0.2.1",
    "192.0.2.1 ",
    "192.0.2.1\0",
    "[2001:db8::1]",
    "fe80::1%eth0",
    "fe80::%1/64",
    "2001:db8::1::",
    "2001:db8",
    "02001:db8::",
    ":",
    ":::",
    "\u0661.2.3.4",
    "\udcff.2.3.4",
    "localhost",
    "*",
    "192.0.2.*",
    "192.0.2.0-192.0.2.9",
]
NO_LENGTHS = [
    "192.0.2.0/",
    "192.0.2.0/33",
    "192.0.2.0/-1",
    "192.0.2.0/+8",
    "192.0.2.0/024",
    "192.0.2.0/ 24",
    "192.0.2.0/24/24",
    "192.0.2.0/255.255.255.0",
    "192.0.2.0/\u0668",
    "2001:db8::/129",
    "2001:db8::/x",
]


@pytest.mark.parametrize("text", NO_NETWORKS)
def test_what_is_no_network_is_told_with_what_is_expected(text):
    with pytest.raises(
        ValueError, match=r"^'.*' is not a network; one such as 192.0.2.0/24, .* is expected$"
    ):
        parse_network(text)


@pytest.mark.parametrize("text", NO_LENGTHS)
def test_a_prefix_length_is_a_plain_number_in_range(text):
    bits = 128 if ":" in text else 32
    message = rf"^'{re.escape(text)}' must have a number from 0 to {bits} after its slash$"
    with pytest.raises(ValueError, match=message):
        parse_network(text)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("192.0.2.1/24", "192.0.2.0/24"),
        ("1.0.0.0/0", "0.0.0.0/0"),
        ("192.0.2.1/31", "192.0.2.0/31"),
        ("2001:db8::1/64", "2001:db8::/64"),
        ("::1/64", "::/64"),
        ("::ffff:192.0.2.1/120", "192.0.2.0/24"),
        ("::ffff:0:0/95", "::fffe:0:0/95"),
    ],
)
def test_a_network_with_host_bits_is_an_error_that_tells_the_right_one(text, right):
    message = f"^'{re.escape(text)}' has bits set after its prefix; {re.escape(right)} is expected$"
    with pytest.raises(ValueError, match=message):
        parse_network(text)


@given(st.text("0123456789abf:./%", max_size=20) | st.text(max_size=8))
def test_what_is_taken_for_a_network_is_one(text):
    try:
        bits, start, length = parse_network(text)
    except ValueError:
        return
    network = ip_network(text)
    if network.version == 6 and bits == 32:
        assert network.network_address.ipv4_mapped == ip_address(start)
        assert network.prefixlen == length + 96
    else:
        assert (bits, start, length) == (
            network.max_prefixlen,
            int(network.network_address),
            network.prefixlen,
        )


def test_a_long_word_is_not_repeated_whole():
    with pytest.raises(ValueError, match="is not a network") as error:
        parse_network("x" * 100_000)
    assert len(str(error.value)) < 200
    # The log would escape anything else.
    assert str(error.value).isascii()


# Replies.


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("", CONNECTION_REFUSED),
        ("No mail from here", Reply(421, "4.7.0", ("No mail from here",))),
        ("421 Later", Reply(421, "4.7.0", ("Later",))),
        ("421 4.7.1 Later", Reply(421, "4.7.1", ("Later",))),
        ("4.7.1 Later", Reply(421, "4.7.1", ("Later",))),
        ("521 No", Reply(521, "5.7.0", ("No",))),
        ("521 5.7.1 No mail", Reply(521, "5.7.1", ("No mail",))),
        ("521  5.7.1  No mail", Reply(521, "5.7.1", ("No mail",))),
        ("521", Reply(521, "5.7.0", ("Connection refused",))),
        ("521 5.7.1", Reply(521, "5.7.1", ("Connection refused",))),
        ("421 4.7.0 Connection refused", CONNECTION_REFUSED),
        ("5211 spams", Reply(421, "4.7.0", ("5211 spams",))),
        ("10.0.0.1 is spam", Reply(421, "4.7.0", ("10.0.0.1 is spam",))),
    ],
)
def test_a_reply_may_begin_with_its_codes(text, reply):
    assert parse_reply(text) == reply


@pytest.mark.parametrize("code", ["400", "420", "422", "450", "500", "520", "550", "554"])
def test_a_code_that_does_not_close_the_connection_is_an_error(code):
    for text in (code, f"{code} No", f"{code} {code[0]}.7.1 No"):
        with pytest.raises(ValueError, match=f"^a connection is refused with 421 or 521, not {code}$"):
            parse_reply(text)


@pytest.mark.parametrize(
    ("text", "code", "enhanced"),
    [
        ("521 4.7.1 No", "521", "4.7.1"),
        ("421 5.7.1 No", "421", "5.7.1"),
        ("421 2.0.0", "421", "2.0.0"),
        ("5.7.1 No", "421", "5.7.1"),
    ],
)
def test_an_enhanced_code_of_another_class_is_an_error(text, code, enhanced):
    message = f"^an enhanced code beginning with {code[0]} is expected after {code}, not {enhanced}$"
    with pytest.raises(ValueError, match=message):
        parse_reply(text)


# Files.


def test_a_list_does_what_its_lines_say(read):
    table = read(
        "# Ours\n"
        "\n"
        "trust 192.0.2.0/24 # the office\n"
        "deny 203.0.113.0/24\t521 5.7.1 No\tmail  # call #5\n"
        "  allow   203.0.113.7  \r\n"
        "\t# more\r\n"
        "deny 2001:db8::/32 Ticket#5 is open\n"
        "trust 2001:db8:1::/48\n"
        "deny ::ffff:198.51.100.0/120"
    )
    assert verdict(table, "192.0.2.9") is TRUST
    assert verdict(table, "203.0.113.6") == refuse(Reply(521, "5.7.1", ("No mail",)))
    assert verdict(table, "203.0.113.7") is PASS
    assert verdict(table, "2001:db8::1") == refuse(Reply(421, "4.7.0", ("Ticket#5 is open",)))
    assert verdict(table, "2001:db8:1::1") is TRUST
    assert verdict(table, "198.51.100.1") == refuse()
    assert verdict(table, "198.51.101.1") is PASS


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n\n", b" \t\n", b"# caf\xc3\xa9 \xe2\x80\x8d\n", b"#"])
def test_a_list_may_be_empty(read, content):
    assert verdict(read(content), "192.0.2.1") is PASS


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("block 192.0.2.1", "allow, trust or deny is expected, not 'block'"),
        ("Deny 192.0.2.1", "allow, trust or deny is expected, not 'Deny'"),
        ("192.0.2.1", "allow, trust or deny is expected, not '192.0.2.1'"),
        ("\ufeffdeny 192.0.2.1", "control characters and spaces other than ordinary ones are not expected"),
        ("deny\xa0192.0.2.1", "control characters and spaces other than ordinary ones are not expected"),
        ("deny 192.0.2.1 a\x0bb", "control characters and spaces other than ordinary ones are not expected"),
        (
            "deny 192.0.2.1 a\u2028b",
            "control characters and spaces other than ordinary ones are not expected",
        ),
        ("deny", "deny needs a network, such as deny 192.0.2.0/24"),
        ("trust # 192.0.2.1", "trust needs a network, such as trust 192.0.2.0/24"),
        ("allow 192.0.2.1 welcome", "nothing but a comment is expected after the network of allow"),
        ("trust 192.0.2.1 192.0.2.2", "nothing but a comment is expected after the network of trust"),
        (
            "deny 192.0.2.1#x",
            "'192.0.2.1#x' is not a network; one such as 192.0.2.0/24, 192.0.2.1 or 2001:db8::/32 is expected",
        ),
        ("deny 192.0.2.1/24", "'192.0.2.1/24' has bits set after its prefix; 192.0.2.0/24 is expected"),
        ("deny 192.0.2.1 550 No", "a connection is refused with 421 or 521, not 550"),
        ("# a\0b", "neither NUL nor a CR within a line is expected"),
        ("# a\rdeny 192.0.2.1", "neither NUL nor a CR within a line is expected"),
        (b"# \xff", "UTF-8 is expected"),
        (b"deny 192.0.2.1 \xc0\x80", "UTF-8 is expected"),
        ("#" * (MAX_LINE_OCTETS + 1), "at most 4096 octets are expected in a line"),
    ],
)
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\ntrust 192.0.2.1\n"])
def test_a_wrong_line_is_named_with_what_is_expected(read, tmp_path, line, problem, end):
    octets = line if isinstance(line, bytes) else line.encode()
    with pytest.raises(ValueError, match=r"line 3") as error:
        read(b"deny 192.0.2.0/25\n\n" + octets + end)
    assert str(error.value) == f"{tmp_path / 'list'} line 3: {problem}"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=60)
    | st.lists(
        st.sampled_from(
            [b"deny", b"allow", b"trust", b" ", b"\t", b"\n", b"\r", b"#", b"1.2.3.4", b"::/0", b"/8", b"521"]
        )
    ).map(b"".join)
)
def test_any_file_is_read_or_a_line_of_it_named(read, content):
    try:
        table = read(content)
    except ValueError as error:
        assert type(error) is ValueError
        number = re.search(r"/list line ([0-9]+): [^\n\0]+$", str(error))
        assert number is not None, error
        assert 1 <= int(number[1]) <= content.count(b"\n") + 1
    else:
        assert isinstance(verdict(table, "1.2.3.4"), Verdict)


def test_a_line_of_any_length_costs_no_memory(tmp_path):
    path = tmp_path / "list"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="line 1: at most 4096 octets are expected in a line"):
            read_table(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_the_longest_line_may_have_its_line_end(read):
    line = b"deny 192.0.2.1 #"
    line = line.ljust(MAX_LINE_OCTETS - 1, b"x") + b"\n"
    assert verdict(read(line * 2), "192.0.2.1") == refuse()


@pytest.mark.parametrize(
    ("name", "problem"), [("missing", "No such file or directory"), ("", "Is a directory")]
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, problem):
    with pytest.raises(ValueError, match="cannot be read") as error:
        read_table(tmp_path / name)
    assert str(error.value) == f"{tmp_path / name} cannot be read: {problem}"


def test_a_pipe_would_be_waited_for_and_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"pipe cannot be read: Not a regular file$"):
        read_table(tmp_path / "pipe")


def test_a_byte_order_mark_at_the_start_is_nothing(read):
    assert verdict(read(b"\xef\xbb\xbfdeny 192.0.2.1\n"), "192.0.2.1") == refuse()


def test_lines_with_one_reply_share_it(read):
    table = read("".join(f"deny 192.0.2.{host} 521 5.7.1 No\n" for host in range(0, 256, 2)))
    assert verdict(table, "192.0.2.0").reply is verdict(table, "192.0.2.254").reply


@pytest.mark.parametrize(
    ("address", "rule"),
    [
        ("192.0.2.1", "192.0.2.0/24"),
        ("192.0.2.77", "192.0.2.77/32"),
        ("192.0.3.9", "192.0.3.0/24"),
        ("203.0.113.1", "0.0.0.0/0"),
        ("::1", "::/64"),
        ("2001:db8::5", "2001:db8::/32"),
        ("2001:db8::7", "2001:db8::7/128"),
        ("192.0.2.78", ""),
        ("::2", ""),
        ("2001:db9::", ""),
    ],
)
def test_a_refusal_names_the_network_that_led_to_it(read, address, rule):
    table = read(
        "deny 0.0.0.0/0\ndeny 192.0.2.0/24\ndeny 192.0.3.0/24\ndeny 192.0.2.77 521 Go\nallow 192.0.2.78\n"
        "deny ::/64\ntrust ::2\ndeny 2001:db8::/32\ndeny 2001:db8::7\n"
    )
    assert verdict(table, address).rule == rule


def test_reading_is_interrupted(tmp_path):
    path = tmp_path / "list"
    path.write_text("# only a comment\n" * 10_000)
    rests = []
    read_table(path, lambda: rests.append(1))
    assert len(rests) > 10_000 // 500


def test_the_example_of_the_reference_is_a_list(read):
    (example,) = re.findall(r"```text\n(# /etc/smtpguard/networks\n.*?)```", REFERENCE.read_text(), re.DOTALL)
    table = read(example)
    said = {
        "198.51.100.25": TRUST,
        "203.0.113.9": refuse(),
        "203.0.113.25": PASS,
        "192.0.2.200": refuse(Reply(521, "5.7.1", ("No mail from dynamic addresses",))),
        "2001:db8:bad::1": refuse(Reply(421, "4.7.0", ("Too much spam from your network",))),
        "2001:db8::1": PASS,
    }
    assert {address: verdict(table, address) for address in said} == said
