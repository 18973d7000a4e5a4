"""Twisted's own tests of reactors and transports, those of the installed Twisted, for the reactor on uvloop.

They run twice: as every protocol has it, and with each connection marked to be served without the context for the log.
"""

from __future__ import annotations

import unittest
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import tcp
from twisted.internet.test import reactormixins

pytest.importorskip("uvloop", reason="the extra uvloop")

from twisted_smtpguard.reactors.uvloopreactor import UVLoopReactor

MODULES = [
    import_module(f"twisted.internet.test.{name}")
    for name in (
        "test_core",
        "test_fdset",
        "test_process",
        "test_socket",
        "test_stdio",
        "test_tcp",
        "test_threads",
        "test_time",
        "test_tls",
        "test_udp",
        "test_unix",
    )
]

LEFT_OUT = {
    # Twisted itself leaves it out for its reactors on epoll: the kernel does not report a closed descriptor.
    "test_lostFileDescriptor",
    # Another user has to be able to run this Python.
    "test_changeUID",
}


@pytest.fixture(autouse=True)
def in_a_directory_that_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twisted's tests make files where they are run."""
    monkeypatch.chdir(tmp_path)


class WithoutLogContext(UVLoopReactor):
    """Serves all connections as it does those of a guard."""

    def addReader(self, reader: Any) -> None:
        if isinstance(reader, tcp.Connection):
            reader.without_log_context = True  # type: ignore[attr-defined]
        super().addReader(reader)


def builders() -> Iterator[type[Any]]:
    """Every class from which Twisted makes tests for all reactors."""
    for module in MODULES:
        for name, value in list(vars(module).items()):
            if (
                isinstance(value, type)
                and issubclass(value, reactormixins.ReactorBuilder)
                and any(each.startswith(f"{name}_") for each in vars(module))
                # Some are for one reactor only.
                and "_reactors" not in vars(value)
            ):
                yield value


def closing(build: Callable[[Any], UVLoopReactor]) -> Callable[[Any], UVLoopReactor]:
    """As `build`, and what the reactor has opened is closed at the end: a process has one, the tests have hundreds."""

    def build_reactor(test: Any) -> UVLoopReactor:
        built: list[UVLoopReactor] = []

        def close() -> None:
            for reactor in built:
                reactor._asyncioEventloop.close()
                reactor._poller.close()

        # Before those of `build`, so that it is called after them.
        test.addCleanup(close)
        built.append(build(test))
        return built[0]

    return build_reactor


def test_a_reactor_leaves_no_descriptor_to_the_tests_that_follow() -> None:
    made: Any = globals()["TCPTransportTestsBuilder_UVLoopReactorTests"]
    descriptors = []
    for _ in range(4):
        result = unittest.TestResult()
        made("test_nonStreamingProducer").run(result)
        assert result.wasSuccessful()
        descriptors.append(len(list(Path("/proc/self/fd").iterdir())))
    # The first opens what the process keeps.
    assert descriptors[1] == descriptors[3]


def make_tests(reactor: type[UVLoopReactor], left_out: set[str]) -> None:
    """Make the tests of every builder for this reactor."""
    for builder in builders():
        changed: dict[str, Any] = dict.fromkeys(left_out & set(dir(builder)))
        changed["buildReactor"] = closing(builder.buildReactor)
        changed["_reactors"] = [f"{reactor.__module__}.{reactor.__qualname__}"]
        ours: Any = type(builder.__name__, (builder,), {**changed, "__module__": __name__})
        globals().update(ours.makeTestCaseClasses())


make_tests(UVLoopReactor, LEFT_OUT)
make_tests(WithoutLogContext, LEFT_OUT | {"test_logPrefix"})


def test_both_ways_are_tested() -> None:
    made = [name for name in globals() if name.endswith("Tests")]
    for reactor in ("UVLoopReactor", "WithoutLogContext"):
        for builder in (
            "TCPTransportTestsBuilder",
            "TLSPortTestsBuilder",
            "UNIXTestsBuilder",
            "AbortConnectionTests",
        ):
            assert f"{builder}_{reactor}Tests" in made
