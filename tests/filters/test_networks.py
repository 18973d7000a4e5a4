"""IP filters by network: fixed, and from a file that is read again."""

from __future__ import annotations

import re
from ipaddress import ip_address

import pytest
import pytest_twisted
from manual_threads import ManualThreads
from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from twisted_smtpguard.filters.networks import NamedNetworks, NetworksFactory, NetworksFile, NetworksFilter
from twisted_smtpguard.hooks import threads
from twisted_smtpguard.interfaces import (
    PASS,
    TRUST,
    IIPFilter,
    IIPFilterFactory,
    IPreparedReload,
    Peer,
    refuse,
)
from twisted_smtpguard.testing import check_filter

OLD, NEW = refuse(), TRUST


def peer(address):
    return Peer(address and ip_address(address), 40000, None, None, tls=False, proxied=False)


def outcome(deferred):
    """What it has fired with; a failure is raised."""
    results = []
    deferred.addBoth(results.append)
    (result,) = results
    if isinstance(result, Failure):
        result.raiseException()
    return result


def test_a_file_of_networks_has_them_and_is_read_again_at_a_reload(tmp_path):
    path = tmp_path / "known"
    path.write_text("# our partners\n192.0.2.0/24  # the old server's\n\n2001:db8::1\n::ffff:198.51.100.1\n")
    named = NamedNetworks(path, ManualThreads())
    verifyObject(IPreparedReload, named)
    there = ("192.0.2.7", "2001:db8::1", "198.51.100.1")
    others = ("192.0.3.7", "2001:db8::2", "198.51.100.2", "::1")
    assert [named.has(ip_address(each)) for each in (*there, *others)] == [True] * 3 + [False] * 4
    assert named.files == {str(path): ""}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("trust 192.0.2.1", "one network is expected in a line, and nothing but a comment after 'trust'"),
        ("192.0.2.1 192.0.2.2", "one network is expected in a line"),
        ("192.0.2.1/24", "'192.0.2.1/24' has bits set after its prefix; 192.0.2.0/24 is expected"),
        ("mx.example", "'mx.example' is not a network"),
        ("192.0.2.1\x00", "neither NUL nor a CR within a line is expected"),
        ("1" * 5000, "at most 4096 octets are expected in a line"),
    ],
)
def test_a_wrong_line_of_a_file_of_networks_is_one_sentence_and_a_reload_keeps_the_old(
    line, problem, tmp_path
):
    path = tmp_path / "known"
    path.write_text(f"192.0.2.1\n{line}\n")
    with pytest.raises(ValueError, match=re.escape(f"{path} line 2: {problem}")):
        NamedNetworks(path, ManualThreads())
    path.write_text("192.0.2.1\n")
    threads = ManualThreads()
    named = NamedNetworks(path, threads)
    path.write_text(f"{line}\n")
    reloading = named.reload()
    threads.work()
    with pytest.raises(ValueError, match=re.escape(f"{path} line 1: {problem}")):
        outcome(reloading)
    assert named.has(ip_address("192.0.2.1"))
    path.write_text("192.0.2.2\n")
    reloading = named.reload()
    threads.work()
    outcome(reloading)
    assert [named.has(ip_address(each)) for each in ("192.0.2.1", "192.0.2.2")] == [False, True]


# Named on the command line or by an application.


def test_the_longest_prefix_decides_between_deny_and_trust():
    ip_filter = NetworksFilter(
        deny=["192.0.2.0/24", "2001:db8:1::/48"], trust=["192.0.2.128/25", "2001:db8::/32"]
    )
    verifyObject(IIPFilter, ip_filter)
    said = {
        "192.0.2.1": refuse(),
        "192.0.2.129": TRUST,
        "::ffff:192.0.2.1": refuse(),
        "::ffff:192.0.2.129": TRUST,
        "2001:db8:1::1": refuse(),
        "2001:db8:2::1": TRUST,
        "198.51.100.1": PASS,
        "::1": PASS,
    }
    assert {address: ip_filter.check(peer(address)) for address in said} == said


def test_deny_wins_where_both_name_one_network():
    ip_filter = NetworksFilter(trust=["192.0.2.1"], deny=["192.0.2.1/32"])
    assert ip_filter.check(peer("192.0.2.1")) == refuse()


def test_networks_that_are_generated_are_taken():
    ip_filter = NetworksFilter(deny=(f"192.0.2.{host}" for host in range(4)))
    assert ip_filter.check(peer("192.0.2.3")) == refuse()


