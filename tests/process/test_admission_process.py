"""Who may come in, as clients of a real `twist smtpguard` see it: caps, rates, trust, early talkers, greet delay.

Clients come from all of 127.0.0.0/8. Every test has its own networks, so that most share one guard.
"""

from __future__ import annotations

import itertools
import os
import re
import select
import signal
import smtplib
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from ownnetwork import run_in_own_network
from processes import LOCAL, PATIENCE_SECONDS, Address, GuardProcess, eventually
from rawclient import RawClient
from test_process import has_ipv6

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs all of 127.0.0.0/8")

GREETED = "220 "
TOO_MANY = "421 4.7.0 Too many connections, try again later"
TOO_MANY_OF_CLIENT = "421 4.7.0 Too many connections from your address, try again later"
TOO_OFTEN = "421 4.7.0 Connection rate exceeded, try again later"
EARLY = "421 4.7.0 Protocol error: client spoke before the greeting"
TRUSTED = "127.0.0.9"
TOTAL = 6
"""--max-connections of the shared guard. A client may have two of them."""

needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="there is no ::1")
V6_LISTENERS = (r"tcp6:0:interface=\:\:1", r"tcp6:0:interface=\:\:ffff\:127.0.0.1")

_networks = (f"127.{a}.{b}" for a, b in itertools.product(range(1, 255), range(255)))


@pytest.fixture
def network() -> str:
    """The first three octets of addresses from which no client has connected."""
    return next(_networks)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardProcess]:
    options = (
        f"--max-connections={TOTAL}",
        "--max-connections-per-client=2",
        "--ipv4-client-prefix=24",
        f"--trust={TRUSTED}",
        "--message-rate=2/3600",
        "--recipient-rate=3/3600",
        "--max-invalid-commands=3",
        # Longer than any test has patience: a slot that is free before was not waited for.
        "--linger-timeout=100",
        "--deliver=discard",
    )
    listen = (LOCAL, *(V6_LISTENERS if has_ipv6() else ()))
    with GuardProcess(tmp_path_factory.mktemp("guard"), *options, listen=listen) as guard:
        yield guard


@pytest.fixture
def guard(running: GuardProcess) -> GuardProcess:
    """The same process for every test, and nobody there."""
    eventually(lambda: nobody_is_in(running), "somebody is still there")
    return running


def nobody_is_in(guard: GuardProcess) -> bool:
    log = guard.log
    return log.count(b"] connect ") == log.count(b"] disconnect ")


def told(address: Address, source: str = "") -> str:
    """What a client is told first. One that is refused is told nothing else."""
    with RawClient(address, source) as client:
        if client.greeting.startswith("421"):
            assert client.rest() == b""
        return client.greeting


def gets_in(address: Address, source: str = "") -> bool:
    return told(address, source).startswith(GREETED)


@contextmanager
def greeted(address: Address, *sources: str) -> Iterator[list[RawClient]]:
    """A client from each of `sources`, all at once, and each with its greeting."""
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(address, source)) for source in sources]
        assert all(client.greeting.startswith(GREETED) for client in clients)
        yield clients


ARRIVED = r"port=\d+ listener=tcp:0:interface=127\.0\.0\.1"
"""The client's own port, and the listener: the end of the line of a refusal before the greeting."""


# How many at once.


def test_a_client_has_as_many_connections_as_it_may_and_others_are_not_affected(
    guard: GuardProcess, network: str
) -> None:
    with greeted(guard.address, f"{network}.2", f"{network}.2"):
        for _ in range(5):
            assert told(guard.address, f"{network}.2") == TOO_MANY_OF_CLIENT
        assert gets_in(guard.address, f"{next(_networks)}.2")
        line = guard.wait_for(rf"\] reject peer={re.escape(network)}\.2 reason=max_connections_per_client ")
        assert re.search(rf" limit=2 value=3 code=421 {ARRIVED}$", line)


def test_a_network_is_one_client_where_the_prefix_says_so(guard: GuardProcess, network: str) -> None:
    with greeted(guard.address, f"{network}.2", f"{network}.3"):
        assert told(guard.address, f"{network}.255") == TOO_MANY_OF_CLIENT


