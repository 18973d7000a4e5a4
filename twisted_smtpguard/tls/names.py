"""Certificates by the name that a client asks for (SNI, RFC 6066 3): a directory of files NAME.pem.

What a client asks for is looked up in a table. It never becomes a path.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TypeVar

from twisted_smtpguard.engine.hostnames import parse_domain
from twisted_smtpguard.inputs.regularfile import FaultyFileError
from twisted_smtpguard.tls.certificates import KeyPair, read_pair

T = TypeVar("T")

NAMES = "tls-names"
"""The option of the command line."""

_SUFFIX = ".pem"
_WILDCARD = "*."


def read_names(directory: str) -> tuple[dict[str, KeyPair], dict[str, FaultyFileError]]:
    """Of each name its certificate, or what is wrong with its file. FaultyFileError: the directory cannot be read, or
    has no certificates."""
    try:
        os.listdir(directory)  # noqa: PTH208 - as the operator wrote it
    except OSError as error:
        raise FaultyFileError(NAMES, directory, error.strerror or str(error)) from error
    pairs: dict[str, KeyPair] = {}
    faults: dict[str, FaultyFileError] = {}
    for path in files_of_names(directory):
        file = os.path.basename(path)  # noqa: PTH119 - as the operator wrote it
        try:
            name = _parse_name(file.removesuffix(_SUFFIX))
            if name in pairs:
                raise ValueError(f"it is for the same name as {pairs[name].file}")
            pairs[name] = read_pair(path, option=NAMES, name=name)
        except FaultyFileError as error:
            faults[name] = error
        except ValueError as error:
            faults[file] = FaultyFileError(NAMES, path, str(error))
    if not pairs and not faults:
        raise FaultyFileError(NAMES, directory, "there is no file in it that is called NAME.pem")
    return pairs, faults


def files_of_names(directory: str) -> list[str]:
    """The paths of files that are called after a name, if there are any."""
    try:
        files = sorted(os.listdir(directory))  # noqa: PTH208 - as the operator wrote it
    except OSError:
        return []
    named = (file for file in files if file.endswith(_SUFFIX) and not file.startswith("."))
    return [os.path.join(directory, file) for file in named]  # noqa: PTH118


def look_up(names: Mapping[str, T], asked: bytes | None) -> T | None:
    """What there is for the name that a client asks for, which is whatever it sent: for itself, or by a wildcard."""
    if not asked:
        return None
    name = asked.decode("ascii", "replace").lower().removesuffix(".")
    found = names.get(name)
    return found if found is not None else names.get(_WILDCARD + name.partition(".")[2])


def _parse_name(text: str) -> str:
    """As clients send it: in lower case, and IDNA's letters."""
    wildcard = _WILDCARD if text.startswith(_WILDCARD) else ""
    try:
        domain = parse_domain(text.removeprefix(_WILDCARD))
    except ValueError:
        domain = ""
    # No client asks for an address (RFC 6066 3).
    if not domain or domain.startswith("["):
        raise ValueError("a file is called after a domain, such as mx.example.org.pem, or *.example.org.pem")
    return wildcard + domain
