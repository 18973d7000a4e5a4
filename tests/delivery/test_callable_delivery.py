"""Messages into a function: what it is given, what it may answer, and that the body is closed."""

from __future__ import annotations

import errno
import io
import tempfile

import pytest
import pytest_twisted
from manual_threads import ManualThreads
from twisted.internet.defer import CancelledError, Deferred

from twisted_smtpguard.delivery import callable as callable_delivery
from twisted_smtpguard.delivery.callable import CallableDelivery
from twisted_smtpguard.delivery.envelope import Envelope
from twisted_smtpguard.interfaces import Client, Path, Peer, Refused
from twisted_smtpguard.replies import INSUFFICIENT_STORAGE, LOCAL_ERROR, Reply
from twisted_smtpguard.testing import check_delivery

CLIENT = Client(Peer(None, None, None, None, False, False), "s1", "x", "ESMTP", None, False)
SENDER = Path("a@b", {"SIZE": "4"})
RECIPIENTS = (Path("c@d", {}), Path("e@f", {}))
LARGE = b"y" * 64 * 1024
OWN = Reply(250, "2.0.0", ("Queued as 17",))


@pytest.fixture
def threads():
    return ManualThreads()


class Application:
    """A delivery function that remembers its calls, and answers what it is told to."""

    def __init__(self, answer=lambda: None):
        self.answer = answer
        self.calls = []

    def __call__(self, envelope, body):
        assert body.tell() == 0
        self.envelope, self.body = envelope, body
        self.calls.append(body.read())
        body.seek(0)
        assert body.read() == self.calls[-1]
        return self.answer()


def finished(threads, function, pieces=(b"text\r\n",)):
    """The pending verdict on a message of `pieces`."""
    mail = CallableDelivery(function, threads).begin(CLIENT, SENDER)
    for recipient in RECIPIENTS:
        mail.recipient(recipient)
    sink = mail.data()
    for piece in pieces:
        if sink.write(piece) is not None:
            threads.work()
    verdict = Deferred.fromCoroutine(sink.finish())
    threads.work()
    return verdict


def outcome(deferred):
    fired = []
    deferred.addBoth(fired.append)
    assert fired, "it is still pending"
    return getattr(fired[0], "value", fired[0])


@pytest.mark.parametrize("pieces", [(), (b"a\r", b"\nb"), (LARGE, b"\r\n"), (LARGE, LARGE, LARGE)])
def test_the_function_gets_the_envelope_and_the_octets_as_they_came(threads, pieces):
    application = Application()
    assert outcome(finished(threads, application, pieces)) is None
    assert application.envelope == Envelope(CLIENT, SENDER, RECIPIENTS)
    assert application.calls == [b"".join(pieces)]


def test_a_small_message_costs_no_thread(threads):
    finished(threads, Application())
    assert threads.trips == 0


def later(result):
    """The same answer in a Deferred and in a coroutine."""

    async def answer():
        return result

    def deferred():
        done = Deferred()
        done.callback(result)
        return done

    return [lambda: result, deferred, answer]


@pytest.mark.parametrize("answer", [*later(None), *later(OWN)])
def test_the_answer_may_come_at_once_or_from_a_deferred_or_a_coroutine(threads, answer):
    application = Application(answer)
    assert outcome(finished(threads, application)) in (None, OWN)
    assert application.body.closed


async def refuse_later():
    raise Refused(LOCAL_ERROR)


def refuse():
    raise Refused(LOCAL_ERROR)


@pytest.mark.parametrize("pieces", [(b"a",), (LARGE, LARGE)])
@pytest.mark.parametrize("answer", [refuse, refuse_later])
def test_the_function_may_refuse(threads, answer, pieces):
    application = Application(answer)
    refused = outcome(finished(threads, application, pieces))
    assert isinstance(refused, Refused)
    assert refused.reply == LOCAL_ERROR
    assert application.body.closed


