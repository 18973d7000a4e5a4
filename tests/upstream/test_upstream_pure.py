"""What is said to an upstream server, and what its answers mean: tables."""

from __future__ import annotations

import os
from ipaddress import ip_address

import attrs
import pytest
from certificates import AUTHORITY
from hypothesis import given
from hypothesis import strategies as st

from twisted_smtpguard import replies
from twisted_smtpguard.delivery.relaysink import DotStuffer
from twisted_smtpguard.interfaces import Client, Path, Peer, Refused
from twisted_smtpguard.replies import Reply
from twisted_smtpguard.upstream import announcing, login, replyparser
from twisted_smtpguard.upstream.hello import NO_EXTENSIONS, Hello, parse_hello
from twisted_smtpguard.upstream.mailcommands import mail_command, rcpt_command
from twisted_smtpguard.upstream.parameters import UpstreamOptions, parse_upstream
from twisted_smtpguard.upstream.replyparser import (
    MAX_LINE_OCTETS,
    MAX_REPLY_LINES,
    BadReply,
    ReplyParser,
    UpstreamReply,
    for_client,
)
from twisted_smtpguard.upstream.verdicts import MAX_SHOWN, combine, is_mixed

# Replies.

REPLIES = [
    (b"250 Ok\r\n", 250, ("Ok",)),
    (b"250\r\n", 250, ("",)),
    (b"250 \r\n", 250, ("",)),
    (b"250-one\r\n250-two\r\n250 three\r\n", 250, ("one", "two", "three")),
    (b"250-\r\n250\r\n", 250, ("", "")),
    (b"554 5.7.1 lone LF\n", 554, ("5.7.1 lone LF",)),
    (b"550 na\xefve\r\n", 550, ("na\\xefve",)),
    ("550 naïve\r\n".encode(), 550, ("naïve",)),
]


@pytest.mark.parametrize(("octets", "code", "lines"), REPLIES)
def test_a_reply_is_understood_however_it_is_split(octets: bytes, code: int, lines: tuple[str, ...]) -> None:
    whole = [UpstreamReply(code, lines)]
    assert list(ReplyParser().feed(octets)) == whole
    for split in range(len(octets)):
        parser = ReplyParser()
        assert [*parser.feed(octets[:split]), *parser.feed(octets[split:])] == whole
        assert not parser.amid_reply
    parser = ReplyParser()
    assert [reply for octet in octets for reply in parser.feed(bytes([octet]))] == whole


@pytest.mark.parametrize(
    "octets",
    [
        b"\r\n",
        b"25\r\n",
        b"2500 x\r\n",
        b"150 x\r\n",
        b"650 x\r\n",
        b"250x\r\n",
        b"ok\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"250-x\r\n251 x\r\n",
        b"2" * (MAX_LINE_OCTETS + 1),
        b"250 " + b"x" * MAX_LINE_OCTETS + b"\r\n",
        b"250-x\r\n" * MAX_REPLY_LINES,
        b"250-" + b"x" * 2000 + b"\r\n" + (b"250-" + b"x" * 2000 + b"\r\n") * 9,
    ],
)
def test_what_is_no_reply_or_never_ends_is_said_so(octets: bytes) -> None:
    with pytest.raises(BadReply):
        list(ReplyParser().feed(octets))
    parser = ReplyParser()
    with pytest.raises(BadReply):
        for octet in octets:
            list(parser.feed(bytes([octet])))


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_whatever_comes_is_replies_or_bad_and_little_is_held(pieces: list[bytes]) -> None:
    parser = ReplyParser()
    try:
        for piece in pieces:
            for reply in parser.feed(piece):
                assert 200 <= reply.code < 600
                assert all(len(line) <= 512 for line in for_client(reply).wire.decode("ascii").split("\r\n"))
    except BadReply:
        pass
    assert len(parser._partial) <= MAX_LINE_OCTETS + 300


def test_a_server_that_says_something_new_each_time_is_not_remembered_without_end() -> None:
    for octets in (20, 1000):
        for number in range(1000):
            line = b"250 %d %b\r\n" % (number, b"x" * octets)
            assert ReplyParser().whole(line) == (next(ReplyParser().feed(line)) if octets < 100 else None)
    assert replyparser._usual.cache_info().currsize <= 256


