"""check_delivery finds what is wrong with a delivery. What is right is shown by our own deliveries' tests."""

from __future__ import annotations

from contextlib import suppress

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred, succeed
from zope.interface import implementer

from twisted_smtpguard.interfaces import IDelivery, IMailTransaction, IMessageSink, ISessionDelivery, Refused
from twisted_smtpguard.replies import LOCAL_ERROR, OK, Reply
from twisted_smtpguard.testing import check_delivery


@implementer(IDelivery, IMailTransaction, IMessageSink)
class Good:
    """All three objects in one. The tests below spoil one thing each."""

    extensions = frozenset({"8BITMIME", "SMTPUTF8"})
    max_message_octets = 0

    def begin(self, client, sender):
        return self

    def recipient(self, recipient):
        return None

    def data(self):
        return self

    def write(self, data):
        return None

    def finish(self):
        return None

    def abort(self):
        return None


def spoilt(**spoils):
    return type("Spoilt", (Good,), spoils)()


@pytest_twisted.ensureDeferred
async def test_a_delivery_that_answers_at_once_later_or_with_coroutines_passes():
    async def begin(self, client, sender):
        return self

    async def finish(self):
        return None

    def recipient(self, recipient):
        if recipient.address == "Postmaster":
            raise Refused(LOCAL_ERROR)
        return succeed(None)

    later = spoilt(begin=begin, recipient=recipient, write=lambda self, data: succeed(None), finish=finish)
    assert await check_delivery(later) == await check_delivery(Good()) - 1


def fail(self, *args):
    raise RuntimeError("broken")


def refuse_with(reply):
    def hook(self, *args):
        raise Refused(reply)

    return hook


def begin_at_null_sender_fails(self, client, sender):
    assert sender.address
    return self


def recipient_ascii_only(self, recipient):
    recipient.address.encode("ascii")


def write_no_empty_piece(self, data):
    assert data


async def swallows_cancel(self):
    with suppress(CancelledError):
        await Deferred()
    await Deferred()


def fails_at_cancel(self, *args):
    return Deferred(lambda deferred: deferred.errback(RuntimeError("broken")))


