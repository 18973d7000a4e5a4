"""What is built and installed works, with plugins of other distributions beside it. Needs a package index."""

from __future__ import annotations

import re
import shutil
import smtplib
import sqlite3
import subprocess
import sys
import zipfile
from contextlib import closing
from pathlib import Path

import attrs
import pytest
from clones import NOT_SOURCE
from processes import GuardProcess
from rawclient import RawClient

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]

FAIL2BAN = Path("share/twisted_smtpguard/fail2ban")
"""Below the environment: what is not for Python."""

# A distribution needs its own package beside twisted.plugins: setuptools gives an editable install of
# twisted.plugins alone an import hook, in which `twist` finds no plugin.
PIGEON = {
    "pyproject.toml": """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
""",
    "setup.cfg": """
[metadata]
name = pigeon
version = 1.0
[options]
packages =
    pigeon
    twisted.plugins
package_dir =
    = src
install_requires = twisted_smtpguard
""",
    "src/pigeon/__init__.py": """
from pathlib import Path

from twisted.plugin import IPlugin
from zope.interface import implementer

from twisted_smtpguard.delivery.callable import CallableDelivery
from twisted_smtpguard.interfaces import IDeliveryFactory


@implementer(IPlugin, IDeliveryFactory)
class PigeonFactory:
    name = "pigeon"
    summary = "One pigeon a message."
    argument_format = "The loft: a file that the last message goes into."

    def make_delivery(self, argument, reactor):
        if not argument:
            raise ValueError("a pigeon needs a loft")

        def fly(envelope, body):
            Path(argument).write_bytes(body.read())

        return CallableDelivery(fly, reactor)
""",
    "src/twisted/plugins/pigeon_delivery.py": """
from pigeon import PigeonFactory

pigeon = PigeonFactory()
""",
}


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Standard output of a command that has to succeed."""
    done = subprocess.run(
        command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@attrs.frozen
class Installed:
    """A virtual environment with nothing but the guard, its dependencies, and the plugins beside it."""

    root: Path
    editable: list[Path]
    """The source trees of editable installs."""

    @property
    def twist(self) -> Path:
        return self.root / "bin" / "twist"

    def forget_plugins(self) -> None:
        """Back to a plugin cache that was never written, as after an installation."""
        for folder in (self.root, *self.editable):
            for cache in folder.rglob("dropin.cache"):
                cache.unlink()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree: building leaves files behind."""
    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("source") / "guard", ignore=NOT_SOURCE))


@pytest.fixture(scope="module")
def distributions(source: Path) -> dict[str, Path]:
    """The sdist, and the wheel built from it."""
    run(sys.executable, "-m", "build", cwd=source)
    (sdist,), (wheel,) = (source / "dist").glob("*.tar.gz"), (source / "dist").glob("*.whl")
    return {"sdist": sdist, "wheel": wheel}


