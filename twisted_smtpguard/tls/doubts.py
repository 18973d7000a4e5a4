"""Problems for which clients may reject a certificate that the guard serves. The operator is warned of them.

Functions import OpenSSL and cryptography, so that they are loaded only by a guard that has certificates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, cast

import attrs

from twisted_smtpguard.tls.certificates import KeyPair

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_NO_ISSUER = frozenset({2, 7, 20, 21})
"""The results of OpenSSL's verification that mean that the issuer of a certificate was not found, or that only another
certificate with the issuer's name was."""

MAX_NAMES_SHOWN = 10
"""How many names of a certificate are logged."""


OUT_OF_TIME = frozenset({"expired", "not_yet_valid"})
"""The reasons for which every client that verifies certificates rejects one."""


@attrs.frozen
class Doubt:
    """One problem of the certificate in `file`."""

    reason: str
    option: str
    file: str
    subject: str
    names: Sequence[str]
    """The DNS names and addresses that the certificate is for."""
    ends: datetime
    """The end of the certificate's validity."""
    problem: str
    """The problem, as a sentence for the operator."""


def without_issuer(pairs: Iterable[KeyPair], authorities: Sequence[Certificate]) -> frozenset[str]:
    """The files of the certificates of `pairs` whose issuer is neither in the file, nor one of `authorities`, nor
    trusted by this system. The rest of a chain is not checked, since it is unknown which roots clients have."""
    from OpenSSL import SSL, crypto  # noqa: PLC0415

    # The context owns the store, which is freed with it.
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_default_verify_paths()
    store = cast(Any, context.get_cert_store())
    for each in authorities:
        store.add_cert(crypto.X509.from_cryptography(each))

    def misses_issuer(pair: KeyPair) -> bool:
        if any(_has_issued(each, pair.certificate) for each in (*pair.chain, pair.certificate)):
            return False
        own = crypto.X509.from_cryptography(pair.certificate)
        try:
            crypto.X509StoreContext(store, own).verify_certificate()
        except crypto.X509StoreContextError as error:
            code, depth = error.errors[:2]
            return depth == 0 and code in _NO_ISSUER
        return False

    return frozenset(pair.file for pair in pairs if misses_issuer(pair))


def doubts(pair: KeyPair, *, issuer_missing: bool, hostname: str, now: float) -> Iterator[Doubt]:
    """Every problem of the certificate of `pair`. `issuer_missing`: `without_issuer` has returned its file. `hostname`
    is the guard's name in its greeting; `now` is in seconds since 1970."""
    time = _EPOCH + timedelta(seconds=now)
    subject, names = pair.certificate.subject.rfc4514_string(), _names_of(pair.certificate)

    def doubt(reason: str, problem: str) -> Doubt:
        ends = _times(pair.certificate)[1]
        return Doubt(reason, pair.option, pair.file, subject, names, ends, problem)

    for number, each in enumerate((pair.certificate, *pair.chain), 1):
        which = "it" if number == 1 else f"certificate number {number} of its chain"
        begins, over = _times(each)
        if over < time:
            yield doubt("expired", f"{which} expired on {_shown(over)}")
        elif time < begins:
            yield doubt("not_yet_valid", f"{which} is not valid before {_shown(begins)}")
    if issuer_missing:
        issuer = pair.certificate.issuer.rfc4514_string()
        problem = (
            f"its issuer ({issuer}) is neither in the file nor an authority that this system knows: clients without it "
            "cannot verify the certificate; put the issuer's certificate after it"
        )
        yield doubt("no_issuer", problem)
    wanted = pair.name or hostname
    if not is_for(wanted, names):
        calls = "clients ask for it by" if pair.name else "the guard calls itself"
        yield doubt("other_name", f"{calls} {wanted}, which is not among its names")


def described(pair: KeyPair) -> str:
    """The certificate of `pair` in one line: subject, names, end and the length of its chain."""
    certificate = pair.certificate
    names = ", ".join(_names_of(certificate)[:MAX_NAMES_SHOWN]) or "no name"
    subject, ends = certificate.subject.rfc4514_string(), _shown(_times(certificate)[1])
    chain = f"with a chain of {len(pair.chain)}" if pair.chain else "without a chain"
    return f"{subject}, for {names}, until {ends}, {chain}"


def _names_of(certificate: Certificate) -> list[str]:
    """The DNS names and addresses that a certificate is for: its subjectAltName. Clients look at no other names."""
    from cryptography import x509  # noqa: PLC0415

    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return []
    addresses = [str(each) for each in found.get_values_for_type(x509.IPAddress)]
    return [*found.get_values_for_type(x509.DNSName), *addresses]


def is_for(name: str, names: Sequence[str]) -> bool:
    """Whether a certificate for `names` is valid for `name`: a domain, a wildcard name, or an address literal."""
    if name.startswith("["):
        try:
            address = ip_address(name[1:-1].removeprefix("IPv6:"))
        except ValueError:
            return False
        return str(address) in names
    name = name.lower().rstrip(".")
    lowered = {each.lower() for each in names}
    return name in lowered or f"*.{name.partition('.')[2]}" in lowered


def _has_issued(issuer: Certificate, certificate: Certificate) -> bool:
    """Whether `issuer` has signed `certificate`."""
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm  # noqa: PLC0415

    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _times(certificate: Any) -> tuple[datetime, datetime]:
    """The beginning and the end of a certificate's validity."""
    if hasattr(certificate, "not_valid_after_utc"):
        return certificate.not_valid_before_utc, certificate.not_valid_after_utc
    # Before cryptography 42.
    begins, ends = certificate.not_valid_before, certificate.not_valid_after
    return begins.replace(tzinfo=timezone.utc), ends.replace(tzinfo=timezone.utc)


def expires_at(certificate: Any) -> float:
    """The end of a certificate's validity, in seconds since 1970."""
    return _times(certificate)[1].timestamp()


def _shown(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"
