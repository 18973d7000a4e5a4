"""The rows of TLS: small mails in clear, behind STARTTLS and under implicit TLS, to the same guard by the same load."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs

from .compared import SMALL_MAIL, load_matters
from .load import stepwise
from .measure import Entry, measure
from .rows import Row
from .servers import GUARD, HOSTNAME, TLS, Kind, Wrong, guard
from .workloads import AT_ONCE, Workload, multiple

CLEAR = "in clear"
CLEAR_BY_SOURCE = "in clear, smtp-source"
STARTTLS = "STARTTLS"
IMPLICIT = "implicit TLS"
COLUMNS = (CLEAR_BY_SOURCE, CLEAR, STARTTLS, IMPLICIT)


def rows(python: str, workloads: Mapping[str, Workload], rounds: int, scale: float) -> list[Row]:
    """`workloads`: what smtp-source sends, in clear. By how much our own load in clear differs from that, the load is
    to blame for what TLS seems to cost."""
    own = _own_loads(workloads, scale)
    plain = guard(GUARD, python)
    with _guards(python) as kinds:
        found = {
            key: measure(
                [
                    Entry(CLEAR_BY_SOURCE, plain, workloads[key].load),
                    Entry(CLEAR, plain, own[key].load),
                    *(Entry(name, kind, own[key].load) for name, kind in kinds.items()),
                ],
                rounds,
                own[key].factor,
            )
            for key in SMALL_MAIL
        }
    return [
        Row(
            "TLS",
            own[key].name,
            own[key].unit,
            {name: took.median(name) for name in COLUMNS},
            {name: took.details(name) for name in COLUMNS},
            ratios={
                f"{name} to in clear": took.ratio(name, CLEAR)
                for name in (CLEAR_BY_SOURCE, STARTTLS, IMPLICIT)
            },
        )
        for key, took in found.items()
    ]


def slower_load(python: str, workloads: Mapping[str, Workload], rounds: int, scale: float) -> list[Row]:
    """Under implicit TLS, with half of the load's processor taken away."""
    with _guards(python) as kinds:
        kind = attrs.evolve(kinds[IMPLICIT], name=GUARD)
        return [
            load_matters(
                attrs.evolve(own, key=key, name=f"{workloads[key].name}, {IMPLICIT}"), [kind], rounds
            )
            for key, own in _own_loads(workloads, scale).items()
        ]


def _own_loads(workloads: Mapping[str, Workload], scale: float) -> dict[str, Workload]:
    some = multiple(scale)
    one_each, many = some(1000, AT_ONCE), some(3000, AT_ONCE)
    loads = (stepwise(one_each, one_each, AT_ONCE), stepwise(many, AT_ONCE, AT_ONCE))
    return {
        key: attrs.evolve(workloads[key], key="TLS", name=f"{key} {workloads[key].name}", load=load)
        for key, load in zip(SMALL_MAIL, loads, strict=True)
    }


@contextmanager
def _guards(python: str) -> Iterator[dict[str, Kind]]:
    """With a certificate that our own clients trust."""
    with TemporaryDirectory() as folder:
        pem = make_certificate(Path(folder))
        context = ssl.create_default_context(cafile=str(pem))
        yield {
            name: guard(
                f"{GUARD}, {name}",
                python,
                f"--tls-certificate={pem}",
                tls=TLS(context, implicit=name == IMPLICIT),
            )
            for name in (STARTTLS, IMPLICIT)
        }


ECDSA, RSA = "ECDSA P-256", "RSA 2048"
KEYS = {ECDSA: ("ec", "-pkeyopt", "ec_paramgen_curve:P-256"), RSA: ("rsa:2048",)}
"""The kinds of key that most certificates are of, and how openssl makes each."""


def make_certificate(folder: Path, key: str = ECDSA) -> Path:
    """A certificate that is signed by itself, and its key, in one file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        raise Wrong("openssl is needed to make a certificate")
    pem, key_file = folder / "guard.pem", folder / "key.pem"
    made = subprocess.run(
        [
            *(openssl, "req", "-x509", "-nodes", "-newkey", *KEYS[key]),
            *("-subj", f"/CN={HOSTNAME}", "-addext", f"subjectAltName=DNS:{HOSTNAME}", "-days", "2"),
            *("-keyout", str(key_file), "-out", str(pem)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise Wrong(f"openssl makes no certificate: {made.stderr}")
    with pem.open("a") as both:
        both.write(key_file.read_text())
    return pem
