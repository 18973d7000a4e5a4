"""The questions about clients to one list in the DNS, and its answers. All of it is bounded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Protocol

from twisted_smtpguard.filters.dnsbldecision import (
    ERROR,
    LISTED,
    NOT_ASKED,
    NOT_LISTED,
    OUTCOMES,
    Answer,
    codes_of,
    counted,
    question,
)
from twisted_smtpguard.filters.dnsblsettings import DnsList
from twisted_smtpguard.values import Address

MAX_KEPT = 50_000
"""How many answers are kept for all lists together."""

MAX_IN_FLIGHT = 512
"""How many questions of all lists together are on their way at once. Each has a file descriptor."""

MAX_WAITING = 10_000
"""How many questions to a list wait for those on their way. Of more the oldest is given up."""

MAX_CODES = 8
"""How many codes of a client are kept."""

TROUBLE = 20
"""After so many questions in a row without an answer a list is to be tested."""


class Exchange(Protocol):
    """A question on its way."""

    def cancel(self) -> object: ...


Ask = Callable[[str, float, Callable[[Answer], object]], Exchange]
"""As `DNSClient.ask`."""


class Listener(Protocol):
    """Who waits for an answer."""

    def told(self, asker: Asker, codes: tuple[int, ...] | None) -> object:
        """Called once. `codes` is empty if the client is not listed; None: there is no answer."""


class _Question:
    __slots__ = ("address", "exchange", "listeners")

    def __init__(self, address: Address) -> None:
        self.address = address
        self.exchange: Exchange | None = None
        self.listeners: dict[Listener, None] = {}


class Asker:
    """Asks one of `lists` lists, and keeps its answers for their TTL, within the bounds `ttl`. `seconds` returns the
    time; `timeout` is that of a question. `troubled` is called after TROUBLE questions without an answer.

    The latest question is the first to be sent: one that has waited for long has nobody left who waits for it.
    """

    def __init__(
        self,
        dns_list: DnsList,
        ask: Ask,
        seconds: Callable[[], float],
        timeout: float,
        ttl: tuple[float, float],
        lists: int,
        troubled: Callable[[], object] = lambda: None,
    ) -> None:
        self.list = dns_list
        self._ask = ask
        self._seconds = seconds
        self._timeout = timeout
        self._ttl = ttl
        self._troubled = troubled
        self._most_kept = MAX_KEPT // lists
        self._most_in_flight = MAX_IN_FLIGHT // lists
        self._kept: OrderedDict[int, tuple[float, tuple[int, ...]]] = OrderedDict()
        """Until when an answer holds, and its codes, by the number of the address; the least recently used first."""
        self._questions: dict[int, _Question] = {}
        """All that have no answer."""
        self._waiting: OrderedDict[int, _Question] = OrderedDict()
        """Those of them that are not on their way, the oldest first."""
        self._sending = False
        self._unanswered = 0
        self.answers = dict.fromkeys(OUTCOMES, 0)
        """How many questions have had each outcome."""

    @property
    def in_flight(self) -> int:
        """How many questions are on their way."""
        return len(self._questions) - len(self._waiting)

    def kept(self, address: Address) -> tuple[int, ...] | None:
        """The codes of a client that are known; None: the list has to be asked."""
        key = int(address)
        found = self._kept.pop(key, None)
        if found is None or found[0] <= self._seconds():
            return None
        self._kept[key] = found
        return found[1]

    def ask(self, address: Address, listener: Listener) -> None:
        """Ask about a client, for which `listener` is told, perhaps before this returns."""
        key = int(address)
        asked = self._questions.get(key)
        if asked is not None:
            asked.listeners[listener] = None
            return
        new = self._questions[key] = self._waiting[key] = _Question(address)
        new.listeners[listener] = None
        self._send()
        if len(self._waiting) > MAX_WAITING:
            oldest = next(iter(self._waiting))
            self._end(oldest, Answer(problem="too many questions are waiting", outcome=NOT_ASKED))

    def give_up(self, address: Address, listener: Listener) -> None:
        """Tell `listener` nothing. A question that is on its way goes on, since its answer is kept."""
        key = int(address)
        asked = self._questions.get(key)
        if asked is not None and listener in asked.listeners:
            del asked.listeners[listener]
            if not asked.listeners and self._waiting.pop(key, None) is not None:
                del self._questions[key]

    def forget(self) -> None:
        """Forget the answers that are kept."""
        self._kept.clear()

    def stop(self) -> None:
        """End all questions, of which nobody is told."""
        questions, self._questions = self._questions, {}
        self._waiting.clear()
        for each in questions.values():
            each.listeners = {}
            if each.exchange is not None:
                each.exchange.cancel()

    def _send(self) -> None:
        if self._sending:
            # It goes on when the present question is on its way.
            return
        self._sending = True
        try:
            while self._waiting and self.in_flight < self._most_in_flight:
                key, asked = self._waiting.popitem()
                name = question(asked.address, self.list.zone)
                asked.exchange = self._ask(name, self._timeout, partial(self._end, key))
        finally:
            self._sending = False

    def _end(self, key: int, answer: Answer) -> None:
        asked = self._questions.pop(key)
        self._waiting.pop(key, None)
        codes = self._judged(key, answer)
        for listener in asked.listeners:
            listener.told(self, codes)
        self._send()

    def _judged(self, key: int, answer: Answer) -> tuple[int, ...] | None:
        """Count and keep an answer. Returns the codes of the client."""
        said, problem = codes_of(answer)
        codes = counted(said, self.list)[:MAX_CODES]
        outcome = answer.outcome or (ERROR if problem else LISTED if codes else NOT_LISTED)
        self.answers[outcome] += 1
        if not problem:
            self._unanswered = 0
            shortest, longest = self._ttl
            self._kept.pop(key, None)
            self._kept[key] = self._seconds() + min(max(answer.seconds, shortest), longest), codes
            if len(self._kept) > self._most_kept:
                self._kept.popitem(last=False)
            return codes
        if outcome != NOT_ASKED:
            self._unanswered += 1
            if self._unanswered == TROUBLE:
                self._unanswered = 0
                self._troubled()
        return None
