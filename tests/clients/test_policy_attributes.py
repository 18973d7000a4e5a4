"""A policy server is asked by a real Postfix and by the guard about the same dialogues: each attribute that both know
is equal octet for octet, but for the differences that the reference lists."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import AUTHORITY, certificate
from postfix import Postfix
from processes import GuardProcess
from rawclient import RawClient
from recordingpolicy import RecordingPolicy, Request

pytestmark = pytest.mark.clients

STAGES = {
    "connect": "client",
    "helo": "helo",
    "mail": "sender",
    "rcpt": "recipient",
    "data": "data",
    "end-of-data": "end_of_data",
}
DIFFERENT = {"instance", "queue_id"}
"""What the reference lists. The names of clients are not looked up by this Postfix either."""

BODY = "Subject: x\r\n\r\nHello\r\n..dot\r\n."
MAIL, RCPT = "MAIL FROM:<a@example.com>", "RCPT TO:<user@example.org>"
DIALOGUES = {
    "plain": ["EHLO client.example", MAIL, RCPT, "DATA", BODY],
    "HELO": ["HELO client.example", MAIL, RCPT, "DATA", BODY],
    "a size and two recipients": [
        "EHLO client.example",
        "MAIL FROM:<a@example.com> SIZE=1234",
        RCPT,
        "RCPT TO:<other@example.org>",
        "DATA",
        BODY,
    ],
    "the null sender": ["EHLO [127.0.0.1]", "MAIL FROM:<>", RCPT, "DATA", BODY],
    "two messages": [
        "EHLO c.example",
        MAIL,
        RCPT,
        "DATA",
        BODY,
        "MAIL FROM:<b@example.com>",
        RCPT,
        "DATA",
        BODY,
    ],
    "quoted local parts": [
        "EHLO x=y",
        'MAIL FROM:<"a=b c"@example.com>',
        'RCPT TO:<"sasl_username=root"@example.org>',
        'RCPT TO:<"a\\"\\\\b"@example.org>',
        "RCPT TO:<a=b+c@example.org>",
    ],
    "SMTPUTF8": [
        "EHLO client.example",
        "MAIL FROM:<grün@example.com> SMTPUTF8",
        "RCPT TO:<bücher@example.org>",
    ],
    "EHLO again": ["EHLO one.example", "EHLO two.example", MAIL, "RSET", MAIL],
    "BDAT": ["EHLO client.example", MAIL, RCPT, "BDAT 9\r\nx: y\r\n\r\nz", "BDAT 2 LAST\r\n\r\n"],
    "capitals": [
        "EHLO CLIENT.Example",
        "MAIL FROM:<A@Example.COM>",
        "RCPT TO:<User@Example.ORG>",
        "DATA",
        BODY,
    ],
}


@pytest.fixture(scope="module")
def of_postfix() -> Iterator[tuple[Postfix, RecordingPolicy]]:
    with RecordingPolicy() as policy:
        service = f"check_policy_service inet:127.0.0.1:{policy.port}"
        path = AUTHORITY.parent
        path.chmod(0o755)
        for each in path.glob("*.pem"):
            each.chmod(0o644)
        settings = [
            *(f"smtpd_{name}_restrictions = {service}" for name in STAGES.values()),
            "smtpd_delay_reject = no",
            "smtpd_peername_lookup = no",
            f"smtpd_tls_chain_files = {certificate()}",
            "smtpd_tls_security_level = may",
            "smtpd_tls_ask_ccert = yes",
            f"smtpd_tls_CAfile = {AUTHORITY}",
            "smtpd_tls_session_cache_database =",
        ]
        certificate().chmod(0o644)
        with Postfix(*settings) as postfix:
            yield postfix, policy


@pytest.fixture(scope="module")
def of_guard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GuardProcess, RecordingPolicy]]:
    with RecordingPolicy() as policy:
        options = [f"--policy={stage}=inet:127.0.0.1:{policy.port}" for stage in STAGES]
        tls = (f"--tls-certificate={certificate()}", f"--tls-client-authorities={AUTHORITY}")
        with GuardProcess(tmp_path_factory.mktemp("guard"), *options, *tls) as guard:
            yield guard, policy


def talk(port: int, lines: list[str], *, tls: Path | None = None, starttls: bool = False) -> int:
    """Say the lines. Returns the port of the client."""
    with RawClient(("127.0.0.1", port)) as client:
        if starttls:
            assert client.ask("EHLO before.example").startswith("250")
            assert client.ask("STARTTLS").startswith("220")
            context = ssl.create_default_context(cafile=str(AUTHORITY))
            if tls is not None:
                context.load_cert_chain(tls)
            client.socket = context.wrap_socket(client.socket, server_hostname="localhost")
            client._input = client.socket.makefile("rb")
        for line in lines:
            client.send(f"{line}\r\n".encode())
            # Postfix repeats what the client has sent, in UTF-8.
            while client._input.readline()[3:4] == b"-":
                pass
        name: tuple[str, int] = client.socket.getsockname()
        client.ask("QUIT")
        return name[1]


def compared(request: Request, client_port: int, server_port: int) -> Request:
    """Without what differs by design, and with the ports of this connection by their names."""
    ports = {"client_port": str(client_port), "server_port": str(server_port)}
    assert {name: request[name] for name in ports} == ports
    return {
        name: name if name in ports else value for name, value in request.items() if name not in DIFFERENT
    }


def both(
    postfix: tuple[Postfix, RecordingPolicy],
    guard: tuple[GuardProcess, RecordingPolicy],
    lines: list[str],
    **how: object,
) -> tuple[list[Request], list[Request]]:
    asked = []
    for port, policy in ((int(postfix[0].port), postfix[1]), (guard[0].port, guard[1])):
        policy.take()
        client_port = talk(port, lines, **how)  # type: ignore[arg-type]
        asked.append([compared(each, client_port, port) for each in policy.take()])
    return asked[0], asked[1]


@pytest.mark.parametrize("name", DIALOGUES)
def test_the_guard_asks_what_postfix_asks(
    name: str,
    of_postfix: tuple[Postfix, RecordingPolicy],
    of_guard: tuple[GuardProcess, RecordingPolicy],
) -> None:
    by_postfix, by_guard = both(of_postfix, of_guard, DIALOGUES[name])
    assert by_guard == by_postfix
    assert len(by_postfix) >= 3


@pytest.mark.parametrize("with_certificate", [False, True])
def test_it_asks_the_same_under_tls(
    with_certificate: bool,
    of_postfix: tuple[Postfix, RecordingPolicy],
    of_guard: tuple[GuardProcess, RecordingPolicy],
) -> None:
    own = certificate("client.example") if with_certificate else None
    by_postfix, by_guard = both(of_postfix, of_guard, DIALOGUES["plain"], starttls=True, tls=own)
    # What the client said in clear is forgotten.
    assert (by_postfix[2].pop("protocol_name"), by_guard[2].pop("protocol_name")) == ("ESMTP", "SMTP")
    assert by_guard == by_postfix
    assert by_postfix[-1]["encryption_protocol"] == "TLSv1.3"
    assert bool(by_postfix[-1]["ccert_fingerprint"]) == with_certificate


def test_the_attributes_come_in_the_same_order(
    of_postfix: tuple[Postfix, RecordingPolicy], of_guard: tuple[GuardProcess, RecordingPolicy]
) -> None:
    both(of_postfix, of_guard, DIALOGUES["plain"])
    both(of_postfix, of_guard, DIALOGUES["plain"])
    talk(int(of_postfix[0].port), DIALOGUES["plain"])
    talk(of_guard[0].port, DIALOGUES["plain"])
    of_both = [list(policy.take()[0]) for _, policy in (of_postfix, of_guard)]
    assert of_both[0] == of_both[1]