@pytest.mark.parametrize(
    ("code", "lines", "reply"),
    [
        (250, ("2.1.5 Ok",), Reply(250, "2.1.5", ("Ok",))),
        (250, ("Ok",), Reply(250, "", ("Ok",))),
        (251, ("2.1.5 will forward",), Reply(251, "2.1.5", ("will forward",))),
        (550, ("5.1.1 a", "5.1.1 b", "c"), Reply(550, "5.1.1", ("a", "b", "c"))),
        (550, ("5.1.1",), Reply(550, "5.1.1", ("",))),
        (421, ("4.3.2 bye",), Reply(451, "4.3.2", ("bye",))),
        (521, ("5.3.2 none",), Reply(554, "5.3.2", ("none",))),
        (451, ("5.1.1 odd",), Reply(451, "", ("odd",))),
        (550, ("5.1.1.1 x",), Reply(550, "", ("5.1.1.1 x",))),
        (599, ("5.7.1 no",), Reply(550, "5.7.1", ("no",))),
        (460, ("4.7.1 later",), Reply(450, "4.7.1", ("later",))),
        (479, ("later",), Reply(450, "", ("later",))),
        (290, ("2.1.5 yes",), Reply(250, "2.1.5", ("yes",))),
        (559, ("5.7.1 no",), Reply(559, "5.7.1", ("no",))),
    ],
)
def test_a_verdict_keeps_its_code_and_text_but_never_ends_our_session(
    code: int, lines: tuple[str, ...], reply: Reply
) -> None:
    assert for_client(UpstreamReply(code, lines)) == reply


@pytest.mark.parametrize("code", range(200, 600))
def test_every_2xx_accepts_but_the_221_of_a_server_that_hangs_up(code: int) -> None:
    assert UpstreamReply(code, ("",)).positive == (code < 300 and code != 221)


# EHLO.


def test_what_a_server_offers() -> None:
    hello = parse_hello(
        UpstreamReply(
            250,
            (
                "mx SIZE greets you",
                "size 1000",
                "8bitmime",
                "CHUNKING",
                "BINARYMIME",
                "DSN",
                "AUTH=LOGIN",
                "AUTH PLAIN LOGIN",
                "XCLIENT NAME ADDR",
                "",
            ),
        )
    )
    assert hello.size == 1000
    assert hello.extensions == {"8BITMIME", "BINARYMIME", "DSN"}
    assert "CHUNKING" in hello
    assert hello.words("XCLIENT") == {"NAME", "ADDR"}
    assert hello.words("AUTH") == {"LOGIN"}
    assert hello.words("STARTTLS") == frozenset()


@pytest.mark.parametrize(
    ("keywords", "size"),
    [
        ({}, 0),
        ({"SIZE": ""}, 0),
        ({"SIZE": "0"}, 0),
        ({"SIZE": "x"}, 0),
        ({"SIZE": "9" * 21}, 0),
        ({"SIZE": "7"}, 7),
    ],
)
def test_a_size_that_is_none_is_no_limit(keywords: dict[str, str], size: int) -> None:
    assert Hello(keywords).size == size


def test_binarymime_needs_chunking() -> None:
    assert Hello({"BINARYMIME": "", "8BITMIME": ""}).extensions == {"8BITMIME"}


# MAIL and RCPT.

FULL = parse_hello(
    UpstreamReply(250, ("mx", "SIZE", "8BITMIME", "SMTPUTF8", "DSN", "CHUNKING", "BINARYMIME"))
)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (Path("", {}), b"MAIL FROM:<>"),
        (
            Path("a@b.example", {"SIZE": "5", "BODY": "8BITMIME"}),
            b"MAIL FROM:<a@b.example> SIZE=5 BODY=8BITMIME",
        ),
        (Path("a@b", {"RET": "HDRS", "ENVID": "x+2By"}), b"MAIL FROM:<a@b> RET=HDRS ENVID=x+2By"),
        (Path("jörg@b", {"SMTPUTF8": None}), "MAIL FROM:<jörg@b> SMTPUTF8".encode()),
        (Path("a@b", {"AUTH": "<>", "SIZE": "5"}), b"MAIL FROM:<a@b> SIZE=5"),
        (Path("a@b", {"BODY": "BINARYMIME"}), b"MAIL FROM:<a@b> BODY=BINARYMIME"),
    ],
)
def test_mail_is_passed_on_with_its_parameters(path: Path, line: bytes) -> None:
    assert mail_command(path, FULL) == line


