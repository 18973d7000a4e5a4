"""The command line of `twist smtpguard`, in this process and as a real one."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from processes import PATIENCE_SECONDS, TWIST, started
from twisted.python.usage import UsageError

from twisted_smtpguard.cli.options import Options


def parsed(*words: str) -> Options:
    options = Options()
    options.parseOptions(words)
    return options


def mistake(*words: str) -> str:
    """What the operator is told."""
    with pytest.raises(UsageError) as error:
        parsed(*words)
    return str(error.value)


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a question is answered with."""
    with pytest.raises(SystemExit) as end:
        parsed(*words)
    assert not end.value.code
    return capsys.readouterr().out


def written(directory: Path, text: str) -> str:
    """The path of a new --config file."""
    path = directory / "guard.conf"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return str(path)


def twist(*words: str, cwd: Path) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of `twist smtpguard` with `words`."""
    return ran(str(TWIST), "smtpguard", *words, cwd=cwd)


def ran(*words: str, cwd: Path) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a `twist` that ends by itself."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setenv("COLUMNS", "80")
            process = started(words, cwd, output, errors)
        try:
            status = process.wait(PATIENCE_SECONDS)
        finally:
            process.kill()
        output.seek(0)
        errors.seek(0)
        return status, output.read(), errors.read()
