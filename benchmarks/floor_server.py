"""What Twisted's reactor takes of a mail, and the kernel below it: `python floor_server.py PORT`.

It answers every line and looks at no more of it than where it ends. Replies leave by the own send of the
socket. What the guard takes more than this is its own.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from twisted.internet import reactor as real_reactor
from twisted.internet.protocol import Protocol, ServerFactory

reactor: Any = real_reactor
counts = {"messages": 0}

END = b"\r\n.\r\n"


class Floor(Protocol):
    in_data = False

    def connectionMade(self) -> None:  # noqa: N802 - Twisted's names
        transport: Any = self.transport
        self.send = transport.socket.send
        self.send(b"220 floor\r\n")

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        replies = b""
        if self.in_data:
            # The end is never split by the loads that there are.
            end = data.find(END)
            if end < 0:
                return
            self.in_data = False
            counts["messages"] += 1
            replies = b"250 OK\r\n"
            data = data[end + len(END) :]
        for line in data.splitlines():
            if line.startswith(b"DATA"):
                self.in_data = True
                replies += b"354 Go on\r\n"
            elif line.startswith(b"QUIT"):
                self.send(replies + b"221 Bye\r\n")
                assert self.transport is not None
                self.transport.loseConnection()
                return
            else:
                replies += b"250 OK\r\n"
        self.send(replies)


factory: Any = ServerFactory.forProtocol(Floor)
factory.noisy = False
reactor.listenTCP(int(sys.argv[1]), factory, 1024, "127.0.0.1")
reactor.addSystemEventTrigger("after", "shutdown", lambda: print(json.dumps(counts)))
reactor.run()
