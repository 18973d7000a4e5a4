"""Twisted's own tests of what a reactor promises, of the installed Twisted, with the reactor on uvloop."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from twisted.internet.test import (
    reactormixins,
    test_core,
    test_fdset,
    test_socket,
    test_tcp,
    test_threads,
    test_time,
    test_tls,
    test_udp,
    test_unix,
)

pytest.importorskip("uvloop", reason="the extra uvloop")

REACTOR = "twisted_smtpguard.reactors.uvloopreactor.UVLoopReactor"

MODULES = (test_core, test_fdset, test_socket, test_tcp, test_threads, test_time, test_tls, test_udp, test_unix)


def builders() -> Iterator[type[reactormixins.ReactorBuilder]]:
    """Every class from which Twisted makes tests for each reactor."""
    for module in MODULES:
        for name, value in list(vars(module).items()):
            if (
                isinstance(value, type)
                and issubclass(value, reactormixins.ReactorBuilder)
                and value.__module__ == module.__name__
                # Some are for one reactor only.
                and "_reactors" not in vars(value)
                and any(each.startswith(f"{name}_") for each in vars(module))
            ):
                yield value


for builder in builders():
    ours = type(builder.__name__, (builder,), {"_reactors": [REACTOR], "__module__": __name__})
    globals().update(ours.makeTestCaseClasses())
