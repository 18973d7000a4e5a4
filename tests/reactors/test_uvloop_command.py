"""`twist --reactor=uvloop`: how it is found, and what it says without uvloop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from processes import LOCAL, TWIST, GuardProcess

pytest.importorskip("uvloop", reason="the extra uvloop")


def run(*words: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_twist_and_twistd_list_it() -> None:
    assert '"uvloop"' in run(str(TWIST), "--help").stdout
    assert "uvloop" in run(str(TWIST.with_name("twistd")), "--help-reactors").stdout


def test_a_guard_runs_on_it(tmp_path: Path) -> None:
    code = (
        "from twisted.internet import reactor; print(type(reactor).__name__, type(reactor._asyncioEventloop))"
    )
    installed = f"from twisted_smtpguard.reactors.uvloopreactor import install; install(); {code}"
    assert run(sys.executable, "-c", installed).stdout == "UVLoopReactor <class 'uvloop.Loop'>\n"
    with GuardProcess(tmp_path, reactor="uvloop") as guard:
        assert "uvloop" in Path(f"/proc/{guard.pid}/maps").read_text()


@pytest.fixture
def without_uvloop(tmp_path: Path) -> dict[str, str]:
    """An environment in which uvloop cannot be imported."""
    (tmp_path / "uvloop.py").write_text("raise ImportError('not here')")
    return {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}


def test_without_uvloop_it_says_so_in_one_sentence(without_uvloop: dict[str, str]) -> None:
    done = run(str(TWIST), "--reactor=uvloop", "smtpguard", f"--listen={LOCAL}", environment=without_uvloop)
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr == (
        "--reactor=uvloop needs uvloop, which is not installed: pip install 'twisted_smtpguard[uvloop]'\n"
    )


def test_an_application_without_uvloop_gets_an_import_error(without_uvloop: dict[str, str]) -> None:
    code = "from twisted_smtpguard.reactors.uvloopreactor import install; install()"
    done = run(sys.executable, "-c", code, environment=without_uvloop)
    assert "ImportError: --reactor=uvloop needs uvloop" in done.stderr.splitlines()[-1]
