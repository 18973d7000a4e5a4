"""A server of OAuth 2 that tells whose a token is, by introspection (RFC 7662), as Dovecot asks it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

TOKENS = {"token-of-ann": "ann", "token-of-eve": "eve"}
BROKEN = "token-of-a-broken-server"
"""The server fails when it is asked about this one."""


class TokenServer(ThreadingHTTPServer):
    """It knows TOKENS. `asked` is how often it was asked about each token."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/introspect?token="


class _Handler(BaseHTTPRequestHandler):
    server: TokenServer

    def do_GET(self) -> None:
        (token,) = parse_qs(urlsplit(self.path).query)["token"]
        self.server.asked.append(token)
        if token == BROKEN:
            self.send_error(500)
            return
        user = TOKENS.get(token)
        body = json.dumps({"active": True, "user": user} if user else {"active": False}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@contextmanager
def token_server() -> Iterator[TokenServer]:
    """It serves while the block runs."""
    with TokenServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
