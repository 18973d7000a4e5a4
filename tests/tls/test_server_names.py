"""Several certificates: of each kind, of which a client gets one that it knows, and by the name that it asks for."""

from __future__ import annotations

import os
import signal
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from commandline import mistake, parsed
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st
from keypairs import LONG, TODAY, Issued, authority
from logbook import logbook
from loopback import Loopback
from processes import GuardProcess
from programs import s_client
from rawclient import RawClient
from tlsclient import TLSClient
from twisted.internet.testing import MemoryReactorClock
from twisted.python.usage import UsageError

from twisted_smtpguard import CertificateFiles
from twisted_smtpguard.cli.options import make_service
from twisted_smtpguard.tls.names import look_up, read_names

ROOT = authority("root")
MIDDLE = authority("middle", ROOT, 2)
OTHER_MIDDLE = authority("other middle", ROOT, 3)
RSA = Issued("mx.example.org", issuer=OTHER_MIDDLE, kind="RSA")
ECDSA = Issued("mx.example.org", issuer=MIDDLE)


@pytest.fixture
def both(tmp_path: Path) -> list[str]:
    return [RSA.written(tmp_path / "rsa.pem"), ECDSA.written(tmp_path / "ecdsa.pem")]


@pytest.fixture
def names(tmp_path: Path) -> Path:
    folder = tmp_path / "names"
    folder.mkdir()
    for name in ("a.example", "b.example", "*.c.example", "d.c.example"):
        Issued(name, issuer=MIDDLE).written(folder / f"{name}.pem")
    return folder


class Client:
    """A client of Python's ssl. What it was shown, once it has shaken hands."""

    def __init__(self, files: CertificateFiles, name: str | None = None, **settings: Any) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        for what, value in settings.items():
            getattr(context, what)(value) if callable(getattr(context, what)) else setattr(
                context, what, value
            )
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
        server = files.serverConnectionForTLS(None)
        server.set_accept_state()
        from OpenSSL import SSL

        for _ in range(4):
            with suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()
            if outgoing.pending:
                server.bio_write(outgoing.read())
            with suppress(SSL.WantReadError):
                server.do_handshake()
            with suppress(SSL.WantReadError):
                incoming.write(server.bio_read(65536))
        shown = self.tls.getpeercert(binary_form=True)
        assert shown is not None
        self.certificate = x509.load_der_x509_certificate(shown)

    @property
    def name(self) -> str:
        [attribute] = self.certificate.subject
        return str(attribute.value)


# Kinds of keys.


@pytest.mark.parametrize("reverse", [False, True])
def test_a_client_that_knows_one_kind_gets_that_one(both: list[str], reverse: bool) -> None:
    files = CertificateFiles(both[::-1] if reverse else both)
    only_rsa = Client(files, maximum_version=ssl.TLSVersion.TLSv1_2, set_ciphers="aRSA")
    only_ecdsa = Client(files, maximum_version=ssl.TLSVersion.TLSv1_2, set_ciphers="aECDSA")
    assert only_rsa.certificate == RSA.certificate
    assert only_ecdsa.certificate == ECDSA.certificate
    assert Client(files).certificate in (RSA.certificate, ECDSA.certificate)


def test_one_with_a_key_in_its_own_file_is_served_with_the_other(tmp_path: Path, both: list[str]) -> None:
    certificate, key = tmp_path / "public.pem", tmp_path / "ecdsa.key"
    certificate.write_text(ECDSA.chain)
    key.write_text(ECDSA.key_pem)
    files = CertificateFiles([both[0], str(certificate)], str(key))
    assert Client(files, maximum_version=ssl.TLSVersion.TLSv1_2, set_ciphers="aECDSA").certificate == (
        ECDSA.certificate
    )


@pytest.mark.clients
@pytest.mark.parametrize(
    ("algorithms", "subject", "issuer"),
    [("ECDSA+SHA256", ECDSA, "middle"), ("RSA-PSS+SHA256:RSA+SHA256", RSA, "other middle")],
)
@pytest.mark.parametrize("version", ["tls1_2", "tls1_3"])
def test_openssl_negotiates_either_and_gets_the_chain_of_that_one(
    tmp_path: Path, both: list[str], algorithms: str, subject: Issued, issuer: str, version: str
) -> None:
    (tmp_path / "root.pem").write_text(ROOT.pem)
    options = [f"--tls-certificate={each}" for each in both]
    with GuardProcess(tmp_path, "--hostname=mx.example.org", *options) as guard:
        words = (
            "-starttls",
            "smtp",
            f"-{version}",
            "-sigalgs",
            algorithms,
            "-showcerts",
            "-attime",
            str(TIME),
        )
        shown = s_client(guard.port, *words, "-CAfile", str(tmp_path / "root.pem"), says="")
        assert "Verify return code: 0 (ok)" in shown
        assert shown.count("BEGIN CERTIFICATE") == 2
        assert f" 1 s:CN = {issuer}\n" in shown or f" 1 s:CN={issuer}\n" in shown
        assert subject.pem.splitlines()[1] in shown