@pytest.mark.parametrize("pieces", [(b"a",), (LARGE, LARGE)])
def test_the_body_stays_open_until_the_answer_is_there(threads, pieces):
    answer = Deferred()
    application = Application(lambda: answer)
    verdict = finished(threads, application, pieces)
    assert not application.body.closed
    answer.callback(None)
    threads.work()
    assert application.body.closed
    assert outcome(verdict) is None


@pytest.mark.parametrize("pieces", [(b"a",), (LARGE, LARGE)])
def test_at_the_time_limit_the_functions_deferred_is_cancelled_and_the_body_closed(threads, pieces):
    answer = Deferred()
    application = Application(lambda: answer)
    verdict = finished(threads, application, pieces)
    verdict.cancel()
    threads.work()
    assert isinstance(outcome(answer), CancelledError) or answer.called
    assert isinstance(outcome(verdict), CancelledError)
    assert application.body.closed


@pytest.fixture
def bodies(monkeypatch):
    """Every temporary file that is opened."""
    opened = []

    def open_file():
        opened.append(tempfile.TemporaryFile())  # noqa: SIM115
        return opened[-1]

    monkeypatch.setattr(callable_delivery, "TemporaryFile", open_file)
    return opened


def test_an_aborted_message_calls_nothing_and_leaves_no_file(threads, bodies):
    application = Application()
    mail = CallableDelivery(application, threads).begin(CLIENT, SENDER)
    mail.recipient(RECIPIENTS[0])
    sink = mail.data()
    sink.write(LARGE)
    threads.work()
    sink.write(LARGE).addErrback(lambda failure: None)
    sink.abort()
    threads.work()
    assert application.calls == []
    assert [body.closed for body in bodies] == [True]


def test_cancelled_before_the_body_is_on_disk_the_function_is_not_called(threads, bodies):
    application = Application()
    mail = CallableDelivery(application, threads).begin(CLIENT, SENDER)
    mail.recipient(RECIPIENTS[0])
    sink = mail.data()
    sink.write(LARGE)
    threads.work()
    verdict = Deferred.fromCoroutine(sink.finish())
    verdict.cancel()
    threads.work()
    assert isinstance(outcome(verdict), CancelledError)
    assert application.calls == []
    assert [body.closed for body in bodies] == [True]


def test_a_full_disk_is_452(threads, monkeypatch):
    def full():
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(callable_delivery, "TemporaryFile", full)
    mail = CallableDelivery(Application(), threads).begin(CLIENT, SENDER)
    mail.recipient(RECIPIENTS[0])
    pending = mail.data().write(LARGE)
    threads.work()
    assert outcome(pending).reply == INSUFFICIENT_STORAGE


def test_a_disk_that_is_full_when_the_files_buffer_is_written_is_452(threads, monkeypatch, tmp_path):
    class FullAfterThat(io.FileIO):
        def write(self, data):
            if self.tell():
                raise OSError(errno.ENOSPC, "full")
            return super().write(data)

    file = io.BufferedRandom(FullAfterThat(tmp_path / "body", "x+"))
    monkeypatch.setattr(callable_delivery, "TemporaryFile", lambda: file)
    application = Application()
    verdict = finished(threads, application, (LARGE, b"the tail stays in the buffer"))
    assert outcome(verdict).reply == INSUFFICIENT_STORAGE
    assert application.calls == []
    assert file.closed


def test_the_application_says_what_it_can_carry(threads):
    delivery = CallableDelivery(
        Application(), threads, extensions=frozenset({"BINARYMIME"}), max_message_octets=7
    )
    assert (delivery.extensions, delivery.max_message_octets) == ({"BINARYMIME"}, 7)


@pytest_twisted.ensureDeferred
async def test_it_keeps_the_contract():
    from twisted.internet import reactor

    application = Application()
    extensions = frozenset({"8BITMIME", "SMTPUTF8", "BINARYMIME"})
    accepted = await check_delivery(CallableDelivery(application, reactor, extensions=extensions))
    assert accepted <= len(application.calls) <= accepted + 1