def test_rcpt_is_passed_on_with_its_parameters() -> None:
    path = Path("a@b", {"NOTIFY": "SUCCESS,DELAY", "ORCPT": "rfc822;A+40b"})
    assert rcpt_command(path, FULL) == b"RCPT TO:<a@b> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;A+40b"


def test_an_original_recipient_goes_on_as_it_is_or_in_ascii_where_the_server_has_no_smtputf8() -> None:
    path = Path("a@b", {"ORCPT": "utf-8;j\u00f6rg\U0001f600+40b\\x{2B}"})
    assert rcpt_command(path, FULL) == "RCPT TO:<a@b> ORCPT=utf-8;j\u00f6rg\U0001f600+40b\\x{2B}".encode()
    without = parse_hello(UpstreamReply(250, ("mx", "DSN")))
    assert rcpt_command(path, without) == b"RCPT TO:<a@b> ORCPT=utf-8;j\\x{F6}rg\\x{1F600}+40b\\x{2B}"


def test_what_says_nothing_new_is_left_out_where_the_server_does_not_know_it() -> None:
    assert mail_command(Path("a@b", {"SIZE": "5", "BODY": "7BIT"}), NO_EXTENSIONS) == b"MAIL FROM:<a@b>"


@pytest.mark.parametrize(
    "parameters",
    [
        {"BODY": "8BITMIME"},
        {"BODY": "BINARYMIME"},
        {"SMTPUTF8": None},
        {"RET": "FULL"},
        {"ENVID": "x"},
        {"X": "y"},
    ],
)
def test_what_the_server_offers_no_longer_is_put_off(parameters: dict[str, str | None]) -> None:
    with pytest.raises(Refused) as refused:
        mail_command(Path("a@b", parameters), NO_EXTENSIONS)
    assert refused.value.reply is replies.UPSTREAM_CHANGED


# Message data.


def stuffed(pieces: list[bytes]) -> bytes:
    stuffer = DotStuffer()
    return b"".join([stuffer.encode(piece) for piece in pieces]) + stuffer.end()


@pytest.mark.parametrize(
    ("message", "sent"),
    [
        (b"", b".\r\n"),
        (b"a\r\n", b"a\r\n.\r\n"),
        (b"a", b"a\r\n.\r\n"),
        (b".\r\n", b"..\r\n.\r\n"),
        (b"..\r\n.a\r\n\r\n.\r\n", b"...\r\n..a\r\n\r\n..\r\n.\r\n"),
        (b"a.b\r\n", b"a.b\r\n.\r\n"),
        (b"a\n.\nb\r\n", b"a\n..\nb\r\n.\r\n"),
        (b"a\r", b"a\r\r\n.\r\n"),
        (b"a\n", b"a\n\r\n.\r\n"),
    ],
)
def test_a_message_gets_its_dots_however_it_is_split(message: bytes, sent: bytes) -> None:
    assert stuffed([message]) == sent
    for split in range(len(message)):
        assert stuffed([message[:split], message[split:]]) == sent
    assert stuffed([bytes([octet]) for octet in message]) == sent


@given(st.lists(st.text(alphabet=".\r\nx", max_size=9), max_size=9))
def test_the_end_of_a_message_is_at_its_end_only_and_the_message_is_unchanged(pieces: list[str]) -> None:
    message = "".join(pieces).encode()
    sent = b"\r\n" + stuffed([piece.encode() for piece in pieces])
    for end in (b"\r\n.\r\n", b"\n.\n", b"\n.\r\n", b"\r\n.\n"):
        assert end not in sent.removesuffix(b"\r\n.\r\n") + b"\r\n"
    assert sent.removesuffix(b".\r\n").replace(b"\n..", b"\n.")[2:] in (message, message + b"\r\n")


