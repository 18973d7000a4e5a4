"""All Python of the documents is run: what stands in a file by the tests of that file, what a page alone has here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from documents import DOCS, PAGES, ROOT, name_of
from examples import python_of, run_examples
from fakes import codes
from twisted.internet.defer import Deferred
from twistedmail import auth

from twisted_smtpguard import FilterEntry, SMTPGuardService
from twisted_smtpguard.testing import Clients

EXAMPLES = DOCS / "examples"
RUN_BY = {
    "asyncio_program.py": "docs/test_asyncio_program.py",
    "dns_filter": "docs/test_dns_filter.py",
    "embedded.py": "docs/test_readme.py",
    "embedding": "process/test_composition.py",
    "ip_filter_plugin": "docs/test_plugin_templates.py",
    "policy_plugin": "docs/test_plugin_templates.py",
    "twist_plugin": "process/test_composition.py",
    "twisted_mail.py": "docs/test_twistedmail_example.py",
}
"""The tests of a file or folder of docs/examples."""

WITH_PYTHON = [page for page in PAGES if python_of(page)]
SHUTDOWN = DOCS / "how-to" / "shut-down-gracefully.md"
TWISTED_MAIL = DOCS / "how-to" / "use-twisted-mail-code.md"


def of_files(page: Path) -> list[Any]:
    return [block for block in python_of(page) if block.file]


def test_no_block_of_python_is_missed() -> None:
    for page in PAGES:
        assert page.read_text().count("```python") == len(python_of(page)), page
    assert len(WITH_PYTHON) >= 8


@pytest.mark.parametrize("page", [page for page in WITH_PYTHON if of_files(page)], ids=name_of)
def test_a_file_is_shown_as_it_is_and_run_by_its_tests(page: Path) -> None:
    for block in of_files(page):
        file = ROOT / block.file
        assert block.text in file.read_text() if block.is_part else block.text == file.read_text(), block.file
        name = file.relative_to(EXAMPLES).parts[0]
        assert name in (ROOT / "tests" / RUN_BY[name]).read_text()


@pytest.mark.parametrize(
    "page", [page for page in WITH_PYTHON if python_of(page) != of_files(page)], ids=name_of
)
def test_what_a_page_alone_has_runs_and_its_services_start_and_stop(page: Path, tmp_path: Path) -> None:
    names, services = run_examples(page, tmp_path)
    for service in services:
        service.startService()
        assert len(service.ports) >= 1
        stopped: list[object] = []
        service.stopService().addBoth(stopped.append)
        names["reactor"].pump([1] * 10)
        assert len(stopped) == 1


# What they do.


def clients_of(names: dict[str, Any], service: SMTPGuardService) -> Clients:
    return Clients(service.factory, names["reactor"])


def test_no_client_is_let_in_during_the_pause_that_is_shown(tmp_path: Path) -> None:
    names, (service,) = run_examples(SHUTDOWN, tmp_path)
    assert service.factory.context.limits.shutdown_grace == 120
    middle: Deferred[None] = Deferred()
    names["middle"] = middle
    (block,) = python_of(SHUTDOWN)
    (*_, pause) = block.text.partition("\n\n\nasync def")
    assert pause.count("    ...\n") == 1
    exec("async def" + pause.replace("    ...\n", "    await middle\n"), names)

    service.startService()
    clients = clients_of(names, service)
    client = clients.greeted()
    client.heard()
    over: list[object] = []
    Deferred.fromCoroutine(names["pause"]()).addBoth(over.append)
    names["reactor"].advance(0)
    assert codes(client.heard()) == [421]
    client.disconnect()
    names["reactor"].advance(0)
    assert (over, len(service.ports)) == ([], 0)
    assert codes(clients.connect().heard()) == [421]
    middle.callback(None)
    assert (over, len(service.ports)) == ([None], 1)
    assert codes(clients.connect().heard()) == [220]


def test_the_portal_that_is_shown_lets_in_anonymous_clients_and_users(tmp_path: Path) -> None:
    names, (first, second) = run_examples(TWISTED_MAIL, tmp_path)
    realm = names["portal"].realm
    mail = "MAIL FROM:<a@b.example>"
    assert clients_of(names, first).greeted().codes(mail)[-1] == 250
    second.factory.context.auth_without_tls = True
    assert clients_of(names, second).greeted().codes(auth("secret"), mail)[-2:] == [235, 250]
    assert [entry[1] for entry in realm.notebook.seen if entry[0] == "login"] == [(), b"bob"]


def test_a_filter_that_is_shown_to_fail_open_does(tmp_path: Path) -> None:
    _, (service,) = run_examples(DOCS / "how-to" / "write-an-ip-filter.md", tmp_path)
    entries = service.factory.filters
    assert all(isinstance(entry, FilterEntry) for entry in entries)
    assert [entry.fail_open for entry in entries] == [True, False]
