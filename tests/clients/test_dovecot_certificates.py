"""Users log in with a certificate, by EXTERNAL (RFC 4422 A), against Debian's Dovecot, which believes the guard."""

from __future__ import annotations

import ssl
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import AUTHORITY, certificate, of_user, stranger
from dovecot import Dovecot
from processes import GuardProcess, eventually
from rawclient import RawClient
from test_dovecot_auth import OPTIONS
from test_guessing import WRONG, YES

pytestmark = [pytest.mark.clients, pytest.mark.timeout(240)]

TLS = (f"--tls-certificate={certificate()}", f"--tls-client-authorities={AUTHORITY}")
TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


@pytest.fixture(scope="module")
def dovecot() -> Iterator[Dovecot]:
    with Dovecot(logins=True) as dovecot:
        yield dovecot


@pytest.fixture(scope="module")
def guard(dovecot: Dovecot, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardProcess]:
    directory = tmp_path_factory.mktemp("guard")
    auth = f"--auth=dovecot:unix:{dovecot.socket}"
    with GuardProcess(directory, auth, *OPTIONS, *TLS, listen_tls=["tcp:0:interface=127.0.0.1"]) as guard:
        eventually(lambda: "SCRAM" in offered(guard, None), "the guard has not asked what is offered")
        yield guard


class Client(RawClient):
    """It has this certificate, or none, and begins TLS at once or by STARTTLS."""

    def __init__(
        self,
        guard: GuardProcess,
        own: Path | None,
        *,
        implicit: bool = False,
        version: ssl.TLSVersion = TLS_1_3,
    ) -> None:
        self._context = ssl.create_default_context(cafile=str(AUTHORITY))
        self._context.maximum_version = version
        if own is not None:
            self._context.load_cert_chain(own)
        self._implicit = implicit
        super().__init__(guard.addresses[1 if implicit else 0])
        if not implicit:
            assert "EXTERNAL" not in self.ask("EHLO client.example")
            assert self.ask("STARTTLS").startswith("220")
            self._secure()

    def _secure(self) -> None:
        self.socket = self._context.wrap_socket(self.socket, server_hostname="localhost")
        self._input = self.socket.makefile("rb")

    def reply(self) -> str:
        if self._implicit and not isinstance(self.socket, ssl.SSLSocket):
            self._secure()
        return super().reply()

    def offered(self) -> str:
        return next(line for line in self.ask("EHLO client.example").split("\n") if "AUTH" in line)


def offered(guard: GuardProcess, own: Path | None) -> str:
    with Client(guard, own) as client:
        return client.offered()


def base64(text: str) -> str:
    return b64encode(text.encode()).decode() or "="


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
@pytest.mark.parametrize("implicit", [False, True])
def test_a_certificate_that_was_verified_logs_in_the_user_whom_it_names(
    guard: GuardProcess, implicit: bool, version: ssl.TLSVersion
) -> None:
    for user in ("", "ann"):
        with Client(guard, of_user("ann"), implicit=implicit, version=version) as client:
            assert " EXTERNAL" in client.offered()
            assert client.ask(f"AUTH EXTERNAL {base64(user)}") == YES
    with Client(guard, of_user("ann"), implicit=implicit, version=version) as client:
        client.offered()
        assert client.ask("AUTH EXTERNAL") == "334 "
        assert client.ask("") == YES
        client.ask("QUIT")
    assert " user=ann mechanism=EXTERNAL" in guard.wait_for(" login ")


def test_it_logs_in_no_other_user_and_none_that_dovecot_does_not_know(guard: GuardProcess) -> None:
    for own, user in (("ann", "eve"), ("ann", "one@example.org"), ("nobody", ""), ("nobody", "ann")):
        with Client(guard, of_user(own)) as client:
            client.offered()
            assert client.ask(f"AUTH EXTERNAL {base64(user)}") == WRONG, (own, user)


@pytest.mark.parametrize("implicit", [False, True])
def test_without_a_certificate_it_is_not_offered_and_not_begun(guard: GuardProcess, implicit: bool) -> None:
    with Client(guard, None, implicit=implicit) as client:
        assert "EXTERNAL" not in client.offered()
        for user in ("", "ann"):
            assert client.ask(f"AUTH EXTERNAL {base64(user)}").startswith("504 5.5.4 ")


def test_a_certificate_of_another_authority_ends_the_handshake(guard: GuardProcess) -> None:
    with pytest.raises(OSError, match=r"(?i)alert|eof|reset|ended"), Client(guard, stranger()) as client:
        client.offered()


def test_a_guard_that_asks_for_no_certificates_believes_none(dovecot: Dovecot, tmp_path: Path) -> None:
    auth = f"--auth=dovecot:unix:{dovecot.socket}"
    with GuardProcess(tmp_path, auth, *OPTIONS, TLS[0]) as guard:
        eventually(lambda: "SCRAM" in offered(guard, None), "the guard has not asked what is offered")
        with Client(guard, of_user("ann")) as client:
            assert "EXTERNAL" not in client.offered()
            assert client.ask("AUTH EXTERNAL =").startswith("504 5.5.4 ")
