"""Messages into a Maildir: what the files look like, and that none is lost, doubled or left behind."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import subprocess
import sys
import weakref
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address
from itertools import count
from pathlib import Path as FilePath
from types import SimpleNamespace

import pytest
import pytest_twisted
from failing_disk import failing
from manual_threads import ManualThreads
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import LogLevel, capturedLogs
from zope.interface.verify import verifyObject

from twisted_smtpguard.delivery.maildir import MaildirDelivery, MaildirFactory
from twisted_smtpguard.delivery.maildirfile import NotTakenBack
from twisted_smtpguard.interfaces import Client, IDeliveryFactory, Path, Peer, Refused
from twisted_smtpguard.limits.limits import Limits
from twisted_smtpguard.replies import INSUFFICIENT_STORAGE, LOCAL_ERROR
from twisted_smtpguard.testing import check_delivery

CLIENT = Client(
    Peer(IPv4Address("192.0.2.1"), 4000, None, None, tls=False, proxied=False),
    "s7",
    "client.example",
    "ESMTP",
    None,
    trusted=False,
)
LARGE = b"x" * 64 * 1024


@pytest.fixture
def threads():
    return ManualThreads()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "Maildir"


@pytest.fixture
def delivery(threads, path):
    return MaildirDelivery(path, threads, hostname="mx.example", min_free_space=0)


@pytest.fixture
def logged():
    with capturedLogs() as events:
        yield events


@pytest.fixture(autouse=True)
def no_descriptor_is_left(tmp_path):
    yield
    open_files = []
    for descriptor in FilePath("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            open_files.append(str(descriptor.readlink()))
    assert [name for name in open_files if name.startswith(str(tmp_path))] == []


def sink_of(delivery, sender="a@b.example", recipients=("c@d.example",)):
    mail = delivery.begin(CLIENT, Path(sender, {}))
    for recipient in recipients:
        mail.recipient(Path(recipient, {}))
    return mail.data()


def outcome(deferred):
    fired = []
    deferred.addBoth(fired.append)
    assert fired, "it is still pending"
    return getattr(fired[0], "value", fired[0])


def files(path):
    return [str(file.relative_to(path)) for part in ("tmp", "new", "cur") for file in (path / part).iterdir()]


def names_in(directory):
    return sorted(file.name for file in directory.iterdir())


def reply_of(deferred):
    failed = outcome(deferred)
    assert isinstance(failed, Refused), failed
    return failed.reply


# The files.


def test_on_top_stand_return_path_recipients_and_received_and_line_ends_are_lf(delivery, threads, path):
    sink = sink_of(delivery, "", ['"a b"@c.example', "jörg@bücher.example"])
    sink.write(b"Subject: x\r\n\r\ntext\r\n")
    done = sink.finish()
    threads.work()
    assert outcome(done) is None
    [name] = files(path)
    assert (path / name).read_bytes().decode() == (
        "Return-Path: <>\n"
        'Delivered-To: "a b"@c.example\n'
        "Delivered-To: jörg@bücher.example\n"
        "Received: from client.example ([192.0.2.1])\n"
        "\tby mx.example with ESMTP id s7;\n"
        "\tThu, 01 Jan 1970 00:00:00 +0000\n"
        "Subject: x\n\ntext\n"
    )


def test_a_message_costs_one_trip_to_a_thread_and_no_other_work_there(delivery, threads, path):
    sink = sink_of(delivery)
    sink.write(b"text\r\n")
    assert threads.trips == 0
    sink.finish()
    assert files(path) == []
    threads.work()
    assert threads.trips == 1


def test_a_message_is_readable_by_its_owner_only(delivery, threads, path):
    sink_of(delivery).finish()
    threads.work()
    [name] = files(path)
    assert (path / name).stat().st_mode & 0o777 == 0o600


def test_a_name_in_use_is_left_alone(delivery, threads, path, monkeypatch):
    (path / "tmp" / "taken").write_text("somebody else's")
    delivery._new_name = iter(["taken", "free"]).__next__
    done = sink_of(delivery).finish()
    threads.work()
    assert outcome(done) is None
    assert sorted(files(path)) == ["new/free", "tmp/taken"]
    assert (path / "tmp" / "taken").read_text() == "somebody else's"


def test_a_message_is_safe_before_it_is_named_and_its_name_before_it_is_accepted(
    delivery, threads, path, monkeypatch
):
    steps = []

    def record(name, subject):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args: (steps.append((name, subject(*args))), real(*args))[1])

    def folder(fd):
        opened = FilePath(f"/proc/self/fd/{fd}").readlink()
        return opened.parent.name if opened.is_file() else opened.name

    record("fsync", folder)
    record("rename", lambda old, new: FilePath(new).parent.name)
    done = sink_of(delivery).finish()
    done.addCallback(lambda _: steps.append("accepted"))
    threads.work()
    assert steps == [("fsync", "tmp"), ("rename", "new"), ("fsync", "new"), "accepted"]


# Several at once.


@pytest.fixture
def syncs_of_new(monkeypatch):
    """How many messages stood in new/ as each of its fsyncs began. What `fail` holds is raised by the next ones."""
    began = SimpleNamespace(with_messages=[], fail=[], meanwhile=lambda: None)
    real = os.fsync

    def fsync(descriptor):
        opened = FilePath(f"/proc/self/fd/{descriptor}").readlink()
        if opened.is_dir():
            began.with_messages.append(len(names_in(opened)))
            meanwhile, began.meanwhile = began.meanwhile, lambda: None
            meanwhile()
            if began.fail:
                raise began.fail.pop()
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return began


def test_messages_that_are_stored_at_once_share_what_makes_new_safe(delivery, threads, path, syncs_of_new):
    ends = [sink_of(delivery).finish() for _ in range(10)]
    threads.work()
    assert [outcome(done) for done in ends] == [None] * 10
    # The first came alone, and did it itself.
    assert syncs_of_new.with_messages == [1, 10]
    assert len(names_in(path / "new")) == 10


def test_none_is_accepted_before_new_is_safe(delivery, threads, syncs_of_new):
    ends = [sink_of(delivery).finish() for _ in range(10)]
    accepted = []
    syncs_of_new.meanwhile = lambda: setattr(syncs_of_new, "meanwhile", look)

    def look():
        accepted.extend(done.called for done in ends)

    threads.work()
    assert accepted == [True] + [False] * 9


def test_one_that_is_renamed_after_a_sync_began_waits_for_the_next(delivery, threads, syncs_of_new):
    ends = [sink_of(delivery).finish() for _ in range(3)]

    def first_alone():
        syncs_of_new.meanwhile = lambda: ends.append(sink_of(delivery).finish())

    syncs_of_new.meanwhile = first_alone
    threads.work()
    assert [outcome(done) for done in ends] == [None] * 4
    assert syncs_of_new.with_messages == [1, 3, 4]


@pytest.mark.parametrize(
    ("number", "answer"), [(errno.EIO, OSError), (errno.ENOSPC, Refused), (errno.EDQUOT, Refused)]
)
def test_a_sync_that_fails_refuses_all_who_shared_it_and_later_ones_are_stored(
    delivery, threads, path, syncs_of_new, logged, number, answer
):
    ends = [sink_of(delivery).finish() for _ in range(10)]
    syncs_of_new.meanwhile = lambda: syncs_of_new.fail.insert(0, OSError(number, "failed"))
    # The first has its own sync, whose failure is its own too.
    threads.work()
    assert [type(outcome(done)) for done in ends] == [answer] + [type(None)] * 9
    syncs_of_new.with_messages.clear()

    ends = [sink_of(delivery).finish() for _ in range(10)]
    syncs_of_new.meanwhile = lambda: setattr(
        syncs_of_new, "meanwhile", lambda: syncs_of_new.fail.append(OSError(number, "failed"))
    )
    threads.work()
    assert [type(outcome(done)) for done in ends] == [type(None)] + [answer] * 9
    assert syncs_of_new.with_messages == [10, 19]
    assert len(names_in(path / "new")) == 10

    done = sink_of(delivery).finish()
    threads.work()
    assert outcome(done) is None
    assert [len(names_in(path / part)) for part in ("tmp", "new")] == [0, 11]
    assert logged == []


def test_of_those_that_shared_a_failed_sync_one_that_a_reader_has_taken_may_come_twice(
    delivery, threads, path, syncs_of_new, logged
):
    ends = [sink_of(delivery).finish() for _ in range(3)]

    def fail():
        for message in (path / "new").iterdir():
            message.rename(path / "cur" / message.name)
        syncs_of_new.fail.append(OSError(errno.EIO, "io"))

    syncs_of_new.meanwhile = lambda: setattr(syncs_of_new, "meanwhile", fail)
    threads.work()
    assert [type(outcome(done)) for done in ends] == [type(None), NotTakenBack, NotTakenBack]
    assert ["may come twice" in event["log_format"] for event in logged] == [True, True]


def test_a_verdict_cancelled_while_others_make_new_safe_warns_that_the_message_may_come_twice(
    delivery, threads, path, syncs_of_new, logged
):
    ends = [sink_of(delivery).finish() for _ in range(3)]
    syncs_of_new.meanwhile = lambda: setattr(syncs_of_new, "meanwhile", ends[1].cancel)
    threads.work()
    assert [type(outcome(done)) for done in ends] == [type(None), CancelledError, type(None)]
    assert len(names_in(path / "new")) == 3
    assert ["may come twice" in event["log_format"] for event in logged] == [True]


def test_a_message_that_failed_leaves_the_next_alone_again(delivery, threads, syncs_of_new, monkeypatch):
    with monkeypatch.context() as failing_once:
        failing(failing_once, "rename", errno.EIO)
        done = sink_of(delivery).finish()
        threads.work()
        outcome(done)
    trips = threads.trips
    assert outcome_of_one(delivery, threads) is None
    assert threads.trips == trips + 1


def outcome_of_one(delivery, threads):
    done = sink_of(delivery).finish()
    threads.work()
    return outcome(done)


@pytest.mark.parametrize("name", ["open", "write", "fsync", "close", "rename"])
@pytest.mark.parametrize(("number", "answer"), [(errno.EIO, OSError), (errno.ENOSPC, Refused)])
def test_of_messages_that_are_stored_together_one_that_the_disk_fails_fails_alone(
    delivery, threads, path, monkeypatch, logged, name, number, answer
):
    real, calls = getattr(os, name), count()

    def fail_once(*args):
        if next(calls) == 5:
            if name == "close":
                real(*args)
            raise OSError(number, "failed")
        return real(*args)

    ends = [sink_of(delivery).finish() for _ in range(10)]
    monkeypatch.setattr(os, name, fail_once)
    threads.work()
    monkeypatch.undo()
    failed = [type(outcome(done)) for done in ends]
    assert sorted(failed, key=str) == sorted([answer] + [type(None)] * 9, key=str)
    assert [len(names_in(path / part)) for part in ("tmp", "new")] == [0, 9]
    assert logged == []


@pytest.mark.parametrize("name", ["open", "write", "posix_fadvise", "fsync", "close"])
def test_of_messages_that_are_stored_together_one_that_is_cancelled_meanwhile_leaves_nothing(
    delivery, threads, path, monkeypatch, logged, name
):
    real, calls = getattr(os, name), count()
    ends = [sink_of(delivery).finish() for _ in range(10)]
    # The last one, which is cancelled while another, or itself, is at that step.
    monkeypatch.setattr(os, name, lambda *args: (next(calls) == 7 and ends[9].cancel(), real(*args))[1])
    threads.work()
    monkeypatch.undo()
    assert [type(outcome(done)) for done in ends] == [type(None)] * 9 + [CancelledError]
    assert [len(names_in(path / part)) for part in ("tmp", "new")] == [0, 9]
    assert logged == []


def test_messages_that_are_cancelled_while_the_disk_hangs_leave_nothing_and_take_no_further_thread(
    delivery, threads, path
):
    hangs = [sink_of(delivery).finish(), sink_of(delivery).finish()]
    trips = threads.trips
    left = []
    for _ in range(100):
        sink = sink_of(delivery)
        sink.write(b"text")
        done = sink.finish()
        done.addErrback(lambda failure: failure.trap(CancelledError))
        left.append(weakref.ref(sink))
        done.cancel()
    del sink, done
    gc.collect()
    assert [each for each in left if each() is not None] == []
    assert threads.trips == trips
    threads.work()
    assert [outcome(done) for done in hangs] == [None, None]
    assert len(names_in(path / "new")) == 2


def test_messages_that_are_cancelled_while_one_of_their_trip_hangs_leave_nothing_and_take_no_further_thread(
    delivery, threads, path, monkeypatch, logged
):
    sink_of(delivery).finish()
    ends = [sink_of(delivery).finish() for _ in range(5)]
    synchronise = os.fsync
    further = []

    def hang(descriptor):
        if len(names_in(path / "tmp")) == 5:
            before = threads.waiting
            for done in ends:
                done.addErrback(lambda failure: failure.trap(CancelledError))
                done.cancel()
            further.append(threads.waiting - before)
        synchronise(descriptor)

    monkeypatch.setattr(os, "fsync", hang)
    threads.work()
    assert further == [0]
    assert names_in(path / "tmp") == []
    assert len(names_in(path / "new")) == 1
    assert logged == []


def test_twenty_messages_at_once_cost_two_trips_to_a_thread(delivery, threads, path):
    ends = [sink_of(delivery).finish() for _ in range(20)]
    threads.work()
    assert [outcome(done) for done in ends] == [None] * 20
    assert threads.trips == 2


def test_a_large_message_waits_for_no_other_and_none_for_it(delivery, threads, path, syncs_of_new):
    large = sink_of(delivery)
    large.write(LARGE)
    threads.work()
    ends = [sink_of(delivery).finish(), large.finish(), sink_of(delivery).finish()]
    threads.work()
    assert [outcome(done) for done in ends] == [None] * 3
    # One for its first octets, and then one for each.
    assert threads.trips == 4


# The ends.


@pytest.mark.parametrize("pieces", [0, 1, 5])
def test_an_aborted_message_leaves_no_file(delivery, threads, path, pieces):
    sink = sink_of(delivery)
    for _ in range(pieces):
        sink.write(LARGE)
        threads.work()
    assert len(files(path)) == bool(pieces)
    sink.abort()
    threads.work()
    assert files(path) == []


def test_aborted_while_a_write_is_pending_it_leaves_no_file(delivery, threads, path):
    sink = sink_of(delivery)
    sink.write(LARGE)
    threads.work()
    pending = sink.write(LARGE)
    pending.addErrback(lambda failure: None)
    sink.abort()
    threads.work()
    assert files(path) == []


def test_a_verdict_cancelled_before_the_rename_delivers_nothing(delivery, threads, path, logged):
    done = sink_of(delivery).finish()
    done.cancel()
    assert isinstance(outcome(done), CancelledError)
    threads.work()
    assert (files(path), logged) == ([], [])


def test_a_verdict_cancelled_while_the_disk_works_delivers_nothing(
    delivery, threads, path, monkeypatch, logged
):
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (done.cancel(), real(fd)))
    done = sink_of(delivery).finish()
    threads.work()
    assert isinstance(outcome(done), CancelledError)
    assert (files(path), logged) == ([], [])


def test_a_verdict_cancelled_at_the_rename_warns_that_the_message_may_come_twice(
    delivery, threads, path, monkeypatch, logged
):
    real = os.rename
    monkeypatch.setattr(os, "rename", lambda *args: (done.cancel(), real(*args)))
    done = sink_of(delivery).finish()
    threads.work()
    assert isinstance(outcome(done), CancelledError)
    assert [name.partition("/")[0] for name in files(path)] == ["new"]
    [event] = logged
    assert event["log_level"] == LogLevel.warn
    assert "may come twice" in event["log_format"]
    assert event["session"] == "s7"


def test_a_message_that_failed_after_its_verdict_was_cancelled_brings_no_such_warning(
    delivery, threads, path, monkeypatch, logged
):
    def rename(*args):
        done.cancel()
        raise OSError(errno.EIO, "io")

    monkeypatch.setattr(os, "rename", rename)
    done = sink_of(delivery).finish()
    threads.work()
    outcome(done)
    assert (files(path), logged) == ([], [])


# The disk.

CALLS = [("open", 0), ("write", 0), ("fsync", 0), ("close", 0), ("rename", 0), ("open", 1), ("fsync", 1)]


@pytest.mark.parametrize(("name", "after"), CALLS)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_452_and_leaves_nothing(
    delivery, threads, path, monkeypatch, logged, name, after, number
):
    failing(monkeypatch, name, number, after)
    done = sink_of(delivery).finish()
    threads.work()
    monkeypatch.undo()
    assert reply_of(done) == INSUFFICIENT_STORAGE
    assert (files(path), logged) == ([], [])


@pytest.mark.parametrize(("name", "after"), CALLS)
def test_a_failing_disk_fails_as_it_is_and_leaves_nothing(
    delivery, threads, path, monkeypatch, logged, name, after
):
    failing(monkeypatch, name, errno.EIO, after)
    done = sink_of(delivery).finish()
    threads.work()
    monkeypatch.undo()
    assert outcome(done).errno == errno.EIO
    assert (files(path), logged) == ([], [])


def test_a_disk_that_fills_up_half_way_refuses_in_write(delivery, threads, path, monkeypatch):
    failing(monkeypatch, "write", errno.ENOSPC, after=1)
    sink = sink_of(delivery)
    sink.write(LARGE)
    threads.work()
    pending = sink.write(LARGE)
    threads.work()
    assert reply_of(pending) == INSUFFICIENT_STORAGE
    sink.abort()
    threads.work()
    assert files(path) == []


def test_a_disk_that_fails_half_way_fails_in_write(delivery, threads, path, monkeypatch):
    failing(monkeypatch, "write", errno.EIO)
    pending = sink_of(delivery).write(LARGE)
    threads.work()
    assert outcome(pending).errno == errno.EIO
    assert files(path) == []


def test_a_descriptor_is_closed_once_even_when_a_later_step_fails(delivery, threads, monkeypatch):
    # A second close might hit the file of somebody else, who was given the number meanwhile.
    closed = []
    real = os.close
    monkeypatch.setattr(os, "close", lambda descriptor: (closed.append(descriptor), real(descriptor)))
    failing(monkeypatch, "rename", errno.EIO)
    done = sink_of(delivery).finish()
    threads.work()
    monkeypatch.undo()
    assert outcome(done).errno == errno.EIO
    assert len(closed) == 1


def test_a_message_that_a_reader_has_taken_before_it_was_taken_back_may_come_twice(
    delivery, threads, path, monkeypatch, logged
):
    def fsync(descriptor):
        for message in (path / "new").iterdir():
            message.rename(path / "cur" / message.name)
            raise OSError(errno.EIO, "io")

    monkeypatch.setattr(os, "fsync", fsync)
    done = sink_of(delivery).finish()
    threads.work()
    assert isinstance(outcome(done), NotTakenBack)
    assert [event["log_level"] for event in logged] == [LogLevel.warn]
    assert "may come twice" in logged[0]["log_format"]


@pytest.mark.parametrize("pieces", [0, 1])
def test_a_maildir_that_has_vanished_fails_and_is_not_made_again(delivery, threads, path, pieces):
    sink = sink_of(delivery)
    for _ in range(pieces):
        sink.write(LARGE)
        threads.work()
    shutil.rmtree(path)
    done = sink.finish()
    threads.work()
    assert isinstance(outcome(done), FileNotFoundError)
    assert not path.exists()


# Free space.


@pytest.fixture
def disk(monkeypatch):
    """What statvfs answers: 1000 blocks of 1 KiB. `asked` counts."""
    disk = SimpleNamespace(f_bavail=1000, f_frsize=1024, asked=[])
    monkeypatch.setattr(os, "statvfs", lambda path: (disk.asked.append(path), disk)[1])
    return disk


@pytest.fixture
def careful(threads, path, disk):
    """A delivery that wants 1000 KiB to stay free."""
    return MaildirDelivery(path, threads, hostname="mx", min_free_space=1000 * 1024)


def begun(delivery, size=None):
    """The outcome of begin(), whenever it comes."""
    try:
        result = delivery.begin(CLIENT, Path("a@b", {"SIZE": size} if size else {}))
    except Refused as refused:
        return refused.reply
    if isinstance(result, Deferred):
        delivery._reactor.work()
        result = outcome(result)
    return result.reply if isinstance(result, Refused) else "accepted"


def test_enough_free_space_is_enough_and_one_octet_less_is_not(careful, disk, threads):
    assert begun(careful) == "accepted"
    disk.f_bavail = 999
    threads.advance(1)
    assert begun(careful) == INSUFFICIENT_STORAGE


def test_the_declared_size_must_fit_too(careful, disk):
    disk.f_bavail = 1001
    assert begun(careful, "1024") == "accepted"
    assert begun(careful, "1025") == INSUFFICIENT_STORAGE
    assert begun(careful, "9" * 20) == INSUFFICIENT_STORAGE


def test_the_disk_is_asked_off_the_reactor_once_a_second(careful, disk, threads):
    first = careful.begin(CLIENT, Path("", {}))
    assert isinstance(first, Deferred)
    assert disk.asked == []
    threads.work()
    outcome(first)
    for _ in range(100):
        assert not isinstance(careful.begin(CLIENT, Path("", {})), Deferred)
    threads.advance(0.9)
    begun(careful)
    assert len(disk.asked) == 1
    threads.advance(0.1)
    begun(careful)
    assert len(disk.asked) == 2


def test_requests_made_while_the_disk_is_asked_share_its_answer(careful, disk, threads):
    waiting = [careful.begin(CLIENT, Path("", {})) for _ in range(10)]
    waiting[3].cancel()
    threads.work()
    assert len(disk.asked) == 1
    outcomes = [outcome(deferred) for deferred in waiting]
    assert isinstance(outcomes.pop(3), CancelledError)
    assert all(hasattr(mail, "recipient") for mail in outcomes)


def test_clients_that_leave_while_the_disk_hangs_leave_nothing_and_take_no_further_thread(careful, threads):
    left = []
    for _ in range(100):
        waiting = careful.begin(CLIENT, Path("", {}))
        waiting.addErrback(lambda failure: failure.trap(CancelledError))
        left.append(weakref.ref(waiting))
        waiting.cancel()
    del waiting
    gc.collect()
    assert [each for each in left if each() is not None] == []
    assert threads.waiting == 1
    threads.work()
    assert begun(careful) == "accepted"


def test_a_clock_that_is_set_back_does_not_keep_an_old_answer(careful, disk, threads):
    threads.advance(1000)
    begun(careful)
    threads.rightNow = 10
    begun(careful)
    assert len(disk.asked) == 2


def test_no_minimum_asks_no_disk(delivery, disk):
    assert begun(delivery) == "accepted"
    assert disk.asked == []


def test_a_maildir_that_has_vanished_refuses_mail_and_is_logged_once_a_second(threads, path, logged):
    delivery = MaildirDelivery(path, threads, hostname="mx", min_free_space=1)
    shutil.rmtree(path)
    path.mkdir()
    assert [begun(delivery) for _ in range(100)] == [LOCAL_ERROR] * 100
    assert [event["log_failure"].type for event in logged] == [FileNotFoundError]


# The factory.


def test_the_factory_makes_a_maildir_at_a_path_that_may_have_colons(tmp_path, threads):
    factory = MaildirFactory("mx.example", Limits())
    verifyObject(IDeliveryFactory, factory)
    factory.make_delivery(str(tmp_path / "a:b"), threads)
    assert names_in(tmp_path / "a:b") == ["cur", "new", "tmp"]


def test_the_factory_takes_hostname_and_minimum_of_free_space_from_the_guard(tmp_path, threads, disk):
    delivery = MaildirFactory("mx.example", Limits(min_free_space=1001 * 1024)).make_delivery(
        str(tmp_path), threads
    )
    assert begun(delivery) == INSUFFICIENT_STORAGE
    delivery = MaildirFactory("mx.example", Limits(min_free_space=0)).make_delivery(str(tmp_path), threads)
    sink_of(delivery).finish()
    threads.work()
    [name] = files(tmp_path)
    assert name.endswith(".mx.example")


def test_a_relative_path_is_of_the_directory_at_the_start(tmp_path, threads, monkeypatch):
    monkeypatch.chdir(tmp_path)
    delivery = MaildirFactory("mx", Limits(min_free_space=0)).make_delivery("./Maildir", threads)
    monkeypatch.chdir("/")
    done = sink_of(delivery).finish()
    threads.work()
    assert outcome(done) is None
    assert len(files(tmp_path / "Maildir")) == 1


def test_the_factory_wants_a_path(threads):
    with pytest.raises(ValueError, match="needs a path"):
        MaildirFactory("mx", Limits()).make_delivery("", threads)


# With real threads.


@contextmanager
def nothing_logged():
    with capturedLogs() as events:
        yield
    assert [event for event in events if event["log_level"] >= LogLevel.warn] == []


@pytest_twisted.ensureDeferred
async def test_it_keeps_the_contract_and_every_accepted_message_is_a_file(path):
    from twisted.internet import reactor

    delivery = MaildirDelivery(path, reactor, hostname="mx.example", min_free_space=1)
    with nothing_logged():
        accepted = await check_delivery(delivery)
    assert accepted <= len(names_in(path / "new")) <= accepted + 1
    await drained(reactor)
    assert names_in(path / "tmp") == []


async def drained(reactor):
    """Wait until every job that was handed to a thread is done."""
    from twisted.internet.threads import deferToThreadPool

    pool = reactor.getThreadPool()
    while pool.q.qsize() or pool.working:
        await deferToThreadPool(reactor, pool, lambda: None)


def test_importing_the_deliveries_imports_no_reactor():
    code = (
        "import sys, twisted_smtpguard.cli.plugins, twisted_smtpguard.testing, twisted_smtpguard.delivery.callable\n"
        "sys.exit('twisted.internet.reactor' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
