"""KeyUpdate (RFC 8446 4.6.3) as a client may send it without end. Python's ssl has no way to send even one."""

from __future__ import annotations

import hmac
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_HASH, _HASH_OCTETS, _KEY_OCTETS, _IV_OCTETS = "sha384", 48, 32, 12
CIPHER = "TLS_AES_256_GCM_SHA384"
_DATA, _HANDSHAKE = b"\x17", b"\x16"
_UPDATE_REQUESTED = b"\x18\x00\x00\x01\x01"


def key_updates(key_log: Path, number: int, then: bytes) -> bytes:
    """The records of a client that asks for a KeyUpdate `number` times and then sends the octets `then`. It has sent
    nothing since its handshake in TLS 1.3 with CIPHER, whose secrets are in `key_log`."""
    lines = (line.split() for line in key_log.read_text().splitlines())
    secret = next(bytes.fromhex(line[2]) for line in lines if line[0] == "CLIENT_TRAFFIC_SECRET_0")
    records = []
    for _ in range(number):
        records.append(_first_record(secret, _UPDATE_REQUESTED + _HANDSHAKE))
        secret = _expand(secret, b"traffic upd", _HASH_OCTETS)
    return b"".join([*records, _first_record(secret, then + _DATA)])


def _first_record(secret: bytes, content: bytes) -> bytes:
    """The first record under this secret (RFC 8446 5.2): its number is 0, which leaves the nonce as it is."""
    header = b"\x17\x03\x03" + (len(content) + 16).to_bytes(2, "big")
    cipher = AESGCM(_expand(secret, b"key", _KEY_OCTETS))
    return header + cipher.encrypt(_expand(secret, b"iv", _IV_OCTETS), content, header)


def _expand(secret: bytes, label: bytes, octets: int) -> bytes:
    """HKDF-Expand-Label (RFC 8446 7.1), for no more than one block."""
    label = b"tls13 " + label
    return hmac.digest(secret, octets.to_bytes(2, "big") + bytes([len(label)]) + label + b"\0\1", _HASH)[
        :octets
    ]