@pytest.fixture(scope="module", params=["wheel", "sdist", "editable"])
def installed(
    request: pytest.FixtureRequest,
    source: Path,
    distributions: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Installed:
    """The guard, the pigeon and the template of an IP filter, as the kind of installation that the parameter names."""
    pigeon = tmp_path_factory.mktemp("pigeon")
    for name, text in PIGEON.items():
        (pigeon / name).parent.mkdir(parents=True, exist_ok=True)
        (pigeon / name).write_text(text)
    template = tmp_path_factory.mktemp("template") / "ip_filter"
    shutil.copytree(ROOT / "docs" / "examples" / "ip_filter_plugin", template, ignore=NOT_SOURCE)
    root = tmp_path_factory.mktemp(request.param)
    run(sys.executable, "-m", "venv", root)
    if request.param == "editable":
        run(root / "bin" / "pip", "install", "-e", source, "-e", pigeon, "-e", template)
        return Installed(root, [source, pigeon, template])
    # pip makes a wheel of each folder.
    run(root / "bin" / "pip", "install", distributions[request.param], pigeon, template)
    return Installed(root, [])


def test_the_wheel_has_every_file_and_the_plugin(source: Path, distributions: dict[str, Path]) -> None:
    package = [path for path in (source / "twisted_smtpguard").rglob("*") if path.is_file()]
    # What is no module too: a style, a script, a table.
    files = {path.relative_to(source).as_posix() for path in package if path.suffix not in (".pyc", ".cache")}
    with zipfile.ZipFile(distributions["wheel"]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name and ".data/data/" not in name}
    # Twisted's own __init__ files would be overwritten by ours, and deleted with us.
    assert names == files | {"twisted/plugins/twisted_smtpguard.py"}


def test_a_running_guard_answers_the_command_that_is_beside_twist(
    installed: Installed, tmp_path: Path
) -> None:
    path = tmp_path / "control.sock"
    command = installed.root / "bin" / "smtpguardctl"
    with GuardProcess(tmp_path, f"--control={path}", twist=installed.root / "bin" / "twist"):
        done = subprocess.run(
            [command, "--socket", path, "status"], check=True, capture_output=True, text=True
        )
    assert re.search(r"(?m)^state +listening$", done.stdout)
    assert run(command, "--help").startswith("usage: smtpguardctl ")


def test_the_files_for_fail2ban_come_with_it(installed: Installed) -> None:
    if installed.editable:
        return  # they are in the tree
    shipped = installed.root / FAIL2BAN
    files = {path.relative_to(shipped): path.read_text() for path in shipped.rglob("*.conf")}
    examples = ROOT / "docs" / "examples" / "fail2ban"
    assert files == {path.relative_to(examples): path.read_text() for path in examples.rglob("*.conf")} != {}


@pytest.mark.parametrize("reactor", ["default", "asyncio"])
def test_twist_knows_it_on_a_cold_plugin_cache(installed: Installed, reactor: str, tmp_path: Path) -> None:
    installed.forget_plugins()
    assert "--max-connections" in run(
        installed.twist, f"--reactor={reactor}", "smtpguard", "--help", cwd=tmp_path
    )
    installed.forget_plugins()
    table = run(installed.twist, f"--reactor={reactor}", "smtpguard", "--show-limits", cwd=tmp_path)
    assert "max-connections" in table


def send(port: int) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.sendmail("a@example.org", ["b@example.org"], "Subject: hello\r\n\r\nhello\r\n")


@pytest.mark.parametrize("reactor", ["default", "asyncio"])
def test_it_takes_a_message_into_its_maildir(installed: Installed, reactor: str, tmp_path: Path) -> None:
    with GuardProcess(tmp_path, reactor=reactor, twist=installed.twist) as guard:
        send(guard.port)
    (message,) = (guard.maildir / "new").iterdir()
    assert message.read_bytes().endswith(b"Subject: hello\n\nhello\n")


def test_a_delivery_of_another_distribution_is_listed_and_used(installed: Installed, tmp_path: Path) -> None:
    installed.forget_plugins()
    deliveries = run(installed.twist, "smtpguard", "--help-deliveries", cwd=tmp_path)
    assert "One pigeon a message." in deliveries
    with GuardProcess(tmp_path, "--deliver=pigeon:loft", twist=installed.twist) as guard:
        send(guard.port)
    assert (tmp_path / "loft").read_bytes() == b"Subject: hello\r\n\r\nhello\r\n"


def test_what_another_distribution_says_of_a_wrong_value_is_the_sentence_that_is_told(
    installed: Installed, tmp_path: Path
) -> None:
    command = [installed.twist, "smtpguard", "--deliver=pigeon"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (64, "--deliver: a pigeon needs a loft\n")


def greeting(guard: GuardProcess, source: str) -> str:
    """What a client at `source` is told first."""
    with RawClient(guard.address, source) as client:
        return client.greeting


@pytest.mark.parametrize("reactor", ["default", "asyncio"])
def test_an_ip_filter_of_another_distribution_decides_which_clients_are_let_in(
    installed: Installed, reactor: str, tmp_path: Path
) -> None:
    installed.forget_plugins()
    with closing(sqlite3.connect(tmp_path / "clients.db")) as database:
        database.execute("CREATE TABLE clients (address TEXT PRIMARY KEY, verdict TEXT, text TEXT)")
        rows = [("127.0.0.2", "refuse", "Go away"), ("127.0.0.3", "trust", ""), ("127.0.0.4", "pass", "")]
        database.executemany("INSERT INTO clients VALUES (?, ?, ?)", rows)
        database.commit()
    option = "--ip-filter=known-clients:clients.db"
    with GuardProcess(tmp_path, option, reactor=reactor, twist=installed.twist) as guard:
        assert greeting(guard, "127.0.0.2") == "521 5.7.1 Go away"
        guard.wait_for(r"\] reject peer=127\.0\.0\.2 reason=ip_filter filter=known-clients code=521 ")
        assert greeting(guard, "127.0.0.3").startswith("220 ")
        arrived = r"port=\d+ listener=tcp:0:interface=127\.0\.0\.1$"
        guard.wait_for(rf"\] connect session=\S+ peer=127\.0\.0\.3 trusted=true {arrived}")
        for source in ("127.0.0.4", "127.0.0.5"):
            assert greeting(guard, source).startswith("220 ")
            guard.wait_for(rf"\] connect session=\S+ peer={source} {arrived}")


def test_an_ip_filter_of_another_distribution_is_listed_and_explained(
    installed: Installed, tmp_path: Path
) -> None:
    installed.forget_plugins()
    summary = "Trusts or refuses the clients that an SQLite database knows."
    assert summary in run(installed.twist, "smtpguard", "--help-ip-filters", cwd=tmp_path)
    assert summary in run(installed.twist, "smtpguard", "--help-ip-filter=known-clients", cwd=tmp_path)


def test_an_ip_filter_of_another_distribution_says_what_is_wrong_with_its_argument(
    installed: Installed, tmp_path: Path
) -> None:
    command = [installed.twist, "smtpguard", "--ip-filter=known-clients:nowhere.db"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 64
    assert done.stderr.startswith("--ip-filter: a database of clients is expected, not 'nowhere.db'")


def test_the_template_of_an_ip_filter_passes_its_own_tests(installed: Installed, tmp_path: Path) -> None:
    tests = ROOT / "docs" / "examples" / "ip_filter_plugin" / "tests" / "test_known_clients.py"
    run(installed.root / "bin" / "python", "-B", "-m", "twisted.trial", tests, cwd=tmp_path)
