"""Opening what is to be read again: a file that has an end, and nothing that would be waited for."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from twisted_smtpguard.inputs.regularfile import open_regular


def test_a_file_and_a_link_to_one_are_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"octets")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("file", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"octets"


def test_whatever_else_has_a_name_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", Path("/dev/zero")):
        with pytest.raises(OSError) as error:
            open_regular(path)
        assert error.value.strerror == "Not a regular file"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        with pytest.raises(OSError):
            open_regular(tmp_path / "socket")


def test_what_is_refused_leaves_no_descriptor_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError):
        open_regular(tmp_path / "pipe")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    ("name", "problem"), [("missing", "No such file or directory"), (".", "Is a directory")]
)
def test_what_is_wrong_has_the_words_of_the_system(tmp_path: Path, name: str, problem: str) -> None:
    with pytest.raises(OSError) as error:
        open_regular(tmp_path / name)
    assert error.value.strerror == problem
