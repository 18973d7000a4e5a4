"""Which commands of the documents no test runs, and why. All others are to be run."""

from __future__ import annotations

from pathlib import Path

from documents import Command, commands, name_of

NEEDS_SYSTEMD = "wants a systemd that runs; test_systemd.py has the units looked at by systemd-analyze"
NOT_RUN = {
    "README.md": {
        "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest -n 3 --dist loadgroup": (
            "is the run of all tests, and a step of .ci/run"
        ),
    },
    "docs/reference/filters.md": {
        ".venv/bin/python -m benchmarks.networks": "takes a minute on a machine that does nothing else",
    },
    "docs/how-to/change-limits-while-it-runs.md": {
        "systemctl reload twisted-smtpguard.service": NEEDS_SYSTEMD
    },
    "docs/how-to/keep-the-log.md": {"journalctl -u twisted-smtpguard": NEEDS_SYSTEMD},
    "docs/how-to/run-under-systemd.md": dict.fromkeys(
        (
            "systemctl daemon-reload",
            "systemctl enable --now twisted-smtpguard.socket twisted-smtpguard.service",
            "systemctl status twisted-smtpguard.service",
            "journalctl -u twisted-smtpguard",
            "systemctl reload twisted-smtpguard.service",
            "systemctl restart twisted-smtpguard.service",
            "systemctl stop twisted-smtpguard.socket twisted-smtpguard.service",
            "systemctl edit twisted-smtpguard.service",
            "systemd-analyze security twisted-smtpguard.service",
        ),
        NEEDS_SYSTEMD,
    ),
}
"""Commands of a page that no test can run, and why."""

MENTIONED = {
    "kill -9": "a signal",
    "kill -HUP": "a signal",
    "ulimit -n": "what is asked for the number of descriptors",
    "twist --log-file=PATH": "an option of twist",
    "twist --log-format": "an option of twist",
    "twist --log-format=text": "an option of twist",
    "twist --log-format=text|json": "an option of twist",
    "twist --log-level": "an option of twist",
    "twist --log-level=debug": "an option of twist",
    "twist --log-level=LEVEL": "an option of twist",
    "twist --log-level=warn": "an option of twist",
    "twist --reactor=NAME": "an option of twist",
    "twist mailroom": "the name of a program",
    "twist smtpguard": "the name of a program",
}
"""What looks like a command in a sentence, and names something."""


def to_be_run(page: Path) -> list[Command]:
    """The commands of a page but for those that the tables except."""
    excepted = NOT_RUN.get(name_of(page), {}).keys() | MENTIONED.keys()
    return [command for command in commands(page) if command.words not in excepted]
