"""The Python of the documents: what stands in files of docs/examples, and what a page alone has, which is run here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import attrs
from certificates import CERTIFICATE
from fakes import FakeFilter
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.testing import MemoryReactorClock
from twistedmail import Notebook, deliverer

from twisted_smtpguard import DiscardDelivery, SMTPGuardService
from twisted_smtpguard.testing import FakePolicy


@attrs.frozen
class Block:
    """Python of a page."""

    text: str
    file: str = ""
    """Of the project, which has the same text."""
    is_part: bool = False
    """The file has more."""


def python_of(page: Path) -> list[Block]:
    """All of a page, in its order."""
    found = re.findall(
        r"^(?:<!-- (from )?(\S+) -->\n)?```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL
    )
    return [Block(text, file, bool(part)) for part, file, text in found]


def run_examples(page: Path, tmp_path: Path) -> tuple[dict[str, Any], list[SMTPGuardService]]:
    """The names that there are when what the page alone has is run, one block after the other, and the services that
    it made."""
    stands_for = {
        "/etc/smtpguard/networks": tmp_path / "networks",
        "/etc/smtpguard/users": tmp_path / "users",
        "/run/mailroom": tmp_path,
    }
    (tmp_path / "networks").write_text("deny 192.0.2.1\n")
    (tmp_path / "users").write_text("ann:secret\n")
    reactor = MemoryReactorClock()
    # What a page leaves to its reader.
    names: dict[str, Any] = {
        "reactor": reactor,
        "endpoints": [TCP4ServerEndpoint(reactor, 25)],
        "delivery": DiscardDelivery(),
        "portal": deliverer("portal of deliveries", Notebook()),
        "MyFilter": FakeFilter,
        "AnotherFilter": FakeFilter,
        "MyPolicy": FakePolicy,
        "policy_endpoint": TCP4ClientEndpoint(reactor, "127.0.0.1", 12340),
    }
    services = []
    for block in python_of(page):
        if not block.file:
            text = block.text.replace("/etc/smtpguard/guard.pem", str(CERTIFICATE))
            for there, here in stands_for.items():
                text = text.replace(there, str(here))
            before = names.get("service")
            exec(text, names)
            if names.get("service") is not before:
                services.append(names["service"])
    return names, services
