"""What an operator is told of a mistake that is easily made, by the real command: one sentence that says what to do."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest
from certificates import CERTIFICATE
from commandline import mistake, parsed, twist
from documents import ROOT
from processes import LOCAL, TWIST, GuardProcess, eventually
from rawclient import RawClient
from shell import Shell, free_port

from twisted_smtpguard.hooks.endpointfaults import escape_hint
from twisted_smtpguard.service import startwarnings
from twisted_smtpguard.service.startwarnings import warning_of_hostname, warnings_of_process

USAGE = 64


def told(*words: str, cwd: Path, status: int = USAGE) -> str:
    """The one line that `twist smtpguard` with these words says before it ends."""
    code, _, errors = twist(*words, cwd=cwd)
    assert code == status, errors
    assert errors.count("\n") == 1, errors
    return errors.rstrip("\n")


# Endpoints.


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("tcp6:2525:interface=::1", r"'tcp6:2525:interface=\:\:1'"),
        ("tcp:2525:interface=::1", r"'tcp6:2525:interface=\:\:1'"),
        ("tcp6:2525:interface=[2001:db8::1]:backlog=5", r"'tcp6:2525:interface=2001\:db8\:\:1:backlog=5'"),
        ("[::1]:25", r"as in 'tcp6:2525:interface=\:\:1'"),
    ],
)
def test_an_ipv6_address_whose_colons_are_not_escaped_is_told_how(
    text: str, right: str, tmp_path: Path
) -> None:
    line = told("--listen", text, cwd=tmp_path)
    assert line.startswith(
        f"--listen: an endpoint such as tcp:2525:interface=127.0.0.1 is expected, not {text!r} "
    )
    assert "the colons of an IPv6 address are written \\:" in line
    assert line.endswith(f"{right})")
    if text.startswith("tcp"):
        (corrected,) = re.findall(r"'([^']+)'\)$", line)
        parsed("--listen", corrected)


@pytest.mark.parametrize(
    "text", ["tcp:25", "tcp:25:50", r"tcp6:25:interface=\:\:1", "unix:/run/a::b", "pigeon:::1"]
)
def test_what_is_no_bare_ipv6_address_gets_no_hint_at_one(text: str) -> None:
    assert escape_hint(text) == ""


def test_an_ipv6_address_of_an_upstream_server_is_told_how_too(tmp_path: Path) -> None:
    line = told("--deliver", "smtp:tcp:2001:db8::1:25", cwd=tmp_path)
    assert line.endswith(r"are written \:, as in 'tcp:host=2001\:db8\:\:1:port=25')")
    parsed("--deliver", r"smtp:tcp:host=2001\:db8\:\:1:port=25")


@pytest.mark.parametrize("page", ["--help", "README.md"])
def test_how_an_ipv6_address_is_written_stands_where_one_looks_first(page: str, tmp_path: Path) -> None:
    text = twist("--help", cwd=tmp_path)[1] if page == "--help" else (ROOT / page).read_text()
    assert re.search(r"tcp6:\d+:interface=\\:\\:1", text)


def test_an_escaped_ipv6_address_is_listened_on(tmp_path: Path) -> None:
    with GuardProcess(tmp_path, listen=(r"tcp6:0:interface=\:\:1",)) as guard:
        assert guard.address[0] == "::1"
        with RawClient(guard.address) as client:
            assert client.greeting.startswith("220 ")


@pytest.mark.parametrize("kinds", [("tcp6", "tcp"), ("tcp", "tcp6")])
def test_tcp_with_tcp6_on_one_port_says_why(kinds: tuple[str, str], tmp_path: Path) -> None:
    port = free_port()
    first, second = (f"{kind}:{port}" for kind in kinds)
    line = told("--listen", first, "--listen", second, cwd=tmp_path, status=1)
    assert line == (
        f"--listen: cannot listen on {second}: {first} listens on port {port} already, and a tcp6: endpoint on "
        "all addresses takes IPv4 clients too: the tcp6: one alone is enough"
    )


def test_one_port_given_twice_is_told(tmp_path: Path) -> None:
    endpoint = f"tcp:{free_port()}:interface=127.0.0.1"
    line = told("--listen", endpoint, "--listen", endpoint, cwd=tmp_path, status=1)
    assert line.endswith(
        f"cannot listen on {endpoint}: {endpoint} listens on port {endpoint.split(':')[1]} already"
    )


def test_a_unix_socket_in_a_directory_that_there_is_not_names_the_directory(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "guard"
    line = told("--listen", f"unix:{folder}/smtp.sock", cwd=tmp_path, status=1)
    assert line == f"--listen: cannot listen on unix:{folder}/smtp.sock: there is no directory {folder}"


def test_a_unix_socket_that_another_guard_has_is_told(tmp_path: Path) -> None:
    with GuardProcess(tmp_path, listen=("unix:smtp.sock",)):
        line = told("--listen", "unix:smtp.sock", cwd=tmp_path, status=1)
        assert line == "--listen: cannot listen on unix:smtp.sock: another process listens on that socket"


def test_a_socket_that_systemd_has_not_passed_is_told(tmp_path: Path) -> None:
    line = told("--listen", "systemd:domain=INET:name=smtp", cwd=tmp_path)
    assert line == (
        "--listen: systemd has passed no socket of the name 'smtp': is there a socket unit with "
        "FileDescriptorName=smtp, and has it started this service?"
    )


@pytest.mark.clients
def test_a_socket_of_another_name_that_systemd_has_passed_is_named(tmp_path: Path) -> None:
    port = free_port()
    log = tmp_path / "log"
    with Shell(tmp_path) as shell:
        shell.begin(
            f"systemd-socket-activate -l 127.0.0.1:{port} --fdname=other "
            f"{TWIST} smtpguard --listen systemd:domain=INET:name=smtp",
            log,
        )

        def activated() -> bool:
            try:
                socket.create_connection(("127.0.0.1", int(port)), 5).close()
            except ConnectionError:
                return False
            return True

        eventually(activated, "nobody listens")
        eventually(lambda: "of the name 'smtp': it has passed 'other'; " in log.read_text(), f"see {log}")


# Options.


def test_an_option_of_twist_after_smtpguard_is_told_to_stand_before_it(tmp_path: Path) -> None:
    line = told("--log-file=x", cwd=tmp_path)
    assert (
        line
        == "--log-file is an option of twist: it must come before smtpguard, as in twist --log-file=… smtpguard"
    )
    (tmp_path / "guard.conf").write_text("log-format = text\n")
    line = told("--config=guard.conf", cwd=tmp_path)
    assert line == (
        "--config guard.conf line 1: --log-format is an option of twist, and must be given on the command line before "
        "smtpguard"
    )


def test_an_ambiguous_option_lists_what_it_may_be(tmp_path: Path) -> None:
    line = told("--max-m=5", cwd=tmp_path)
    assert line == "option --max-m not a unique prefix: it may be --max-message-size or --max-messages"


def test_an_option_that_is_nearly_one_is_told_which(tmp_path: Path) -> None:
    line = told("--max-conections=5", cwd=tmp_path)
    assert line == "option --max-conections not recognized, did you mean --max-connections?"


@pytest.mark.parametrize("text", ["10M", "10MB", "10Mb", "10MiB", "10m", "10240kB", "10485760"])
def test_a_size_may_have_its_b(text: str) -> None:
    assert parsed("--max-message-size", text).limits.max_message_size == 10 * 1024 * 1024


@pytest.mark.parametrize("text", ["10B", "10iB", "10 MB", "10MBit", "MB"])
def test_what_is_no_size_is_told(text: str) -> None:
    assert mistake("--max-message-size", text).endswith(f" is expected, not {text!r}")


def test_a_tilde_is_the_home_directory_wherever_a_path_may_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (home / "networks").write_text("deny 127.0.0.2\n")
    (home / "domains").write_text("example.org\n")
    (home / "users").write_text("ann:secret\n")
    (home / "guard.pem").write_bytes(CERTIFICATE.read_bytes())
    (home / "guard.conf").write_text(
        "deliver = maildir:~/Maildir\nip-filter = networks:~/networks\naccept-domain = ~/domains\n"
        "auth = file:~/users\ntls-certificate = ~/guard.pem\n"
    )
    with GuardProcess(tmp_path, "--config=~/guard.conf", listen=("unix:~/smtp.sock",)) as guard:
        assert guard.addresses == [str(home / "smtp.sock")]
    assert (home / "Maildir").is_dir()
    assert not (tmp_path / "~").exists()
    line = told("--deliver=smtp:tcp:127.0.0.1:25,tls=required,auth=~/nobody", cwd=tmp_path)
    assert f"{home}/nobody cannot be read" in line


# Warnings of the start.


def warned(guard: GuardProcess) -> list[str]:
    guard.wait_for(" listening ")
    return [line.partition("] setup_warning ")[2] for line in guard.lines if "] setup_warning " in line]


def test_a_key_and_passwords_that_others_can_read_are_warned_of_once_each(tmp_path: Path) -> None:
    key, users, authorities = (tmp_path / name for name in ("guard.pem", "users", "authorities.pem"))
    key.write_bytes(CERTIFICATE.read_bytes())
    users.write_text("ann:secret\n")
    authorities.write_bytes(CERTIFICATE.read_bytes().partition(b"-----BEGIN CERTIFICATE")[1] + b"\n")
    options = ("--tls-certificate=guard.pem", "--auth=file:users", "--hostname=mx.example")
    for path in (key, users):
        path.chmod(0o644)
    with GuardProcess(tmp_path, *options) as guard:
        guard.wait_for("readable_file users ")
        lines = [line for line in warned(guard) if not line.startswith("what=root ")]
        assert lines == [
            "what=readable_file guard.pem has a private key in it, and every user of this machine can read it",
            "what=readable_file users has passwords in it, and every user of this machine can read it",
        ]
    for path in (key, users):
        path.chmod(0o640)
    with GuardProcess(tmp_path, *options) as guard, RawClient(guard.address):
        guard.wait_for(" connect ")
        assert [line for line in warned(guard) if not line.startswith("what=root ")] == []


def test_passwords_for_an_upstream_server_and_in_the_file_of_options_are_passwords_too(
    tmp_path: Path,
) -> None:
    path = tmp_path / "guard.conf"
    path.write_text("auth = memory:ann:secret\nauth-without-tls = yes\n")
    (tmp_path / "upstream").write_text("guard:secret\n")
    deliver = f"smtp:tcp:mx.example:25,tls=required,auth={tmp_path}/upstream"
    options = parsed("--config", str(path), "--deliver", deliver)
    assert options.secret_files() == ([], [str(path), str(tmp_path / "upstream")])


def test_a_start_as_root_is_warned_of_and_another_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startwarnings.os, "geteuid", lambda: 0)
    ((what, problem),) = warnings_of_process([], [])
    assert (what, "CAP_NET_BIND_SERVICE" in problem) == ("root", True)
    monkeypatch.setattr(startwarnings.os, "geteuid", lambda: 1000)
    assert list(warnings_of_process([], [])) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start as root")
def test_a_process_of_root_says_so(tmp_path: Path) -> None:
    with GuardProcess(tmp_path) as guard:
        guard.wait_for(r"\[twisted_smtpguard#warn\] setup_warning what=root the guard runs as root, ")


def test_a_guard_that_calls_itself_localhost_where_others_reach_it_is_warned_of(tmp_path: Path) -> None:
    with GuardProcess(tmp_path, "--hostname=localhost", listen=("tcp:0",)) as guard:
        guard.wait_for(
            r"#warn\] setup_warning what=hostname the guard calls itself localhost, and listens on an address "
        )
    with GuardProcess(tmp_path, "--hostname=localhost", listen=(LOCAL,)) as guard, RawClient(guard.address):
        guard.wait_for(" connect ")
        assert "what=hostname" not in guard.log.decode()


@pytest.mark.parametrize(
    ("hostname", "addresses", "warns"),
    [
        ("localhost", ["0.0.0.0"], True),
        ("LOCALHOST", ["127.0.0.1", "::"], True),
        ("localhost", ["127.0.0.1", "::1"], False),
        ("localhost", [], False),
        # A plugin's endpoint may listen on what is no IP address.
        ("localhost", ["127.0.0.1", "example.onion"], True),
        ("mx.example", ["0.0.0.0"], False),
    ],
)
def test_localhost_is_a_name_for_this_machine_alone(hostname: str, addresses: list[str], warns: bool) -> None:
    assert bool(warning_of_hostname(hostname, addresses)) == warns
