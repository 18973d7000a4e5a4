"""Sessions that clients resume (RFC 8446 2.2, RFC 5077): which, for how long, and what is known of such a client."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from certificates import AUTHORITY, certificate
from cryptography import x509
from fakes import FakeFilter
from loopback import Loopback
from manual_threads import ManualThreads
from tlsclient import TLSClient

from twisted_smtpguard.tls import contexts
from twisted_smtpguard.tls.contexts import SESSION_SECONDS
from twisted_smtpguard.tls.files import CertificateFiles

VERSIONS = {"TLS 1.2": ssl.TLSVersion.TLSv1_2, "TLS 1.3": ssl.TLSVersion.TLSv1_3}
each_version = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)


def started(tls: CertificateFiles, **options: Any) -> Loopback:
    """Its first port begins in clear, its second with TLS."""
    guard = Loopback(tls_listeners=1, options={"tls": tls, **options})
    guard.start()
    return guard


async def shaken(
    guard: Loopback,
    version: ssl.TLSVersion,
    before: TLSClient | None = None,
    *,
    implicit: bool = True,
    own: Path | None = None,
) -> TLSClient:
    """A client under TLS that has sent a command, as in TLS 1.3 it gets its tickets only then. It offers the session of
    the client `before`."""
    client = TLSClient(guard, int(implicit), own)
    if before is not None:
        assert before.tls is not None
        client.context, client.session = before.context, before.tls.session
        assert client.session is not None and client.session.has_ticket
    client.context.minimum_version = client.context.maximum_version = version
    await (client.shake_hands if implicit else client.upgrade)()
    await client.says(b"EHLO client.example\r\n")
    await client.hears(b"250 ENHANCEDSTATUSCODES\r\n")
    return client


def resumed(client: TLSClient) -> bool:
    assert client.tls is not None
    return bool(client.tls.session_reused)


@each_version
@pytest.mark.parametrize("implicit", [False, True], ids=["STARTTLS", "implicit TLS"])
@pytest_twisted.ensureDeferred
async def test_every_session_that_is_offered_again_is_resumed(
    version: ssl.TLSVersion, implicit: bool
) -> None:
    guard = started(CertificateFiles(str(certificate())))
    client = await shaken(guard, version, implicit=implicit)
    assert not resumed(client)
    for _ in range(40):
        # TLS 1.3 gives another ticket for the next time, TLS 1.2 may be offered the same.
        client = await shaken(guard, version, client, implicit=implicit)
        assert resumed(client)
    await guard.close()


@each_version
@pytest_twisted.ensureDeferred
async def test_a_session_is_of_the_guard_and_of_no_listener(version: ssl.TLSVersion) -> None:
    guard = started(CertificateFiles(str(certificate())))
    client = await shaken(guard, version, implicit=False)
    assert resumed(await shaken(guard, version, client, implicit=True))
    await guard.close()


@each_version
@pytest_twisted.ensureDeferred
async def test_a_session_for_a_name_is_resumed(version: ssl.TLSVersion, tmp_path: Path) -> None:
    (tmp_path / "localhost.pem").write_bytes(certificate().read_bytes())
    guard = started(CertificateFiles(str(certificate("other.example")), names=str(tmp_path)))
    client = await shaken(guard, version)
    assert resumed(await shaken(guard, version, client))
    await guard.close()


@each_version
@pytest_twisted.ensureDeferred
async def test_whoever_resumes_has_the_certificate_of_the_first_handshake(version: ssl.TLSVersion) -> None:
    tls, asked = CertificateFiles(str(certificate()), client_authorities=str(AUTHORITY)), FakeFilter()
    guard = started(tls, ip_filters=[asked])
    client = await shaken(guard, version, own=certificate("client.example"))
    client = await shaken(guard, version, client)
    assert resumed(client)
    await client.says(b"MAIL FROM:<a@b.example>\r\nRCPT TO:<b@c.example>\r\nDATA\r\n")
    await client.hears(b"354 ")
    await client.says(b"x\r\n.\r\n")
    await client.hears(b"250 2.0.0 Message")
    (message,) = guard.delivery.messages
    (shown,) = x509.load_pem_x509_certificates(certificate("client.example").read_bytes())[:1]
    for peer in (*asked.peers, message.client.peer):
        assert peer.certificate is not None
        assert x509.load_der_x509_certificate(peer.certificate) == shown
    await guard.close()


@each_version
@pytest_twisted.ensureDeferred
async def test_whoever_resumes_a_session_without_a_certificate_has_none(version: ssl.TLSVersion) -> None:
    guard = started(CertificateFiles(str(certificate()), client_authorities=str(AUTHORITY)))
    client = await shaken(guard, version)
    client = await shaken(guard, version, client)
    assert resumed(client)
    assert {protocol.engine.peer.certificate for protocol in guard.protocols} == {None}
    await guard.close()


async def shakes_hands_in_full_after(
    guard: Loopback, version: ssl.TLSVersion, change: Callable[[], object]
) -> None:
    """A session that was resumed before the `change` is not afterwards, and a new one is."""
    client = await shaken(guard, version)
    client = await shaken(guard, version, client)
    assert resumed(client)
    change()
    client = await shaken(guard, version, client)
    assert not resumed(client)
    assert resumed(await shaken(guard, version, client))
    await guard.close()


@each_version
@pytest_twisted.ensureDeferred
async def test_a_reload_ends_every_session_since_it_may_change_whom_the_guard_believes(
    version: ssl.TLSVersion,
) -> None:
    guard = started(CertificateFiles(str(certificate()), client_authorities=str(AUTHORITY)))
    await shakes_hands_in_full_after(guard, version, guard.service.reload)


@each_version
@pytest.mark.parametrize("step", [SESSION_SECONDS, -1], ids=["time", "a clock that is set back"])
@pytest_twisted.ensureDeferred
async def test_a_key_that_has_been_used_for_long_is_given_up(version: ssl.TLSVersion, step: float) -> None:
    clock = ManualThreads()
    guard = started(CertificateFiles(str(certificate()), reactor=clock))
    clock.rightNow += SESSION_SECONDS - 1
    client = await shaken(guard, version)
    assert resumed(await shaken(guard, version, client))
    clock.rightNow -= SESSION_SECONDS - 1

    def pass_time() -> None:
        clock.rightNow += step

    await shakes_hands_in_full_after(guard, version, pass_time)


@each_version
@pytest_twisted.ensureDeferred
async def test_sessions_that_are_resumed_one_from_another_last_no_longer_than_one(
    version: ssl.TLSVersion,
) -> None:
    # In TLS 1.3 each has a ticket that is new to OpenSSL, and all have the client certificate of the first.
    clock = ManualThreads()
    guard = started(CertificateFiles(str(certificate()), reactor=clock))
    client = await shaken(guard, version)
    for _ in range(3):
        clock.rightNow += SESSION_SECONDS / 4
        client = await shaken(guard, version, client)
        assert resumed(client)
    clock.rightNow += SESSION_SECONDS / 4
    assert not resumed(await shaken(guard, version, client))
    await guard.close()


@each_version
@pytest_twisted.ensureDeferred
async def test_a_session_that_is_old_is_not_resumed(
    version: ssl.TLSVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    # OpenSSL itself looks at the time, which no test can set.
    monkeypatch.setattr(contexts, "SESSION_SECONDS", 1)
    guard = started(CertificateFiles(str(certificate())))
    first = await shaken(guard, version)
    assert first.tls is not None and first.tls.session is not None
    assert first.tls.session.ticket_lifetime_hint == 1
    while resumed(await shaken(guard, version, first)):
        pass
    await guard.close()


@each_version
@pytest_twisted.ensureDeferred
async def test_a_ticket_of_another_guard_leads_to_a_full_handshake(version: ssl.TLSVersion) -> None:
    other = started(CertificateFiles(str(certificate())))
    client = await shaken(other, version)
    await other.close()
    guard = started(CertificateFiles(str(certificate())))
    assert not resumed(await shaken(guard, version, client))
    await guard.close()
