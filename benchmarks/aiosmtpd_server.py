"""aiosmtpd as a server that takes every message and forgets it: `python aiosmtpd_server.py PORT`."""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from typing import Any

from aiosmtpd.smtp import SMTP


class Discard:
    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        return "250 OK"


async def serve(port: int) -> None:
    make = partial(SMTP, Discard(), hostname="guard.example")
    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


asyncio.run(serve(int(sys.argv[1])))
