"""Honest senders beside a crowd: those that a server knows, with smtplib and swaks, and strangers that try again."""

from __future__ import annotations

import smtplib
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from email.message import EmailMessage
from itertools import count
from typing import NamedTuple

PATIENCE_SECONDS = 30.0
"""A session that takes longer was not served."""

_SENDER, _RECIPIENT = "someone@sender.example", "user@example.org"


class Visit(NamedTuple):
    """One session of an honest sender, from before its connection, or the start of its program, to its end."""

    address: str
    program: str
    began_at: float
    """In seconds of time.monotonic()."""
    seconds: float
    problem: str
    """What the sender was told or met when its mail was not accepted; "": it was."""


def send_by_smtplib(port: int, address: str) -> str:
    """Send a mail from `address`. Returns the problem."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = _SENDER, _RECIPIENT, "honest"
    message.set_content("Hello\n")
    try:
        with smtplib.SMTP(
            "127.0.0.1", port, "sender.example", PATIENCE_SECONDS, source_address=(address, 0)
        ) as client:
            client.send_message(message)
    except (OSError, smtplib.SMTPException) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def send_by_swaks(port: int, address: str) -> str:
    """Send a mail from `address`. Returns the problem."""
    words = ["swaks", "--server=127.0.0.1", f"--port={port}", f"--local-interface={address}"]
    words += ["--helo=sender.example", f"--from={_SENDER}", f"--to={_RECIPIENT}", "--suppress-data"]
    try:
        done = subprocess.run(
            [*words, f"--timeout={PATIENCE_SECONDS:.0f}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "no end"
    if done.returncode == 0:
        return ""
    return next((line for line in done.stdout.splitlines() if line.startswith(("<**", "***"))), done.stderr)


PROGRAMS = {"smtplib": send_by_smtplib, "swaks": send_by_swaks}


class Sender(NamedTuple):
    """Somebody who sends a mail every `interval` seconds, with one of the programs."""

    program: str
    interval: float
    next_address: Callable[[], str]
    """Called after each mail that was accepted, and first."""


def known(program: str, address: str, interval: float) -> Sender:
    """One that always sends from the same address."""
    return Sender(program, interval, lambda: address)


def strangers(network: str, interval: float, *, first: int = 1) -> Sender:
    """Strangers of the network `a.b.c`, one after the other: each tries until its mail has been accepted, and then is
    none any more."""
    hosts = count(first)
    return Sender("smtplib", interval, lambda: f"{network}.{next(hosts)}")


def send_for(port: int, seconds: float, senders: Sequence[Sender]) -> list[Visit]:
    """Let the senders send for so many seconds, evenly spread. Sessions that have begun are waited for."""
    visits: list[Visit] = []
    over = threading.Event()

    def live(sender: Sender, wait: float) -> None:
        due = time.monotonic() + wait
        address = sender.next_address()
        while not over.wait(max(0.0, due - time.monotonic())):
            began_at = time.monotonic()
            problem = PROGRAMS[sender.program](port, address)
            took = time.monotonic() - began_at
            visits.append(Visit(address, sender.program, began_at, took, problem))
            due += sender.interval
            if not problem:
                address = sender.next_address()

    with ExitStack() as stack:
        for number, sender in enumerate(senders):
            thread = threading.Thread(target=live, args=(sender, sender.interval * number / len(senders)))
            thread.start()
            stack.callback(thread.join)
        stack.callback(over.set)
        over.wait(seconds)
    return visits
