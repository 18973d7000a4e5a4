"""What clients would find wrong with a certificate, said at start and at reload."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeDelivery
from keypairs import DAY, TODAY, Issued, authority
from logbook import logbook
from twisted.internet.task import Clock

from twisted_smtpguard import CertificateFiles, SMTPGuardService
from twisted_smtpguard.tls.doubts import is_for

ROOT = authority("Root")
MIDDLE = authority("Middle", ROOT, 2)
GOOD = Issued("mx.example.org", issuer=MIDDLE)


def at(time: Any = TODAY) -> Clock:
    clock = Clock()
    clock.rightNow = time.timestamp()
    return clock


def told(*doubtful: str | Path, hostname: str = "mx.example.org", **options: Any) -> list[str]:
    """What a start warns of."""
    files = CertificateFiles(list(map(str, doubtful)), **options)
    service = SMTPGuardService(at(), [], FakeDelivery(), hostname=hostname, tls=files)
    with logbook() as book:
        service.startService()
        service.stopService()
        return book.take("doubtful_certificate")


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    return tmp_path / "guard.pem"


def test_of_a_good_one_nothing_is_said(path: Path) -> None:
    assert told(GOOD.written(path)) == []
    # The root may be there, and a certificate may have signed itself.
    path.write_text(GOOD.key_pem + GOOD.chain + ROOT.pem)
    assert told(path) == []
    assert told(Issued("mx.example.org").written(path)) == []


@pytest.mark.parametrize(
    ("begins", "ends", "reason", "problem"),
    [
        (TODAY - 9 * DAY, TODAY - DAY, "expired", "it expired on 2026-06-14 00:00 UTC"),
        (TODAY + DAY, TODAY + 9 * DAY, "not_yet_valid", "it is not valid before 2026-06-16 00:00 UTC"),
    ],
)
def test_one_out_of_its_time_is_told_with_subject_names_and_end(
    path: Path, begins: Any, ends: Any, reason: str, problem: str
) -> None:
    Issued("mx.example.org", "192.0.2.1", issuer=MIDDLE, begins=begins, ends=ends).written(path)
    assert told(path) == [
        f"doubtful_certificate reason={reason} option=--tls-certificate file={path} subject=CN=mx.example.org "
        f"names=mx.example.org,192.0.2.1 ends={ends:%Y-%m-%dT%H:%M:%SZ} {problem}"
    ]


def test_so_is_one_of_the_chain(path: Path) -> None:
    old = Issued("Middle", issuer=ROOT, number=2, authority=True, begins=TODAY - 9 * DAY, ends=TODAY - DAY)
    Issued("mx.example.org", issuer=old).written(path)
    (line,) = told(path)
    assert line.endswith(" certificate number 2 of its chain expired on 2026-06-14 00:00 UTC")


def test_a_chain_without_its_intermediate_is_told(path: Path, tmp_path: Path) -> None:
    path.write_text(GOOD.key_pem + GOOD.pem)
    (line,) = told(path)
    assert " reason=no_issuer " in line
    assert "its issuer (CN=Middle) is neither in the file nor an authority that this system knows" in line
    # Whose certificates clients show is an authority that is known.
    (tmp_path / "authorities.pem").write_text(MIDDLE.pem)
    assert told(path, client_authorities=str(tmp_path / "authorities.pem")) == []
    # A stranger in the place of the issuer is none.
    path.write_text(GOOD.key_pem + GOOD.pem + authority("Middle", ROOT, 3).pem)
    assert len(told(path)) == 1


@pytest.mark.parametrize("hostname", ["other.example.org", "a.mx.example.org", "[192.0.2.1]"])
def test_one_for_another_name_is_told(path: Path, hostname: str) -> None:
    (line,) = told(GOOD.written(path), hostname=hostname)
    assert line.endswith(f" the guard calls itself {hostname}, which is not among its names")
    assert " reason=other_name " in line


def test_one_without_any_name_is_told_too(path: Path) -> None:
    own = authority("mx.example.org")
    (line,) = told(own.written(path))
    assert " reason=other_name " in line
    assert " names= " in line


@pytest.mark.parametrize(
    ("name", "names", "outcome"),
    [
        ("MX.example.org", ["mx.EXAMPLE.org"], True),
        ("mx.example.org", ["*.example.org"], True),
        ("a.mx.example.org", ["*.example.org"], False),
        ("example.org", ["*.example.org"], False),
        ("*.example.org", ["*.example.org"], True),
        ("[192.0.2.1]", ["192.0.2.1"], True),
        ("[IPv6:2001:db8::1]", ["2001:db8::1"], True),
        ("[nonsense]", ["nonsense"], False),
        ("localhost", [], False),
    ],
)
def test_for_which_names_a_certificate_is(name: str, names: list[str], outcome: bool) -> None:
    assert is_for(name, names) is outcome


def test_each_of_several_is_looked_at_and_a_named_one_is_for_its_name(path: Path, tmp_path: Path) -> None:
    names = tmp_path / "names"
    names.mkdir()
    Issued("a.example", issuer=MIDDLE).written(names / "a.example.pem")
    Issued("b.example", issuer=MIDDLE).written(names / "*.c.example.pem")
    rsa = Issued("other.example", issuer=MIDDLE, kind="RSA").written(tmp_path / "rsa.pem")
    lines = told(GOOD.written(path), rsa, names=str(names))
    assert len(lines) == 2
    assert f" option=--tls-certificate file={rsa} subject=CN=other.example " in lines[0]
    assert f" option=--tls-names file={names}/*.c.example.pem subject=CN=b.example " in lines[1]
    assert lines[1].endswith(" clients ask for it by *.c.example, which is not among its names")


def test_a_name_can_forge_no_line(path: Path) -> None:
    evil = "mx.example.org\nreject peer=1.2.3.4"
    key = Issued(evil, issuer=MIDDLE, ends=TODAY - DAY / 2)
    for line in told(key.written(path)):
        assert len(line.splitlines()) == 1
        assert " reject" not in line
        assert " peer=" not in line


def test_a_reload_tells_of_what_it_has_read(path: Path) -> None:
    files = CertificateFiles(GOOD.written(path))
    service = SMTPGuardService(at(), [], FakeDelivery(), hostname="mx.example.org", tls=files)
    Issued("mx.example.org", issuer=MIDDLE, ends=TODAY - DAY / 2).written(path)
    with logbook() as book:
        service.reload()
        assert book.take("reloaded") == [f"reloaded what=certificate option=--tls-certificate file={path}"]
        assert len(book.take("doubtful_certificate")) == 1
        GOOD.written(path)
        service.reload()
        assert book.take("doubtful_certificate") == []


def test_reloaded_tells_each_file_with_its_option(tmp_path: Path) -> None:
    certificate, key = tmp_path / "a.pem", tmp_path / "a.key"
    certificate.write_text(GOOD.chain)
    key.write_text(GOOD.key_pem)
    (tmp_path / "authorities.pem").write_text(ROOT.pem)
    names = tmp_path / "names"
    names.mkdir()
    GOOD.written(names / "mx.example.org.pem")
    files = CertificateFiles(str(certificate), str(key), str(tmp_path / "authorities.pem"), names=str(names))
    service = SMTPGuardService(at(), [], FakeDelivery(), hostname="mx.example.org", tls=files)
    with logbook() as book:
        service.reload()
        assert book.take("reloaded") == [
            f"reloaded what=certificate option=--{option} file={tmp_path}/{file}"
            for option, file in [
                ("tls-certificate", "a.pem"),
                ("tls-key", "a.key"),
                ("tls-names", "names"),
                ("tls-client-authorities", "authorities.pem"),
            ]
        ]
        key.write_text("")
        service.reload()
        assert book.take("reload_failed") == [
            f"reload_failed what=certificate option=--tls-key file={key} there is no private key in PEM form"
        ]
