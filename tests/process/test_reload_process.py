"""SIGHUP to a real `twist smtpguard` whose files have become what cannot be read: it serves its clients all the same.

What SIGHUP changes where they can be is in test_filter_process.py, and for certificates in test_tls_clients.py.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from certificates import CERTIFICATE
from processes import GuardProcess
from rawclient import RawClient


@pytest.mark.parametrize(
    ("options", "what", "file"),
    [
        (["--tls-certificate={}/cert", "--tls-key={}/key"], "certificate option=--tls-certificate", "cert"),
        (["--tls-certificate={}/cert", "--tls-key={}/key"], "certificate option=--tls-key", "key"),
        (["--accept-domain={}/domains"], "delivery option=--accept-domain", "domains"),
        (["--ip-filter=networks:{}/networks"], r"networks", "networks"),
    ],
)
def test_a_pipe_in_the_place_of_a_file_is_no_reason_to_wait(
    tmp_path: Path, options: list[str], what: str, file: str
) -> None:
    (tmp_path / "domains").write_text("example.org\n")
    (tmp_path / "networks").write_text("deny 192.0.2.1\n")
    for name in ("cert", "key"):
        (tmp_path / name).write_bytes(CERTIFICATE.read_bytes())
    with GuardProcess(tmp_path, *(option.format(tmp_path) for option in options)) as guard:
        (tmp_path / file).unlink()
        os.mkfifo(tmp_path / file)
        os.kill(guard.pid, signal.SIGHUP)
        guard.wait_for(rf"\] reload_failed what={what} .*Not a regular file$")
        with RawClient(guard.address) as client:
            assert client.ask("NOOP").startswith("250 ")