TIME = 1781481600
"""In the time of these certificates, which is not that of the test."""


# Names.


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ("a.example", "a.example"),
        ("A.Example", "a.example"),
        ("x.c.example", "*.c.example"),
        ("d.c.example", "d.c.example"),
        ("x.y.c.example", "mx.example.org"),
        ("c.example", "mx.example.org"),
        ("other.example", "mx.example.org"),
        (None, "mx.example.org"),
    ],
)
@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_a_client_gets_the_certificate_of_the_name_that_it_asks_for(
    both: list[str], names: Path, asked: str | None, shown: str, version: str
) -> None:
    files = CertificateFiles(both, names=str(names))
    client = Client(files, asked, maximum_version=getattr(ssl.TLSVersion, version))
    assert client.name == shown


@given(st.one_of(st.none(), st.binary(max_size=255), st.text(max_size=60).map(lambda text: text.encode())))
def test_whatever_a_client_asks_for_is_only_looked_up(asked: bytes | None) -> None:
    assert look_up({"a.example": 1, "*.c.example": 2}, asked) in (None, 1, 2)


HOSTILE = [
    b"../../../etc/passwd",
    b"a.example/../b.example",
    b"/dev/zero",
    b"a.example\r\nreject peer=1.2.3.4",
    b"\xff\xfe\x80" * 20,
    b"*.c.example",
    b"*",
    b".",
    b"..",
    b"a" * 255,
    b".".join([b"a"] * 127),
    b"a.example.",
    b"%s%n{0}",
]


class Asking(TLSClient):
    """Asks for whatever octets stand in the place of a name that is as long."""

    asks = b""

    def begin(self) -> None:
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE
        self.tls = self.context.wrap_bio(self._incoming, self._outgoing, server_hostname=self.placeholder)

    @property
    def placeholder(self) -> str:
        if self.asks == b"a.example":
            return "a.example"
        length = len(self.asks)
        return ".".join(["x" * 40] * 7)[:length].rstrip(".").ljust(length, "x")

    def _flush(self) -> None:
        self._unsent += self._outgoing.read().replace(self.placeholder.encode(), self.asks)
        super()._flush()


@pytest_twisted.ensureDeferred
async def test_hostile_names_do_no_harm(both: list[str], names: Path) -> None:
    guard = Loopback(options={"tls": CertificateFiles(both, names=str(names))}, tls_listeners=1)
    guard.start()
    with logbook():
        for asked in HOSTILE:
            client = Asking(guard, 1)
            client.asks = asked
            # What is no name at all OpenSSL refuses. A handshake with what the client never said fails at its end.
            with suppress(ssl.SSLError, ConnectionError):
                await client.shake_hands()
            client.close()
        good = Asking(guard, 1)
        good.asks = b"a.example"
        await good.shake_hands()
        assert good.tls is not None
        shown = good.tls.getpeercert(binary_form=True)
        assert shown is not None
        assert "a.example" in x509.load_der_x509_certificate(shown).subject.rfc4514_string()
        await good.hears(b"220 ")
    await guard.close()


def test_names_are_those_of_files_whatever_else_is_there(names: Path) -> None:
    (names / "README").write_text("x")
    (names / "a.example.pem.new").write_text("x")
    (names / ".hidden.pem").write_text("x")
    (names / "folder").mkdir()
    Issued("xn--bcher-kva.example").written(names / "B\u00fccher.Example.pem")
    pairs, faults = read_names(str(names))
    assert sorted(pairs) == ["*.c.example", "a.example", "b.example", "d.c.example", "xn--bcher-kva.example"]
    assert faults == {}


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("e.example.pem", "x", "there is no certificate in PEM form"),
        ("e.example.pem", ECDSA.pem, "there is no private key in PEM form"),
        ("e.example.pem", RSA.key_pem + ECDSA.pem, "its key does not belong to its certificate"),
        (
            "e example.pem",
            "x",
            "a file is called after a domain, such as mx.example.org.pem, or *.example.org.pem",
        ),
        ("*.pem", "x", "a file is called after a domain, such as mx.example.org.pem, or *.example.org.pem"),
        (
            "a.*.example.pem",
            "x",
            "a file is called after a domain, such as mx.example.org.pem, or *.example.org.pem",
        ),
        (
            "[192.0.2.1].pem",
            "x",
            "a file is called after a domain, such as mx.example.org.pem, or *.example.org.pem",
        ),
        ("A.EXAMPLE.pem", "x", "it is for the same name as {}/a.example.pem"),
    ],
)
def test_a_bad_file_is_named_and_ends_the_start(
    both: list[str], names: Path, file: str, text: str, problem: str
) -> None:
    if file == "A.EXAMPLE.pem":
        (names / "a.example.pem").rename(names / "z.pem")
        Issued("a.example").written(names / "A.EXAMPLE.pem")
        Issued("a.example").written(names / "a.example.pem")
        file, problem = "a.example.pem", "it is for the same name as {}/A.EXAMPLE.pem"
    else:
        (names / file).write_text(text)
    with pytest.raises(UsageError) as error:
        make_service(parsed(f"--tls-certificate={both[0]}", f"--tls-names={names}"), MemoryReactorClock())
    assert str(error.value) == f"--tls-names: {names}/{file}: {problem.format(names)}"


