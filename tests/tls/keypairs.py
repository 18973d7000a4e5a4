"""Certificates of each kind, in whatever state a test wants them, as PEM."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

TODAY = datetime(2026, 6, 15, tzinfo=timezone.utc)
DAY = timedelta(days=1)
LONG = 10_000 * DAY


@cache
def key(kind: str, number: int = 0) -> Any:
    """The same at each call."""
    if kind == "RSA":
        return rsa.generate_private_key(65537, 2048)
    return (
        ec.generate_private_key(ec.SECP256R1()) if kind == "ECDSA" else ed25519.Ed25519PrivateKey.generate()
    )


class Issued:
    """A certificate, who has issued it, and its key. Without an `issuer` it has signed itself."""

    def __init__(
        self,
        *names: str,
        issuer: Issued | None = None,
        kind: str = "ECDSA",
        number: int = 0,
        begins: datetime = TODAY - DAY,
        ends: datetime = TODAY + DAY,
        authority: bool = False,
    ) -> None:
        self.issuer = issuer
        self.key = key(kind, number)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        signs = issuer or self
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.certificate.subject if issuer else subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if not authority:
            builder = builder.add_extension(
                x509.SubjectAlternativeName(list(map(_name, names))), critical=False
            )
        algorithm = None if isinstance(signs.key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
        self.certificate = builder.sign(signs.key, algorithm)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def key_pem(self) -> str:
        form = serialization.PrivateFormat.TraditionalOpenSSL
        if isinstance(self.key, ed25519.Ed25519PrivateKey):
            form = serialization.PrivateFormat.PKCS8
        octets: bytes = self.key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        return octets.decode()

    @property
    def chain(self) -> str:
        """Without the root, which clients have."""
        return self.pem + (self.issuer.chain if self.issuer and self.issuer.issuer else "")

    def written(self, path: Path) -> str:
        """The path of a file with the key and the whole chain."""
        path.write_text(self.key_pem + self.chain)
        return str(path)


def authority(name: str, issuer: Issued | None = None, number: int = 1) -> Issued:
    return Issued(name, issuer=issuer, number=number, authority=True, begins=TODAY - LONG, ends=TODAY + LONG)


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        return x509.DNSName(text)
