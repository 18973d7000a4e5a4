"""Hashes of passwords in a file: each of its kinds, and lines that are wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_smtpguard.checkers.passwordhashes import matcher, parse_hashes

PASSWORD = b"correct-horse"

HASHES = """\
{SHA1}NstYn3QVe0WBGmkMWLQ0CV9I6fo=
{SHA}NstYn3QVe0WBGmkMWLQ0CV9I6fo=
{SHA256}ncpmbrVHMHFGMNFRkmSnvx7qrQC48u3JDT7L+tko0WM=
{SHA256.HEX}9dca666eb54730714630d1519264a7bf1eeaad00b8f2edc90d3ecbfad928d163
{sha256}9dca666eb54730714630d1519264a7bf1eeaad00b8f2edc90d3ecbfad928d163
{SHA512}WQww68hpOlPAldoAC1ohVGPJvFpZ2VTrBFSBLD3v7R+EgMY+Ku05aEtl2Wd74Y89lMDxhPMPEAJuVRfvY1yR6A==
{SSHA}ultzPYrHTLxOP/Xgl87ljyZf0oChPGBO
{SSHA.HEX}50bf0ef7949abb1b04379637c85d26b561b50b7ed2ddfcf9
{SSHA256}NB73nF3WLFvk32g5jWF+R83Klr2gVMcumCDgC3pnF8HZO0P7
{SSHA512}jrdql4k5UbD7DV127O/T7WmmFLo9a+W+azOue/ovW8UhPohnP1W256lE8e2xmCDlPUmKZAIZEGaZz5Zj8jDXq3M8fUU=
{SMD5}iT+kTYEbW+l3eaQm/xx2FlTjGK8=
{LDAP-MD5}LrYtFxuoSR20lggaiyRzig==
{MD5}LrYtFxuoSR20lggaiyRzig==
{PLAIN-MD5}2eb62d171ba8491db496081a8b24738a
{PLAIN}correct-horse
{CLEARTEXT}correct-horse
{CRYPT}$2y$05$5ege80rUMK24pCBccPpNWetsnfRkmw/ucjPWPCGZRvWJaBaVfnJnG
{BLF-CRYPT}$2y$05$.VRisv9OhGiX6S2HJu54VO8AkkgKtYjwLDVo4OeM67qoC7Lp1BC2y
$2y$05$.VRisv9OhGiX6S2HJu54VO8AkkgKtYjwLDVo4OeM67qoC7Lp1BC2y
{DES-CRYPT}pHGXyc8TolD.I
pHGXyc8TolD.I
{MD5-CRYPT}$1$Ob28XiaQ$ELjxXEBres1rln3w577UJ1
{MD5}$1$wW.van.v$m4BI2ydEpmTCzf8d7sV0c0
{SHA256-CRYPT}$5$C8UGa7V/le/50f4R$XYqMBp7BX8MwBAXoCEEFGIaIVly4ydISk.8N1ZkoT1B
{SHA512-CRYPT}$6$sae/vmhoEhLEiZcW$p0cQuvynsgFEa6GLYfS4e3BUm6EmBRNg4dTR4ZiN7XMJbj7.p2DkfCSLxItUoaoR7ZCmTkU4NLWqCuQfSG5bF1
{ARGON2I}$argon2i$v=19$m=32768,t=4,p=1$drBW76MV6k2lVPBsGQiQ3A$+iJ3iJZYfoDjWAw0zII5bagdYKL2/K9FPxzuhVzZgcY
{ARGON2ID}$argon2id$v=19$m=65536,t=3,p=1$FBZ3c9zQUPnd8vCsaCpgXg$6qwPl1ayv1Z0jUjy9gKlyK9Frl5zqcpN+Gd5T3rPCPg
{CRYPT}$apr1$saltsalt$hFKskmgy0iTNFL.qVaLk.0
$apr1$saltsalt$hFKskmgy0iTNFL.qVaLk.0
{PBKDF2}$1$izs8dIJwLO9qlkuz$5000$7e24175e24639ee0166b37691a772c2825af56af
{SCRAM-SHA-1}4096,QRRUxoBOdqsPRakzZV5tFw==,rkArAxjNoPXT479I/bSFNtjUrrA=,HuSfYidxxQRNGLhT+mcONn2pi48=
{SCRAM-SHA-256}4096,Bw/zeqqekoSxe8bQSX32eg==,+eipG5GIVFU/u/VA6dotquWi38XLzEG48DMNcXaOZkc=,zIE0ftGUlufkXndRGgPlpU7bgeeCGaTK5Lt2ot1nfA0=
""".splitlines()
"""Made by doveadm pw, and those of Apache by libpass."""


@pytest.mark.parametrize("kept", HASHES)
def test_a_password_fits_its_hash_and_no_other_does(kept: str) -> None:
    fits = matcher(kept.encode())
    assert fits(PASSWORD)
    # DES looks at the first eight octets.
    for wrong in (b"", b"corruct-horse", b"x", b"Correct-horse", b"\xff" * 3000):
        assert not fits(wrong)


def test_bcrypt_looks_at_72_octets() -> None:
    fits = matcher(b"$2y$05$.VRisv9OhGiX6S2HJu54VO8AkkgKtYjwLDVo4OeM67qoC7Lp1BC2y")
    assert not fits(b"x" * 200)


def test_what_follows_the_hash_is_ignored_and_locked_users_have_none_that_fits() -> None:
    lines = [
        b"# comment",
        b"",
        b"ann:{PLAIN}a b:1000:1000::/home/ann:/bin/sh:userdb_quota_rule=*:storage=1G",
        "j\u00f6rg:pHGXyc8TolD.I\r".encode(),
        b"locked:!pHGXyc8TolD.I",
        b"star:*:1:1",
    ]
    assert parse_hashes(b"\n".join(lines)) == {
        b"ann": b"{PLAIN}a b",
        "j\u00f6rg".encode(): b"pHGXyc8TolD.I",
        b"locked": b"*",
        b"star": b"*",
    }


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("ann", "a line `user:HASH` is expected, and there is no colon"),
        (":{PLAIN}x", "there is no user before the colon"),
        ("ann:", "this is no hash that is known here"),
        ("ann:secret", "this is no hash that is known here"),
        ("ann:$y$j9T$secret$secret", "this is no hash that is known here"),
        ("ann:{NTLM}secretsecret", "the scheme {NTLM} is not known here"),
        ("ann:{}secret", "the scheme in braces is malformed"),
        ("ann:{PLAIN}", "there is no password after the scheme"),
        ("ann:{SHA}secret", "the hash cannot be decoded"),
        ("ann:{SHA}c2VjcmV0", "the hash has the wrong length"),
        ("ann:{SSHA}c2VjcmV0", "the hash is too short"),
        ("ann:{SCRAM-SHA-256}secret", "what follows the scheme is not iterations, salt and two keys"),
        ("ann:{PBKDF2}secret", "what follows the scheme is not $1$salt$rounds$hash"),
        ("ann:{BLF-CRYPT}secret", "this is no hash that is known here"),
        ("ann:{PLAIN}x:::::::allow_nets=10.0.0.0/8", "the field allow_nets of Dovecot is not supported"),
        ("ann:{PLAIN}x:::::::nologin", "the field nologin of Dovecot is not supported"),
    ],
)
def test_a_wrong_line_is_told_and_its_hash_is_not(line: str, problem: str) -> None:
    with pytest.raises(ValueError, match=r"^line 2: ") as error:
        parse_hashes(b"bob:*\n" + line.encode())
    assert str(error.value).endswith(problem)
    assert "secret" not in str(error.value)


@given(st.binary(max_size=80))
def test_no_octets_after_a_name_raise_anything_else(kept: bytes) -> None:
    try:
        users = parse_hashes(b"ann:" + kept)
    except ValueError:
        return
    assert [*users] == [b"ann"]
