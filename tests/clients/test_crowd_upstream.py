"""A crowd that stops after MAIL in front of a real Postfix and a real Dovecot: known senders are served."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from dovecot import Dovecot
from postfix import Postfix
from processes import GuardProcess
from stuckcrowd import Send, assert_known_senders_are_served, options, with_smtplib, with_swaks

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="uses all of 127.0.0.0/8"),
    pytest.mark.clients,
    pytest.mark.xdist_group("load"),
]

SENDERS = pytest.mark.parametrize("send", [with_smtplib, with_swaks])


@SENDERS
def test_known_senders_are_served_by_postfix(tmp_path: Path, send: Send) -> None:
    with (
        Postfix("mynetworks = 127.0.0.1/32") as postfix,
        GuardProcess(tmp_path, *options(tmp_path, f"smtp:{postfix.endpoint}")) as guard,
    ):
        assert_known_senders_are_served(guard, send, "user@example.org")


@SENDERS
def test_known_senders_are_served_by_dovecot_in_lmtp(tmp_path: Path, send: Send) -> None:
    with (
        Dovecot() as dovecot,
        GuardProcess(tmp_path, *options(tmp_path, f"lmtp:unix:{dovecot.socket}")) as guard,
    ):
        assert_known_senders_are_served(guard, send, "one@example.org")
