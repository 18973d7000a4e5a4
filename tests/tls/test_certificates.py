"""Certificate and key files: what is wrong with them, and reading them again without losing a session."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from certificates import AUTHORITY, CERTIFICATE, certificate, stranger
from commandline import mistake, parsed
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from loopback import Loopback
from manual_threads import ManualThreads
from OpenSSL import SSL
from tlsclient import TLSClient
from twisted.internet.testing import MemoryReactorClock
from twisted.python.usage import UsageError

from twisted_smtpguard.cli.options import make_service
from twisted_smtpguard.tls.files import CertificateFiles


def key_of(path: Path) -> Any:
    return serialization.load_pem_private_key(path.read_bytes(), None)


def with_passphrase(path: Path) -> bytes:
    octets: bytes = key_of(path).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    return octets


# What is wrong.


def test_what_is_wrong_is_one_sentence_that_names_the_file(tmp_path: Path) -> None:
    good, other = str(CERTIFICATE), str(stranger())
    missing = str(tmp_path / "missing.pem")
    (tmp_path / "empty.pem").write_text("")
    (tmp_path / "damaged.pem").write_text(
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" + CERTIFICATE.read_text()
    )
    (tmp_path / "locked.pem").write_bytes(with_passphrase(CERTIFICATE))
    os.mkfifo(tmp_path / "pipe.pem")
    pipe = str(tmp_path / "pipe.pem")
    empty, damaged, locked = (str(tmp_path / f"{name}.pem") for name in ("empty", "damaged", "locked"))
    for files, problem in [
        ((missing,), f"{missing}: No such file or directory"),
        ((str(tmp_path),), f"{tmp_path}: Is a directory"),
        ((pipe,), f"{pipe}: Not a regular file"),
        ((good, pipe), f"{pipe}: Not a regular file"),
        ((good, "", pipe), f"{pipe}: Not a regular file"),
        ((empty,), f"{empty}: there is no certificate in PEM form"),
        ((damaged,), f"{damaged}: a certificate in it is damaged"),
        ((good, missing), f"{missing}: No such file or directory"),
        ((good, str(AUTHORITY)), f"{AUTHORITY}: there is no private key in PEM form"),
        ((good, locked), f"{locked}: its private key has a passphrase, and one without is expected"),
        ((good, other), f"{other}: the key does not belong to the certificate in {good}"),
        ((good, "", empty), f"{empty}: there is no certificate in PEM form"),
    ]:
        with pytest.raises(ValueError) as error:
            CertificateFiles(*files)
        assert str(error.value) == problem


def test_the_operator_is_not_asked_for_a_passphrase(tmp_path: Path) -> None:
    """OpenSSL would ask at the terminal, and wait."""
    locked = tmp_path / "locked.pem"
    locked.write_bytes(with_passphrase(CERTIFICATE))
    ours, terminal = os.openpty()
    reads = (
        "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "from twisted_smtpguard.tls.files import CertificateFiles\n"
        "CertificateFiles(*sys.argv[1:])"
    )
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", reads, str(CERTIFICATE), str(locked)],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "PYTHON_COLORS": "0"},
        start_new_session=True,
    ) as process:
        os.close(terminal)
        said = b""
        # Linux says that the other side is gone by an error.
        with suppress(OSError):
            while b"pass phrase" not in said and (octets := os.read(ours, 4096)):
                said += octets
        os.close(ours)
        process.kill()
    assert b"pass phrase" not in said
    assert (
        f"FaultyFileError: {locked}: its private key has a passphrase, and one without is expected"
        in said.decode()
    )


def test_the_key_may_be_in_its_own_file(tmp_path: Path) -> None:
    blocks = CERTIFICATE.read_text().split("-----BEGIN CERTIFICATE-----", 1)
    (tmp_path / "key.pem").write_text(blocks[0])
    (tmp_path / "certificate.pem").write_text("-----BEGIN CERTIFICATE-----" + blocks[1])
    CertificateFiles(str(tmp_path / "certificate.pem"), str(tmp_path / "key.pem"))


def test_a_mistake_is_told_before_anything_listens(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.pem")
    with pytest.raises(UsageError) as error:
        make_service(parsed("--tls-certificate", missing), MemoryReactorClock())
    assert str(error.value) == f"--tls-certificate: {missing}: No such file or directory"
    assert mistake("--tls-key", missing) == "--tls-key: --tls-certificate is needed"
    assert mistake("--listen-tls", "tcp:465") == "--listen-tls: --tls-certificate is needed"
    assert mistake("--tls-certificate", str(CERTIFICATE), "--listen-tls", "ssl:465") == (
        "--listen-tls: a plain endpoint such as tcp:465 is expected, not 'ssl:465'"
    )


def test_with_listeners_of_tls_only_nothing_is_in_clear() -> None:
    options = parsed("--tls-certificate", str(CERTIFICATE), "--listen-tls", "tcp:465")
    reactor = MemoryReactorClock()
    service = make_service(options, reactor)
    assert [(listener.name, listener.implicit_tls) for _, listener in service._listeners] == [
        ("tcp:465", True)
    ]


# Certificates of clients.


def shaken_hands(files: CertificateFiles) -> SSL.Connection:
    """A client that has spoken TLS with them."""
    client, server = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None), files.serverConnectionForTLS(None)
    client.set_connect_state()
    server.set_accept_state()
    for _ in range(3):
        for one, other in ((client, server), (server, client)):
            with suppress(SSL.WantReadError):
                one.do_handshake()
            with suppress(SSL.WantReadError):
                other.bio_write(one.bio_read(65536))
    return client


def test_a_client_is_told_whose_certificates_are_wanted(tmp_path: Path) -> None:
    """One that has several chooses by that, and one that has none of these shows none."""
    both = tmp_path / "authorities.pem"
    other = stranger().read_text().rpartition("-----BEGIN CERTIFICATE-----")
    both.write_text(AUTHORITY.read_text() + other[1] + other[2])
    wanted = [each.subject.public_bytes() for each in x509.load_pem_x509_certificates(both.read_bytes())]
    assert len(wanted) == 2
    told = shaken_hands(CertificateFiles(str(CERTIFICATE), client_authorities=str(both))).get_client_ca_list()
    assert [name.der() for name in told] == wanted
    assert shaken_hands(CertificateFiles(str(CERTIFICATE))).get_client_ca_list() == []


# Reading them again.


def test_so_are_the_authorities_of_clients(tmp_path: Path) -> None:
    file = tmp_path / "authorities.pem"
    file.write_bytes(AUTHORITY.read_bytes())
    files = CertificateFiles(str(CERTIFICATE), client_authorities=str(file))

    def told() -> list[bytes]:
        return [name.der() for name in shaken_hands(files).get_client_ca_list()]

    before = told()
    file.write_text(
        "-----BEGIN CERTIFICATE-----" + stranger().read_text().split("-----BEGIN CERTIFICATE-----")[-1]
    )
    assert told() == before
    files.reload()
    assert len(told()) == 1
    assert told() != before
    file.write_text("")
    failures: list[Any] = []
    files.reload().addErrback(failures.append)
    assert [failure.getErrorMessage() for failure in failures] == [
        f"{file}: there is no certificate in PEM form"
    ]
    assert len(told()) == 1


def serial_of(client: TLSClient) -> int:
    assert client.tls is not None
    shown = client.tls.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number


def serial_in(path: Path) -> int:
    return x509.load_pem_x509_certificates(path.read_bytes())[0].serial_number


@pytest_twisted.ensureDeferred
async def test_a_new_certificate_is_for_new_handshakes_and_old_sessions_go_on(tmp_path: Path) -> None:
    file = tmp_path / "guard.pem"
    old, new = certificate(number=1), certificate(number=2)
    file.write_bytes(old.read_bytes())
    guard = Loopback(options={"tls": CertificateFiles(str(file))})
    guard.start()
    before = await TLSClient.upgraded(guard)
    file.write_bytes(new.read_bytes())
    guard.service.reload()
    after = await TLSClient.upgraded(guard)
    assert [serial_of(before), serial_of(after)] == [serial_in(old), serial_in(new)]
    for client in (before, after):
        await client.says(b"NOOP\r\n")
        await client.hears(b"250 2.0.0 OK\r\n")
    await guard.close()


@pytest_twisted.ensureDeferred
async def test_a_file_with_a_mistake_leaves_the_old_certificate_in_force(tmp_path: Path) -> None:
    file = tmp_path / "guard.pem"
    file.write_bytes(CERTIFICATE.read_bytes())
    guard = Loopback(options={"tls": CertificateFiles(str(file))})
    guard.start()
    file.write_bytes(CERTIFICATE.read_bytes()[:700])
    told: list[tuple[str, ...]] = []
    guard.factory.context.events.reload_failed = lambda *what: told.append(what)  # type: ignore[method-assign]
    guard.service.reload()
    assert told == [("certificate", "tls-certificate", "a certificate in it is damaged", str(file))]
    client = await TLSClient.upgraded(guard)
    assert serial_of(client) == serial_in(CERTIFICATE)
    await guard.close()


def test_a_reload_reads_in_a_thread_so_that_a_disk_that_hangs_holds_up_nothing(tmp_path: Path) -> None:
    file = tmp_path / "guard.pem"
    file.write_bytes(certificate(number=1).read_bytes())
    threads = ManualThreads()
    files = CertificateFiles(str(file), reactor=threads)
    assert threads.trips == 0
    old = files._served.context
    done: list[object] = []
    files.reload().addBoth(done.append)
    assert (done, threads.waiting) == ([], 1)
    threads.work()
    assert done == [None]
    assert files._served.context is not old


def test_what_is_made_of_the_options_reads_in_threads_of_its_reactor() -> None:
    threads: Any = ManualThreads()
    files = parsed("--tls-certificate", str(CERTIFICATE)).certificate(threads)
    assert files is not None
    files.reload()
    assert threads.waiting == 1
