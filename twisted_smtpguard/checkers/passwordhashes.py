"""Hashes of passwords, as Dovecot's passwd-file and htpasswd write them: which there are, and whether a password fits.

    {SCHEME}HASH, such as {SSHA256}… and {BLF-CRYPT}$2y$…; or a hash of crypt(3) by itself, such as $6$… and $apr1$…

Needs libpass, of the extra `auth`, when a hash is compared that crypt(3) has made.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import b64decode, b64encode
from binascii import Error, unhexlify
from collections.abc import Callable
from functools import partial
from importlib import import_module
from threading import Lock
from typing import Any

from twisted_smtpguard.checkers.passwordlines import part_line, users_of

_EXPECTED = "a line `user:HASH` is expected"
LOCKED = b"*"
"""The hash of a user who cannot log in."""
_MOST_OF_BCRYPT = 72
"""bcrypt looks at so many octets of a password only."""

_OF_CRYPT = {
    name: re.compile(pattern)
    for name, pattern in (
        ("bcrypt", r"\$2[aby]\$[0-9]{2}\$[./A-Za-z0-9]{53}"),
        ("md5_crypt", r"\$1\$[^$]{0,8}\$[./A-Za-z0-9]{22}"),
        ("apr_md5_crypt", r"\$apr1\$[^$]{0,8}\$[./A-Za-z0-9]{22}"),
        ("sha256_crypt", r"\$5\$(?:rounds=[0-9]{1,9}\$)?[^$]{0,16}\$[./A-Za-z0-9]{43}"),
        ("sha512_crypt", r"\$6\$(?:rounds=[0-9]{1,9}\$)?[^$]{0,16}\$[./A-Za-z0-9]{86}"),
        ("argon2", r"\$argon2(?:i|d|id)\$[^$]{1,40}\$[^$]{1,60}(?:\$[A-Za-z0-9+/=]{1,120}){1,2}"),
        ("des_crypt", r"[./A-Za-z0-9]{13}"),
    )
}
"""The hashes of crypt(3) and its relatives, by the names that libpass has for them."""

_CRYPT_SCHEMES = frozenset(
    [
        "CRYPT",
        "MD5",
        "MD5-CRYPT",
        "SHA256-CRYPT",
        "SHA512-CRYPT",
        "BLF-CRYPT",
        "DES-CRYPT",
        "ARGON2I",
        "ARGON2ID",
    ]
)
_DIGESTS = {"SHA": "sha1", "SHA1": "sha1", "SHA256": "sha256", "SHA512": "sha512", "LDAP-MD5": "md5"}
_DIGESTS |= {"MD5": "md5", "PLAIN-MD5": "md5"}
_SALTED = {"SSHA": "sha1", "SSHA256": "sha256", "SSHA512": "sha512", "SMD5": "md5"}
_SCRAM = {"SCRAM-SHA-1": "sha1", "SCRAM-SHA-256": "sha256"}
_PLAIN = frozenset({"PLAIN", "CLEARTEXT", "CLEAR"})

_UNSUPPORTED_FIELDS = re.compile(rb"(?:^|[\s:])(nologin|allow_nets|allow_real_nets|deny)(?:[\s=]|$)")
"""Extra fields of Dovecot that keep a user from logging in, which would be overlooked here."""

Fits = Callable[[bytes], bool]
"""Whether a password fits."""


def parse_hashes(octets: bytes, yield_gil: Callable[[], object] = lambda: None) -> dict[bytes, bytes]:
    """The hash of each user. ValueError names the line that is wrong, and never repeats a hash."""
    return users_of(octets, _parse_line, yield_gil)


def _parse_line(line: bytes) -> tuple[bytes, bytes] | None:
    parted = part_line(line, _EXPECTED)
    if parted is None:
        return None
    user, rest = parted
    kept, _, fields = rest.partition(b":")
    found = _UNSUPPORTED_FIELDS.search(fields)
    if found is not None:
        raise ValueError(f"the field {found[1].decode()} of Dovecot is not supported")
    if kept.startswith((LOCKED, b"!")):
        return user, LOCKED
    try:
        matcher(kept)
    except ValueError as error:
        raise ValueError(f"{_EXPECTED}, and {error}") from None
    return user, kept


def matcher(kept: bytes) -> Fits:
    """The function that tells whether a password fits this hash. ValueError: it is no hash that is known here."""
    text = kept.decode("utf-8", "surrogateescape")
    found = re.fullmatch(
        r"\{([A-Za-z0-9-]{1,20})(?:\.(HEX|B64|BASE64))?\}(.*)", text, re.DOTALL | re.IGNORECASE
    )
    if found is None:
        if text.startswith("{"):
            raise ValueError("the scheme in braces is malformed")
        return _of_crypt(text)
    scheme, encoding, value = found[1].upper(), (found[2] or "").upper(), found[3]
    if scheme in _PLAIN:
        if not value:
            raise ValueError("there is no password after the scheme")
        return partial(hmac.compare_digest, value.encode("utf-8", "surrogateescape"))
    if scheme in _CRYPT_SCHEMES and not (scheme == "MD5" and not value.startswith("$")):
        return _of_crypt(value)
    if scheme in _DIGESTS:
        digest = _DIGESTS[scheme]
        octets = _decoded(value, encoding, hashlib.new(digest).digest_size)
        return partial(_fits_digest, digest, octets)
    if scheme in _SALTED:
        digest = _SALTED[scheme]
        octets = _decoded(value, encoding, 0)
        if len(octets) <= hashlib.new(digest).digest_size:
            raise ValueError("the hash is too short")
        return partial(_fits_salted, digest, octets)
    if scheme in _SCRAM:
        return _of_scram(_SCRAM[scheme], value)
    if scheme == "PBKDF2":
        return _of_pbkdf2(value)
    raise ValueError(f"the scheme {{{scheme}}} is not known here")


def _of_crypt(text: str) -> Fits:
    name = next((name for name, pattern in _OF_CRYPT.items() if pattern.fullmatch(text)), None)
    if name is None:
        raise ValueError("this is no hash that is known here")
    return partial(_fits_crypt, name, text)


def _fits_crypt(name: str, text: str, password: bytes) -> bool:
    if name == "bcrypt":
        password = password[:_MOST_OF_BCRYPT]
    return bool(_handler(name).verify(password, text))


_loading = Lock()


def _handler(name: str) -> Any:
    """The part of libpass that knows these hashes. What it loads it loads once, whichever thread comes first."""
    with _loading:
        handler = getattr(import_module("passlib.hash"), name)
        if hasattr(handler, "get_backend"):
            handler.get_backend()
    return handler


def _fits_digest(digest: str, octets: bytes, password: bytes) -> bool:
    return hmac.compare_digest(hashlib.new(digest, password).digest(), octets)


def _fits_salted(digest: str, octets: bytes, password: bytes) -> bool:
    size = hashlib.new(digest).digest_size
    return hmac.compare_digest(hashlib.new(digest, password + octets[size:]).digest(), octets[:size])


def _of_scram(digest: str, value: str) -> Fits:
    found = re.fullmatch(r"([0-9]{1,9}),([A-Za-z0-9+/=]+),([A-Za-z0-9+/=]+),[A-Za-z0-9+/=]+", value)
    if found is None:
        raise ValueError("what follows the scheme is not iterations, salt and two keys")
    salt, stored = _decoded(found[2], "B64", 0), _decoded(found[3], "B64", 0)

    def fits(password: bytes) -> bool:
        salted = hashlib.pbkdf2_hmac(digest, password, salt, int(found[1]))
        key = hmac.digest(salted, b"Client Key", digest)
        return hmac.compare_digest(hashlib.new(digest, key).digest(), stored)

    return fits


def _of_pbkdf2(value: str) -> Fits:
    found = re.fullmatch(r"\$1\$([^$]{1,64})\$([0-9]{1,9})\$([0-9a-fA-F]{40})", value)
    if found is None:
        raise ValueError("what follows the scheme is not $1$salt$rounds$hash")
    salt, rounds, octets = found[1].encode("utf-8", "surrogateescape"), int(found[2]), unhexlify(found[3])
    return lambda password: hmac.compare_digest(hashlib.pbkdf2_hmac("sha1", password, salt, rounds), octets)


def _decoded(value: str, encoding: str, size: int) -> bytes:
    """The octets of a digest, of `size` octets unless that is 0. In hexadecimal digits if they are so many, or if the
    scheme says so."""
    is_hex = encoding == "HEX" or (not encoding and size and len(value) == 2 * size)
    try:
        octets = unhexlify(value) if is_hex else b64decode(value, validate=True)
    except (Error, ValueError):
        raise ValueError("the hash cannot be decoded") from None
    if size and len(octets) != size:
        raise ValueError("the hash has the wrong length")
    if not is_hex and b64encode(octets).decode("ascii").rstrip("=") != value.rstrip("="):
        raise ValueError("the hash cannot be decoded")
    return octets