@needs_ipv6
def test_ipv4_and_ipv6_are_two_clients(guard: GuardProcess, network: str) -> None:
    ipv6 = guard.addresses[1]
    with greeted(ipv6, "", ""), greeted(guard.address, f"{network}.2", f"{network}.2"):
        assert told(ipv6) == TOO_MANY_OF_CLIENT
        assert told(guard.address, f"{network}.2") == TOO_MANY_OF_CLIENT
        guard.wait_for(r"\] reject peer=::1 reason=max_connections_per_client ")


@needs_ipv6
def test_an_ipv4_client_of_an_ipv6_listener_is_that_ipv4_client(guard: GuardProcess, network: str) -> None:
    """As a dual-stack listener has them: ::ffff:127.0.0.2."""
    mapped = ("127.0.0.1", guard.addresses[2][1])
    with greeted(mapped, f"{network}.2"), greeted(guard.address, f"{network}.2"):
        assert told(mapped, f"{network}.2") == TOO_MANY_OF_CLIENT
        # Before the other listener refuses it, too.
        guard.wait_for(rf"\] reject peer={re.escape(network)}\.2 reason=max_connections_per_client ")
        assert told(guard.address, f"{network}.2") == TOO_MANY_OF_CLIENT
        assert gets_in(mapped, TRUSTED)
        assert "peer=::ffff:" not in guard.log.decode()


IPV6_SCRIPT = """
import sys
from pathlib import Path
from processes import GuardProcess
from rawclient import RawClient
listen = (r"tcp6:0:interface=2001\\:db8\\:\\:1",)
with GuardProcess(Path(sys.argv[1]), "--max-connections-per-client=2", "--deliver=discard", listen=listen) as guard:
    clients = [RawClient(guard.addresses[0], source) for source in sys.argv[2:]]
    print(*[client.greeting for client in clients], sep="\\n")
    for client in clients:
        client.close()
"""


@needs_ipv6
def test_the_addresses_of_one_ipv6_64_are_one_client(tmp_path: Path) -> None:
    """In its own network, where the loopback may have more addresses than ::1."""
    one_64 = ["2001:db8::2", "2001:db8:0:0:ffff::3", "2001:db8::4"]
    other = "2001:db8:0:1::2"
    addresses = " && ".join(
        f"ip addr add {each}/128 dev lo nodad" for each in ("2001:db8::1", *one_64, other)
    )
    words = (str(tmp_path), *one_64, other)
    first, second, third, fourth = run_in_own_network(
        addresses, IPV6_SCRIPT, *words, seconds=PATIENCE_SECONDS
    )
    assert [first[:4], second[:4], third, fourth[:4]] == [GREETED, GREETED, TOO_MANY_OF_CLIENT, GREETED]


def test_trust_exempts_from_the_cap_of_a_client_but_not_from_that_of_all(guard: GuardProcess) -> None:
    with greeted(guard.address, *[TRUSTED] * TOTAL) as clients:
        assert told(guard.address, TRUSTED) == TOO_MANY
        clients[0].close()
        eventually(lambda: gets_in(guard.address, TRUSTED), "the slot is not given back")


def test_the_untrusted_neighbour_of_a_trusted_client_is_not_trusted(guard: GuardProcess) -> None:
    """Whom the limits count as one client and whom a filter trusts are two questions."""
    with greeted(guard.address, TRUSTED, TRUSTED, TRUSTED, "127.0.0.8", "127.0.0.8"):
        assert told(guard.address, "127.0.0.8") == TOO_MANY_OF_CLIENT


def quit_(client: RawClient) -> None:
    assert client.ask("QUIT").startswith("221")


def reset(client: RawClient) -> None:
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def reset_in_data(client: RawClient) -> None:
    for words in ("EHLO x", "MAIL FROM:<>", "RCPT TO:<r@example.org>", "DATA"):
        client.ask(words)
    client.send(b"Subject: x\r\n")
    reset(client)


def half_close(client: RawClient) -> None:
    client.socket.shutdown(socket.SHUT_WR)
    assert client.rest() == b""


def linger(client: RawClient) -> None:
    """Told to go, it stays."""
    client.send(b"x\r\n" * 3)
    assert client.rest().endswith(b"421 4.4.0 Too many errors, closing connection\r\n")