# Who the client is.

PEER = Peer(ip_address("192.0.2.1"), 4711, ip_address("198.51.100.1"), 25)
PEER6 = Peer(ip_address("2001:db8::1"), 4711, ip_address("2001:db8::25"), 25)
UNIX = Peer(None, None, None, None)
CLIENT = Client(PEER, "1-1", "client.example", "ESMTP", None, trusted=False)
ALL = frozenset({"NAME", "REVERSE_NAME", "ADDR", "PORT", "PROTO", "HELO", "LOGIN", "DESTADDR", "DESTPORT"})


@pytest.mark.parametrize(
    ("client", "offered", "commands"),
    [
        (
            CLIENT,
            ALL,
            [
                "XCLIENT NAME=[UNAVAILABLE] REVERSE_NAME=[UNAVAILABLE] ADDR=192.0.2.1 PORT=4711 PROTO=ESMTP "
                "HELO=client.example LOGIN=[UNAVAILABLE] DESTADDR=198.51.100.1 DESTPORT=25"
            ],
        ),
        (CLIENT, {"ADDR"}, ["XCLIENT ADDR=192.0.2.1"]),
        (attrs.evolve(CLIENT, peer=PEER6), {"ADDR"}, ["XCLIENT ADDR=IPV6:2001:db8::1"]),
        (
            attrs.evolve(CLIENT, peer=UNIX),
            {"ADDR", "PORT"},
            ["XCLIENT ADDR=[UNAVAILABLE] PORT=[UNAVAILABLE]"],
        ),
        (attrs.evolve(CLIENT, protocol="SMTP"), {"PROTO"}, ["XCLIENT PROTO=SMTP"]),
        (attrs.evolve(CLIENT, protocol="UTF8SMTPS"), {"PROTO"}, ["XCLIENT PROTO=ESMTP"]),
        (attrs.evolve(CLIENT, helo="a=b+c"), {"HELO"}, ["XCLIENT HELO=a+3Db+2Bc"]),
        (attrs.evolve(CLIENT, helo="=+" * 43), {"HELO"}, ["XCLIENT HELO=[UNAVAILABLE]"]),
        (attrs.evolve(CLIENT, helo="=" * 85), {"HELO"}, ["XCLIENT HELO=" + "+3D" * 85]),
        (attrs.evolve(CLIENT, identity="jörg x"), {"LOGIN"}, ["XCLIENT LOGIN=j+C3+B6rg+20x"]),
        (
            attrs.evolve(CLIENT, helo="h" * 255, identity="i" * 255),
            {"ADDR", "HELO", "LOGIN"},
            [f"XCLIENT ADDR=192.0.2.1 HELO=[UNAVAILABLE] LOGIN={'i' * 255}"],
        ),
        (
            attrs.evolve(CLIENT, helo="=" * 255, identity="+" * 170),
            {"ADDR", "HELO", "LOGIN"},
            ["XCLIENT ADDR=192.0.2.1 HELO=[UNAVAILABLE] LOGIN=[UNAVAILABLE]"],
        ),
        (CLIENT, {"SOMETHING"}, []),
    ],
)
def test_xclient_tells_what_the_server_asks_for(
    client: Client, offered: set[str], commands: list[str]
) -> None:
    assert announcing.xclient(client, offered) == commands


def test_xforward_tells_of_the_session_too() -> None:
    assert announcing.xforward(CLIENT, {"ADDR", "IDENT", "SOURCE"}) == [
        "XFORWARD ADDR=192.0.2.1 IDENT=1-1 SOURCE=REMOTE"
    ]


def test_xforward_may_take_several_lines() -> None:
    client = attrs.evolve(CLIENT, helo="h" * 255, identity="i" * 255)
    assert announcing.xforward(client, {"HELO", "LOGIN"}) == [
        f"XFORWARD HELO={'h' * 255}",
        f"XFORWARD LOGIN={'i' * 255}",
    ]