def test_without_networks_everybody_passes():
    assert NetworksFilter().check(peer("192.0.2.1")) is PASS


@pytest.mark.parametrize("address", ["0.0.0.0/0", "::/0"])
def test_a_unix_socket_has_no_address_and_passes(tmp_path, address):
    assert NetworksFilter(deny=[address]).check(peer(None)) is PASS
    path = tmp_path / "list"
    path.write_text(f"deny {address}\n")
    assert NetworksFile(path, ManualThreads()).check(peer(None)) is PASS


@pytest.mark.parametrize("where", ["deny", "trust"])
def test_a_wrong_network_is_an_error_that_names_it(where):
    with pytest.raises(ValueError, match=r"^'192\.0\.2\.1/24' has bits set .* 192\.0\.2\.0/24 is expected$"):
        NetworksFilter(**{where: ["192.0.2.0/24", "192.0.2.1/24"]})


# From a file.


class Listed:
    """A filter whose file denies 192.0.2.1, until somebody writes something else into it."""

    def __init__(self, path):
        self.path = path
        self.path.write_text("deny 192.0.2.1\n")
        self.reactor = ManualThreads()
        self.ip_filter = NetworksFile(path, self.reactor)

    def verdict(self):
        return self.ip_filter.check(peer("192.0.2.1"))


@pytest.fixture
def listed(tmp_path):
    return Listed(tmp_path / "list")


def test_a_file_is_read_when_the_filter_is_made_and_not_in_a_thread(listed):
    verifyObject(IPreparedReload, listed.ip_filter)
    verifyObject(IIPFilter, listed.ip_filter)
    assert listed.verdict() == OLD
    assert listed.reactor.trips == 0


def test_a_wrong_file_is_an_error_before_anything_listens(tmp_path):
    path = tmp_path / "list"
    with pytest.raises(ValueError, match="cannot be read"):
        NetworksFile(path, ManualThreads())
    path.write_text("deny 192.0.2.1\nx\n")
    with pytest.raises(ValueError, match=r"list line 2: "):
        NetworksFile(path, ManualThreads())


def test_a_changed_file_counts_only_after_a_reload(listed):
    listed.path.write_text("trust 192.0.2.1\n")
    assert listed.verdict() == OLD
    done = []
    listed.ip_filter.reload().addCallback(done.append)
    assert listed.verdict() == OLD
    assert done == []
    listed.reactor.work()
    assert done == [None]
    assert listed.verdict() == NEW


def test_what_was_prepared_counts_when_it_is_switched_to(listed):
    listed.path.write_text("trust 192.0.2.1\n")
    prepared = listed.ip_filter.prepare_reload()
    listed.reactor.work()
    assert listed.verdict() == OLD
    listed.path.write_text("deny 192.0.2.1\n")
    outcome(prepared)()
    assert listed.verdict() == NEW


@pytest.mark.parametrize("content", ["trust 192.0.2.1\nnonsense\n", "\0", None])
@pytest.mark.parametrize("how", ["reload", "prepare_reload"])
def test_a_bad_or_vanished_file_is_named_and_the_old_list_stays(listed, content, how):
    if content is None:
        listed.path.unlink()
    else:
        listed.path.write_text(content)
    reloaded = getattr(listed.ip_filter, how)()
    listed.reactor.work()
    with pytest.raises(ValueError, match=r"/list (line [12]: |cannot be read: No such file)"):
        outcome(reloaded)
    assert listed.verdict() == OLD


def test_after_a_bad_file_a_good_one_is_taken(listed):
    listed.path.write_text("nonsense\n")
    listed.ip_filter.reload().addErrback(lambda failure: failure.trap(ValueError))
    listed.reactor.work()
    listed.path.write_text("trust 192.0.2.1\n")
    listed.ip_filter.reload()
    listed.reactor.work()
    assert listed.verdict() == NEW


def test_a_hundred_reloads_at_once_take_one_thread_and_the_last_stands(listed):
    done = []
    for _ in range(100):
        listed.ip_filter.reload().addCallback(done.append)
    assert listed.reactor.waiting == 1
    listed.path.write_text("trust 192.0.2.1\n")
    listed.reactor.work()
    assert done == [None] * 100
    assert listed.verdict() == NEW


