"""The request of Postfix's SMTPD_POLICY protocol: the attributes of a step of a session. Pure.

The names and forms are those of Postfix 3.7 (SMTPD_POLICY_README), so that the servers that people run can be asked.
No value can end an attribute early or begin another one: a client chooses some of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from hashlib import sha256

from twisted_smtpguard.policyvalues import PolicyRequest
from twisted_smtpguard.values import Path

_STATES = {
    "connect": "CONNECT",
    "mail": "MAIL",
    "rcpt": "RCPT",
    "data": "DATA",
    "end-of-data": "END-OF-MESSAGE",
}
"""The `protocol_state` of each stage; at `helo` it is the command."""

_CONTROLS = dict.fromkeys((*range(32), 127), "?")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_OF_XTEXT = re.compile(r"\+([0-9A-F]{2})")
_NOT_XTEXT = re.compile(rb"[^!-*,-<>-~]")


def question(request: PolicyRequest) -> bytes:
    """The octets of a request: an attribute on each line, and an empty line."""
    lines = [f"{name}={value.translate(_CONTROLS)}\n" for name, value in attributes(request)]
    return "".join([*lines, "\n"]).encode("utf-8", "replace")


def attributes(request: PolicyRequest) -> Iterator[tuple[str, str]]:
    """The name and value of each attribute, in the order in which Postfix sends them."""
    peer = request.peer
    at_end = request.stage in ("data", "end-of-data")
    yield "request", "smtpd_access_policy"
    yield "protocol_state", _STATES.get(request.stage) or ("EHLO" if request.by_ehlo else "HELO")
    yield "protocol_name", "ESMTP" if request.esmtp else "SMTP"
    yield "client_address", "" if peer.address is None else str(peer.address)
    # The guard asks no DNS for the names of clients.
    yield "client_name", "unknown"
    yield "client_port", _number(peer.port)
    yield "reverse_client_name", "unknown"
    yield "server_address", "" if peer.local_address is None else str(peer.local_address)
    yield "server_port", _number(peer.local_port)
    yield "helo_name", request.helo
    yield "sender", _address(request.sender)
    yield "recipient", _address(request.recipient)
    yield "recipient_count", str(request.recipients if at_end else 0)
    yield "queue_id", ""
    yield "instance", request.instance
    yield "size", str(request.octets)
    yield "etrn_domain", ""
    yield "stress", "yes" if request.stress else ""
    yield "sasl_method", request.mechanism
    yield "sasl_username", request.identity or ""
    yield "sasl_sender", _submitter(request)
    subject, issuer, fingerprint, of_key = ("",) * 4
    if peer.certificate is not None:
        subject, issuer, fingerprint, of_key = _of_certificate(peer.certificate)
    yield "ccert_subject", subject
    yield "ccert_issuer", issuer
    yield "ccert_fingerprint", fingerprint
    yield "ccert_pubkey_fingerprint", of_key
    version, _, cipher = request.tls.partition(" ")
    yield "encryption_protocol", version
    yield "encryption_cipher", cipher
    yield "encryption_keysize", str(request.tls_bits)
    yield "policy_context", ""


def _number(port: int | None) -> str:
    return "" if port is None else str(port)


def _address(path: Path | None) -> str:
    """An address as Postfix has it: without the quotes and backslashes of a quoted local part (RFC 5321 4.1.2)."""
    if path is None or not path.address.startswith('"'):
        return "" if path is None else path.address
    local, at, domain = path.address.rpartition("@")
    if not local.endswith('"'):
        local, at, domain = path.address, "", ""
    return f"{_ESCAPED.sub(_second, local[1:-1])}{at}{domain}"


def _submitter(request: PolicyRequest) -> str:
    """The AUTH parameter of MAIL (RFC 4954 5), which counts from a client that has logged in."""
    if request.identity is None or request.sender is None:
        return ""
    text = request.sender.parameters.get("AUTH") or ""
    return _OF_XTEXT.sub(lambda match: chr(int(match[1], 16)), text)


def _second(match: re.Match[str]) -> str:
    return match[1]


@lru_cache(maxsize=64)
def _of_certificate(der: bytes) -> tuple[str, str, str, str]:
    """The common names of a client's certificate and of its issuer (whose organization if it has none), in xtext as
    Postfix sends them, and the SHA-256 fingerprints of the certificate and of its key."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415
    from cryptography.x509 import load_der_x509_certificate  # noqa: PLC0415
    from cryptography.x509.oid import NameOID  # noqa: PLC0415

    try:
        certificate = load_der_x509_certificate(der)
        issuer = certificate.issuer
        names = [
            next((str(each.value) for name in found for each in name), "")
            for found in (
                [certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)],
                map(issuer.get_attributes_for_oid, (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME)),
            )
        ]
        key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except Exception:  # noqa: BLE001 - a certificate that OpenSSL takes and cryptography does not
        return "", "", _fingerprint(der), ""
    return _xtext(names[0]), _xtext(names[1]), _fingerprint(der), _fingerprint(key)


def _xtext(text: str) -> str:
    """`text` in xtext (RFC 3461 4)."""
    octets = text.encode("utf-8", "replace")
    return _NOT_XTEXT.sub(lambda match: b"+%02X" % match[0][0], octets).decode("ascii")


def _fingerprint(octets: bytes) -> str:
    return sha256(octets).digest().hex(":").upper()