ENDS = {
    "QUIT": quit_,
    "disconnect": RawClient.close,
    "reset": reset,
    "reset in DATA": reset_in_data,
    "half-close": half_close,
    "421, and it stays": linger,
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_however_a_connection_ends_its_client_may_have_one_more_and_not_two(
    guard: GuardProcess, network: str, end: Callable[[RawClient], None]
) -> None:
    source = f"{network}.2"
    with greeted(guard.address, source, source) as (ending, _):
        assert told(guard.address, source) == TOO_MANY_OF_CLIENT
        end(ending)
        eventually(lambda: gets_in(guard.address, source), "the place is not given back")
        eventually(lambda: log_ends(guard, source) == 2, "the visit before has not ended")
        with greeted(guard.address, source):
            assert told(guard.address, source) == TOO_MANY_OF_CLIENT


def log_ends(guard: GuardProcess, source: str) -> int:
    """How many sessions of `source` have ended."""
    return sum(f" peer={source} " in line and "] disconnect " in line for line in guard.lines)


def test_many_refusals_take_no_place(guard: GuardProcess, network: str) -> None:
    source = f"{network}.2"
    with greeted(guard.address, source, source):
        for _ in range(20):
            assert told(guard.address, source) == TOO_MANY_OF_CLIENT
    eventually(lambda: log_ends(guard, source) == 2, "they are still there")
    with greeted(guard.address, source, source):
        assert told(guard.address, source) == TOO_MANY_OF_CLIENT


# How often.


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardProcess]:
    options = (
        "--connection-rate=3/3600",
        "--max-connections-per-client=1",
        "--early-talker=refuse",
        f"--trust={TRUSTED}",
        "--read-timeout=0.3",
        "--linger-timeout=100",
        "--deliver=discard",
    )
    with GuardProcess(tmp_path_factory.mktemp("strict"), *options) as guard:
        yield guard


def test_a_client_that_connects_too_often_is_refused_and_others_are_not(
    strict: GuardProcess, network: str
) -> None:
    for number in range(1, 4):
        assert gets_in(strict.address, f"{network}.2")
        eventually(lambda n=number: log_ends(strict, f"{network}.2") == n, "it is still there")
    for _ in range(3):
        assert told(strict.address, f"{network}.2") == TOO_OFTEN
    assert gets_in(strict.address, f"{network}.3")
    line = strict.wait_for(rf"\] reject peer={re.escape(network)}\.2 reason=connection_rate ")
    assert re.search(rf" limit=3/3600 value=4 code=421 {ARRIVED}$", line)


def test_a_trusted_client_may_connect_as_often_as_it_likes(strict: GuardProcess) -> None:
    for _ in range(10):
        assert gets_in(strict.address, TRUSTED)


def test_a_timeout_gives_the_place_back_while_the_client_stays(strict: GuardProcess, network: str) -> None:
    source = f"{network}.2"
    with RawClient(strict.address, source) as idle:
        assert idle.rest() == b"421 4.4.2 Timeout waiting for client, closing connection\r\n"
        assert gets_in(strict.address, source)


def transaction(client: RawClient, *recipients: str) -> list[str]:
    """The replies to MAIL and to each RCPT. No message is sent."""
    replies = [client.ask("MAIL FROM:<s@example.com>")]
    replies += [client.ask(f"RCPT TO:<{recipient}@example.org>") for recipient in recipients]
    client.ask("RSET")
    return [reply[:3] if reply.startswith("250") else reply for reply in replies]


def test_messages_are_counted_over_all_sessions_of_a_client(guard: GuardProcess, network: str) -> None:
    with greeted(guard.address, f"{network}.2", f"{network}.3") as clients:
        for client in clients:
            client.ask("EHLO client.example")
            assert transaction(client) == ["250"]
        for client in clients:
            assert client.ask("MAIL FROM:<>") == "450 4.7.1 Message rate exceeded, try again later"
            assert client.ask("NOOP").startswith("250")
    with greeted(guard.address, f"{next(_networks)}.2") as (other,):
        other.ask("EHLO client.example")
        assert transaction(other) == ["250"]


def test_recipients_are_counted_over_all_sessions_of_a_client(guard: GuardProcess, network: str) -> None:
    exceeded = "450 4.7.1 Recipient rate exceeded, try again later"
    with greeted(guard.address, f"{network}.2", f"{network}.3") as (first, second):
        first.ask("EHLO client.example")
        second.ask("EHLO client.example")
        assert transaction(first, "a", "b") == ["250", "250", "250"]
        assert transaction(second, "c", "d", "e") == ["250", "250", exceeded, exceeded]