def test_a_reload_that_is_cancelled_changes_nothing_and_holds_up_none(listed):
    listed.path.write_text("trust 192.0.2.1\n")
    cancelled = listed.ip_filter.reload()
    cancelled.addErrback(lambda failure: failure.trap(CancelledError))
    cancelled.cancel()
    listed.reactor.work()
    assert listed.verdict() == OLD
    listed.ip_filter.reload()
    listed.reactor.work()
    assert listed.verdict() == NEW


def test_reading_again_lets_the_reactor_run_now_and_then(listed, monkeypatch):
    # A sleep of 0 would not: a thread that waits takes longer to wake up.
    naps = []
    monkeypatch.setattr(threads.time, "sleep", naps.append)
    listed.path.write_text("deny 192.0.2.1\n" * 10_000)
    listed.ip_filter.reload()
    listed.reactor.work()
    assert len(naps) > 10_000 // 500
    assert min(naps) > 0
    assert max(naps) < 0.001


@pytest_twisted.ensureDeferred
async def test_both_keep_the_contract(tmp_path):
    from twisted.internet import reactor

    path = tmp_path / "list"
    path.write_text("deny 192.0.2.0/24\ntrust 2001:db8::/32\n")
    assert await check_filter(NetworksFilter(deny=["192.0.2.0/24"])) > 0
    assert await check_filter(NetworksFile(path, reactor)) > 0


@pytest_twisted.ensureDeferred
async def test_a_real_reactor_goes_on_while_the_file_is_read(tmp_path):
    from twisted.internet import reactor
    from twisted.internet.task import LoopingCall

    path = tmp_path / "list"
    path.write_text("".join(f"deny 10.{a}.{b}.0/24\n" for a in range(100) for b in range(256)))
    ip_filter = NetworksFile(path, reactor)
    path.write_text(path.read_text() + "trust 10.0.0.1\n")
    turns = []
    counting = LoopingCall(turns.append, 1)
    counting.start(0)
    before = len(turns)
    await ip_filter.reload()
    counting.stop()
    assert ip_filter.check(peer("10.0.0.1")) is TRUST
    assert len(turns) > before + 10


# --ip-filter networks:PATH


def test_the_factory_makes_one_from_a_path(tmp_path):
    path = tmp_path / "a:b"
    path.write_text("deny 192.0.2.1\n")
    factory = NetworksFactory()
    verifyObject(IIPFilterFactory, factory)
    ip_filter = factory.make_filter(str(path), ManualThreads())
    assert ip_filter.check(peer("192.0.2.1")) == refuse()


def test_the_factory_needs_a_path():
    with pytest.raises(
        ValueError, match=r"^networks needs a path, such as networks:/etc/smtpguard/networks$"
    ):
        NetworksFactory().make_filter("", ManualThreads())


# What gives a verdict.

LIST = """# ours
allow 10.0.0.0/8
deny 192.0.2.0/24 521 5.7.1 Spammers
trust 192.0.2.128/25   # the relay
deny 2001:db8::/32
deny 192.0.2.200
deny ::ffff:192.0.2.0/120
trust 192.0.2.200
"""


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("10.1.2.3", "line 2: allow 10.0.0.0/8"),
        ("192.0.2.1", "line 3: deny 192.0.2.0/24"),
        ("192.0.2.129", "line 4: trust 192.0.2.128/25"),
        ("2001:db8::1", "line 5: deny 2001:db8::/32"),
        ("192.0.2.200", "line 6: deny 192.0.2.200"),
        ("198.51.100.1", ""),
        ("::1", ""),
        (None, ""),
    ],
)
def test_a_file_tells_the_line_that_gives_a_verdict(tmp_path, address, line):
    path = tmp_path / "networks"
    path.write_text(LIST)
    reactor = ManualThreads()
    found = NetworksFile(path, reactor).explain(peer(address))
    if address is not None:
        assert reactor.waiting == 1
        reactor.work()
    assert outcome(found) == (f"{path} {line}" if line else "")


def test_a_file_that_has_changed_meanwhile_is_told_to_have(tmp_path):
    path = tmp_path / "networks"
    path.write_text("deny 192.0.2.1")
    reactor = ManualThreads()
    ip_filter = NetworksFile(path, reactor)
    path.write_text("allow 192.0.2.1")
    found = ip_filter.explain(peer("192.0.2.1"))
    reactor.work()
    assert outcome(found) == f"{path}, which has changed since it was read"
    path.unlink()
    found = ip_filter.explain(peer("192.0.2.1"))
    reactor.work()
    with pytest.raises(ValueError, match="cannot be read: No such file or directory"):
        outcome(found)