V2 = b"\r\n\r\n\x00\r\nQUIT\n"


@pytest.mark.parametrize(
    ("peer", "first", "second"),
    [
        (
            PEER,
            b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 25\r\n",
            V2 + b"\x21\x11\x00\x0c\xc0\x00\x02\x01\xc6\x33\x64\x01\x12\x67\x00\x19",
        ),
        (
            PEER6,
            b"PROXY TCP6 2001:db8::1 2001:db8::25 4711 25\r\n",
            V2
            + b"\x21\x21\x00\x24"
            + PEER6.address.packed
            + PEER6.local_address.packed
            + b"\x12\x67\x00\x19",  # type: ignore[union-attr]
        ),
        (
            attrs.evolve(PEER, local_address=None, local_port=None),
            b"PROXY TCP4 192.0.2.1 0.0.0.0 4711 0\r\n",
            V2 + b"\x21\x11\x00\x0c\xc0\x00\x02\x01\x00\x00\x00\x00\x12\x67\x00\x00",
        ),
        (UNIX, b"PROXY UNKNOWN\r\n", V2 + b"\x20\x00\x00\x00"),
        (None, b"PROXY UNKNOWN\r\n", V2 + b"\x20\x00\x00\x00"),
    ],
)
def test_a_proxy_header_of_either_version(peer: Peer | None, first: bytes, second: bytes) -> None:
    assert announcing.proxy_v1(peer) == first
    assert announcing.proxy_v2(peer) == second


def test_a_link_local_address_is_told_of_without_its_scope() -> None:
    peer = Peer(ip_address("fe80::1%eth0"), 1, ip_address("fe80::2"), 2)
    assert announcing.proxy_v1(peer) == b"PROXY TCP6 fe80::1 fe80::2 1 2\r\n"


# AUTH.


@pytest.mark.parametrize(
    ("mechanisms", "lines"),
    [
        ({"PLAIN", "LOGIN"}, ["AUTH PLAIN AHUAcDrDvA=="]),
        ({"LOGIN"}, ["AUTH LOGIN", "dQ==", "cDrDvA=="]),
        ({"CRAM-MD5"}, None),
    ],
)
def test_how_we_log_in(mechanisms: set[str], lines: list[str] | None) -> None:
    assert login.dialogue(login.Credentials("u", "p:ü"), mechanisms) == lines


@pytest.mark.parametrize("text", [b"", b"user\n", b":secret\n", b"\xff:x", b"u:\0"])
def test_a_file_without_user_and_password_is_named(tmp_path, text) -> None:
    path = tmp_path / "secret"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=f"^{path} "):
        login.read_credentials(str(path))


@pytest.mark.parametrize("password", ["with:colon", " blank ", "ends in CR\r", "pä"])
def test_all_after_the_first_colon_is_the_password(tmp_path, password: str) -> None:
    path = tmp_path / "secret"
    for mark in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(mark + f"user:{password}\r\nmore\n".encode())
        assert login.read_credentials(str(path)) == login.Credentials("user", password)