@pytest.mark.parametrize(
    ("spoils", "problem"),
    [
        ({"extensions": ["8BITMIME"]}, "extensions is .*, not a frozenset"),
        ({"extensions": frozenset({"8bitmime"})}, "unknown words: .*8bitmime"),
        ({"max_message_octets": -1}, "max_message_octets is -1"),
        ({"begin": lambda self, client: self}, "the delivery: .*begin"),
        ({"begin": lambda self, client, sender: None}, "what begin.*a plain message answered: "),
        ({"begin": begin_at_null_sender_fails}, r"begin\(\), the null sender raised AssertionError"),
        ({"begin": refuse_with(LOCAL_ERROR)}, "a plain message was refused .*451"),
        ({"recipient": lambda self, recipient: True}, "answered True, neither None nor a Reply"),
        ({"recipient": refuse_with(LOCAL_ERROR)}, "a plain message was refused .*451"),
        ({"recipient": refuse_with(OK)}, "refused with 250, which refuses nothing"),
        (
            {"recipient": recipient_ascii_only},
            r"recipient\(\), sender and recipient .* raised UnicodeEncodeError",
        ),
        ({"data": lambda self: object()}, "what data.* answered: "),
        ({"write": write_no_empty_piece}, r"write\(\), an empty piece raised AssertionError"),
        ({"finish": fail}, r"finish\(\), a plain message raised RuntimeError\('broken'\)"),
        ({"finish": lambda self: "250"}, "finish.* answered '250', neither None nor a Reply"),
        ({"finish": lambda self: Reply(550, "5.0.0", ("no",))}, "a plain message was refused .*550"),
        ({"abort": fail}, r"abort\(\) after begin\(\) raised RuntimeError"),
        ({"abort": lambda self: succeed(None)}, r"abort\(\) after begin\(\) answered <Deferred"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_wrong_is_said(spoils, problem):
    with pytest.raises(AssertionError, match=problem):
        await check_delivery(spoilt(**spoils))


def after_plain_messages(hook, calls):
    """`hook` from the call of that number on; before it the hook of Good."""
    count = iter(range(10_000))
    return lambda self, *args: hook(self, *args) if next(count) >= calls else None


@pytest.mark.parametrize(
    ("hook", "problem"),
    [
        (swallows_cancel, r"finish\(\) was cancelled, and its Deferred has not fired"),
        (fails_at_cancel, r"finish\(\) was cancelled, and failed with RuntimeError"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_verdict_that_cannot_be_cancelled_is_said(hook, problem):
    finishes = 0

    def count(self):
        nonlocal finishes
        finishes += 1

    await check_delivery(spoilt(finish=count))
    # The verdict that is cancelled stands before those of two messages at once.
    with pytest.raises(AssertionError, match=problem):
        await check_delivery(spoilt(finish=after_plain_messages(hook, finishes - 3)))


@pytest_twisted.ensureDeferred
async def test_messages_above_what_the_delivery_takes_are_not_sent():
    sizes = [0]

    def write(self, data):
        sizes[-1] += len(data)

    def end(self):
        sizes.append(0)

    accepted = await check_delivery(spoilt(max_message_octets=1000, write=write, finish=end, abort=end))
    assert 0 < max(sizes) <= 1000
    assert accepted == await check_delivery(Good()) - 2


@implementer(ISessionDelivery)
class Sessions(Good):
    """Knows which of its sessions are open."""

    def __init__(self):
        self.begun = []
        self.ended = []

    def begin(self, client, sender):
        self.begun.append(client.session)
        return self

    def session_ended(self, session):
        self.ended.append(session)


@pytest_twisted.ensureDeferred
async def test_each_message_is_in_its_own_session_that_has_its_end():
    delivery = Sessions()
    accepted = await check_delivery(delivery)
    assert len(set(delivery.begun)) == len(delivery.begun) > accepted
    assert sorted(delivery.ended) == sorted(delivery.begun)


@pytest_twisted.ensureDeferred
async def test_a_session_ends_when_the_last_of_its_hooks_has_answered():
    class Slow(Sessions):
        def begin(self, client, sender):
            given = Good()
            writes = []

            def write(data):
                if data[:2] == b"xx" and not writes:
                    writes.append(client.session)
                    pending.append((client.session, Deferred()))
                    return pending[-1][1]
                return None

            given.write = write
            self.begun.append(client.session)
            return given

    pending = []
    delivery = Slow()
    done = []
    check_delivery(delivery).addBoth(done.append)
    while not done:
        pending[-1][1].callback(None)
    still = [session for session, write in pending if not write.called]
    assert len(still) == 1
    assert set(delivery.begun) - set(delivery.ended) == set(still)
    next(write for session, write in pending if session in still).callback(None)
    assert sorted(delivery.ended) == sorted(delivery.begun)


@pytest.mark.parametrize(
    ("spoils", "problem"),
    [
        ({"session_ended": None}, "the delivery: .*session_ended"),
        ({"session_ended": fail}, r"session_ended\(\) raised RuntimeError"),
        ({"session_ended": lambda self, session: session}, r"session_ended\(\) answered '1-1', not None"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_wrong_with_the_end_of_a_session_is_said(spoils, problem):
    with pytest.raises(AssertionError, match=problem):
        await check_delivery(type("Spoilt", (Sessions,), spoils)())


class Counting(Good):
    """Answers `refusal()` at the end of what contains the words, and counts the rest."""

    def __init__(self, words, refusal):
        self.words = words
        self.refusal = refusal
        self.stored = 0

    def begin(self, client, sender):
        given = Good()
        octets = bytearray()
        given.write = octets.extend
        given.finish = lambda: self.finish_with(octets)
        return given

    def finish_with(self, octets):
        if self.words in octets:
            return self.refusal()
        self.stored += 1
        return None


FULL = Reply(452, "4.3.1", ("full",))


def refuse_as_full():
    raise Refused(FULL)


@pytest.mark.parametrize("refusal", [lambda: FULL, refuse_as_full])
@pytest.mark.parametrize(("words", "messages"), [(b"two at once", 2), (b"cancelled", 1)])
@pytest_twisted.ensureDeferred
async def test_only_what_was_accepted_is_counted(words, messages, refusal):
    delivery = Counting(words, refusal)
    assert await check_delivery(delivery) == delivery.stored == await check_delivery(Good()) - messages


@pytest.mark.parametrize("words", [b"two at once", b"cancelled"])
@pytest_twisted.ensureDeferred
async def test_a_verdict_that_breaks_is_said_whichever_message_it_is_of(words):
    with pytest.raises(AssertionError, match=r"finish\(\).* raised RuntimeError"):
        await check_delivery(Counting(words, lambda: fail(None)))


@pytest_twisted.ensureDeferred
async def test_a_recipient_that_is_refused_by_reply_is_not_accepted():
    with pytest.raises(AssertionError, match=r"a plain message was refused .*452"):
        await check_delivery(spoilt(recipient=lambda self, recipient: FULL))
