"""A Maildir on the disk: which directories can be one, what its files are called and hold."""

from __future__ import annotations

import errno
import os
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from failing_disk import failing
from hypothesis import given, settings
from hypothesis import strategies as st

from twisted_smtpguard.delivery.maildirfile import MessageFile, prepare_maildir, unique_names


@pytest.fixture
def path(tmp_path):
    return tmp_path / "Maildir"


def names_in(directory):
    return sorted(file.name for file in directory.iterdir())


# The directory.


@pytest.mark.parametrize("made", [[], ["."], ["tmp"], ["tmp", "new", "cur"], ["tmp", "new", "cur", ".Sent"]])
def test_a_missing_empty_half_made_or_whole_maildir_is_used(path, made):
    for name in made:
        (path / name).mkdir(parents=True, exist_ok=True)
    prepare_maildir(path)
    assert {"tmp", "new", "cur"} <= set(names_in(path))


def test_what_is_made_is_for_its_owner_only_and_made_safe(path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (synced.append(Path(f"/proc/self/fd/{fd}").readlink()), real(fd))
    )
    prepare_maildir(path)
    for part in (path, path / "tmp", path / "new", path / "cur"):
        assert part.stat().st_mode & 0o777 == 0o700
    assert synced == [path.parent, path]


def refuse_write_access(monkeypatch, path):
    # Root may write everywhere, so what access() says is made up.
    monkeypatch.setattr(os, "access", lambda part, mode: part.name != "new")
    path.mkdir()


def other_disk_for_tmp(monkeypatch, path):
    (path / "new").mkdir(parents=True)
    (path / "tmp").symlink_to("/proc")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda _, path: path.write_text(""), "Not a directory"),
        (lambda _, path: (path / "photos").mkdir(parents=True), "is not a Maildir, and not empty"),
        (lambda _, path: (path.mkdir(), (path / "new").write_text("")), "new is not a writable directory"),
        (refuse_write_access, "new is not a writable directory"),
        (other_disk_for_tmp, "tmp and new are on different disks"),
    ],
)
def test_a_directory_that_cannot_be_used_is_one_sentence(path, monkeypatch, spoil, sentence):
    spoil(monkeypatch, path)
    with pytest.raises(ValueError, match=sentence) as raised:
        prepare_maildir(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("parent", ["file", "missing"])
def test_no_maildir_is_made_where_its_parent_is_no_directory(tmp_path, parent):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=f"{parent} is not a directory"):
        prepare_maildir(tmp_path / parent / "Maildir")
    assert names_in(tmp_path) == ["file"]


def test_a_disk_that_fails_at_the_start_is_one_sentence(path, monkeypatch):
    failing(monkeypatch, "fsync", errno.EROFS)
    with pytest.raises(ValueError, match="Read-only file system"):
        prepare_maildir(path)


def stored(pieces):
    """What a MessageFile makes of `pieces`."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        prepare_maildir(path)
        file = MessageFile(path, "name", b"Header: x\r\n")
        for piece in pieces:
            file.write(bytearray(piece))
        file.deliver(lambda: None)
        return (path / "new" / "name").read_bytes()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("\r\na.").map(str.encode)))
def test_only_crlf_becomes_lf_wherever_the_pieces_are_split(pieces):
    assert stored(pieces) == b"Header: x\n" + b"".join(pieces).replace(b"\r\n", b"\n")


def test_a_disk_that_takes_a_few_octets_at_a_time_gets_them_all(monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:3]))
    assert stored([b"0123456789\r\n"]) == b"Header: x\n0123456789\n"


def test_file_names_follow_the_maildir_specification_and_the_host_is_escaped():
    names = unique_names("a/b:c\\ö.example", lambda: 1234.000567)
    pattern = r"1234\.R[0-9a-f]{8}M56[67]P\d+Q%d\.a\\057b\\072c\\134\\303\\266\.example"
    for number in (1, 2):
        assert re.fullmatch(pattern % number, names())


def test_several_threads_may_take_names_at_once():
    name = unique_names("mx", lambda: sum(range(100)) * 0.0)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            taken = list(threads.map(lambda _: name(), range(4000)))
    finally:
        sys.setswitchinterval(interval)
    assert len(set(taken)) == 4000


def test_no_host_makes_a_file_name_too_long():
    assert len(unique_names("h" * 255, lambda: 2e9)()) <= 255
