"""aiosmtpd as a server that takes every message and forgets it: `python aiosmtpd_server.py PORT [CERTIFICATE]`, with
STARTTLS if there is one; or, with its own Proxy handler, as one that passes it on to another on this machine:
`python aiosmtpd_server.py PORT UPSTREAM`."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import sys
from functools import partial
from typing import Any

from aiosmtpd.handlers import Proxy
from aiosmtpd.smtp import SMTP

counts = {"messages": 0, "recipients": 0}


class Discard:
    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        counts["messages"] += 1
        counts["recipients"] += len(envelope.rcpt_tos)
        return "250 OK"


def context_of(certificate: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


async def serve(port: int, handler: Any, **options: Any) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    make = partial(SMTP, handler, hostname="guard.example", **options)
    await loop.create_server(make, "127.0.0.1", port, backlog=1024)
    await stop.wait()


port, *more = sys.argv[1:]
if more and more[0].isdigit():
    asyncio.run(serve(int(port), Proxy("127.0.0.1", int(more[0]))))
else:
    asyncio.run(serve(int(port), Discard(), **({"tls_context": context_of(more[0])} if more else {})))
print(json.dumps(counts))
