"""The attributes of a request, and that no client can forge one."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_smtpguard import Path, Peer
from twisted_smtpguard.policies.attributes import attributes, question
from twisted_smtpguard.policyvalues import PolicyRequest, PolicyVerdict
from twisted_smtpguard.testing import FakePolicy, Guard

PEER = Peer(ip_address("192.0.2.1"), 4711, ip_address("192.0.2.25"), 25)
REQUEST = PolicyRequest(stage="rcpt", peer=PEER, instance="1.2", sender=Path("a@b.example", {}))


def of(**changes: Any) -> dict[str, str]:
    return dict(attributes(attrs.evolve(REQUEST, **changes)))


def test_the_attributes_and_their_order_are_those_of_postfix_3_7() -> None:
    assert list(of()) == [
        "request",
        "protocol_state",
        "protocol_name",
        "client_address",
        "client_name",
        "client_port",
        "reverse_client_name",
        "server_address",
        "server_port",
        "helo_name",
        "sender",
        "recipient",
        "recipient_count",
        "queue_id",
        "instance",
        "size",
        "etrn_domain",
        "stress",
        "sasl_method",
        "sasl_username",
        "sasl_sender",
        "ccert_subject",
        "ccert_issuer",
        "ccert_fingerprint",
        "ccert_pubkey_fingerprint",
        "encryption_protocol",
        "encryption_cipher",
        "encryption_keysize",
        "policy_context",
    ]


@pytest.mark.parametrize(
    ("changes", "name", "value"),
    [
        ({"stage": "connect"}, "protocol_state", "CONNECT"),
        ({"stage": "helo"}, "protocol_state", "HELO"),
        ({"stage": "helo", "by_ehlo": True}, "protocol_state", "EHLO"),
        ({"stage": "end-of-data"}, "protocol_state", "END-OF-MESSAGE"),
        ({"esmtp": True}, "protocol_name", "ESMTP"),
        ({"recipients": 3}, "recipient_count", "0"),
        ({"stage": "data", "recipients": 3}, "recipient_count", "3"),
        ({"octets": 17}, "size", "17"),
        ({"stress": True}, "stress", "yes"),
        ({"tls": "TLSv1.3 TLS_AES_256_GCM_SHA384"}, "encryption_protocol", "TLSv1.3"),
        ({"tls": "TLSv1.3 TLS_AES_256_GCM_SHA384"}, "encryption_cipher", "TLS_AES_256_GCM_SHA384"),
        ({"tls_bits": 256}, "encryption_keysize", "256"),
        ({"identity": "us=er"}, "sasl_username", "us=er"),
        ({"peer": Peer(None, None, None, None)}, "client_address", ""),
        ({"peer": Peer(ip_address("2001:db8::1"), 1, None, None)}, "client_address", "2001:db8::1"),
        ({"sender": Path("", {})}, "sender", ""),
        ({"sender": Path('"a b"@c.example', {})}, "sender", "a b@c.example"),
        ({"sender": Path(r'"a\"\\b=c"@c.example', {})}, "sender", r'a"\b=c@c.example'),
        ({"sender": Path('"a@b"@c.example', {})}, "sender", "a@b@c.example"),
        ({"recipient": Path("Postmaster", {})}, "recipient", "Postmaster"),
        ({"recipient": Path("grün@bücher.example", {})}, "recipient", "grün@bücher.example"),
        (
            {"identity": "x", "sender": Path("a@b", {"AUTH": "e+3Dmc2@example.com"})},
            "sasl_sender",
            "e=mc2@example.com",
        ),
        ({"identity": None, "sender": Path("a@b", {"AUTH": "x@example.com"})}, "sasl_sender", ""),
    ],
)
def test_an_attribute_has_the_form_of_postfix(changes: dict[str, Any], name: str, value: str) -> None:
    assert of(**changes)[name] == value


_ANY = st.text(st.characters(codec="utf-8", exclude_categories=()))


@given(_ANY, _ANY, _ANY, _ANY)
def test_no_value_ends_its_line_or_begins_another(helo: str, sender: str, recipient: str, user: str) -> None:
    octets = question(
        attrs.evolve(
            REQUEST,
            helo=helo,
            sender=Path(sender, {"AUTH": "+0A+0D+00"}),
            recipient=Path(recipient, {}),
            identity=user,
        )
    )
    lines = octets.removesuffix(b"\n\n").split(b"\n")
    assert octets.endswith(b"\n\n")
    assert [line.split(b"=", 1)[0].decode() for line in lines] == list(of())


def test_a_surrogate_is_replaced() -> None:
    assert b"helo_name=x?\n" in question(attrs.evolve(REQUEST, helo="x\ud800"))


@pytest.mark.parametrize(
    "lines",
    [
        ["EHLO x=y", 'MAIL FROM:<"a=b c\\"d"@example.org>', 'RCPT TO:<"sasl_username=root"@example.org>'],
        ["HELO \x7f", "HELO [x]action=OK", "MAIL FROM:<a=b@example.org>", "RCPT TO:<=@example.org>"],
        ["EHLO é", "EHLO x", "MAIL FROM:<grün@example.org> SMTPUTF8", "RCPT TO:<\u2028x@example.org>"],
        ["EHLO x", 'MAIL FROM:<"\\\tx"@example.org>', 'RCPT TO:<"request=x"@example.org>'],
        ["EHLO x", "MAIL FROM:<a@b.c>\nhelo_name=forged", "RCPT TO:<a\0b@c.d>", "RCPT TO:<a\rsender=x@c.d>"],
    ],
)
def test_a_hostile_client_forges_nothing(lines: list[str]) -> None:
    stages = ("connect", "helo", "mail", "rcpt", "data", "end-of-data")
    policy = FakePolicy(PolicyVerdict.dunno(), *stages)
    client = Guard(policies=[policy]).connect()
    for line in [*lines, "DATA", "x: y\n", "."]:
        client.send(f"{line}\r\n".encode())
    assert policy.requests
    for request in policy.requests:
        rows = question(request).removesuffix(b"\n\n").split(b"\n")
        assert [row.split(b"=", 1)[0].decode() for row in rows] == list(of())
        assert dict(attributes(request))["sasl_username"] == ""
