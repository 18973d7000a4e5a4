"""A submission service whose upstream server is a real Postfix, set up as the how-to says."""

from __future__ import annotations

import base64
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest
from documents import ROOT, blocks
from postfix import Postfix
from processes import GuardProcess
from rawclient import RawClient
from test_postfix_upstream import NOT_LOCALHOST, RELAYED, behind, send

pytestmark = pytest.mark.clients

MECHANISMS = b"VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nSPID\t1\nCUID\t1\nCOOKIE\tabcdef\nDONE\n"
DENIED = f"554 5.7.1 <{RELAYED}>: Recipient address rejected: Access denied"


def shown() -> list[str]:
    """What the how-to has after `-o` in master.cf, as lines of main.cf."""
    page = ROOT / "docs/how-to/submission-with-auth.md"
    (entry,) = (block for block in blocks(page, "text") if " smtpd\n" in block)
    return [line.replace("=", " = ", 1) for line in re.findall(r"^    -o (.*)$", entry, re.MULTILINE)]


@pytest.fixture
def settings() -> Iterator[tuple[str, ...]]:
    """With Dovecot's authentication service, as far as Postfix asks it: what mechanisms it has."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        asking = []

        def answer() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    connection.sendall(MECHANISMS)
                    asking.append(connection)

        Thread(target=answer, daemon=True).start()
        sasl = ("smtpd_sasl_type = dovecot", f"smtpd_sasl_path = inet:127.0.0.1:{server.getsockname()[1]}")
        # Nothing leaves the machine. The how-to has the other setting undone.
        yield ("default_transport = discard:gone", "smtpd_tls_auth_only = yes", *sasl)
        server.shutdown(socket.SHUT_RDWR)
        for connection in asking:
            connection.close()


def options(directory: Path) -> tuple[str, ...]:
    users = directory / "users"
    users.write_text("ann:correct-horse\n")
    return (f"--auth=file:{users}", "--auth-without-tls")


def logs_in(client: RawClient) -> None:
    client.ask("EHLO client.example")
    secret = base64.b64encode(b"\0ann\0correct-horse").decode()
    assert client.ask(f"AUTH PLAIN {secret}").startswith("235 ")


def sent_on(postfix: Postfix, message: str) -> None:
    number = message.rpartition(" ")[2]
    postfix.logs(f" {number}: client=unknown\\[127.0.0.2\\], sasl_method=XCLIENT, sasl_username=ann$")
    postfix.logs(f" {number}: to=<{RELAYED}>, .* status=sent \\(gone\\)")


def test_who_has_logged_in_sends_to_anywhere_and_the_next_stranger_nowhere(
    tmp_path: Path, settings: tuple[str, ...]
) -> None:
    # Without --require-auth the guard lets strangers pass, so that Postfix has to tell them apart. Whom it was told of
    # may tell of the next, so that a connection is used again.
    own = (*settings, *shown(), "smtpd_authorized_xclient_hosts = 127.0.0.0/8")
    with behind(tmp_path, *options(tmp_path), keys=",announce=xclient", settings=own) as (guard, postfix):
        with RawClient(guard.address, NOT_LOCALHOST) as client:
            logs_in(client)
            sent_on(postfix, send(client, b"Subject: 1\r\n\r\n", RELAYED))
        # Not even from where Postfix trusts everybody.
        for source in (NOT_LOCALHOST, "127.0.0.1"):
            with RawClient(guard.address, source) as client:
                client.ask("EHLO client.example")
                assert send(client, b"", RELAYED) == DENIED
        with RawClient(guard.address, NOT_LOCALHOST) as client:
            logs_in(client)
            sent_on(postfix, send(client, b"Subject: 2\r\n\r\n", RELAYED))
        # All on one connection.
        assert len(re.findall(r"smtpd\[\d+\]: connect from", postfix.log)) == 1


def test_where_all_have_to_log_in_the_guard_refuses_strangers_itself_and_warns_of_nothing(
    tmp_path: Path, settings: tuple[str, ...]
) -> None:
    own = (*options(tmp_path), "--require-auth")
    with (
        Postfix(*settings, *shown()) as postfix,
        GuardProcess(tmp_path, f"--deliver=smtp:{postfix.endpoint},announce=xclient", *own) as guard,
        RawClient(guard.address, NOT_LOCALHOST) as client,
    ):
        client.ask("EHLO client.example")
        assert send(client, b"", RELAYED) == "530 5.7.0 Authentication required"
        logs_in(client)
        sent_on(postfix, send(client, b"Subject: 1\r\n\r\n", RELAYED))
        assert b"correct-horse" not in guard.log


def test_proxy_does_not_tell_of_the_login(tmp_path: Path, settings: tuple[str, ...]) -> None:
    proxied = "smtpd_upstream_proxy_protocol = haproxy"
    with (
        behind(
            tmp_path, *options(tmp_path), keys=",announce=proxy", settings=(*settings, *shown(), proxied)
        ) as (guard, _),
        RawClient(guard.address, NOT_LOCALHOST) as client,
    ):
        logs_in(client)
        assert send(client, b"", RELAYED) == DENIED
