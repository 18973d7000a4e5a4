"""A guard whose lists are served by Debian's rbldnsd, as many who run mail servers have them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from announced import PROXIED, first_line
from processes import PATIENCE_SECONDS, GuardProcess, eventually
from programs import missing
from shell import free_port

pytestmark = pytest.mark.clients

BLOCKED = """\
:127.0.0.2:Blocked
127.0.0.2
203.0.113.0/24
:127.0.0.4:Blocked too
203.0.113.7
:127.0.0.12:Merely a home
198.51.100.0/24
"""
BLOCKED_IPV6 = """\
:127.0.0.2:Blocked
::ffff:7f00:2/128
2001:db8:bad::/48
"""
ALLOWED = """\
:127.0.5.1:Known
127.0.0.2
203.0.113.9
"""
EVERYBODY = "0/0 :127.0.0.2:Closed down\n"
NOBODY = "192.0.2.255\n"

LISTS = (
    "--ip-filter=name=lists:dnsbl:bl.test=127.0.0.[2..11]*2,other.test,ok.test=127.0.[0..255].[0..3]*-2;"
    "name=bl,other,ok;threshold=2;resolver=127.0.0.1:{port}"
)


class Rbldnsd:
    """It runs while the block runs. A zone is a file in `root`, of the same name."""

    def __init__(self) -> None:
        program = shutil.which("rbldnsd", path=f"{os.environ['PATH']}:/usr/sbin")
        if program is None:
            missing("rbldnsd")
        self._program = str(program)
        self.root = Path(tempfile.mkdtemp(prefix="rbldnsd-"))
        # It gives up root, if it is started by it.
        self.root.chmod(0o755)
        self.port = int(free_port())
        self.zones: dict[str, list[str]] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def put(self, zone: str, kind: str, text: str) -> None:
        name = f"{zone}.{kind}"
        (self.root / name).write_text(f"$SOA 300 ns.test root.test 0 60 60 60 60\n$NS 300 ns.test\n{text}")
        if f"{zone}:{kind}:{name}" not in self.zones.setdefault(zone, []):
            self.zones[zone].append(f"{zone}:{kind}:{name}")

    def start(self) -> None:
        words = [each for zone in self.zones.values() for each in zone]
        user = ("-u", "nobody") if os.geteuid() == 0 else ()
        with (self.root / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(self._program, "-n", "-4", "-t", "300", "-c", "1", *user),
                    *("-w", str(self.root), "-b", f"127.0.0.1/{self.port}", *words),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        log_text = (self.root / "log").read_text
        eventually(lambda: "started" in log_text(), f"it does not start: {log_text()}")
        assert self._process.poll() is None, log_text()

    def read_again(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_SECONDS)
            self._process = None

    def __enter__(self) -> Rbldnsd:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.root)


@pytest.fixture
def server() -> Iterator[Rbldnsd]:
    with Rbldnsd() as running:
        running.put("bl.test", "ip4set", BLOCKED)
        running.put("bl.test", "ip6trie", BLOCKED_IPV6)
        running.put("other.test", "ip4set", "127.0.0.2\n203.0.113.50\n198.51.100.1\n")
        running.put("ok.test", "ip4set", ALLOWED)
        yield running


def test_clients_are_refused_by_what_its_lists_have(tmp_path: Path, server: Rbldnsd) -> None:
    server.start()
    with GuardProcess(tmp_path, LISTS.format(port=server.port), PROXIED) as guard:
        said = {
            address: first_line(guard, address)
            for address in (
                "203.0.113.7",
                "203.0.113.9",
                "203.0.113.50",
                "198.51.100.1",
                "192.0.2.1",
                "2001:db8:bad::1",
                "2001:db8:900d::1",
            )
        }
        refused = {address: line for address, line in said.items() if not line.startswith("220 ")}
        assert refused == {
            "203.0.113.7": "521 5.7.1 Your address is listed by bl",
            "203.0.113.50": "521 5.7.1 Your address is listed by bl, other",
            "2001:db8:bad::1": "521 5.7.1 Your address is listed by bl",
        }
        rule = r"reject peer=203\.0\.113\.7 reason=ip_filter filter=lists rule=bl:127\.0\.0\.4 code=521 "
        guard.wait_for(rule)
        guard.wait_for(r"reject peer=2001:db8:bad::1 .* rule=bl:127\.0\.0\.2 ")
        assert "dnsbl_left_out" not in guard.log.decode()


def test_lists_of_everybody_and_of_nobody_are_left_out(tmp_path: Path, server: Rbldnsd) -> None:
    server.put("all.test", "ip4trie", EVERYBODY)
    server.put("none.test", "ip4set", NOBODY)
    server.start()
    lists = f"--ip-filter=dnsbl:all.test,none.test,bl.test;name=all,none,bl;resolver=127.0.0.1:{server.port}"
    with GuardProcess(tmp_path, lists, PROXIED) as guard:
        assert first_line(guard, "192.0.2.1").startswith("220 ")
        assert first_line(guard, "203.0.113.7").startswith("521 ")
        guard.wait_for(r"dnsbl_left_out list=all it lists 127\.0\.0\.1, and so may list everybody")
        guard.wait_for(r"dnsbl_left_out list=none it does not list 127\.0\.0\.2")
        # It is mended, and tested at a reload.
        server.put("all.test", "ip4trie", "127.0.0.2\n203.0.113.0/24\n")
        server.read_again()

        def is_back() -> bool:
            os.kill(guard.pid, signal.SIGHUP)
            guard.wait_for(r"reloaded what=dnsbl ")
            return bool(re.search("dnsbl_back list=all", guard.log.decode()))

        eventually(is_back, "the list does not come back")


def test_without_it_everybody_comes_in_and_when_it_is_there_it_counts(
    tmp_path: Path, server: Rbldnsd
) -> None:
    with GuardProcess(tmp_path, LISTS.format(port=server.port), PROXIED) as guard:
        assert first_line(guard, "203.0.113.7").startswith("220 ")
        guard.wait_for(r"dnsbl_left_out list=bl it does not answer: the resolver ")
        server.start()
        os.kill(guard.pid, signal.SIGHUP)
        guard.wait_for("dnsbl_back list=bl")
        assert first_line(guard, "203.0.113.7").startswith("521 ")
        server.kill()
        # What is known is kept.
        assert first_line(guard, "203.0.113.7").startswith("521 ")
        assert first_line(guard, "203.0.113.8").startswith("220 ")
