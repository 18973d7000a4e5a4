"""Certificates for the names that clients ask for (SNI, RFC 6066 3), in a directory of files NAME.pem.

The name from a client is looked up in a table, and never becomes part of a path.
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
"""The command-line option that names the directory."""

_SUFFIX = ".pem"
_WILDCARD = "*."


def read_names(directory: str) -> tuple[dict[str, KeyPair], dict[str, FaultyFileError]]:
    """The certificate for each name, and the mistake in each other file: by its name, or by the name of the file if
    that is no domain or a second file for one. FaultyFileError: the directory cannot be read, or has no file
    NAME.pem."""
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
    """The paths of the files NAME.pem in a directory, sorted; none if it cannot be read."""
    try:
        files = sorted(os.listdir(directory))  # noqa: PTH208 - as the operator wrote it
    except OSError:
        return []
    named = (file for file in files if file.endswith(_SUFFIX) and not file.startswith("."))
    return [os.path.join(directory, file) for file in named]  # noqa: PTH118


def look_up(names: Mapping[str, T], asked: bytes | None) -> T | None:
    """The value for the name `asked`, which is whatever a client has sent: that of the name itself, or else that of the
    wildcard for its domain. None if there is neither."""
    if not asked:
        return None
    name = asked.decode("ascii", "replace").lower().removesuffix(".")
    found = names.get(name)
    return found if found is not None else names.get(_WILDCARD + name.partition(".")[2])


def _parse_name(text: str) -> str:
    """The name as clients send it: in lower case, and as an A-label (RFC 5890). ValueError: it is no domain."""
    wildcard = _WILDCARD if text.startswith(_WILDCARD) else ""
    try:
        domain = parse_domain(text.removeprefix(_WILDCARD))
    except ValueError:
        domain = ""
    # No client asks for an address (RFC 6066 3).
    if not domain or domain.startswith("["):
        raise ValueError("a file is called after a domain, such as mx.example.org.pem, or *.example.org.pem")
    return wildcard + domain
