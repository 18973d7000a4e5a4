"""Programs that nobody here wrote: they are run where they are installed, and else their tests are skipped, or fail."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from certificates import AUTHORITY
from processes import PATIENCE_SECONDS, eventually
from shell import free_port

NGINX_STREAM = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
NGINX_MAIL = NGINX_STREAM.with_name("ngx_mail_module.so")
NGINX = "daemon off;\nmaster_process off;\nerror_log stderr;\nevents {}\n"


def missing(client: str) -> None:
    reason = f"{client} is not installed"
    if os.environ.get("TESTS_CLIENTS_REQUIRED") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def run(program: str, *words: str, text: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    # Postfix puts its programs where only root looks.
    path = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None:
        missing(program)
    assert path is not None
    return subprocess.run([path, *words], input=text, capture_output=True, timeout=100, check=False)


def s_client(port: int, *words: str, says: str = "EHLO a\r\nQUIT\r\n") -> str:
    """What `openssl s_client` shows. It says the next line when it has heard the answer to the last."""
    program = shutil.which("openssl")
    if program is None:
        missing("openssl")
    assert program is not None
    client = subprocess.Popen(
        [program, "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", str(AUTHORITY), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert client.stdin is not None and client.stdout is not None
    client.stdin.write(says.encode())
    client.stdin.flush()
    shown, _ = client.communicate(timeout=PATIENCE_SECONDS) if not says else (client.stdout.read(), b"")
    client.wait(PATIENCE_SECONDS)
    client.stdin.close()
    return shown.decode(errors="replace")


@contextmanager
def proxied(kind: str, directory: Path, port: int, text: str) -> Iterator[int]:
    """A proxy before `port`, configured by `text`, which has places for {front} and {port}; where it listens."""
    front = int(free_port())
    config, log = directory / f"{kind}.conf", directory / f"{kind}.log"
    path = shutil.which(kind, path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None or (kind == "nginx" and not NGINX_STREAM.exists()):
        missing(kind)
    assert path is not None
    text = text.format(front=front, port=port)
    if kind == "nginx":
        module = NGINX_MAIL if text.startswith("mail") else NGINX_STREAM
        text = f"load_module {module};\npid {directory}/nginx.pid;\n{NGINX}{text}"
    config.write_text(text)
    words = ["-db", "-f", str(config)] if kind == "haproxy" else ["-c", str(config), "-p", str(directory)]
    with log.open("wb") as output:
        process = subprocess.Popen([path, *words], stdout=output, stderr=output)
    try:
        eventually(lambda: listens(front), f"{kind} does not listen, see {log}")
        yield front
    finally:
        process.kill()
        process.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
