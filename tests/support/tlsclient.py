"""A client of a Loopback that can speak TLS, by Python's own ssl, which the guard does not use."""

from __future__ import annotations

import ssl
from pathlib import Path

from certificates import AUTHORITY
from loopback import Client, Loopback


class TLSClient(Client):
    """In clear until `shake_hands`."""

    def __init__(
        self, guard: Loopback, listener: int = 0, certificate: Path | None = None, receive_buffer: int = 0
    ) -> None:
        super().__init__(guard, guard.ports[listener], receive_buffer)
        guard.clients.append(self)
        self.context = ssl.create_default_context(cafile=str(AUTHORITY))
        if certificate is not None:
            self.context.load_cert_chain(certificate)
        self.tls: ssl.SSLObject | None = None
        self.session: ssl.SSLSession | None = None
        """The session to resume. It belongs to the `context` with which it was made."""
        self.said_goodbye = False
        """The guard has sent close_notify."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._unsent = b""

    @classmethod
    async def upgraded(cls, guard: Loopback, certificate: Path | None = None) -> TLSClient:
        """One that has said EHLO, has asked for TLS, and speaks it."""
        client = cls(guard, certificate=certificate)
        await client.upgrade()
        return client

    async def upgrade(self) -> None:
        """Say EHLO, ask for TLS, and speak it."""
        await self.ask_for_tls()
        await self.shake_hands()

    async def ask_for_tls(self) -> None:
        """Say EHLO, and STARTTLS. The handshake is what comes next."""
        await self.hears(b"220 ")
        await self.says(b"EHLO client.example\r\n")
        await self.hears(b"250 ENHANCEDSTATUSCODES")
        await self.says(b"STARTTLS\r\n")
        await self.hears(b"220 2.0.0 Ready to start TLS\r\n")
        self.heard = b""

    async def shake_hands(self) -> None:
        """The whole handshake. ssl.SSLError where it fails, ConnectionError where the guard ends it."""
        self.begin()

        def shaken() -> bool:
            assert self.tls is not None
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
                if self.ended:
                    raise ConnectionError(self.ended) from None
                return False
            self._flush()
            return True

        await self.guard.until(shaken)

    def begin(self) -> None:
        """What comes next is TLS."""
        self.tls = self.context.wrap_bio(
            self._incoming, self._outgoing, server_hostname="localhost", session=self.session
        )

    def hello(self) -> bytes:
        """The first message of the handshake, not sent."""
        self.begin()
        assert self.tls is not None
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            pass
        return self._outgoing.read()

    def send(self, octets: bytes) -> int:
        if self.tls is None:
            return super().send(octets)
        self.tls.write(octets)
        self._flush()
        return len(octets)

    def read(self, octets: int = 65536) -> None:
        if self.tls is None:
            super().read(octets)
            return
        self._flush()
        self._fill()
        try:
            while data := self.tls.read(octets):
                self.heard += data
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.said_goodbye = True
        else:
            self.said_goodbye = True

    def _flush(self) -> None:
        self._unsent += self._outgoing.read()
        if not self._unsent:
            return
        try:
            self._unsent = self._unsent[super().send(self._unsent) :]
        except ConnectionError:
            self.ended = "RST"

    def _fill(self) -> None:
        if self.ended:
            return
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return
        except ConnectionError:
            self.ended = "RST"
            return
        if data:
            self._incoming.write(data)
        else:
            self.ended = "FIN"


def client_hello() -> bytes:
    """The first message of a handshake."""
    outgoing = ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()
