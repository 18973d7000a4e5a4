"""The rows of handshakes: one client at a time sends a mail after STARTTLS, to the guard and to servers that others
use, all with the same certificate. What a session saves that is resumed, with either kind of key."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs

from . import bounds
from .encrypted import KEYS, make_certificate
from .load import STEPS, Load, Sent
from .measure import Entry, Measured, measure
from .peers import AIOSMTPD, PEERS, SMTP_SERVER
from .rows import Row, Verdict
from .servers import GUARD, TLS, Kind, Server, Wrong, guard
from .sessions import connected, in_turn
from .workloads import multiple

COLUMNS = (GUARD, AIOSMTPD, SMTP_SERVER)
IN_CLEAR, FULL, RESUMED = "in clear", "full handshake", "resumed session"
WAYS = (IN_CLEAR, FULL, RESUMED)


def rows(python: str, others: Sequence[str], rounds: int, scale: float) -> list[Row]:
    """Three of each kind of key: in clear, a full handshake, and a resumed session. `others`: what can be had beside
    the guard, of which only those with STARTTLS are taken."""
    some = multiple(scale)
    # One that makes each client wait for its greeting gets fewer.
    loads = {slow: {way: _mails(way, some(number, 1)) for way in WAYS} for slow, number in _NUMBERS.items()}
    found: list[Row] = []
    for key in KEYS:
        with _servers(python, key, [name for name in COLUMNS[1:] if name in others]) as kinds:
            entries = [
                Entry(f"{kind.name}, {way}", kind if way != IN_CLEAR else attrs.evolve(kind, tls=None), load)
                for kind in kinds
                for way, load in loads[kind.slow].items()
            ]
            took = measure(entries, rounds, 1e6)
        found += [_row(key, way, [kind.name for kind in kinds], took) for way in WAYS]
    return found


_NUMBERS = {"": 200, "greeting": 40}
"""The mails of a round."""


def _row(key: str, way: str, names: Sequence[str], took: Measured) -> Row:
    ratios: dict[str, float] = {}
    verdicts: list[Verdict] = []
    if way == FULL:
        ratios = {name: took.ratio(f"{GUARD}, {FULL}", f"{name}, {FULL}") for name in names[1:]}
        if key == bounds.STARTTLS_KEY:
            judged = {name: of for name, of in bounds.STARTTLS.items() if name in ratios}
            verdicts = [Verdict(name, ratios[name], of) for name, of in judged.items()]
    if way == RESUMED:
        ratios = {f"{name}, to {FULL}": took.ratio(f"{name}, {RESUMED}", f"{name}, {FULL}") for name in names}
    return Row(
        "HANDSHAKES",
        f"{key}, {way}",
        "µs a mail",
        {name: took.median(f"{name}, {way}") for name in names},
        {name: took.details(f"{name}, {way}") for name in names},
        verdicts,
        ratios,
    )


def _mails(way: str, number: int) -> Load:
    """So many mails, each in a connection after the one before. A session that is offered again must be resumed."""

    @contextmanager
    def load(server: Server) -> Iterator[Callable[[], Sent]]:
        before: ssl.SSLSession | None = None

        def send() -> Sent:
            nonlocal before
            began = time.process_time()
            for _ in range(number):
                before = _mail(server, way, before)
            return Sent(number, time.process_time() - began, number, number)

        yield send

    return load


def _mail(server: Server, way: str, before: ssl.SSLSession | None) -> ssl.SSLSession | None:
    """`before`: the session that the last client was given; what this one is given."""
    given = None
    with connected(server, [""]) as opened:
        (session,) = opened
        in_turn(opened, b"EHLO client.example\r\n", b"250")
        if server.kind.tls is not None:
            in_turn(opened, b"STARTTLS\r\n", b"220")
            session.begin_tls(server.kind.tls.context, before if way == RESUMED else None)
            session.finish_tls()
            in_turn(opened, b"EHLO client.example\r\n", b"250")
        for octets, code in STEPS:
            in_turn(opened, octets, code)
        if isinstance(session.socket, ssl.SSLSocket):
            given = session.socket.session
            if session.socket.session_reused != (way == RESUMED and before is not None):
                raise Wrong(f"{server.name} resumes a session where none was offered, or none that was")
        in_turn(opened, b"QUIT\r\n", b"221")
    return given


@contextmanager
def _servers(python: str, key: str, names: Sequence[str]) -> Iterator[list[Kind]]:
    """The guard first, with a certificate of that kind which our own clients trust."""
    with TemporaryDirectory() as folder:
        # Others are started in folders of their own, as somebody else.
        Path(folder).chmod(0o755)
        pem = make_certificate(Path(folder), key)
        tls = TLS(ssl.create_default_context(cafile=str(pem)), implicit=False)
        others = [_other(name, pem, tls) for name in names]
        yield [guard(GUARD, python, f"--tls-certificate={pem}", tls=tls), *others]


def _other(name: str, pem: Path, tls: TLS) -> Kind:
    peer = PEERS[name]
    return Kind(
        name,
        lambda port, refusing: [*peer.command(port, refusing), str(pem)],
        peer.counts,
        slow=peer.slow,
        tls=tls,
    )
