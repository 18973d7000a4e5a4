"""Where a control socket may be, and how its path passes from one process to the next."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from twisted_smtpguard.control.socketfile import ControlSocketError, SocketFile, check_place


def bound(path: Path, *, listens: bool) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    if listens:
        made.listen()
    return made


def test_a_directory_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    for mode in (0o777, 0o1777, 0o702):
        tmp_path.chmod(mode)
        with pytest.raises(ControlSocketError, match="everybody can write to this directory"):
            check_place(str(tmp_path / "control.sock"))
    tmp_path.chmod(0o770)
    check_place(str(tmp_path / "control.sock"))


def test_a_directory_that_is_missing_or_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, problem in (
        ("nowhere", "No such file"),
        ("file", "it is no directory"),
        ("a\0b", "embedded null"),
    ):
        with pytest.raises(ControlSocketError, match=problem):
            check_place(f"{tmp_path}/{folder}/control.sock")


def test_a_path_that_no_socket_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ControlSocketError, match="at most 107 octets"):
        check_place(str(tmp_path / ("a" * 108)))
    with pytest.raises(ControlSocketError, match=r"^a path such as /run/smtpguard/control\.sock is expected"):
        check_place("")


def test_a_file_that_is_no_socket_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    path.write_text("precious")
    with pytest.raises(ControlSocketError, match="there is a file already that is no socket"):
        SocketFile(str(path))
    assert path.read_text() == "precious"
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ControlSocketError, match="there is a file already that is no socket"):
        SocketFile(str(path))


def test_a_socket_that_was_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    bound(path, listens=False).close()
    file = SocketFile(str(path))
    assert not path.exists()
    file.release()
    assert list(tmp_path.iterdir()) == []


def test_a_socket_that_another_program_serves_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with bound(path, listens=True):
        with pytest.raises(ControlSocketError, match="another process listens on this socket"):
            SocketFile(str(path))
        assert path.is_socket()
    SocketFile(str(path)).release()


def test_a_path_belongs_to_one_process_at_a_time_from_the_first_moment(tmp_path: Path) -> None:
    path = str(tmp_path / "control.sock")
    first = SocketFile(path)
    with pytest.raises(ControlSocketError, match="another process has this socket"):
        SocketFile(path)
    first.release()
    SocketFile(path).release()


def test_the_file_of_another_is_not_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    file = SocketFile(str(path))
    with bound(path, listens=True):
        file.made()
        path.rename(tmp_path / "moved.sock")
        path.write_text("another's")
        file.release()
        assert path.read_text() == "another's"
