"""A crowd takes all connections to the upstream server that strangers may have: known senders are served."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from processes import ExecutedGuard
from stuckcrowd import assert_known_senders_are_served, options, with_smtplib

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="uses all of 127.0.0.0/8"),
    pytest.mark.xdist_group("load"),
]


@pytest.mark.parametrize("announce", ["received", "proxy"])
@pytest.mark.parametrize("workers", [1, 2])
def test_strangers_that_stop_after_mail_keep_no_known_sender_waiting(
    tmp_path: Path, workers: int, announce: str
) -> None:
    (tmp_path / "server").mkdir()
    proxied = ("--proxy-protocol-from=127.0.0.0/8",) if announce == "proxy" else ()
    with ExecutedGuard(tmp_path / "server", "--deliver=discard:", *proxied) as server:
        host, port = server.address
        upstream = f"smtp:tcp:{host}:{port},announce={announce}"
        several = () if workers == 1 else (f"--workers={workers}",)
        with ExecutedGuard(tmp_path, *options(tmp_path, upstream), *several) as guard:
            assert_known_senders_are_served(guard, with_smtplib, "c@d.example")
