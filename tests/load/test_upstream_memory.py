"""What a message on its way to a slow upstream server costs in memory, whatever its size.

`pytest -m soak -s tests/load/test_upstream_memory.py` is the long form, with a message of 1 GB, and prints what was
measured.
"""

from __future__ import annotations

import re
import shutil
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from certificates import AUTHORITY, CERTIFICATE
from held_upstream import SESSIONS, SlowServer, octets_a_session
from processes import ExecutedGuard
from vitals import Vitals

pytestmark = pytest.mark.xdist_group("load")

MOST_OCTETS_A_SESSION = 128 * 1024


TLS = {
    "in clear": ("tcp:127.0.0.1:{port}", ()),
    "TLS": ("tls:localhost:{port}:trustRoots={trusted}", ()),
    "STARTTLS": ("tcp:127.0.0.1:{port},tls=opportunistic", ("STARTTLS",)),
}
"""Endpoint with its keys, and what the server offers."""


@contextmanager
def behind(directory: Path, how: str, *keywords: str) -> Iterator[tuple[ExecutedGuard, SlowServer]]:
    endpoint, offered = TLS[how]
    context = None
    if how != "in clear":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
    server = SlowServer(*keywords, *offered, tls=context)
    try:
        trusted = directory / "trusted"
        trusted.mkdir(exist_ok=True)
        shutil.copy(AUTHORITY, trusted)
        deliver = endpoint.format(port=server.port, trusted=trusted)
        options = ("--max-message-size=2G", f"--deliver=smtp:{deliver}")
        with ExecutedGuard(directory, *options) as guard:
            yield guard, server
    finally:
        server.close()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("keywords", [(), ("CHUNKING",)], ids=["DATA", "BDAT"])
@pytest.mark.parametrize("tls", TLS)
@pytest.mark.parametrize("megabytes", [16, pytest.param(1024, marks=pytest.mark.soak)])
def test_a_message_of_any_size_holds_less_than_128_kib_while_the_server_is_slow(
    tmp_path: Path, megabytes: int, tls: str, keywords: tuple[str, ...]
) -> None:
    with behind(tmp_path, tls, *keywords) as (guard, server):
        each = octets_a_session(guard.address, Vitals(guard.pid), server, megabytes, chunked=bool(keywords))
    how = "BDAT" if keywords else "DATA"
    print(
        f"\n{how}, {tls}: {SESSIONS} sessions, the largest of {megabytes} MB: {each / 1024:.0f} KiB a session at most"
    )
    assert re.search(r"accept .*octets=\d{8}", guard.log.decode())
    assert each < MOST_OCTETS_A_SESSION
