"""A policy server in a thread, on a port of the loopback, which writes down what it is asked."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from types import TracebackType

from processes import eventually

Request = dict[str, str]


class RecordingPolicy:
    """It runs while the block runs. `answer` makes the action from a request; by default it is always DUNNO."""

    def __init__(self, answer: Callable[[Request], str] = lambda request: "DUNNO") -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self.octets: list[bytes] = []
        """The requests as they came."""
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.connections: list[socket.socket] = []

    def asked(self, number: int) -> list[Request]:
        """The requests, once there are so many."""
        eventually(lambda: len(self.requests) >= number, f"not {number}: {self.requests}")
        return self.requests

    def take(self) -> list[Request]:
        """The requests since the last call."""
        taken, self.requests, self.octets = self.requests, [], []
        return taken

    def _serve(self, connection: socket.socket) -> None:
        octets = b""
        with suppress(OSError):
            while piece := connection.recv(65536):
                octets += piece
                while b"\n\n" in octets:
                    whole, _, octets = octets.partition(b"\n\n")
                    lines = whole.decode("utf-8", "surrogateescape").split("\n")
                    request = dict(line.partition("=")[::2] for line in lines)
                    self.octets.append(whole)
                    self.requests.append(request)
                    connection.sendall(f"action={self.answer(request)}\n\n".encode())

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                self.connections.append(connection)
                Thread(target=self._serve, args=(connection,), daemon=True).start()

    def __enter__(self) -> RecordingPolicy:
        self._thread = Thread(target=self._accept, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A close alone would leave the thread in accept().
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
