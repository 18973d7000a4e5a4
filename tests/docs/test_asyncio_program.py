"""The example of an asyncio program: it receives mail, reloads, and ends on a signal with what was on its way."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest
from applications import LOCAL, Running, ends_with_the_message_that_was_on_its_way, send
from documents import ROOT
from processes import TWIST, eventually

PROGRAM = ROOT / "docs" / "examples" / "asyncio_program.py"


def test_it_receives_mail_and_ends_with_the_message_that_was_on_its_way(tmp_path: Path) -> None:
    with Running(tmp_path, sys.executable, "-W", "error", PROGRAM, LOCAL) as program:
        send(program.ports[0])
        os.kill(program._process.pid, signal.SIGHUP)
        send(program.ports[0])
        assert ends_with_the_message_that_was_on_its_way(program, program.ports[0]) == 0
        assert re.findall(r"(\d+) octets from a@example.com\n", program.output) == ["25", "25"]


def test_a_large_message_goes_through_a_thread(tmp_path: Path) -> None:
    import smtplib

    with Running(tmp_path, sys.executable, PROGRAM, LOCAL) as program:
        with smtplib.SMTP("127.0.0.1", program.ports[0], timeout=30) as client:
            client.sendmail("a@example.com", ["b@example.org"], b"Subject: x\r\n\r\n" + b"x\r\n" * 100_000)
        eventually(lambda: "300014 octets from a@example.com" in program.output, program.output)
        assert program.terminate() == 0


PLUGIN = """\
import asyncio
from twisted.plugin import IPlugin
from zope.interface import implementer
from twisted_smtpguard import PASS, Reply, refuse
from twisted_smtpguard.interfaces import IIPFilter, IIPFilterFactory

@implementer(IIPFilter)
class Sleeping:
    async def check(self, peer):
        await asyncio.sleep(0.01)
        return PASS

@implementer(IPlugin, IIPFilterFactory)
class Factory:
    name, summary, argument_format = "sleeping", "Sleeps.", "nothing"
    def make_filter(self, argument, reactor):
        return Sleeping()

factory = Factory()
"""


@pytest.mark.parametrize("reactor", ["default", "asyncio"])
def test_twist_runs_a_filter_that_sleeps_in_asyncio_on_that_reactor_only(
    tmp_path: Path, reactor: str
) -> None:
    plugins = tmp_path / "site" / "twisted" / "plugins"
    plugins.mkdir(parents=True)
    (plugins / "sleeping_filter.py").write_text(PLUGIN)
    words = [f"--reactor={reactor}", "--log-format=text", "smtpguard", f"--listen={LOCAL}"]
    command = [TWIST, *words, "--ip-filter=sleeping", "--deliver=discard"]
    with Running(tmp_path, *command, PYTHONPATH=str(tmp_path / "site")) as twist:
        if reactor == "asyncio":
            send(twist.ports[0])
            assert twist.terminate() == -signal.SIGTERM
            return
        import smtplib

        with pytest.raises(smtplib.SMTPConnectError, match=r"4\.3\.0"):
            send(twist.ports[0])
        assert (
            "AsyncioUnavailableError: asyncio is available to hooks on the asyncio reactor only"
            in twist.output
        )
        twist.terminate()
        # It was logged with its traceback.
        (tmp_path / "output").write_text("")
