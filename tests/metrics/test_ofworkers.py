"""The page of several workers: what is added up, of what the worst counts, and what is kept of one that has ended."""

from __future__ import annotations

from typing import Any

from servedguard import service_with
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure
from twisted.web.test.requesthelper import DummyRequest

from twisted_smtpguard.metrics.ofworkers import WorkerMetrics, WorkersPages, merged, read, rising

NO_STATUS: Any = None


def family(name: str, kind: str, *samples: tuple[str, dict[str, str], float]) -> list[Any]:
    return [name, kind, "Text.", [[sample, [*labels.items()], value] for sample, labels, value in samples]]


def told(*families: list[Any], problem: str = "") -> dict[str, Any]:
    return {"families": families, "problem": problem, "cpu_seconds": 1.5}


def value(families: Any, family_: str) -> dict[Any, float]:
    values: dict[Any, float] = families[family_].samples
    return values


def test_counters_and_histograms_are_added_sample_by_sample() -> None:
    one = read(told(family("x", "counter", ("x_total", {"a": "1"}, 2), ("x_total", {"a": "2"}, 3))))
    two = read(told(family("x", "counter", ("x_total", {"a": "2"}, 4))))
    both = merged([one, two])
    assert value(both, "x counter") == {("x_total", (("a", "1"),)): 2, ("x_total", (("a", "2"),)): 7}
    # None of the two has changed.
    assert value(two, "x counter") == {("x_total", (("a", "2"),)): 4}


def test_a_gauge_is_added_or_its_worst_counts_or_it_is_the_same() -> None:
    def of(number: float) -> Any:
        names = ("smtpguard_connections", "smtpguard_upstream_up", "smtpguard_limit")
        return read(told(*(family(name, "gauge", (name, {}, number)) for name in names)))

    both = merged([of(1), of(0)])
    assert [
        value(both, f"{name} gauge")[name, ()]
        for name in ("smtpguard_connections", "smtpguard_upstream_up", "smtpguard_limit")
    ] == [1, 0, 1]


def test_what_rises_is_kept_of_one_that_has_ended() -> None:
    families = read(told(family("x", "counter", ("x_total", {}, 2)), family("y", "gauge", ("y", {}, 2))))
    assert rising(families).keys() == {"x counter"}


def page(pages: WorkersPages, path: bytes) -> DummyRequest:
    request: Any = DummyRequest([path])
    request.postpath = [path]
    answer = pages.render(request)
    if isinstance(answer, bytes):
        request.written.append(answer)
    return request


def text_of(request: DummyRequest) -> str:
    return b"".join(request.written).decode()


def test_the_page_has_the_sums_each_worker_and_what_the_ended_ones_had() -> None:
    guards = [service_with() for _ in range(3)]
    for guard in guards:
        guard.connect()
    workers = [WorkerMetrics(guard.service).told() for guard in guards]
    ended = rising(read(workers.pop()))
    answer = succeed((dict(enumerate(workers, 1)), ended))
    text = text_of(page(WorkersPages(lambda: answer, lambda: "listening", NO_STATUS), b"metrics"))
    assert 'smtpguard_connections_total{listener="smtp",outcome="accepted"} 3.0' in text
    assert 'smtpguard_connections{state="first_line"} 2.0' in text
    assert 'smtpguard_worker_connections{worker="1"} 1.0' in text
    assert 'smtpguard_worker_messages_total{worker="2"} 0.0' in text
    assert text.count("# TYPE smtpguard_connections_total counter") == 1


def test_the_guard_is_well_if_one_of_the_workers_takes_mail() -> None:
    sick, well = {1: told(problem="it is down")}, {1: told(problem="it is down"), 2: told()}
    for workers, code, said in ((sick, 503, "it is down"), (well, 200, "ok"), ({}, 200, "ok")):
        answer = succeed((workers, {}))
        request = page(WorkersPages(lambda answer=answer: answer, lambda: "listening", NO_STATUS), b"healthz")
        assert (request.responseCode, text_of(request)) == (code, f"{said}\n")


def test_a_guard_that_does_not_listen_is_not_asked() -> None:
    request = page(WorkersPages(Deferred, lambda: "draining", NO_STATUS), b"healthz")
    assert (request.responseCode, text_of(request)) == (503, "the guard does not listen, it is draining\n")


def test_a_client_that_leaves_before_the_answer_does_no_harm() -> None:
    waits: Deferred[Any] = Deferred()
    request = page(WorkersPages(lambda: waits, lambda: "listening", NO_STATUS), b"metrics")
    request.processingFailed(Failure(ConnectionDone()))
    assert waits.called
    assert not request.written


def test_a_fault_is_told_as_one() -> None:
    waits: Deferred[Any] = Deferred()
    request = page(WorkersPages(lambda: waits, lambda: "listening", NO_STATUS), b"metrics")
    waits.errback(KeyError("x"))
    assert request.responseCode == 500
