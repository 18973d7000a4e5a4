"""An application with a guard in it, in its own process: start it, send it a message, end it."""

from __future__ import annotations

import os
import re
import smtplib
import subprocess
from pathlib import Path
from types import TracebackType

from processes import PATIENCE_SECONDS, eventually
from rawclient import RawClient, stuffed

LOCAL = "tcp:0:interface=127.0.0.1"
STOPPING = b"421 4.3.2 Server shutting down\r\n"


class Running:
    """A command that listens on `listeners` ports of 127.0.0.1, in `directory`, where its output goes."""

    def __init__(self, directory: Path, *command: object, listeners: int = 1, **environment: str) -> None:
        self._output = directory / "output"
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                list(map(str, command)),
                cwd=directory,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            eventually(lambda: self._listens(listeners), f"it does not listen, see {self._output}")
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise

    def _listens(self, listeners: int) -> bool:
        assert self._process.poll() is None, self.output
        return len(self.ports) == listeners

    @property
    def output(self) -> str:
        return self._output.read_text()

    @property
    def ports(self) -> list[int]:
        found = re.findall(r"listening (?:on port |endpoint=\S+ address=127\.0\.0\.1:)(\d+)\n", self.output)
        return [int(port) for port in found]

    def terminate(self) -> int:
        """Its exit status after SIGTERM."""
        self._process.terminate()
        return self._process.wait(PATIENCE_SECONDS)

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        assert kind is not None or "Traceback" not in self.output, self.output


def send(port: int, recipient: str = "desk@example.org") -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE_SECONDS) as client:
        client.sendmail("a@example.com", [recipient], b"Subject: Hello\r\n\r\nWorld\r\n")


def ends_with_the_message_that_was_on_its_way(running: Running, port: int) -> int:
    """The exit status. SIGTERM comes in the middle of a message, and while another client is idle."""
    with RawClient(("127.0.0.1", port)) as sending, RawClient(("127.0.0.1", port)) as idle:
        for words in ("EHLO x", "MAIL FROM:<>", "RCPT TO:<desk@example.org>", "DATA"):
            sending.ask(words)
        running._process.terminate()
        # Who is told to go knows that the signal was heard.
        assert idle.rest() == STOPPING
        sending.send(stuffed(b"Subject: last\r\n\r\nx\r\n"))
        assert sending.rest() == b"250 2.0.0 Message accepted\r\n" + STOPPING
    return running._process.wait(PATIENCE_SECONDS)
