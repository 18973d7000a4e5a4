"""Under systemd: what it is told, the socket that it hands over, and the units that are shown.

systemd itself is not needed, but for what `systemd-analyze` says of the units: it comes with Debian's package systemd.
Without it these tests are skipped, or with TESTS_CLIENTS_REQUIRED=1 fail.
"""

from __future__ import annotations

import configparser
import os
import re
import select
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from commandline import parsed
from documents import ROOT, blocks
from fakes import FakeDelivery
from loopback import reactor
from processes import PATIENCE_SECONDS, TWIST, GuardProcess, command, eventually
from programs import run
from rawclient import RawClient, deliver
from stored import stored
from test_process_service import handlers as handlers  # noqa: PLC0414 - a fixture
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.logger import LogEvent, globalLogPublisher
from workers import told

from twisted_smtpguard.service.process import StandaloneService
from twisted_smtpguard.service.systemd import notify, watchdog_seconds

UNITS = ROOT / "docs" / "examples" / "systemd"
SERVICE = UNITS / "twisted-smtpguard.service"
SOCKET = UNITS / "twisted-smtpguard.socket"
OWN_PORT = UNITS / "twisted-smtpguard.service.d" / "own-port.conf"
CONFIGURATION = UNITS / "guard.conf"
HOW_TO = ROOT / "docs" / "how-to" / "run-under-systemd.md"
INSTALLED = "/opt/guard/bin/twist"

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="abstract addresses are Linux's")


class Manager:
    """Stands for systemd: hears what a service tells."""

    def __init__(self, address: str | bytes) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(PATIENCE_SECONDS)
        self._socket.bind(address)

    def hears(self) -> dict[str, str]:
        """The next state, as soon as it is told."""
        return dict(line.split("=", 1) for line in self._socket.recv(4096).decode().splitlines())

    @property
    def has_heard_all(self) -> bool:
        return not select.select([self._socket], [], [], 0)[0]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    yield manager
    manager.close()


# What systemd is told.


def test_a_state_goes_to_a_socket_in_the_file_system(manager: Manager) -> None:
    notify("A=1\nB=2")
    assert manager.hears() == {"A": "1", "B": "2"}


@linux
def test_a_state_goes_to_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"smtpguard-{os.getpid()}"
    manager = Manager(f"\0{name}")
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    notify("A=1")
    assert manager.hears() == {"A": "1"}
    manager.close()


