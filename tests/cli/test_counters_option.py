"""--counters on the command line: what is refused in one sentence, and that nothing shows a password."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commandline import parsed, twist, written
from twisted.application.service import IService
from twisted.internet.testing import MemoryReactorClock
from twisted.python.usage import UsageError

from twisted_smtpguard.cli.check import _shown
from twisted_smtpguard.cli.configuration import Setting
from twisted_smtpguard.cli.options import make_service
from twisted_smtpguard.counters.redisstore import RedisCounterStore

URL = "redis://guard:correct-horse@127.0.0.1:1/0"
DISCARD = "--deliver=discard:"


def guard_of(*words: str) -> Any:
    return make_service(parsed(DISCARD, *words), MemoryReactorClock())


def mistake_of(*words: str) -> str:
    with pytest.raises(UsageError) as error:
        guard_of(*words)
    assert "horse" not in f"{error.value}{error.value.__cause__}{error.value.__context__}"
    return str(error.value)


def test_the_store_is_a_part_of_the_guard() -> None:
    guard = guard_of("--counters=redis+unix:///run/redis.sock")
    store = guard.factory.counting.store
    assert isinstance(store, RedisCounterStore)
    assert IService(store).parent is guard


def test_without_the_option_there_is_none() -> None:
    assert not guard_of().factory.counting.shared


def test_a_password_on_the_command_line_is_refused() -> None:
    assert mistake_of(f"--counters={URL}") == (
        "--counters: every user of this host can read a password on a command line: write the URL into a file and give "
        "redis+file:PATH, or set SMTPGUARD_COUNTERS"
    )


@pytest.mark.parametrize("place", ["environment", "file", "file of its own"])
def test_a_password_that_others_cannot_read_is_taken(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words: list[str] = []
    if place == "environment":
        monkeypatch.setenv("SMTPGUARD_COUNTERS", URL)
    elif place == "file":
        words = ["--config", written(tmp_path, f"counters = {URL}\n")]
    else:
        path = tmp_path / "redis"
        path.write_text(URL)
        path.chmod(0o600)
        words = [f"--counters=redis+file:{path}"]
    assert isinstance(guard_of(*words).factory.counting.store, RedisCounterStore)
    options = parsed(*words)
    # A start warns if others can read it.
    assert options.secret_files()[1] == ([str(tmp_path / "guard.conf")] if place == "file" else [])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("redis://guard:correct-horse#@h/0", "in a password # is written %23"),
        ("http://guard:correct-horse@h/0", "a URL that begins with redis://"),
        ("redis://h/zero", "the database is a number"),
        ("redis+file:/does/not/exist", "/does/not/exist cannot be read"),
    ],
)
def test_a_mistake_is_told_without_the_password(text: str, sentence: str) -> None:
    assert mistake_of(f"--counters={text}").startswith("--counters: ")
    assert sentence in mistake_of(f"--counters={text}")


def test_a_mistake_in_the_environment_is_told_without_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMTPGUARD_COUNTERS", "redis://guard:correct-horse@h/0?x=1")
    assert mistake_of().startswith("SMTPGUARD_COUNTERS: after the ? of a redis URL only prefix= may stand")


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twisted_smtpguard.counters.redisstore.find_spec", lambda name: None)
    assert mistake_of("--counters=redis://127.0.0.1") == (
        "--counters: Redis needs txredisapi, which is not installed: pip install twisted_smtpguard[redis]"
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (URL, "redis://127.0.0.1:1/0"),
        (f"{URL},redis+unix://:x@/s", "redis://127.0.0.1:1/0,redis+unix:///s?db=0"),
        ("redis+file:/etc/smtpguard/redis", "redis+file:/etc/smtpguard/redis"),
    ],
)
def test_what_is_shown_has_no_password(text: str, shown: str) -> None:
    assert _shown(Setting("counters", text)) == shown


def test_check_says_that_they_do_not_answer_and_shows_no_password(tmp_path: Path) -> None:
    path = tmp_path / "guard.conf"
    path.write_text(f"counters = {URL}\n")
    path.chmod(0o600)
    status, output, errors = twist("--check", DISCARD, "--config", str(path), cwd=tmp_path)
    assert (status, errors) == (0, "")
    assert (
        "warning: the guard would count alone until its counters answer: redis://127.0.0.1:1/0: no connection: "
        in output
    )
    assert "horse" not in output
