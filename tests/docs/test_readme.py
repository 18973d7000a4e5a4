"""The README does what it says."""

from __future__ import annotations

import re
import smtplib
import subprocess
import sys
from pathlib import Path

import twisted_smtpguard
from twisted_smtpguard import replies
from twisted_smtpguard.limits.limits import Limits

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_its_table_of_limits_is_true() -> None:
    specs = {spec.option: spec for spec in Limits.specs()}
    rows = re.findall(r"^\| `--([a-z-]+)` \| (\S+) \| (.+) \|$", README, re.MULTILINE)
    assert len(rows) >= 10
    for option, default, reply in rows:
        spec = specs[option]
        true = [getattr(replies, name).wire.decode().strip() for name in spec.replies] or [
            "nothing can be said"
        ]
        assert (option, default, reply.strip("`")) == (option, spec.unit.format(spec.default), true[0])


def test_its_listeners_take_no_port_twice() -> None:
    # tcp6: takes the IPv4 port too on Linux, so that tcp: on the same port is refused.
    ports = [endpoint.split(":")[1] for endpoint in re.findall(r"--listen (\S+)", README)]
    assert len(ports) >= 2
    assert len(set(ports)) == len(ports)


def test_its_example_is_the_one_that_is_run_below() -> None:
    shown = README.split("<!-- docs/examples/embedded.py -->\n```python\n")[1].split("```")[0]
    assert shown == (ROOT / "docs" / "examples" / "embedded.py").read_text()


def test_its_example_receives_mail_and_refuses_it() -> None:
    command = [sys.executable, str(ROOT / "docs" / "examples" / "embedded.py"), "tcp:0:interface=127.0.0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline().rsplit(maxsplit=1)[1])
            with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
                client.sendmail(
                    "a@example.org", ["b@example.org", "c@example.org"], b"Subject: Hi\r\n\r\nx\r\n"
                )
                try:
                    client.sendmail("a@example.org", ["b@example.org"], b"From: a\r\n\r\nx\r\n")
                except smtplib.SMTPDataError as error:
                    refused = error
            assert process.stdout.readline() == "a@example.org to b@example.org, c@example.org: Hi\n"
            assert (refused.smtp_code, refused.smtp_error) == (550, b"5.6.0 A subject is needed")
        finally:
            process.terminate()


def test_every_file_that_it_links_to_exists() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_public_names_are_chosen() -> None:
    public = {name for name in vars(twisted_smtpguard) if not name.startswith("_") and name[0].isupper()}
    assert {*public, "refuse"} == set(twisted_smtpguard.__all__)


def test_importing_the_package_leaves_the_reactor_to_be_chosen() -> None:
    check = "import twisted_smtpguard, sys; assert 'twisted.internet.reactor' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)