@pytest.mark.parametrize("value", [None, ""])
def test_where_systemd_has_not_asked_it_is_told_nothing(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", value)
    monkeypatch.delattr("twisted_smtpguard.service.systemd.socket.socket")
    notify("A=1")


@pytest.fixture
def logged() -> Iterator[list[LogEvent]]:
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    yield events
    globalLogPublisher.removeObserver(events.append)


@pytest.mark.parametrize("address", ["nobody", "/" + "x" * 200, "vsock:2:1234", "@", "\udcff"])
def test_what_cannot_be_told_is_logged_and_does_no_harm(
    address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, logged: list[LogEvent]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify("A=1")
    assert [event["log_level"].name for event in logged] == ["warn"]


def test_a_manager_that_does_not_listen_holds_nothing_up(manager: Manager, logged: list[LogEvent]) -> None:
    while not logged:
        notify("A=1")


def test_the_environment_stays_as_it_was(manager: Manager) -> None:
    before = dict(os.environ)
    notify("A=1")
    assert dict(os.environ) == before


class SlowEndpoint:
    """Listens when the test says so."""

    def __init__(self) -> None:
        self.answer: Deferred[Any] = Deferred()

    def listen(self, factory: object) -> Deferred[Any]:
        return self.answer


@pytest_twisted.ensureDeferred
async def test_it_is_ready_when_the_last_listener_listens(manager: Manager) -> None:
    slow = SlowEndpoint()
    at_once = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
    guard = StandaloneService(reactor, [at_once, slow], FakeDelivery(), hostname="guard.example")
    guard.startService()
    await guard.reload()
    guard._signals.tell_ready()
    assert manager.has_heard_all
    slow.answer.callback(await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(guard.factory))
    assert manager.hears() == {"READY": "1"}
    await guard.stopService()
    assert manager.hears() == {"STOPPING": "1"}


@pytest_twisted.ensureDeferred
async def test_data_that_have_been_read_only_when_it_stops_make_it_not_ready_again(manager: Manager) -> None:
    guard = StandaloneService(
        reactor,
        [TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")],
        FakeDelivery(),
        hostname="guard.example",
    )
    guard.startService()
    assert manager.hears() == {"READY": "1"}
    stopped = guard.stopService()
    guard._signals.tell_ready()
    await stopped
    assert manager.hears() == {"STOPPING": "1"}
    assert manager.has_heard_all


def microseconds() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


@pytest.mark.parametrize("reactor", ["default", "asyncio"])
def test_a_process_tells_when_it_listens_reloads_and_stops(
    manager: Manager, tmp_path: Path, reactor: str
) -> None:
    networks = tmp_path / "networks"
    networks.write_text("")
    with GuardProcess(tmp_path, "--ip-filter=networks:networks", reactor=reactor) as guard:
        assert manager.hears() == {"READY": "1"}
        for text, outcome in (("deny 127.0.0.2\n", "reloaded"), ("nonsense\n", "reload_failed")):
            networks.write_text(text)
            began = microseconds()
            os.kill(guard.pid, signal.SIGHUP)
            reloading = manager.hears()
            assert reloading.keys() == {"RELOADING", "MONOTONIC_USEC"}
            assert reloading["RELOADING"] == "1"
            assert began <= int(reloading["MONOTONIC_USEC"]) <= microseconds()
            assert manager.hears() == {"READY": "1"}
            # What it says is so when it says it.
            assert any(f"] {outcome} " in line for line in guard.lines)
        with RawClient(guard.address) as sending:
            for words in ("EHLO c", "MAIL FROM:<s@example.com>", "RCPT TO:<r@example.org>", "DATA"):
                sending.ask(words)
            guard.terminate()
            assert manager.hears() == {"STOPPING": "1"}
            sending.send(b"Subject: x\r\n\r\nHello\r\n.\r\n")
            assert sending.rest().startswith(b"250 ")
        guard.ended()
    assert manager.has_heard_all


def test_a_start_that_fails_is_never_ready(manager: Manager, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        words = command(listen=("tcp:0:interface=127.0.0.1", f"tcp:{busy.getsockname()[1]}"))
        assert run(*words, f"--deliver=maildir:{tmp_path}/Maildir").returncode == 1
    # The first listener listened, for a moment.
    assert manager.has_heard_all


def test_the_watchdog_hears_twice_in_its_time_from_the_process_that_is_meant() -> None:
    assert watchdog_seconds({"WATCHDOG_USEC": "30000000"}) == 15
    assert watchdog_seconds({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}) == 15
    assert watchdog_seconds({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}) == 0
    assert watchdog_seconds({"WATCHDOG_USEC": "fnord"}) == watchdog_seconds({}) == 0


@pytest.mark.parametrize("options", [(), ("--workers=2",)], ids=["one process", "workers"])
def test_the_watchdog_hears_of_a_guard_that_is_alive(
    manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    with GuardProcess(tmp_path, *options) as guard:
        heard = [manager.hears() for _ in range(5)]
        assert {"WATCHDOG": "1"} in heard
        guard.stop()


def test_a_guard_of_workers_is_ready_when_all_of_them_are(manager: Manager, tmp_path: Path) -> None:
    with GuardProcess(tmp_path, "--workers=3") as guard:
        assert manager.hears() == {"READY": "1"}
        assert guard.log.count(b"worker_started") == 3
        os.kill(guard.pid, signal.SIGHUP)
        assert "RELOADING" in manager.hears()
        assert manager.hears() == {"READY": "1"}
        guard.terminate()
        assert manager.hears() == {"STOPPING": "1"}
        guard.ended()
    assert manager.has_heard_all


# The socket that it hands over.

HANDS_OVER = """#!{python}
import os, sys
os.dup2({descriptor}, 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="smtp")
os.execv("{twist}", ["{twist}", *sys.argv[1:]])
"""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """As systemd leaves it: it listens, and blocks."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def handing_over(directory: Path, listener: socket.socket) -> Path:
    """A program that does what systemd does, and then is twist."""
    program = directory / "twist"
    program.write_text(HANDS_OVER.format(python=sys.executable, twist=TWIST, descriptor=listener.fileno()))
    program.chmod(0o700)
    return program


@pytest.mark.parametrize(
    "endpoint", ["systemd:domain=INET:index=0", "systemd:domain=INET:name=smtp"], ids=["index", "name"]
)
@pytest.mark.parametrize("reactor", ["default", "asyncio"])
@pytest.mark.parametrize("options", [(), ("--workers=2",)], ids=["one process", "workers"])
def test_a_socket_that_is_handed_over_takes_mail(
    tmp_path: Path, listener: socket.socket, endpoint: str, reactor: str, options: tuple[str, ...]
) -> None:
    with GuardProcess(
        tmp_path,
        *options,
        listen=(endpoint,),
        reactor=reactor,
        twist=handing_over(tmp_path, listener),
        descriptors=[listener.fileno()],
    ) as guard:
        assert guard.address == listener.getsockname()
        assert deliver(guard.address) == "250 2.0.0 Message accepted"
    assert len(stored(guard.maildir)) == 1


@pytest.mark.parametrize("options", [(), ("--workers=2",)], ids=["one process", "workers"])
def test_after_a_drain_it_listens_again_on_a_socket_that_was_handed_over(
    tmp_path: Path, listener: socket.socket, options: tuple[str, ...]
) -> None:
    def state() -> str:
        return str(told(tmp_path, "status")[0]["state"])

    with GuardProcess(
        tmp_path,
        f"--control={tmp_path / 'control.sock'}",
        *options,
        listen=("systemd:domain=INET:index=0",),
        twist=handing_over(tmp_path, listener),
        descriptors=[listener.fileno()],
    ) as guard:
        eventually(lambda: state() == "listening", "it does not listen")
        for _ in range(2):
            told(tmp_path, "drain")
            eventually(lambda: state() == "drained", "it is not drained")
            told(tmp_path, "resume")
            assert deliver(guard.address) == "250 2.0.0 Message accepted"


def test_a_client_that_connects_between_a_stop_and_the_next_start_waits_and_is_served(
    tmp_path: Path, listener: socket.socket
) -> None:
    def start() -> GuardProcess:
        return GuardProcess(
            tmp_path,
            listen=("systemd:domain=INET:index=0",),
            twist=handing_over(tmp_path, listener),
            descriptors=[listener.fileno()],
        )

    with start():
        pass
    with socket.create_connection(listener.getsockname(), PATIENCE_SECONDS) as early, start():
        assert early.recv(4) == b"220 "


def test_without_a_socket_it_ends_with_one_sentence(tmp_path: Path) -> None:
    done = run(*command(listen=("systemd:domain=INET:index=0",)))
    assert done.returncode == 64
    assert re.fullmatch(rb"--listen: systemd has passed no socket of the index '0': [^\n]*\n", done.stderr)


# The units.


def unit(path: Path) -> configparser.ConfigParser:
    """A unit; a directive that stands twice is an error, for of most only the last would count."""
    parser = configparser.ConfigParser(interpolation=None, delimiters="=", comment_prefixes="#", strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    assert parser.read(path)
    return parser


def test_the_command_line_of_the_service_is_understood(tmp_path: Path) -> None:
    program, *words = shlex.split(unit(SERVICE)["Service"]["ExecStart"])
    assert program == INSTALLED
    assert words[:2] == ["--log-format=text", "smtpguard"]
    configuration = words.index("--config") + 1
    assert words[configuration] == "/etc/smtpguard/guard.conf"
    words[configuration] = str(CONFIGURATION)
    options = parsed(*words[2:])
    (listen,) = options.listen
    (name,) = re.findall(r"name=(\w+)$", listen.text)
    assert name == unit(SOCKET)["Socket"]["FileDescriptorName"]
    state = unit(SERVICE)["Service"]["StateDirectory"]
    assert options.deliver.text == f"maildir:/var/lib/{state}/Maildir"


def test_systemd_waits_longer_for_the_end_than_the_guard_takes() -> None:
    service = unit(SERVICE)["Service"]
    grace = parsed("--config", str(CONFIGURATION)).limits.shutdown_grace
    # Five seconds for verdicts, and five for a delivery that is a service.
    assert int(service["TimeoutStopSec"]) > grace + 10


def test_there_are_descriptors_for_as_many_connections_as_are_let_in() -> None:
    limits = parsed("--config", str(CONFIGURATION)).limits
    assert int(unit(SERVICE)["Service"]["LimitNOFILE"]) > 2 * limits.max_connections > 0


def test_the_service_says_itself_that_it_is_ready_and_reloads_on_sighup() -> None:
    service = unit(SERVICE)["Service"]
    assert service["Type"] == "notify"
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"


def test_the_service_may_do_nothing_that_it_need_not() -> None:
    service = unit(SERVICE)["Service"]
    assert service["CapabilityBoundingSet"] == ""
    assert "AmbientCapabilities" not in service
    assert "User" not in service
    assert {"DynamicUser", "NoNewPrivileges", "MemoryDenyWriteExecute", "PrivateUsers"} <= {
        name for name, value in service.items() if value == "yes"
    }
    own_port = unit(OWN_PORT)["Service"]
    assert own_port["AmbientCapabilities"] == own_port["CapabilityBoundingSet"] == "CAP_NET_BIND_SERVICE"


@pytest.mark.parametrize("path", [SERVICE, SOCKET, CONFIGURATION, OWN_PORT], ids=lambda path: path.name)
def test_the_how_to_shows_the_files_as_they_are(path: Path) -> None:
    assert path.read_text() in blocks(HOW_TO, "ini")


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units in a directory, with a twist that there is."""
    shutil.copy(SOCKET, tmp_path)
    (tmp_path / SERVICE.name).write_text(SERVICE.read_text().replace(INSTALLED, str(TWIST)))
    return tmp_path


@pytest.mark.clients
@pytest.mark.parametrize("own_port", [False, True], ids=["socket", "own port"])
def test_systemd_understands_the_units(installed: Path, own_port: bool) -> None:
    units = [str(installed / SERVICE.name)]
    if own_port:
        (installed / OWN_PORT.parent.name).mkdir()
        shutil.copy(OWN_PORT, installed / OWN_PORT.parent.name)
    else:
        units.append(str(installed / SOCKET.name))
    done = run("systemd-analyze", "verify", "--man=no", *units)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.clients
def test_systemd_finds_little_that_the_service_is_exposed_to(installed: Path) -> None:
    done = run(
        "systemd-analyze",
        "security",
        "--offline=yes",
        "--threshold=20",
        "--no-pager",
        str(installed / SERVICE.name),
    )
    assert done.returncode == 0, done.stdout.decode()
