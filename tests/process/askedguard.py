"""Asking a real guard, or its workers, through its control socket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from processes import eventually

from twisted_smtpguard.control.command import RefusedError, ask
from twisted_smtpguard.operations.verbs import VERBS

WORKERS = pytest.mark.parametrize("workers", [(), ("--workers=2",)], ids=["one", "workers"])


def told(socket: Path, verb: str, **arguments: str) -> list[dict[str, Any]]:
    """What is answered, once the workers are ready."""
    answers: list[dict[str, Any]] = []

    def asked() -> bool:
        try:
            answers[:] = ask(str(socket), VERBS[verb], arguments)
        except RefusedError as error:
            assert "no worker is ready" in str(error)
            return False
        return True

    eventually(asked, "no worker becomes ready")
    return answers


def rows(socket: Path, verb: str, **arguments: str) -> list[dict[str, Any]]:
    """The rows that are answered, or the answer itself, once the workers are ready."""
    answers = told(socket, verb, **arguments)
    found = [row for answer in answers for row in answer.get("rows", ())]
    return found or [answer["done"] for answer in answers if answer.get("done")]
