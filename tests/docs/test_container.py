"""The page about containers: its files are well-formed, and the guard does in a namespace what they want of it.

There is no container engine here. What one does is done by hand: process 1 of its own process namespace, the user of
the Containerfile, its variables, and a root file system that is read-only but for the volume.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import smtplib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commandline import parsed
from documents import DOCS, ROOT
from processes import PATIENCE_SECONDS, TWIST, eventually, listening
from programs import missing
from shell import free_port

FOLDER = DOCS / "examples" / "container"
CONTAINERFILE, CONFIG, KUBERNETES = (
    FOLDER / name for name in ("Containerfile", "guard.conf", "kubernetes.yaml")
)
PAGE = DOCS / "how-to" / "run-in-a-container.md"
TEXT = PAGE.read_text()


def instructions() -> dict[str, list[str]]:
    """The arguments of each kind of instruction, with continued lines joined and comments left out."""
    joined = re.sub(r"\\\n", "", re.sub(r"(?m)^\s*#.*\n", "", CONTAINERFILE.read_text()))
    found: dict[str, list[str]] = {}
    for line in joined.splitlines():
        name, _, argument = line.partition(" ")
        found.setdefault(name, []).append(argument)
    return found


INSTRUCTIONS = instructions()


def only(name: str) -> str:
    (argument,) = INSTRUCTIONS[name]
    return argument


def entrypoint() -> list[str]:
    words: list[str] = json.loads(only("ENTRYPOINT"))
    return words


def health_check() -> list[str]:
    words: list[str] = json.loads(only("HEALTHCHECK").partition(" CMD ")[2])
    return words


# The files.


@pytest.mark.parametrize(
    ("file", "language"), [(CONTAINERFILE, "text"), (CONFIG, "ini"), (KUBERNETES, "text")], ids=str
)
def test_a_file_that_is_shown_is_the_example(file: Path, language: str) -> None:
    name = file.relative_to(ROOT)
    assert f"<!-- {name} -->\n```{language}\n{file.read_text()}```" in TEXT


def test_what_is_copied_into_the_image_is_in_the_clone() -> None:
    sources = [argument.split()[0] for argument in INSTRUCTIONS["COPY"]]
    assert sources == [".", str(CONFIG.relative_to(ROOT))]
    assert f"--file {CONTAINERFILE.relative_to(ROOT)} " in TEXT


def test_what_it_starts_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (entrypoint()[0], entrypoint()[-1]) == ("twist", "smtpguard")
    name, _, path = only("ENV").partition("=")
    assert [path] == [argument.split()[1] for argument in INSTRUCTIONS["COPY"][1:]]
    monkeypatch.setenv(name, str(CONFIG))
    options = parsed()
    # The last column of the table of engines.
    assert options.limits.shutdown_grace == 20
    grace = [int(number) for number in re.findall(r"\| `?(\d+)s?`? \|$", TEXT, re.MULTILINE)]
    assert grace == [35] * 4
    # Five seconds for verdicts, and five for a delivery that is a service.
    assert all(seconds > options.limits.shutdown_grace + 10 for seconds in grace)
    assert f"--stop-timeout={grace[0]} " in TEXT
    # Its user may write to nothing but the volume.
    assert options.deliver.text.startswith(f"maildir:{only('VOLUME')}/")
    assert only("USER") != "0"


def test_the_health_check_asks_where_the_metrics_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMTPGUARD_CONFIG", str(CONFIG))
    (metrics,) = parsed().texts("metrics")
    kind, port, interface = metrics.split(":")
    assert f"'http://{interface.removeprefix('interface=')}:{port}/healthz'" in health_check()[-1]
    assert kind == "tcp"


@pytest.mark.clients
def test_the_containerfile_has_nothing_that_hadolint_would_do_otherwise() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        missing("hadolint")
    done = subprocess.run([hadolint, CONTAINERFILE], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.fixture
def resources() -> dict[str, Any]:
    """What kubernetes.yaml describes, by kind."""
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError:
        missing("PyYAML")
    return {each["kind"]: each for each in yaml.safe_load_all(KUBERNETES.read_text())}


@pytest.mark.clients
def test_kubernetes_would_take_what_is_described(resources: dict[str, Any]) -> None:
    try:
        import kubernetes_validate  # type: ignore[import-untyped]
    except ImportError:
        missing("kubernetes-validate")
    for resource in resources.values():
        kubernetes_validate.validate(resource, "1.30", strict=True)


@pytest.mark.clients
def test_a_pod_is_what_the_image_is_and_has_time_to_stop(
    resources: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = resources["Deployment"]["spec"]["template"]["spec"]
    (guard,) = pod["containers"]
    assert str(pod["securityContext"]["runAsUser"]) == only("USER")
    assert guard["securityContext"]["readOnlyRootFilesystem"]
    monkeypatch.setenv("SMTPGUARD_CONFIG", str(CONFIG))
    for variable in guard["env"]:
        monkeypatch.setenv(variable["name"], variable["value"])
    options = parsed()
    assert not options.deliver.text.startswith("maildir:")
    listened = {port["name"]: port["containerPort"] for port in guard["ports"]}
    assert options.texts("listen") == [f"tcp6:{listened['smtp']}"]
    assert options.texts("metrics") == [f"tcp6:{listened['metrics']}"]
    probes = {name: guard[f"{name}Probe"]["httpGet"] for name in ("readiness", "liveness")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "readiness": "/healthz",
        "liveness": "/metrics",
    }
    assert {probe["port"] for probe in probes.values()} == {"metrics"}
    (_, seconds) = guard["lifecycle"]["preStop"]["exec"]["command"]
    assert pod["terminationGracePeriodSeconds"] >= int(seconds) + options.limits.shutdown_grace + 15
    service = resources["Service"]["spec"]
    assert service["selector"] == resources["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert [port["targetPort"] for port in service["ports"]] == ["smtp"]


# The guard in a namespace.

_SETUP = (
    'mount --bind "$1" "$1" && mount -o remount,bind,ro / && user=$2 && shift 2 &&'
    ' exec unshare --user --map-user="$user" --map-group="$user" "$@"'
)
"""Makes everything read-only but the volume, and goes on as the user, who has no privilege."""


def contained(volume: Path, *words: str) -> list[str]:
    """The words that run a command as a container engine would."""
    namespaces = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--kill-child", "--mount-proc"]
    return [*namespaces, "sh", "-c", _SETUP, "sh", str(volume), only("USER"), *words]


@pytest.fixture(scope="module")
def namespaces() -> None:
    """This kernel, and the container that the tests may run in, lets its users have some."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        missing("unshare")
    if subprocess.run(contained(Path("/tmp"), "true"), check=False, capture_output=True).returncode:
        missing("a kernel that lets users have namespaces")


