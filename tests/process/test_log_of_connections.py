"""What an operator finds in the log of a connection: where it came from and arrived, how it was encrypted, what the
client called itself, and by which rule a filter refused it. Of a real process, with real clients."""

from __future__ import annotations

import re
import smtplib
import socket
import ssl
from pathlib import Path

from certificates import AUTHORITY, CERTIFICATE
from processes import LOCAL, GuardProcess
from rawclient import RawClient
from test_filter_process import greeting, hang_up
from twisted.internet import reactor
from twisted.internet.endpoints import (
    AdoptedStreamServerEndpoint,
    SSL4ServerEndpoint,
    TCP4ServerEndpoint,
    TCP6ServerEndpoint,
    UNIXServerEndpoint,
)

from twisted_smtpguard import DiscardDelivery, SMTPGuardService
from twisted_smtpguard.service.service import endpoint_name

SHOWN = re.escape(LOCAL)
TLS = ("--tls-certificate", str(CERTIFICATE))


def send(client: smtplib.SMTP) -> None:
    client.sendmail("a@example.com", ["b@example.org"], "Subject: x\r\n\r\n")


def trusting() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(AUTHORITY))


def test_connect_and_reject_tell_the_port_of_the_client_and_the_listener(tmp_path: Path) -> None:
    with GuardProcess(tmp_path, "--max-connections=1", listen=(LOCAL, "unix:smtp.sock")) as guard:
        with RawClient(guard.address) as client:
            port = client.socket.getsockname()[1]
            guard.wait_for(rf"\] connect session=\S+ peer=127\.0\.0\.1 port={port} listener={SHOWN}$")
            with RawClient(guard.address) as refused:
                port = refused.socket.getsockname()[1]
                guard.wait_for(
                    rf"\] reject peer=127\.0\.0\.1 reason=max_connections .* port={port} listener={SHOWN}$"
                )
        guard.wait_for(" disconnect ")
        with RawClient(str(tmp_path / "smtp.sock")):
            guard.wait_for(r"\] connect session=\S+ peer=unix listener=unix:smtp\.sock$")


def test_a_client_that_hangs_up_before_its_greeting_is_told_apart_too(tmp_path: Path) -> None:
    with GuardProcess(tmp_path, "--proxy-protocol-from=127.0.0.1") as guard:
        with socket.create_connection(guard.address) as client:
            port = client.getsockname()[1]
        guard.wait_for(rf"\] hangup peer=127\.0\.0\.1 seconds=\S+ port={port} listener={SHOWN}$")


def test_behind_a_proxy_the_port_is_the_clients_own(tmp_path: Path) -> None:
    with GuardProcess(tmp_path, "--proxy-protocol-from=127.0.0.1", "--deny=192.0.2.6") as guard:
        for source, port in (("192.0.2.5", 4005), ("192.0.2.6", 4006)):
            with socket.create_connection(guard.address) as client:
                client.sendall(f"PROXY TCP4 {source} 192.0.2.25 {port} 25\r\n".encode())
                assert client.recv(3) in (b"220", b"421")
        guard.wait_for(rf"\] connect session=\S+ peer=192\.0\.2\.5 port=4005 listener={SHOWN}$")
        guard.wait_for(rf"\] reject peer=192\.0\.2\.6 reason=ip_filter .* port=4006 listener={SHOWN}$")


def test_accept_and_reject_tell_what_the_client_called_itself(tmp_path: Path) -> None:
    with GuardProcess(tmp_path, "--deliver=discard") as guard:
        with smtplib.SMTP(*guard.address, local_hostname="mx.example.com") as client:
            send(client)
            client.docmd("EXPN", "staff")
        guard.wait_for(r"\] accept .* helo=mx\.example\.com$")
        guard.wait_for(r"\] reject peer=127\.0\.0\.1 reason=expn .* helo=mx\.example\.com$")


