"""A real Chromium, driven by WebDriver: chromedriver's own JSON over HTTP, by urllib."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from processes import PATIENCE_SECONDS, eventually
from programs import listens, missing
from shell import free_port


class Chromium:
    """One window. `address` is that of its session."""

    def __init__(self, address: str) -> None:
        self._address = address

    def show(self, url: str) -> None:
        self._ask("POST", "url", url=url)

    def run(self, script: str, *arguments: Any) -> Any:
        """What `script`, the body of a function, returns."""
        return self._ask("POST", "execute/sync", script=script, args=list(arguments))

    def tell(self, method: str, **parameters: Any) -> Any:
        """A command of the developer tools."""
        return self._ask("POST", "goog/cdp/execute", cmd=method, params=parameters)

    def log(self, kind: str) -> list[dict[str, Any]]:
        """What has come since the last question: `browser` has the console, `performance` the requests."""
        found: list[dict[str, Any]] = self._ask("POST", "se/log", type=kind)
        return found

    def requests(self) -> list[str]:
        """The addresses of the requests since the last question."""
        messages = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """Make the window show a page so wide and high, as a telephone does."""
        self.tell(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        value = "dark" if dark else "light"
        self.tell("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    def picture(self, *, whole: bool = False) -> bytes:
        """A PNG of what is shown; `whole`: of the page to its end."""
        data = self.tell("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        return base64.b64decode(data)

    def _ask(self, method: str, path: str, **body: Any) -> Any:
        return _asked(method, f"{self._address}/{path}", body)


def _asked(method: str, url: str, body: dict[str, Any] | None) -> Any:
    data = None if method != "POST" else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=4 * PATIENCE_SECONDS) as answer:
        return json.load(answer)["value"]


@contextmanager
def chromium(directory: Path, *options: str) -> Iterator[Chromium]:
    """A Chromium that keeps everything in `directory`."""
    driver, browser = shutil.which("chromedriver"), shutil.which("chromium")
    if driver is None or browser is None:
        missing("chromium" if driver else "chromedriver")
    assert driver is not None
    port = free_port()
    words = [driver, f"--port={port}", "--allowed-ips=127.0.0.1"]
    with (
        (directory / "chromedriver.log").open("wb") as log,
        subprocess.Popen(words, stdout=log, stderr=log) as process,
    ):
        try:
            eventually(lambda: listens(int(port)), "chromedriver does not listen")
            address = f"http://127.0.0.1:{port}/session"
            session = _asked("POST", address, {"capabilities": {"alwaysMatch": _wanted(directory, options)}})
            address = f"{address}/{session['sessionId']}"
            try:
                yield Chromium(address)
            finally:
                _asked("DELETE", address, None)
        finally:
            process.kill()


def _wanted(directory: Path, options: Sequence[str]) -> dict[str, Any]:
    words = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        # Of its own it asks for nothing.
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        "--hide-scrollbars",
        f"--user-data-dir={directory / 'chromium'}",
        *options,
    ]
    return {
        "browserName": "chrome",
        "goog:chromeOptions": {"binary": shutil.which("chromium"), "args": words},
        "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
    }