class Contained:
    """A guard that was started as the Containerfile says, but for the ports and the volume's path."""

    def __init__(self, volume: Path) -> None:
        self.health_port = free_port()
        self._log = volume.parent / "log"
        environment = {
            only("ENV").partition("=")[0]: str(CONFIG),
            "SMTPGUARD_LISTEN": "tcp:0:interface=127.0.0.1",
            "SMTPGUARD_METRICS": f"tcp:{self.health_port}:interface=127.0.0.1",
            "SMTPGUARD_DELIVER": f"maildir:{volume}/Maildir",
            "SMTPGUARD_GREET_DELAY": "0",
        }
        words = [str(TWIST), *entrypoint()[1:]]
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                contained(volume, *words),
                cwd=volume,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_until_it_listens(self) -> tuple[str, int]:
        def listens() -> bool:
            assert self.process.poll() is None, self.log
            return bool(listening(self.log))

        eventually(listens, f"it does not listen: {self.log}")
        (address,) = listening(self.log)
        assert isinstance(address, tuple)
        return address

    @property
    def pid(self) -> int:
        """Its number outside of its namespace."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        (guard,) = map(int, children)
        return guard

    def health(self) -> int:
        """The exit status of the image's health check."""
        python, *words = [word.replace(":9525/", f":{self.health_port}/") for word in health_check()]
        assert python == "python"
        done = subprocess.run([sys.executable, *words], check=False, capture_output=True)
        return done.returncode


@pytest.fixture
def guard(tmp_path: Path, namespaces: None) -> Iterator[Contained]:
    (tmp_path / "volume").mkdir()
    started = Contained(tmp_path / "volume")
    yield started
    started.process.kill()
    started.process.wait(PATIENCE_SECONDS)


def test_as_process_1_without_a_privilege_or_a_place_to_write_it_takes_mail_and_is_well(
    guard: Contained, tmp_path: Path
) -> None:
    address = guard.wait_until_it_listens()
    status = Path(f"/proc/{guard.pid}/status").read_text()
    assert re.search(r"^NSpid:\t\d+\t1$", status, re.MULTILINE)
    assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
    assert Path(f"/proc/{guard.pid}/mounts").read_text().splitlines()[0].split()[3].startswith("ro,")
    with smtplib.SMTP(*address, timeout=PATIENCE_SECONDS) as client:
        client.sendmail("a@example.com", "b@example.org", "Subject: hello\n\nHello.\n")
    assert len(list((tmp_path / "volume/Maildir/new").iterdir())) == 1
    assert guard.health() == 0
    assert "Traceback" not in guard.log


def test_as_process_1_it_heeds_the_signal_of_a_stop_and_ends_with_status_0(guard: Contained) -> None:
    guard.wait_until_it_listens()
    os.kill(guard.pid, getattr(signal, only("STOPSIGNAL")))
    assert guard.process.wait(PATIENCE_SECONDS) == 0
    assert '"event": "stopped"' in guard.log
    assert guard.health() != 0


def test_the_command_that_checks_runs_in_the_container_too(tmp_path: Path, namespaces: None) -> None:
    words = [str(TWIST), *entrypoint()[1:], "--check", f"--deliver=maildir:{tmp_path}/Maildir"]
    environment = {**os.environ, "SMTPGUARD_CONFIG": str(CONFIG)}
    done = subprocess.run(
        contained(tmp_path, *words),
        cwd=tmp_path,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    # What the image may not do: there it may not even look whether it could.
    words[-1] = "--deliver=maildir:/etc/Maildir"
    done = subprocess.run(
        contained(tmp_path, *words),
        cwd=tmp_path,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 64
    assert done.stderr == (
        "--deliver: /etc/Maildir cannot be used as a Maildir: /etc is not a writable directory\n"
    )


def test_the_words_that_start_it_are_options_of_docker() -> None:
    (run,) = re.findall(r"(?m)^docker run ((?:.*\\\n)*.*)$", TEXT)
    words = shlex.split(run.replace("\\\n", " "))
    assert words[-1] == "smtpguard"
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    assert {"--read-only", "--cap-drop", "--volume", "--publish", "--env", "--stop-timeout"} <= set(options)
    assert f"mail:{only('VOLUME')}" in words
    assert f"25:{only('EXPOSE')}" in words
