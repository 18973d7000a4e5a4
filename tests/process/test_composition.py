"""The guard as a part of somebody's application: drained, several at once, among other services, in real processes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import smtplib
import socket
import subprocess
import sys
import unittest
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from applications import LOCAL, STOPPING, Running, ends_with_the_message_that_was_on_its_way, send
from fakes import Conversation, FakeDelivery, FakeFilter, codes
from logbook import logbook
from loopback import Client, Loopback
from processes import PATIENCE_SECONDS, TWIST
from rawclient import RawClient
from twisted.application.service import MultiService, Service
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from twisted_smtpguard import (
    PASS,
    TRUST,
    DiscardDelivery,
    Limits,
    ProcessService,
    Rate,
    SMTPGuardService,
    refuse,
)
from twisted_smtpguard.testing import Clients, Guard

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
EMBEDDING = EXAMPLES / "embedding"
HOW_TO = ROOT / "docs" / "how-to" / "embed-in-a-twisted-application.md"

ENVELOPE = b"MAIL FROM:<a@client.example>\r\nRCPT TO:<b@guard.example>\r\n"


class Part(Service):
    """Writes its starts and stops into a list that several may share."""

    def __init__(self, name: str, told: list[str]) -> None:
        self.part = name
        self.told = told

    def startService(self) -> None:
        Service.startService(self)
        self.told.append(f"start {self.part}")

    def stopService(self) -> None:
        Service.stopService(self)
        self.told.append(f"stop {self.part}")


class PartDelivery(FakeDelivery, Part):
    """A delivery that is a service."""

    def __init__(self) -> None:
        FakeDelivery.__init__(self)
        Part.__init__(self, "delivery", [])


def outcome_of(promised: Deferred[Any]) -> list[object]:
    """What it came to is in the list as soon as it is over."""
    outcome: list[object] = []
    promised.addBoth(outcome.append)
    return outcome


async def over(guard: Loopback, promised: Deferred[Any]) -> list[object]:
    """What it came to."""
    outcome = outcome_of(promised)
    await guard.until(lambda: outcome)
    return outcome


# A drain.


@pytest_twisted.async_yield_fixture
async def guard() -> Any:
    loopback = Loopback(delivery=PartDelivery())
    loopback.start()
    yield loopback
    await loopback.close()


async def in_data(guard: Loopback) -> Client:
    client = await guard.greeted()
    await client.says(ENVELOPE + b"DATA\r\n")
    await client.hears(b"354 ")
    client.heard = b""
    return client


@pytest_twisted.ensureDeferred
async def test_a_drain_tells_who_is_idle_and_lets_a_message_end(guard: Loopback) -> None:
    idle, sending = await guard.greeted(), await in_data(guard)
    drained = outcome_of(guard.service.drain())
    assert guard.service.ports == ()
    await idle.hears_the_end()
    assert idle.heard == STOPPING
    idle.close()
    await sending.says(b"text\r\n.\r\n")
    await sending.hears_the_end()
    assert sending.heard == b"250 2.0.0 Message accepted\r\n" + STOPPING
    assert drained == []
    sending.close()
    await guard.until(lambda: drained)
    assert drained == [None]


@pytest_twisted.ensureDeferred
async def test_a_drain_leaves_the_delivery_and_the_service_running(guard: Loopback) -> None:
    await over(guard, guard.service.drain())
    assert guard.delivery.told == ["start delivery"]
    assert guard.service.running
    await over(guard, guard.service.stopService())
    assert guard.delivery.told == ["start delivery", "stop delivery"]
    assert not guard.service.running


@pytest_twisted.ensureDeferred
async def test_after_a_drain_it_can_be_started_again_with_a_delivery_that_still_runs(guard: Loopback) -> None:
    for _ in range(3):
        await over(guard, guard.service.drain())
        guard.start()
        await guard.greeted()
        guard.clients.pop().close()
        await guard.until(lambda: not guard.protocols)
    assert guard.delivery.told == ["start delivery"]
    assert guard.service.statistics.sessions_ended == 3


@pytest_twisted.ensureDeferred
async def test_a_drain_fires_at_the_end_of_the_grace_though_sessions_remain(guard: Loopback) -> None:
    client = await in_data(guard)
    drained = outcome_of(guard.service.drain())
    await guard.until(lambda: guard.factory.context.draining)
    guard.clock.advance(29.9)
    await guard.turn()
    assert drained == []
    guard.clock.advance(0.2)
    await guard.until(lambda: drained)
    await client.hears_the_end()
    assert guard.delivery.calls[-1] == "sink.abort"


@pytest_twisted.ensureDeferred
async def test_drains_and_stops_that_are_asked_for_meanwhile_end_together(guard: Loopback) -> None:
    client = await in_data(guard)
    ends = [
        outcome_of(each()) for each in (guard.service.drain, guard.service.stopService, guard.service.drain)
    ]
    await guard.until(lambda: guard.factory.context.draining)
    assert ends == [[], [], []]
    client.reset()
    await guard.until(lambda: all(ends))
    assert ends == [[None], [None], [None]]
    assert guard.delivery.told == ["start delivery", "stop delivery"]


@pytest.mark.parametrize("end", ["drain", "stopService"])
@pytest_twisted.ensureDeferred
async def test_it_cannot_be_started_before_a_drain_or_stop_is_over(guard: Loopback, end: str) -> None:
    client = await in_data(guard)
    ended = outcome_of(getattr(guard.service, end)())
    with pytest.raises(RuntimeError, match="cannot be started while a stop or drain is under way"):
        guard.service.startService()
    client.reset()
    await guard.until(lambda: ended)
    guard.start()
    await guard.greeted()


@pytest.mark.parametrize("end", ["drain", "stopService"])
@pytest_twisted.ensureDeferred
async def test_to_wait_for_its_end_no_longer_calls_nothing_off(guard: Loopback, end: str) -> None:
    client = await in_data(guard)
    waiting = getattr(guard.service, end)()
    await guard.until(lambda: guard.factory.context.draining)
    waiting.cancel()
    (outcome,) = outcome_of(waiting)
    assert outcome.check(CancelledError)
    drained = outcome_of(guard.service.drain())
    await guard.turn()
    assert drained == []
    client.reset()
    await guard.until(lambda: drained)
    assert drained == [None]
    assert guard.service.running == (end == "drain")


def test_to_drain_what_was_never_started_is_no_error() -> None:
    service = SMTPGuardService(Clock(), [], DiscardDelivery())
    assert outcome_of(service.drain()) == [None]
    assert not service.running


@pytest_twisted.ensureDeferred
async def test_its_statistics_go_on_over_a_stop_and_a_start(guard: Loopback) -> None:
    for rounds in (1, 2):
        client = await in_data(guard)
        await client.says(b"text\r\n.\r\nQUIT\r\n")
        await client.hears_the_end()
        client.close()
        assert guard.service.statistics.messages_accepted == rounds
        await over(guard, guard.service.stopService())
        guard.start()


# Several guards in one process.


class Kit:
    """A service with its own clock, limits and delivery, and its clients."""

    def __init__(self, hostname: str, ip_filters: Any = (), **limits: Any) -> None:
        self.clock = Clock()
        self.delivery = FakeDelivery()
        self.service = SMTPGuardService(
            self.clock,
            [],
            self.delivery,
            limits=Limits(**limits),
            hostname=hostname,
            ip_filters=ip_filters,
        )
        self.clients = Clients(self.service.factory, self.clock)
        self.service.startService()


@pytest.fixture
def kits() -> list[Kit]:
    # A stranger's first error would be the last where one or two connections are the cap.
    trusting = [FakeFilter(TRUST)]
    return [
        Kit("one.example", trusting, max_connections=1, max_recipients=1, read_timeout=10),
        Kit("two.example", trusting, max_connections=2, max_recipients=2, read_timeout=20),
        Kit("all.example", max_recipients=0, read_timeout=30),
    ]


def test_each_of_several_guards_has_its_own_limits(kits: list[Kit]) -> None:
    crowds = [[kit.clients.connect().heard() for _ in range(3)] for kit in kits]
    assert [[code for said in crowd for code in codes(said)] for crowd in crowds] == [
        [220, 421, 421],
        [220, 220, 421],
        [220, 220, 220],
    ]
    assert [crowd[0] for crowd in crowds] == [
        f"220 {name}.example ESMTP ready\r\n" for name in ("one", "two", "all")
    ]


def test_each_of_several_guards_has_its_own_delivery_and_statistics(kits: list[Kit]) -> None:
    recipients = [f"RCPT TO:<{name}@guard.example>" for name in "abc"]
    for kit, accepted in zip(kits, (1, 2, 3), strict=True):
        client = kit.clients.greeted()
        heard = client.codes("MAIL FROM:<>", *recipients, "DATA", f"Subject: {accepted}", ".")
        assert heard == [250, *[250] * accepted, *[452] * (3 - accepted), 354, 250]
    assert [kit.delivery.messages[0].octets for kit in kits] == [
        b"Subject: 1\r\n",
        b"Subject: 2\r\n",
        b"Subject: 3\r\n",
    ]
    assert [kit.service.statistics.recipients_accepted for kit in kits] == [1, 2, 3]
    assert [kit.service.statistics.refusals.get("max_recipients", 0) for kit in kits] == [2, 1, 0]
    assert [kit.service.statistics.live_connections for kit in kits] == [1, 1, 1]


def test_each_of_several_guards_has_its_own_clock(kits: list[Kit]) -> None:
    clients = [kit.clients.greeted() for kit in kits]
    for passing in range(3):
        kits[passing].clock.advance(31)
        assert [client.closed for client in clients] == [n <= passing for n in range(3)]


def test_several_guards_name_their_sessions_apart(kits: list[Kit]) -> None:
    for kit in kits:
        for _ in range(20):
            client = kit.clients.greeted()
            client.say("MAIL FROM:<>", "RCPT TO:<b@guard.example>", "DATA", ".")
            client.disconnect()
    names = [message.client.session for kit in kits for message in kit.delivery.messages]
    assert len(set(names)) == len(names) == 60


def test_each_of_several_guards_counts_a_client_apart_and_asks_its_own_filters() -> None:
    kits = [
        Kit("a.example", [FakeFilter(PASS)], max_connections_per_client=1, connection_rate=Rate(2, 60)),
        Kit("b.example", [FakeFilter(refuse())], max_connections_per_client=1),
        Kit("c.example", max_connections_per_client=1),
    ]
    told = [codes(kit.clients.connect().heard()) for kit in kits]
    assert told == [[220], [421], [220]]
    assert [kit.service.statistics.refusals for kit in kits] == [{}, {"ip_filter": 1}, {}]


def test_of_several_guards_one_is_drained_and_the_others_go_on(kits: list[Kit]) -> None:
    clients = [kit.clients.greeted() for kit in kits]
    kits[1].service.drain()
    assert [client.closed for client in clients] == [False, True, False]
    assert [codes(kit.clients.connect().heard()) for kit in kits] == [[421], [421], [220]]
    assert [kit.service.statistics.refusals for kit in kits] == [{"max_connections": 1}, {"shutdown": 2}, {}]


# Among other services.


def test_a_parent_starts_it_in_turn_and_its_children_stop_after_its_last_session() -> None:
    told: list[str] = []
    kit = Kit("guard.example")
    kit.service.stopService()
    application = MultiService()
    Part("before", told).setServiceParent(application)
    kit.service.setServiceParent(application)
    Part("child", told).setServiceParent(kit.service)
    Part("after", told).setServiceParent(application)
    application.startService()
    assert told == ["start before", "start child", "start after"]
    assert kit.service.running
    client = kit.clients.greeted()
    client.say("MAIL FROM:<>", "RCPT TO:<b@guard.example>", "DATA")
    client.heard()
    stopped = outcome_of(application.stopService())
    # A MultiService asks all its children at once.
    assert told[3:] == ["stop after", "stop before"]
    assert client.say("text", ".").encode() == b"250 2.0.0 Message accepted\r\n" + STOPPING
    assert stopped == []
    client.disconnect()
    assert told[5:] == ["stop child"]
    assert len(stopped) == 1


def test_it_can_join_and_leave_a_parent_that_runs() -> None:
    kit = Kit("guard.example")
    kit.service.stopService()
    application = MultiService()
    application.startService()
    kit.service.setServiceParent(application)
    client = kit.clients.greeted()
    left = outcome_of(kit.service.disownServiceParent())
    assert client.heard().encode() == STOPPING
    client.disconnect()
    assert left == [None]
    assert not kit.service.running
    assert application.running


@pytest.fixture
def embedding(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The modules of the examples can be imported."""
    monkeypatch.syspath_prepend(EMBEDDING)
    yield
    for name in ("inbox", "two_guards"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("embedding")
def test_the_database_of_the_example_outlives_the_last_message_of_both_its_guards() -> None:
    from inbox import Store
    from twisted.internet.endpoints import TCP4ServerEndpoint
    from two_guards import Mailroom

    reactor = MemoryReactorClock()
    store = Store(["desk@example.org"], {})
    mailroom = Mailroom(reactor, store, *(TCP4ServerEndpoint(reactor, port) for port in (25, 2525)))
    mailroom.startService()
    assert [port for port, *_ in reactor.tcpServers] == [25, 2525]
    clients = [
        Clients(guard.factory, reactor).connect(address)
        for guard, address in ((mailroom.public, "192.0.2.1"), (mailroom.internal, "192.0.2.2"))
    ]
    # The greet delay of the edge profile.
    assert [client.heard() for client in clients] == ["", "220 relay.example.org ESMTP ready\r\n"]
    reactor.advance(2)
    assert clients[0].heard() == "220 mx.example.org ESMTP ready\r\n"
    for client in clients:
        begin(client)
    stopped = outcome_of(mailroom.stopService())
    for client in clients:
        assert store.running
        assert client.codes("Subject: x", ".") == [250, 421]
        client.disconnect()
    assert not store.running
    assert len(stopped) == 1
    assert store.mailboxes == {"desk@example.org": [b"Subject: x\r\n"] * 2}


def begin(client: Conversation) -> None:
    """Up to the 354."""
    for line in ("EHLO client.example", "MAIL FROM:<>", "RCPT TO:<desk@example.org>", "DATA"):
        client.say(line)


# The documents.


def test_the_how_to_shows_the_files_that_are_run_here() -> None:
    shown = re.findall(
        r"<!-- (from )?docs/examples/(\S+) -->\n```python\n(.*?)```", HOW_TO.read_text(), re.DOTALL
    )
    assert len(shown) >= 6
    for part, name, text in shown:
        file = (EXAMPLES / name).read_text()
        assert text in file if part else text == file, name


def test_the_tests_of_the_example_pass(tmp_path: Path) -> None:
    for name in ("inbox.py", "test_inbox.py"):
        shutil.copy(EMBEDDING / name, tmp_path)
    command = [sys.executable, "-m", "unittest"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ran = re.search(r"^Ran (\d+) tests", done.stderr, re.MULTILINE)
    assert ran is not None and int(ran[1]) >= 9


class BrokenSink(FakeDelivery):
    async def begin(self, client: object, sender: object) -> Any:
        raise RuntimeError("the database is closed")


@pytest.mark.parametrize("flushed", [True, False])
def test_trial_counts_a_failure_of_a_hook_until_the_test_takes_it_as_the_how_to_says(flushed: bool) -> None:
    assert "write `self.flushLoggedErrors(RuntimeError)`" in HOW_TO.read_text()

    class Broken(SynchronousTestCase):
        def runTest(self) -> None:
            client = Guard(BrokenSink()).greeted()
            self.assertEqual(client.codes("MAIL FROM:<a@example.org>"), [451])
            if flushed:
                self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    result = unittest.TestResult()
    Broken().run(result)
    assert [text.splitlines()[-1] for _, text in result.errors] == (
        [] if flushed else ["RuntimeError: the database is closed"]
    )
    assert not result.failures


def test_the_health_that_the_how_to_shows_is_told(tmp_path: Path) -> None:
    (block,) = [
        each
        for each in re.findall(r"^```python\n(.*?)^```", HOW_TO.read_text(), re.MULTILINE | re.DOTALL)
        if "def health" in each
    ]
    (tmp_path / "networks").write_text("deny 192.0.2.1\n")
    names: dict[str, Any] = {"reactor": Clock(), "endpoints": [], "delivery": DiscardDelivery()}
    exec(block.replace("/etc/smtpguard/networks", str(tmp_path / "networks")), names)
    clients = Clients(names["service"].factory, names["reactor"])
    assert codes(clients.connect("192.0.2.1").heard()) == [421]
    assert names["health"]()["refusals"] == {"ip_filter": 1}


# Real processes.


def test_a_tac_file_runs_under_twistd_and_ends_cleanly(tmp_path: Path) -> None:
    twistd = TWIST.with_name("twistd")
    tac = EMBEDDING / "mail.tac"
    with Running(tmp_path, twistd, "--nodaemon", "--python", tac, MAIL_ENDPOINT=LOCAL) as mail:
        send(mail.ports[0])
        assert ends_with_the_message_that_was_on_its_way(mail, mail.ports[0]) == -signal.SIGTERM
        assert "stopped connections_accepted=3 " in mail.output
    kept = [path.read_bytes() for path in (tmp_path / "Maildir" / "new").iterdir()]
    assert sorted(text.partition(b"Subject: ")[2] for text in kept) == [b"Hello\n\nWorld\n", b"last\n\nx\n"]


def test_an_application_with_two_guards_keeps_what_both_accept(tmp_path: Path) -> None:
    command = [sys.executable, EMBEDDING / "two_guards.py", LOCAL, LOCAL]
    with Running(tmp_path, *command, listeners=2) as application:
        public, internal = application.ports
        send(internal)
        send(public)
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            send(public, "nobody@example.org")
        with RawClient(("127.0.0.1", public), "127.0.0.2") as banned:
            assert banned.greeting == "421 4.7.0 Connection refused"
        with RawClient(("127.0.0.1", internal), "127.0.0.2") as known:
            assert known.greeting == "220 relay.example.org ESMTP ready"
        assert ends_with_the_message_that_was_on_its_way(application, public) == 0
        assert application.output.count("octets for desk@example.org\n") == 3


def test_the_factory_alone_serves_an_endpoint(tmp_path: Path) -> None:
    with Running(tmp_path, sys.executable, EMBEDDING / "factory_alone.py", LOCAL) as alone:
        send(alone.ports[0])
        assert ends_with_the_message_that_was_on_its_way(alone, alone.ports[0]) == 0
        assert alone.output.endswith("accepted 2 messages\n")


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """A copy: Twisted writes a cache beside the plugins that it sees."""
    unwanted = shutil.ignore_patterns("__pycache__", "dropin.cache", "*.egg-info")
    return Path(shutil.copytree(EXAMPLES / "twist_plugin", tmp_path / "plugin", ignore=unwanted))


def mailroom(
    tmp_path: Path, path: Path, *words: str, options: Sequence[str] = (), **environment: str
) -> Running:
    """The `twist mailroom` that stands at `path`."""
    command = [TWIST, *words, "--log-format=text", "mailroom", f"--listen={LOCAL}", *options]
    return Running(tmp_path, *command, "--mailbox=desk@example.org", PYTHONPATH=str(path), **environment)


@pytest.mark.parametrize("reactor", ["default", "asyncio"])
def test_another_projects_twist_command_runs_a_guard(plugin: Path, tmp_path: Path, reactor: str) -> None:
    with mailroom(tmp_path, plugin / "src", f"--reactor={reactor}") as twist:
        send(twist.ports[0])
        with pytest.raises(smtplib.SMTPDataError, match="No such mailbox"):
            send(twist.ports[0], "nobody@example.org")
        assert "mail from a@example.com: 25 octets" in twist.output
        assert ends_with_the_message_that_was_on_its_way(twist, twist.ports[0]) == -signal.SIGTERM


def test_another_projects_twist_command_heeds_sighup_and_a_second_sigterm_and_tells_systemd(
    plugin: Path, tmp_path: Path
) -> None:
    networks = tmp_path / "networks"
    networks.write_text("")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE_SECONDS)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        with mailroom(tmp_path, plugin / "src", options=[f"--networks={networks}"], **environment) as twist:
            assert manager.recv(4096) == b"READY=1"
            twist._process.send_signal(signal.SIGUSR1)
            networks.write_text("deny 127.0.0.2\n")
            twist._process.send_signal(signal.SIGHUP)
            assert manager.recv(4096).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            assert manager.recv(4096) == b"READY=1"
            with RawClient(("127.0.0.1", twist.ports[0]), "127.0.0.2") as denied:
                assert denied.greeting.startswith("421 ")
            with RawClient(("127.0.0.1", twist.ports[0])) as slow:
                for words in ("EHLO x", "MAIL FROM:<>", "RCPT TO:<desk@example.org>", "DATA"):
                    slow.ask(words)
                twist._process.terminate()
                assert manager.recv(4096) == b"STOPPING=1"
                # It waits for the message, but no longer than until it is told again.
                twist._process.terminate()
                assert slow.rest() == STOPPING
            assert twist._process.wait(PATIENCE_SECONDS) == -signal.SIGTERM


def refused_start(directory: Path, plugin: Path, endpoint: str, *options: str) -> str:
    """What `twist mailroom` says where it cannot start."""
    done = subprocess.run(
        [TWIST, "mailroom", f"--listen={endpoint}", *options],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(plugin / "src")},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 1
    return done.stderr


def test_another_projects_twist_command_that_cannot_listen_ends_with_one_sentence(
    plugin: Path, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        endpoint = f"tcp:{port}:interface=127.0.0.1"
        said = refused_start(tmp_path, plugin, endpoint)
    assert re.fullmatch(rf"cannot listen on {endpoint}: Couldn't listen on 127\.0\.0\.1:{port}: .*\n", said)


@pytest.mark.parametrize(
    ("endpoint", "why"),
    [
        ("unix:/missing/smtp.sock", "there is no directory /missing"),
        ("tcp:99999", "bind(): port must be 0-65535."),
    ],
)
def test_that_sentence_names_the_endpoint_whatever_is_wrong_with_it(
    endpoint: str, why: str, plugin: Path, tmp_path: Path
) -> None:
    assert refused_start(tmp_path, plugin, endpoint) == f"cannot listen on {endpoint}: {why}\n"


@pytest.mark.parametrize(
    ("endpoint", "options", "why"),
    [
        ("tcp:x", (), "invalid literal for int() with base 10: 'x'"),
        (LOCAL, ("--max-connections=-1",), "max_connections must be 0 or more, not -1"),
        (LOCAL, ("--networks=/nope",), "/nope"),
    ],
)
def test_a_mistake_in_the_options_of_that_command_is_one_sentence_too(
    endpoint: str, options: Sequence[str], why: str, plugin: Path, tmp_path: Path
) -> None:
    said = refused_start(tmp_path, plugin, endpoint, *options)
    assert re.fullmatch(rf"mailroom: .*{re.escape(why)}.*\n", said)


class ClosedPart(Service):
    def startService(self) -> None:
        raise FileNotFoundError(2, "No such file or directory", "/missing/database")


def test_a_part_that_cannot_start_is_not_told_as_a_guard_that_cannot_listen() -> None:
    guard = SMTPGuardService(Clock(), [], DiscardDelivery())
    process = ProcessService(MemoryReactorClock(), [guard], parts=[ClosedPart()])
    try:
        with pytest.raises(FileNotFoundError, match="database"):
            process.startService()
    finally:
        process._signals.stopped(None)


class StuckPart(Service):
    def stopService(self) -> Deferred[None]:
        return fail(OSError("the database is gone"))


def test_a_part_that_cannot_be_stopped_is_told_as_a_failure_at_once() -> None:
    clock = MemoryReactorClock()
    guard = SMTPGuardService(clock, [], DiscardDelivery())
    process = ProcessService(clock, [guard], parts=[StuckPart()])
    process.startService()
    outcomes: list[object] = []
    with logbook() as book:
        process.stopService().addBoth(outcomes.append)
        clock.advance(1)
        assert outcomes == [None]
        (line,) = book.take("failure")
    assert line.startswith("failure stopping a part of the process")


@pytest.mark.packaging
def test_another_projects_twist_command_is_found_where_it_is_installed(plugin: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", site, plugin]
    subprocess.run(install, check=True, stdout=subprocess.DEVNULL)
    with mailroom(tmp_path, site) as twist:
        send(twist.ports[0])
        assert twist.terminate() == -signal.SIGTERM
