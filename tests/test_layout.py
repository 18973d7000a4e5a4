"""Which part may use which, and what must never be in the tree."""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "twisted_smtpguard"
MODULES = {
    path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")
}
each_module = pytest.mark.parametrize("name", sorted(MODULES))


def imports(tree: ast.AST) -> Iterator[str]:
    """The full name of everything that is imported below `tree`, functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that they can be searched for"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(tree: ast.AST) -> Iterator[str]:
    """The source of what is called, arguments left out: `self._logger.info`."""
    return (ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call))


def names_reactor(name: str) -> bool:
    return name in ("twisted.internet.reactor", "twisted.internet.default") or name.endswith(
        "reactor.install"
    )


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.startswith("engine/")))
def test_the_engine_knows_neither_twisted_nor_the_other_rooms(name: str) -> None:
    known = ("engine", "inputs", "limits", "replies", "values")
    for imported in imports(MODULES[name]):
        first, _, rest = imported.partition(".")
        assert first not in ("twisted", "zope", "OpenSSL"), imported
        assert first != "twisted_smtpguard" or rest.partition(".")[0] in known, imported


@each_module
def test_only_events_logs_at_info(name: str) -> None:
    informs = {
        call for call in calls(MODULES[name]) if call.endswith((".info", ".emit", ".observer", "log.msg"))
    }
    allowed = {
        "log/events.py": {"self._log.info"},
        "log/eventlog.py": {"logger.observer"},
        # What Twisted itself would log, warnings and above.
        "transport/acceptlog.py": {"theirs.observer"},
    }
    assert informs == allowed.get(name, set())


def test_events_are_made_in_three_files_to_which_the_reference_is_held() -> None:
    makers = [
        name for name, tree in MODULES.items() if "twisted_smtpguard.log.eventlog.EventLog" in imports(tree)
    ]
    # A password file tells of a wrong line as a reload does, by the same event.
    assert sorted(makers) == ["checkers/passwordfile.py", "log/events.py", "upstream/notices.py"]


@each_module
def test_only_the_output_and_the_refusal_at_accept_write_to_a_transport(name: str) -> None:
    # What the mail server behind is told is written in one place too.
    if name in ("transport/output.py", "transport/turnaway.py", "upstream/connection.py"):
        return
    for call in calls(MODULES[name]):
        receiver, _, method = call.rpartition(".")
        if method in ("write", "writeSequence", "writeSomeData", "send", "sendall"):
            assert not name.startswith("transport/"), call
            assert "transport" not in receiver.lower(), call


@each_module
def test_the_reactor_is_imported_nowhere_but_in_make_service(name: str) -> None:
    found = [each for each in imports(MODULES[name]) if names_reactor(each)]
    if name != "cli/options.py":
        assert found == []
        return
    functions = [node for node in ast.walk(MODULES[name]) if isinstance(node, ast.FunctionDef)]
    (make_service,) = [node for node in functions if node.name == "makeService"]
    assert found == [each for each in imports(make_service) if names_reactor(each)] != []


def modules_after(statement: str) -> set[str]:
    """What a fresh interpreter has in sys.modules after `statement`."""
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_the_plugin_that_twist_imports_chooses_no_reactor() -> None:
    modules = modules_after("import twisted.plugins.twisted_smtpguard")
    assert "twisted.plugins.twisted_smtpguard" in modules
    assert "twisted.internet.reactor" not in modules


def test_importing_every_module_chooses_no_reactor() -> None:
    names = [f"twisted_smtpguard.{name.removesuffix('.py').replace('/', '.')}" for name in sorted(MODULES)]
    modules = modules_after(f"import {', '.join(name.removesuffix('.__init__') for name in names)}")
    assert {name.removesuffix(".__init__") for name in names} <= modules
    assert "twisted.internet.reactor" not in modules


@pytest.mark.parametrize("path", ["twisted/__init__.py", "twisted/plugins/__init__.py"])
def test_the_folders_that_belong_to_twisted_have_no_init(path: str) -> None:
    assert not (ROOT / path).exists()


def test_the_packages_that_are_built_are_the_folders_that_there_are() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    folders = {path.parent for top in ("twisted_smtpguard", "twisted") for path in (ROOT / top).rglob("*.py")}
    found = sorted(folder.relative_to(ROOT).as_posix().replace("/", ".") for folder in folders)
    assert sorted(setup["options"]["packages"].split()) == found


def test_what_is_imported_of_others_is_required() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = [each for each in setup["options"]["install_requires"].splitlines() if not each.startswith("#")]
    required = {line.partition(">=")[0].strip() for line in lines if line}
    brought_by = {
        "OpenSSL": "Twisted[tls]",
        "cryptography": "Twisted[tls]",
        "twisted": "Twisted[tls]",
        "zope": "zope.interface",
    }
    # Twisted's own API has its types.
    brought_by["constantly"] = "Twisted[tls]"
    imported = {name.partition(".")[0] for tree in MODULES.values() for name in imports(tree)}
    others = imported - sys.stdlib_module_names - {"twisted_smtpguard"}
    assert {brought_by.get(name, name) for name in others} == required


def test_all_metadata_stands_in_setup_cfg() -> None:
    # A [project] table would override it, mostly without a word.
    assert "[project]" not in (ROOT / "pyproject.toml").read_text().splitlines()


@each_module
def test_no_private_name_of_pyopenssl_is_used(name: str) -> None:
    """They change with its versions. `Context.get_cert_store()` and `Connection.get_peer_cert_chain()` do not."""
    private = {"_lib", "_ffi", "_ssl", "_x509", "_pkey", "_store_ctx"}
    used = {node.attr for node in ast.walk(MODULES[name]) if isinstance(node, ast.Attribute)}
    assert not used & private