def test_a_password_is_not_waited_for(tmp_path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(ValueError, match=f"^{path} cannot be read: Not a regular file$"):
        login.read_credentials(str(path))


# LMTP.

OK = Reply(250, "2.0.0", ("Saved",))
FULL_BOX = Reply(452, "4.2.2", ("Full",))
GONE = Reply(550, "5.1.1", ("Gone",))
GONE_TOO = Reply(552, "5.2.2", ("Over quota",))


@pytest.mark.parametrize(
    ("verdicts", "code", "text", "mixed"),
    [
        ([OK], 250, "250 2.0.0 Saved", False),
        ([FULL_BOX], 452, "452 4.2.2 Full", False),
        ([GONE], 550, "550 5.1.1 Gone", False),
        ([OK, OK], 250, "250 2.0.0 Delivered to 2 recipients", False),
        ([GONE, GONE], 550, "550 5.1.1 Gone", False),
        ([FULL_BOX, FULL_BOX], 452, "452 4.2.2 Full", False),
        (
            [GONE, GONE_TOO],
            550,
            "550-5.1.1 <0@x> 550 5.1.1 Gone\n550 5.1.1 <1@x> 552 5.2.2 Over quota",
            False,
        ),
        ([FULL_BOX, GONE], 451, "451-4.3.0 <0@x> 452 4.2.2 Full\n451 4.3.0 <1@x> 550 5.1.1 Gone", False),
        ([OK, FULL_BOX], 451, "451-4.3.0 <1@x> 452 4.2.2 Full\n451 4.3.0 <0@x> has the message", True),
        ([OK, GONE], 554, "554-5.3.0 <1@x> 550 5.1.1 Gone\n554 5.3.0 <0@x> has the message", True),
        (
            [OK, GONE, FULL_BOX],
            451,
            "451-4.3.0 <1@x> 550 5.1.1 Gone\n451-4.3.0 <2@x> 452 4.2.2 Full\n451 4.3.0 <0@x> has the message",
            True,
        ),
    ],
)
def test_verdicts_of_several_recipients_become_one(
    verdicts: list[Reply], code: int, text: str, mixed: bool
) -> None:
    named = [(f"{number}@x", verdict) for number, verdict in enumerate(verdicts)]
    assert combine(named).code == code
    assert combine(named).wire.decode() == text.replace("\n", "\r\n") + "\r\n"
    assert is_mixed(named) is mixed


def test_a_hundred_verdicts_do_not_fill_the_reply() -> None:
    named = [(f"{number}@x", GONE if number else OK) for number in range(100)]
    assert len(combine(named).lines) == MAX_SHOWN + 1
    assert combine(named).lines[-1] == "and 80 more recipients"


@given(st.lists(st.sampled_from([OK, FULL_BOX, GONE, GONE_TOO]), min_size=1, max_size=9))
def test_250_means_all_recipients_and_5xx_that_none_is_to_be_tried_again(verdicts: list[Reply]) -> None:
    codes = [verdict.code for verdict in verdicts]
    folded = combine([("a@x", verdict) for verdict in verdicts]).code
    assert (folded < 300) == all(code < 300 for code in codes)
    assert (400 <= folded < 500) == any(400 <= code < 500 for code in codes)


# Options.


def test_every_key_has_its_value(tmp_path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("guard:pass:word\n")
    upstream = parse_upstream(
        "lmtp",
        f"tcp:mx.example.org:24,tls=required,tls-name=mx,tls-ca={AUTHORITY},auth={secret},announce=proxy-v1,helo=me,"
        "connections=5,messages=0,idle=1m,wait=2,connect=3,timeout=4,verdict=5,recipients=1",
    )
    assert upstream.endpoint == "tcp:mx.example.org:24"
    assert upstream.options == UpstreamOptions(
        tls="required",
        tls_name="mx",
        tls_ca=str(AUTHORITY),
        auth=login.Credentials("guard", "pass:word"),
        announce="proxy-v1",
        helo="me",
        connections=5,
        messages=0,
        idle=60,
        wait=2,
        connect=3,
        timeout=4,
        verdict=5,
        recipients=1,
    )
    assert "pass:word" not in repr(upstream)


@pytest.mark.parametrize(
    ("endpoint", "host"),
    [
        ("tcp:10.0.0.5:25", "10.0.0.5"),
        ("tcp:mx.example:25", "mx.example"),
        ("tcp:host=mx.example:port=25", "mx.example"),
        ("tls:hostname=mx.example:port=465", "mx.example"),
        (r"tcp:2001\:db8\:\:1:25", "2001:db8::1"),
        ("unix:/run/mta", ""),
    ],
)
def test_the_host_that_a_certificate_has_to_name(endpoint: str, host: str) -> None:
    assert parse_upstream("smtp", endpoint).host == host


def test_a_comma_in_an_endpoint_is_escaped() -> None:
    assert parse_upstream("smtp", r"unix:/run/a\,b,helo=x").endpoint == "unix:/run/a,b"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "smtp needs a client endpoint, such as smtp:tcp:127.0.0.1:25"),
        ("tcp:h:1,colour=red", "'colour=red' is no key=value of smtp; known are tls, tls-name, "),
        ("tcp:h:1,tls", "'tls' is no key=value of smtp"),
        ("tcp:h:1,tls=off,tls=off", "tls is given twice"),
        ("tcp:h:1,tls=yes", "tls: one of off, opportunistic, required is expected, not 'yes'"),
        ("tcp:h:1,connections=0", "connections must be more than 0"),
        ("tcp:h:1,timeout=x", "timeout: a time such as 300, 1.5 or 5m is expected, not 'x'"),
        ("tcp:h:1,tls-ca=/nowhere", "tls-ca: /nowhere: No such file or directory"),
        ("tcp:h:1,auth=/nowhere", "auth: /nowhere cannot be read: No such file or directory"),
        ("unix:/x,tls=required", "tls=required needs tls-name="),
        ("tls:h:1,tls=required", "tls= is for STARTTLS, and the endpoint uses TLS already"),
        ("TLS:h:1,tls=required", "tls= is for STARTTLS, and the endpoint uses TLS already"),
        ("ssl:h:1", "ssl: endpoints need hostname=, since any certificate is accepted without it"),
        ("ssl:h:1:hostname=", "ssl: endpoints need hostname="),
        (r"ssl:h:1:caCertsDir=/x\:hostname=h", "ssl: endpoints need hostname="),
        ("tcp:h:1,helo=", "helo: one word of printable ASCII is expected, not ''"),
        ("tcp:h:1,helo=a b", "helo: one word of printable ASCII is expected, not 'a b'"),
        ("tcp:h:1,helo=a\r\nRSET", "helo: one word of printable ASCII is expected, not 'a\\r\\nRSET'"),
        ("tcp:h:1,recipients=1", "recipients= is for lmtp: only"),
        (
            "tls:h:1,tls-name=x",
            "tls-name= is for STARTTLS: an endpoint with TLS names the expected host",
        ),
        (
            "tls:h:1,tls-ca=AUTHORITY",
            "tls-ca= is for STARTTLS: an endpoint with TLS names the certificates",
        ),
        ("tcp:h:1,tls-name=x", "tls-ca= and tls-name= need tls=required"),
        ("tcp:h:1,tls=opportunistic,tls-ca=AUTHORITY", "tls-ca= and tls-name= need tls=required"),
        ("tls:h:1,announce=proxy", "announce=proxy needs an endpoint without TLS"),
        ("ssl:h:1:hostname=h,announce=proxy-v1", "announce=proxy-v1 needs an endpoint without TLS"),
    ],
)
def test_what_is_wrong_is_one_sentence(text: str, problem: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_upstream("smtp", text.replace("AUTHORITY", str(AUTHORITY)))
    assert str(error.value).startswith(problem)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("nothing", "there is no certificate in PEM form"),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "a certificate in it is damaged",
        ),
    ],
)
def test_a_file_without_certificates_is_a_mistake_at_the_start(tmp_path, text, problem) -> None:
    path = tmp_path / "authorities.pem"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^tls-ca: {path}: {problem}$"):
        parse_upstream("smtp", f"tcp:h:1,tls=required,tls-ca={path}")


def test_no_password_in_clear_and_none_to_just_anybody(tmp_path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("u:p")
    with pytest.raises(ValueError, match=r"auth= needs tls=required"):
        parse_upstream("smtp", f"tcp:h:1,auth={secret},tls=opportunistic")
    with pytest.raises(ValueError, match=r"auth= and announce=xclient exclude each other"):
        parse_upstream("smtp", f"tcp:h:1,auth={secret},tls=required,announce=xclient")
    with pytest.raises(ValueError, match=r"^ssl: endpoints need hostname="):
        parse_upstream("smtp", f"SSL:h:1,auth={secret}")
    for endpoint in ("unix:/x", "tls:h:1", "ssl:h:1:hostname=h", "tcp:h:1,tls=required"):
        assert parse_upstream("smtp", f"{endpoint},auth={secret}").options.auth
