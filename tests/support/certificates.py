"""A certificate authority that lasts as long as a test run, and what it signs, as files."""

from __future__ import annotations

import atexit
import shutil
import ssl
import tempfile
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path

import trustme

_FOLDER = Path(tempfile.mkdtemp(prefix="certificates-"))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)

_CA = trustme.CA()
AUTHORITY = _FOLDER / "authority.pem"
"""Whom clients trust."""
_CA.cert_pem.write_to_path(str(AUTHORITY))


@lru_cache
def certificate(name: str = "localhost", number: int = 1) -> Path:
    """A key and a certificate of `name` in one file; another one for each `number`."""
    path = _FOLDER / f"{name}-{number}.pem"
    _CA.issue_cert(name, "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(path))
    return path


def of_user(name: str) -> Path:
    """A key and a certificate that names a user by its common name."""
    path = _FOLDER / f"user-{name}.pem"
    leaf = _CA.issue_cert(f"{name}@example.org", common_name=name)
    leaf.private_key_and_cert_chain_pem.write_to_path(str(path))
    return path


def stranger() -> Path:
    """A key and a certificate that another authority has signed."""
    path = _FOLDER / "stranger.pem"
    trustme.CA().issue_cert("stranger.example").private_key_and_cert_chain_pem.write_to_path(str(path))
    return path


def expired() -> Path:
    """A key and a certificate of localhost that was good in the year 2020."""
    path = _FOLDER / "expired.pem"
    start, end = datetime(2020, 1, 1, tzinfo=timezone.utc), datetime(2020, 12, 31, tzinfo=timezone.utc)
    leaf = _CA.issue_cert("localhost", not_before=start, not_after=end)
    leaf.private_key_and_cert_chain_pem.write_to_path(str(path))
    return path


@lru_cache
def with_long_chain(octets: int) -> Path:
    """A key, a certificate of localhost, and further ones after it, `octets` in all as they are sent (DER)."""
    leaf = _CA.issue_cert("localhost", "127.0.0.1")
    own = leaf.cert_chain_pems[0].bytes().decode()
    size = len(ssl.PEM_cert_to_DER_cert(own))
    further = []
    while size < octets:
        names = min(octets - size, 16_000) // 60
        blob = _CA.issue_cert(*(f"{number:03}.{'long-name.' * 5}example" for number in range(max(1, names))))
        further.append(blob.cert_chain_pems[0].bytes().decode())
        size += len(ssl.PEM_cert_to_DER_cert(further[-1]))
    path = _FOLDER / f"chain-{octets}.pem"
    path.write_text(leaf.private_key_pem.bytes().decode() + own + "".join(further))
    return path


CERTIFICATE = certificate()
