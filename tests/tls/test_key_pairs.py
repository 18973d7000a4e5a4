"""Certificates and keys in files: which belongs to which, what may stand in a file, and what is wrong with one."""

from __future__ import annotations

from pathlib import Path

import pytest
from commandline import parsed
from keypairs import Issued, authority
from twisted.internet.testing import MemoryReactorClock
from twisted.python.usage import UsageError

from twisted_smtpguard.cli.options import make_service
from twisted_smtpguard.inputs.regularfile import FaultyFileError
from twisted_smtpguard.tls.certificates import read_certificates, read_key, read_pair, read_pairs

ROOT = authority("root")
MIDDLE = authority("middle", ROOT, 2)
RSA = Issued("mx.example.org", issuer=MIDDLE, kind="RSA")
ECDSA = Issued("mx.example.org", issuer=MIDDLE)


class Files:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, name: str, *texts: str) -> str:
        path = self._folder / name
        path.write_text("".join(texts))
        return str(path)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_a_key_tells_to_which_certificate_it_belongs(files: Files) -> None:
    certificates = [files("rsa.pem", RSA.chain), files("ecdsa.pem", ECDSA.chain)]
    keys = [files("rsa.key", RSA.key_pem), files("ecdsa.key", ECDSA.key_pem)]
    for order in (keys, keys[::-1]):
        pairs = read_pairs(certificates, order)
        assert [pair.certificate for pair in pairs] == [RSA.certificate, ECDSA.certificate]
        assert [pair.key.key_size for pair in pairs] == [2048, 256]
        assert [pair.chain for pair in pairs] == [(MIDDLE.certificate,)] * 2


def test_one_may_have_its_key_in_its_own_file_and_another_not(files: Files) -> None:
    certificates = [files("rsa.pem", RSA.chain, RSA.key_pem), files("ecdsa.pem", ECDSA.chain)]
    pairs = read_pairs(certificates, [files("ecdsa.key", ECDSA.key_pem)])
    assert [pair.file for pair in pairs] == certificates


@pytest.mark.parametrize("kind", ["RSA", "ECDSA", "Ed25519"])
def test_each_kind_of_key_is_taken_wherever_it_stands_in_its_file(files: Files, kind: str) -> None:
    issued = Issued("mx.example.org", issuer=MIDDLE, kind=kind)
    for parts in ((issued.key_pem, issued.chain), (issued.chain, issued.key_pem)):
        assert (
            read_pair(files("a.pem", *parts), option="tls-names", name="a").certificate == issued.certificate
        )


def test_what_else_tools_write_into_such_files_is_passed_over(files: Files) -> None:
    text = "Bag Attributes\n    friendlyName: K\u00f6ln\n"
    parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    path = files(
        "a.pem", text, parameters, ECDSA.key_pem, text, ECDSA.pem, "\r\n", MIDDLE.pem.replace("\n", "\r\n")
    )
    assert len(read_certificates(path)) == 2
    assert read_key(path).key_size == 256


def faults(files: Files) -> list[tuple[list[str], list[str], str, str, str]]:
    """Certificates, keys, and of what is wrong the option, the file and the sentence."""
    good = files("good.pem", ECDSA.key_pem, ECDSA.chain)
    public, rsa = files("public.pem", ECDSA.chain), files("rsa.pem", RSA.key_pem, RSA.chain)
    ecdsa_key, rsa_key, text = files("a.key", ECDSA.key_pem), files("b.key", RSA.key_pem), files("text", "x")
    second = files("second.pem", Issued("b.example", number=7).key_pem, Issued("b.example", number=7).pem)
    crossed = files("crossed.pem", RSA.key_pem, ECDSA.chain)
    first = files("first.pem", MIDDLE.pem, ECDSA.pem)
    with_key = files("first-with-key.pem", MIDDLE.pem, ECDSA.pem, ECDSA.key_pem)
    damaged = files("damaged.key", ECDSA.key_pem[:60] + "AAAA" + ECDSA.key_pem[70:])
    number = (
        "the server's own certificate comes first and the rest of its chain after it, but here the key belongs to "
        "certificate number 2"
    )
    return [
        ([public], [rsa_key], "tls-key", rsa_key, f"the key does not belong to the certificate in {public}"),
        ([public], [text], "tls-key", text, "there is no private key in PEM form"),
        (
            [public],
            [damaged],
            "tls-key",
            damaged,
            "its private key is damaged, or of a kind that is not known",
        ),
        ([public], [], "tls-certificate", public, "there is no private key in PEM form"),
        ([text], [rsa_key], "tls-certificate", text, "there is no certificate in PEM form"),
        ([crossed], [], "tls-certificate", crossed, "its key does not belong to its certificate"),
        ([first], [ecdsa_key], "tls-certificate", first, number),
        ([with_key], [], "tls-certificate", with_key, number),
        (
            [public, rsa],
            [ecdsa_key, files("c.key", ECDSA.key_pem)],
            "tls-key",
            files("c.key", ECDSA.key_pem),
            f"the key belongs to none of the certificates in {public}, {rsa}, or to one that has its key",
        ),
        (
            [public, files("rsa-public.pem", RSA.pem)],
            [ecdsa_key],
            "tls-certificate",
            files("rsa-public.pem", RSA.pem),
            f"its private key is neither in it nor in {ecdsa_key}",
        ),
        (
            [good, second],
            [],
            "tls-certificate",
            second,
            f"its key is of the same kind as that of {good}: there can be one certificate of each kind, RSA and "
            "ECDSA, and those of other names are for --tls-names",
        ),
    ]


@pytest.mark.parametrize("number", range(11))
def test_what_is_wrong_is_told_of_the_file_and_the_option_that_it_is_wrong_with(
    files: Files, number: int
) -> None:
    certificates, keys, option, file, problem = faults(files)[number]
    with pytest.raises(FaultyFileError) as raised:
        read_pairs(certificates, keys)
    assert (raised.value.option, raised.value.file, raised.value.problem) == (option, file, problem)
    words = [f"--tls-certificate={each}" for each in certificates] + [f"--tls-key={each}" for each in keys]
    with pytest.raises(UsageError) as usage:
        make_service(parsed(*words), MemoryReactorClock())
    assert str(usage.value) == f"--{option}: {file}: {problem}"


def test_all_cases_are_checked(files: Files) -> None:
    assert len(faults(files)) == 11