def test_what_a_client_called_itself_is_one_word_of_the_log(tmp_path: Path) -> None:
    with GuardProcess(tmp_path) as guard, RawClient(guard.address) as client:
        client.ask('EHLO "\\=reject"')
        client.ask("EXPN")
        guard.wait_for(r'reason=expn .* helo=\\"\\\\=reject\\"$')


def test_a_session_that_is_encrypted_says_so(tmp_path: Path) -> None:
    with GuardProcess(tmp_path, *TLS, "--deliver=discard", listen_tls=(LOCAL,)) as guard:
        _, implicit = guard.addresses
        assert isinstance(implicit, tuple)
        with smtplib.SMTP_SSL("localhost", implicit[1], context=trusting()) as client:
            client.noop()
        guard.wait_for(
            r"\] connect session=\S+ peer=127\.0\.0\.1 tls=TLSv1\.[23]:[A-Z0-9_-]+ port=[0-9]+ listener="
        )
        with smtplib.SMTP("localhost", guard.port) as client:
            send(client)
            line = guard.wait_for(r"\] accept ")
            assert " tls=" not in line
            client.starttls(context=trusting())
            client.docmd("EXPN", "staff")
            guard.wait_for(r"reason=expn session=\S+ code=502 command=EXPN tls=TLSv1\.[23]:[A-Z0-9_-]+$")
            send(client)
        guard.wait_for(r"\] accept .* helo=\S+ tls=TLSv1\.[23]:[A-Z0-9_-]+$")


def test_a_filters_refusal_names_its_network_and_its_words_and_not_its_argument(tmp_path: Path) -> None:
    (tmp_path / "secret-list").write_text("deny 127.0.0.0/30 521 5.7.1 Ask postmaster\n")
    with GuardProcess(tmp_path, "--ip-filter=name=zen:networks:secret-list", "--deny=127.0.0.9") as guard:
        assert greeting(guard, "127.0.0.2") == "521 5.7.1 Ask postmaster"
        guard.wait_for(
            r" reason=ip_filter filter=zen rule=127\.0\.0\.0/30 code=521 reply=521\\x205\.7\.1\\x20Ask\\x20postmaster "
        )
        assert greeting(guard, "127.0.0.9").startswith("421 ")
        line = guard.wait_for(r" reason=ip_filter filter=deny/trust rule=127\.0\.0\.9/32 code=421 ")
        assert " reply=" not in line
        assert b"secret-list" not in guard.log
        hang_up(guard)
        # A file that is read is no key, and an operator has to know which it was.
        guard.wait_for(r"\] reloaded what=zen option=--ip-filter file=secret-list$")


# Endpoints of an application.


def test_an_endpoint_without_a_name_is_called_by_a_string_that_describes_it() -> None:
    endpoints = {
        "tcp:25": TCP4ServerEndpoint(reactor, 25),
        "tcp:25:interface=127.0.0.1": TCP4ServerEndpoint(reactor, 25, interface="127.0.0.1"),
        "tcp6:25:interface=\\:\\:1": TCP6ServerEndpoint(reactor, 25, interface="::1"),
        "ssl:465": SSL4ServerEndpoint(reactor, 465, None),
        "unix:/run/smtp.sock": UNIXServerEndpoint(reactor, "/run/smtp.sock"),
        "AdoptedStreamServerEndpoint": AdoptedStreamServerEndpoint(reactor, 3, 2),
    }
    assert {name: endpoint_name(endpoint) for name, endpoint in endpoints.items()} == {
        name: name for name in endpoints
    }
    service = SMTPGuardService(reactor, list(endpoints.values()), DiscardDelivery())
    assert [listener.name for _, listener in service._listeners] == list(endpoints)


def test_an_application_may_call_its_endpoints_what_it_likes() -> None:
    endpoints = [TCP4ServerEndpoint(reactor, 25), TCP4ServerEndpoint(reactor, 587)]
    service = SMTPGuardService(reactor, endpoints, DiscardDelivery(), names=["mx", "submission"])
    assert [listener.name for _, listener in service._listeners] == ["mx", "submission"]
