"""The domains that mail is accepted for: how they are written, read from files and compared. Pure but for the files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from io import TextIOWrapper
from pathlib import Path

from twisted_smtpguard.engine.hostnames import canonical, parse_domain
from twisted_smtpguard.inputs.regularfile import open_regular

_COMMENT = re.compile(r"(^|\s)#.*")
_LINES_AT_ONCE = 256

_ROUTING = frozenset("@%!")
"""Characters by which a local part tells a server where to send the mail next (RFC 5321 3.6.1 and appendix F.2)."""


def is_for(address: str, domains: frozenset[str]) -> bool:
    """Whether the recipient `address` is at one of `domains`, which are canonical. `Postmaster` without a domain always
    is.

    An address whose local part names another destination, such as `user%elsewhere@here`, never is.
    """
    local, at, domain = address.rpartition("@")
    if not at:
        return True
    return not _ROUTING & set(local) and canonical(domain) in domains


def read_domains(path: Path, yield_gil: Callable[[], object] = lambda: None) -> Iterable[str]:
    """The domains of a file, one on each line. `yield_gil` is called after each short piece of work.

    ValueError names the file and the line.
    """
    try:
        with TextIOWrapper(open_regular(path), encoding="utf-8-sig") as file:
            text = file.read()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: the file is not UTF-8 text") from error
    domains = []
    for number, line in enumerate(text.split("\n"), 1):
        content = _COMMENT.sub("", line).strip()
        if content:
            try:
                domains.append(parse_domain(content))
            except ValueError as error:
                raise ValueError(f"{path} line {number}: {error}") from error
        if number % _LINES_AT_ONCE == 0:
            yield_gil()
    return domains
