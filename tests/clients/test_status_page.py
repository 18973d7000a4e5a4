"""The status page of a real guard in a real Chromium."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from applications import Running
from chromium import Chromium, chromium
from hostiletexts import FILTER, USER
from logins import plain
from processes import GuardProcess, eventually
from rawclient import RawClient, deliver

pytestmark = pytest.mark.clients

SERVED = "--metrics=tcp:0:interface=127.0.0.1"


def page_at(guard: GuardProcess) -> str:
    (address,) = re.findall(r"address=(\S+)", guard.wait_for(r"\] serving_metrics "))
    return f"http://{address}/status"


def text(browser: Chromium) -> str:
    shown: str = browser.run("return document.body.innerText")
    return shown


def assert_alone(browser: Chromium, page: str) -> None:
    """It has asked for nothing but the page, and has not complained."""
    asked = [url for url in browser.requests() if not url.startswith(("chrome://", "data:"))]
    assert {*asked} == {page}
    assert browser.log("browser") == []


@pytest.mark.timeout(300)
def test_it_shows_what_is_true_while_a_crowd_floods_the_guard(tmp_path: Path) -> None:
    limits = ("--max-connections=3000", "--max-connections-per-client=300", "--connection-rate=100000/60")
    with (
        GuardProcess(tmp_path, SERVED, *limits) as guard,
        chromium(tmp_path) as browser,
    ):
        page = page_at(guard)
        browser.requests()
        browser.show(page)
        assert "of 3,000" in text(browser)
        browser.run(
            "document.querySelector('#d-limits').open = true; document.querySelector('#s-limits').focus()"
        )
        browser.run("window.scrollTo(0, 300); window.before = document.querySelector('#hour')")
        crowd = [RawClient(guard.address, f"127.0.{number % 10}.7") for number in range(2000)]
        eventually(lambda: re.search(r"Connections\n2,000\nof 3,000 \(67%\)", text(browser)), text(browser))
        assert re.search(r"Connections\nnow 2,000, most 2,000 at ", text(browser))
        assert re.search(r"127\.0\.3\.7\s+200\s", text(browser))
        # The page is the same, and so is what the reader did on it.
        assert browser.run(
            "return [window.before !== undefined, document.querySelector('#d-limits').open]"
        ) == [
            True,
            True,
        ]
        assert browser.run("return document.activeElement.id") == "s-limits"
        assert browser.run("return window.scrollY") > 0
        assert deliver(guard.address).startswith("250")
        eventually(lambda: re.search(r"Messages accepted\n1\n", text(browser)), text(browser))
        for client in crowd:
            client.close()
        eventually(lambda: re.search(r"Connections\n0\nof 3,000 ", text(browser)), text(browser))
        assert_alone(browser, page)


SENDER = "<script>document.title='sender'</script>\u202e"
HELO = "<img/src=x/onerror=document.title='helo'>"
PROGRAM = Path(__file__).with_name("hostiletexts.py")


def speak_to(port: int) -> None:
    """Say hostile things, log in with a hostile name, and be refused for a hostile sender and by a hostile filter."""
    address = ("127.0.0.1", port)
    with RawClient(address) as client:
        client.ask(f"EHLO {HELO}")
        assert client.ask(f"AUTH PLAIN {plain(b'pass', USER.encode())}").startswith("235")
        assert client.ask(f'MAIL FROM:<"{SENDER}"@x.example> SMTPUTF8').startswith("250")
        assert client.ask("RCPT TO:<a@guard.example>").startswith("250")
        client.ask("DATA")
        assert client.ask("Subject: x\r\n\r\nx\r\n.").startswith("550")
        client.ask("QUIT")
    with RawClient(address, "127.0.0.66"):
        pass


@pytest.mark.parametrize(("width", "dark"), [(390, True), (390, False), (1100, False), (1100, True)])
def test_what_strangers_sent_is_text_on_it_and_fits_a_telephone(
    tmp_path: Path, width: int, dark: bool
) -> None:
    with Running(tmp_path, sys.executable, PROGRAM, listeners=2) as running, chromium(tmp_path) as browser:
        port, of_pages = running.ports
        speak_to(port)
        page = f"http://127.0.0.1:{of_pages}/status"
        browser.resize(width, 900, dark=dark)
        browser.requests()
        browser.show(page)
        assert browser.run("return document.title") == "guard.example: listening"
        assert (
            browser.run("return document.querySelectorAll('main script, main img, main table b').length") == 0
        )
        shown = text(browser)
        assert "\u202e" not in shown
        for name in (HELO, SENDER, USER, FILTER, "<b>filter</b>"):
            assert name.replace("\u202e", "\\u202e") in shown, name
        assert browser.run("return document.documentElement.scrollWidth") == width
        background = browser.run("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background))) < 200) == dark
        assert faint(browser) == []
        assert_alone(browser, page)


def faint(browser: Chromium) -> list[Any]:
    """The texts whose contrast is below 4.5 to 1 (WCAG 2.1 AA)."""
    found: list[Any] = browser.run(
        """
        const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) => c <= 0.03928 ? c / 12.92 :
            ((c + 0.055) / 1.055) ** 2.4).reduce((sum, c, n) => sum + c * [0.2126, 0.7152, 0.0722][n], 0);
        const color = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
        const behind = (node) => {
            for (; node; node = node.parentElement) {
                const found = color(getComputedStyle(node).backgroundColor);
                if (found.length === 3) return found;
            }
            return [255, 255, 255];
        };
        const found = [];
        for (const node of document.querySelectorAll("body *")) {
            if (node.closest("svg, script, [hidden]") || !node.textContent.trim()) continue;
            const [one, other] = [light(color(getComputedStyle(node).color)), light(behind(node))];
            const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
            if (contrast < 4.5) found.push([node.tagName, node.textContent.slice(0, 40), contrast]);
        }
        return found;
        """
    )
    return found


def test_it_says_when_the_guard_does_not_answer_and_when_it_does_again(tmp_path: Path) -> None:
    with GuardProcess(tmp_path, SERVED) as guard, chromium(tmp_path) as browser:
        browser.show(page_at(guard))
        hidden = "return document.getElementById('alarm').hidden"
        assert browser.run(hidden)
        os.kill(guard.pid, signal.SIGSTOP)
        try:
            eventually(lambda: not browser.run(hidden), "it does not say so")
            assert "The guard does not answer" in text(browser)
        finally:
            os.kill(guard.pid, signal.SIGCONT)
        eventually(lambda: browser.run(hidden), "it does not say that it answers again")


def test_without_javascript_it_is_a_snapshot(tmp_path: Path) -> None:
    with GuardProcess(tmp_path, SERVED, "--max-connections=7") as guard, chromium(tmp_path) as browser:
        browser.tell("Emulation.setScriptExecutionDisabled", value=True)
        browser.show(page_at(guard))
        # What is shown, as those see it who cannot: no script of ours runs either.
        tree = json.dumps(browser.tell("Accessibility.getFullAXTree"))
        assert "of 7 (0%)" in tree
        assert "Without JavaScript this page does not refresh itself." in tree


def test_the_data_are_the_same_for_programs(tmp_path: Path) -> None:
    with GuardProcess(tmp_path, SERVED, "--max-connections=7") as guard, RawClient(guard.address):
        with urllib.request.urlopen(f"{page_at(guard)}.json", timeout=30) as answer:
            assert answer.headers["Content-Type"] == "application/json"
            told = json.load(answer)
        assert (told["status"]["connections"], told["hour"][-1]["connections"]) == (1, 1)
        (limit,) = [row for row in told["limits"] if row["limit"] == "max-connections"]
        assert (limit["value"], limit["from"]) == ("7", "command line")