def test_so_does_a_directory_that_is_none_or_empty(both: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder, problem in [
        ("missing", "No such file or directory"),
        ("rsa.pem", "Not a directory"),
        ("empty", "there is no file in it that is called NAME.pem"),
    ]:
        with pytest.raises(UsageError) as error:
            make_service(
                parsed(f"--tls-certificate={both[0]}", f"--tls-names={tmp_path / folder}"),
                MemoryReactorClock(),
            )
        assert str(error.value) == f"--tls-names: {tmp_path / folder}: {problem}"
    assert mistake("--tls-names", "x") == "--tls-names: --tls-certificate is needed"


def test_a_reload_takes_what_is_good_and_keeps_of_the_bad_what_it_had(both: list[str], names: Path) -> None:
    from fakes import FakeDelivery
    from test_doubtful_certificates import at

    from twisted_smtpguard import SMTPGuardService

    files = CertificateFiles(both, names=str(names))
    service = SMTPGuardService(at(), [], FakeDelivery(), hostname="mx.example.org", tls=files)
    before = Client(files, "a.example").certificate
    (names / "a.example.pem").write_text("x")
    (names / "new.example.pem").write_text("x")
    (names / "*.c.example.pem").unlink()
    renewed = Issued("b.example", issuer=MIDDLE)
    renewed.written(names / "b.example.pem")
    with logbook() as book:
        service.reload()
        assert book.take("reload_failed") == [
            f"reload_failed what=certificate option=--tls-names file={names}/{name}.pem "
            "there is no certificate in PEM form"
            for name in ("a.example", "new.example")
        ]
        assert len(book.take("reloaded")) == 3
    assert Client(files, "a.example").certificate == before
    assert Client(files, "b.example").certificate == renewed.certificate
    assert [Client(files, name).name for name in ("x.c.example", "new.example")] == ["mx.example.org"] * 2
    # A second reload has forgotten nothing.
    with logbook() as book:
        service.reload()
        assert len(book.take("reload_failed")) == 2
    assert Client(files, "a.example").certificate == before
    # An empty directory is a mistake, and nothing of it is taken.
    for file in names.iterdir():
        file.unlink()
    with logbook() as book:
        service.reload()
        (line,) = book.take("reload_failed")
        assert line.startswith(
            f"reload_failed what=certificate option=--tls-names file={names} there is no file in it"
        )
    assert Client(files, "b.example").certificate == renewed.certificate


def test_clients_are_asked_for_a_certificate_whatever_name_they_ask_for(
    both: list[str], names: Path, tmp_path: Path
) -> None:
    own = Issued("client", issuer=ROOT, begins=TODAY - LONG, ends=TODAY + LONG).written(
        tmp_path / "client.pem"
    )
    (tmp_path / "root.pem").write_text(ROOT.pem)
    files = CertificateFiles(both, client_authorities=str(tmp_path / "root.pem"), names=str(names))
    for name in ("a.example", None):
        assert Client(files, name, load_cert_chain=own).name == (name or "mx.example.org")


def test_a_running_guard_serves_names_and_reads_them_again(
    tmp_path: Path, both: list[str], names: Path
) -> None:
    def shown(port: int, name: str) -> x509.Certificate:
        with RawClient(("127.0.0.1", port)) as client:
            client.ask("EHLO x")
            client.ask("STARTTLS")
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            with context.wrap_socket(client.socket, server_hostname=name) as tls:
                octets = tls.getpeercert(binary_form=True)
                assert octets is not None
                return x509.load_der_x509_certificate(octets)

    options = [f"--tls-certificate={each}" for each in both]
    with GuardProcess(tmp_path, *options, f"--tls-names={names}") as guard:
        old = shown(guard.port, "a.example")
        assert "a.example" in old.subject.rfc4514_string()
        renewed = Issued("a.example", issuer=MIDDLE)
        renewed.written(names / "a.example.pem")
        os.kill(guard.pid, signal.SIGHUP)
        guard.wait_for(rf"\] reloaded what=certificate option=--tls-names file={names}$")
        assert shown(guard.port, "a.example") == renewed.certificate