def test_a_trusted_client_may_send_as_much_as_it_likes(guard: GuardProcess) -> None:
    with greeted(guard.address, TRUSTED) as (client,):
        client.ask("EHLO client.example")
        for _ in range(5):
            assert transaction(client, "a", "b") == ["250", "250", "250"]


# Before the greeting.


@contextmanager
def asleep(guard: GuardProcess) -> Iterator[None]:
    """While the block runs, the guard does nothing: what clients do in it they do before it has seen them."""
    state = Path("/proc", str(guard.pid), "stat")
    os.kill(guard.pid, signal.SIGSTOP)
    try:
        eventually(lambda: state.read_text().rpartition(") ")[2].startswith("T"), "it does not stop")
        yield
    finally:
        os.kill(guard.pid, signal.SIGCONT)


def come(guard: GuardProcess, source: str) -> socket.socket:
    """A connection of which nothing has been read."""
    return socket.create_connection(guard.address, PATIENCE_SECONDS, (source, 0))


def speak_early(guard: GuardProcess, source: str, said: bytes) -> socket.socket:
    """A client whose words, as many as there is room for, are there before the guard has seen the connection."""
    with asleep(guard):
        client = come(guard, source)
        client.send(said, socket.MSG_DONTWAIT)
    return client


def heard(client: socket.socket) -> bytes:
    """All that the client hears until its connection ends. A reset after the last line is an end, too."""
    words = b""
    with client, suppress(ConnectionResetError):
        while piece := client.recv(65536):
            words += piece
    return words


def test_an_early_talker_is_served_and_logged_by_default(guard: GuardProcess, network: str) -> None:
    words = heard(speak_early(guard, f"{network}.2", b"EHLO client.example\r\nQUIT\r\n"))
    assert re.match(rb"220 [^\r]+\r\n(250-[^\r]+\r\n)+250 [^\r]+\r\n221 [^\r]+\r\n$", words)
    guard.wait_for(rf"\] reject peer={re.escape(network)}\.2 reason=early_talker dry_run=true ")


@pytest.mark.parametrize("said", [b"EHLO client.example\r\n", b"x" * 1_000_000], ids=["EHLO", "flood"])
def test_an_early_talker_is_refused_where_the_operator_says_so(
    strict: GuardProcess, network: str, said: bytes
) -> None:
    words = heard(speak_early(strict, f"{network}.2", said))
    assert words.decode() == f"{EARLY}\r\n"
    line = strict.wait_for(rf"\] reject peer={re.escape(network)}\.2 reason=early_talker ")
    assert "dry_run" not in line
    assert " connect session=" not in line


def test_a_trusted_client_may_speak_early(strict: GuardProcess) -> None:
    words = heard(speak_early(strict, TRUSTED, b"EHLO client.example\r\nQUIT\r\n"))
    assert words.startswith(b"220 ")
    assert words.endswith(b"221 2.0.0 Closing connection\r\n")


def test_the_place_of_a_refused_early_talker_is_free_at_once(strict: GuardProcess, network: str) -> None:
    with speak_early(strict, f"{network}.2", b"EHLO client.example\r\n") as refused:
        assert refused.recv(65536).decode() == f"{EARLY}\r\n"
        assert gets_in(strict.address, f"{network}.2")


# The profile edge, as it is.


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardProcess]:
    directory = tmp_path_factory.mktemp("edge")
    (directory / "networks").write_text(f"trust {TRUSTED}\n")
    options = ("--profile=edge", "--ip-filter=networks:networks", "--deliver=discard")
    with GuardProcess(directory, *options) as guard:
        yield guard


def has_heard(client: socket.socket) -> bool:
    return bool(select.select([client], [], [], 0)[0])


def test_a_trusted_client_is_greeted_before_those_that_came_first(edge: GuardProcess, network: str) -> None:
    with come(edge, f"{network}.2") as waiting:
        assert gets_in(edge.address, TRUSTED)
        assert not has_heard(waiting)


def test_sighup_loses_no_client_that_waits_for_the_greeting(edge: GuardProcess, network: str) -> None:
    with ExitStack() as stack:
        waiting = [stack.enter_context(come(edge, f"{network}.{number}")) for number in range(1, 11)]
        # A client that has been admitted stays so: the new data are asked only about clients that connect later.
        networks = Path(f"/proc/{edge.pid}/cwd/networks")
        networks.write_text(f"trust {TRUSTED}\ndeny {network}.0/24\n")
        assert gets_in(edge.address, TRUSTED)
        os.kill(edge.pid, signal.SIGHUP)
        edge.wait_for(r"\] reloaded what=networks option=--ip-filter file=networks$")
        assert told(edge.address, f"{network}.99") == "421 4.7.0 Connection refused"
        assert not any(has_heard(client) for client in waiting)
        assert all(client.recv(4) == b"220 " for client in waiting)


@pytest.mark.parametrize(
    "said", [b"E", b"EHLO client.example\r\n", b"x" * 1_000_000], ids=["E", "EHLO", "flood"]
)
def test_who_speaks_in_the_greet_delay_is_told_so_at_once_though_it_goes_on(
    edge: GuardProcess, network: str, said: bytes
) -> None:
    with come(edge, f"{network}.1") as waiting, come(edge, f"{network}.2") as client:
        # A trusted one that came later has been greeted: the delay has begun for both.
        assert gets_in(edge.address, TRUSTED)
        client.sendall(said[:1])
        select.select([client], [], [], PATIENCE_SECONDS)
        assert not has_heard(waiting)
        client.sendall(said[1:])
        assert heard(client).decode() == f"{EARLY}\r\n"


def test_an_honest_client_delivers_a_message_at_the_edge(edge: GuardProcess, network: str) -> None:
    """Python's own smtplib, which waits for every reply."""
    with smtplib.SMTP(*edge.address, source_address=(f"{network}.2", 0), timeout=PATIENCE_SECONDS) as client:
        assert (
            client.sendmail("s@example.com", ["a@example.org", "b@example.org"], b"Subject: x\r\n\r\nHi\r\n")
            == {}
        )
    line = edge.wait_for(rf"\] accept session=\S+ peer={re.escape(network)}\.2 ")
    assert " recipients=2 " in line


def test_there_is_no_greet_delay_when_eighty_percent_of_all_connections_are_taken(
    tmp_path: Path, network: str
) -> None:
    options = ("--max-connections=10", "--greet-delay=100", "--deliver=discard")
    with GuardProcess(tmp_path, *options) as guard, ExitStack() as stack:
        waiting = [stack.enter_context(come(guard, f"{network}.{number}")) for number in range(1, 9)]
        with greeted(guard.address, f"{network}.9", f"{network}.10"):
            assert told(guard.address, f"{network}.11") == TOO_MANY
            assert not any(has_heard(client) for client in waiting)
        for client in waiting:
            client.close()
        eventually(lambda: guard.log.count(b"] hangup ") == 8, "it does not notice that they have left")


def test_a_dry_run_of_all_refuses_no_client(tmp_path: Path, network: str) -> None:
    options = (
        "--profile=edge",
        "--dry-run=all",
        "--greet-delay=0",
        "--max-connections=5",
        "--message-rate=1/3600",
    )
    source = f"{network}.2"
    with GuardProcess(tmp_path, *options, f"--deny={source}") as guard:
        with greeted(guard.address, *[source] * 70):
            pass
        early = speak_early(guard, source, b"EHLO client.example\r\nNOOP\r\nQUIT\r\n")
        assert heard(early).endswith(b"221 2.0.0 Closing connection\r\n")
        with greeted(guard.address, source) as (client,):
            client.ask("EHLO client.example")
            for _ in range(30):
                assert client.ask("x").startswith("500 ")
                assert client.ask("NOOP").startswith("250 ")
            recipients = [f"r{number}" for number in range(110)]
            for _ in range(2):
                assert transaction(client, *recipients) == ["250"] * 111
            for words in ("MAIL FROM:<s@example.com>", "RCPT TO:<r@example.org>"):
                assert client.ask(words).startswith("250")
            assert client.ask("DATA").startswith("354")
            client.send(b"Subject: x\n\r\nHello\r\n.\r\n")
            assert client.reply() == "250 2.0.0 Message accepted"
            quit_(client)
    refused = guard.wait_for(r"\] stopped ")
    assert " connections_refused=0 " in refused
    counted = dict(
        each.split(":") for each in refused.rpartition(" dry_run_refusals=")[2].split(" ")[0].split(",")
    )
    assert counted.keys() >= {
        "ip_filter",
        "max_connections",
        "max_connections_per_client",
        "connection_rate",
        "early_talker",
        "unexpected_pipelining",
        "max_invalid_commands",
        "max_errors",
        "max_junk_commands",
        "max_recipients",
        "message_rate",
        "bare_newline",
    }
