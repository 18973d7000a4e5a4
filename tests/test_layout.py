"""Which part may use which, where tests stand, and what must never be in the tree."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

# Every file is read for all of these, and so by one process.
pytestmark = pytest.mark.xdist_group("layout")

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "twisted_smtpguard"


@cache
def modules() -> Mapping[str, ast.Module]:
    """Each file of the package. Not read where tests are only collected, which every process does that runs some."""
    return {
        path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text())
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def of_room(*rooms: str) -> list[str]:
    """The files of these rooms."""
    return [name for name in modules() if room_of(name) in rooms]


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


ROOMS: dict[str, str] = {
    "__init__": "public",
    "admission": "counters engine hooks inputs interfaces limits log records replies values",
    "authinterfaces": "values",
    "checkers": "engine hooks inputs interfaces limits log replies values",
    "cli": "admission checkers control counters delivery engine filters hooks inputs interfaces limits log metrics "
    "operations policies policyvalues records service state tls transport workers",
    "control": "inputs operations",
    "counters": "hooks inputs interfaces tls values",
    "delivery": "engine hooks inputs interfaces limits replies upstream values",
    "engine": "inputs limits policyvalues replies values",
    "filters": "hooks inputs interfaces limits log replies values",
    "hooks": "engine values",
    "inputs": "",
    "interfaces": "authinterfaces policyvalues replies storeinterfaces values",
    "limits": "inputs replies",
    "metrics": "inputs interfaces limits log operations replies service",
    "log": "hooks inputs interfaces limits replies tls",
    "operations": "admission filters hooks inputs interfaces limits log policyvalues records replies transport "
    "values",
    "policies": "hooks inputs interfaces policyvalues replies values",
    "policyvalues": "inputs replies values",
    "public": "admission checkers control delivery filters limits log metrics policies policyvalues replies "
    "service tls transport upstream values",
    "reactors": "",
    "records": "hooks interfaces values",
    "replies": "inputs",
    "service": "admission hooks inputs interfaces limits log operations policies reactors tls transport values",
    "state": "hooks operations records values",
    "storeinterfaces": "authinterfaces values",
    "testing": "admission delivery hooks inputs interfaces limits policies policyvalues replies transport "
    "values",
    "tls": "engine hooks inputs interfaces",
    "transport": (
        "admission checkers counters engine filters hooks inputs interfaces limits log policies reactors records "
        "replies tls values"
    ),
    "upstream": "hooks inputs limits log replies tls values",
    "values": "inputs replies",
    "workers": "counters hooks log metrics operations reactors records service values",
}
"""What each room may import. docs/explanation/architecture.md has it as a table."""

OF_THE_ENGINE = {
    "admission": {"engine/refusal.py"},
    "checkers": {"engine/port.py", "engine/sasl.py"},
    "cli": {"engine/hostnames.py"},
    "delivery": {"engine/grammar.py", "engine/hostnames.py"},
    "hooks": {"engine/port.py"},
    "tls": {"engine/hostnames.py"},
}
"""What each room but transport may know of the engine: never a session."""

AT_THE_TOP = {
    "__init__.py",
    "authinterfaces.py",
    "interfaces.py",
    "policyvalues.py",
    "public.py",
    "replies.py",
    "storeinterfaces.py",
    "values.py",
}
"""Whatever else there is stands in a room."""

MOST_LINES, FEW_LINES, MOST_SMALL_FILES = 400, 40, 5


def room_of(name: str) -> str:
    """The room of a file. Each of those at the top is its own room."""
    return name.partition("/")[0].removesuffix(".py")


def files_imported(tree: ast.AST) -> set[str]:
    """The files of the package that a file imports: what only a type checker sees, and what a function imports, too."""
    found = set()
    for imported in imports(tree):
        top, _, rest = imported.partition(".")
        if top == PACKAGE.name:
            path = rest.replace(".", "/")
            # A module, a name of one, a package, or a name of one.
            candidates = [
                f"{each}{end}" for each in (path, path.rpartition("/")[0]) for end in (".py", "/__init__.py")
            ]
            found.add(next((each for each in candidates if each in modules()), "__init__.py"))
    return found


@cache
def graph() -> Mapping[str, Collection[str]]:
    """The files of the package that each of them imports."""
    return {name: files_imported(tree) for name, tree in modules().items()}


def circles(imported: Mapping[str, Collection[str]]) -> list[list[str]]:
    """Each set of nodes that can all be reached from each other."""

    def reached(node: str) -> set[str]:
        found: set[str] = set()
        new = set(imported[node])
        while new:
            found |= new
            new = {other for each in new for other in imported[each]} - found
        return found

    reach = {node: reached(node) for node in imported}
    members = {
        frozenset(other for other in reach[node] if node in reach[other])
        for node in imported
        if node in reach[node]
    }
    return sorted(map(sorted, members))


def test_no_file_imports_another_that_imports_it() -> None:
    assert circles(graph()) == []


def test_a_circle_would_be_found() -> None:
    assert circles({"a": "b", "b": "c", "c": "bd", "d": ""}) == [["b", "c"]]
    source = """
if TYPE_CHECKING:
    from twisted_smtpguard.engine.stages import Stage
    from twisted_smtpguard import Limits, replies
def function():
    import twisted_smtpguard.values
    from twisted_smtpguard.engine import table
    from zope.interface import Interface
"""
    files = {"engine/stages.py", "__init__.py", "replies.py", "values.py", "engine/table.py"}
    assert files_imported(ast.parse(source)) == files


def test_a_room_imports_those_that_it_may() -> None:
    for name, others in graph().items():
        allowed = {room_of(name), *ROOMS[room_of(name)].split()}
        assert {other for other in others if room_of(other) not in allowed} == set(), name


def test_only_the_transport_knows_a_session() -> None:
    for name, others in graph().items():
        room = room_of(name)
        if room not in ("engine", "transport"):
            known = {other for other in others if room_of(other) == "engine"}
            assert known - OF_THE_ENGINE.get(room, set()) == set(), name


def test_the_rooms_are_those_that_there_are_and_none_is_allowed_what_it_does_not_need() -> None:
    needed: dict[str, set[str]] = {room_of(name): set() for name in modules()}
    for name, others in graph().items():
        needed[room_of(name)] |= {room_of(other) for other in others} - {room_of(name)}
    assert needed.keys() == ROOMS.keys()
    spare = {room: {*allowed.split()} - needed[room] for room, allowed in ROOMS.items()}
    # It may check an argument, and has none to check.
    spare["engine"] -= {"inputs"}
    assert {room: others for room, others in spare.items() if others} == {}


def test_the_table_of_rooms_says_what_each_imports() -> None:
    text = (ROOT / "docs/explanation/architecture.md").read_text()
    rows = re.findall(r"(?m)^\| \[(\w+)\]\(\S+/__init__\.py\) \|[^|]*\| (.*) \|$", text)
    written = {room: set(allowed.replace("nothing", "").replace(",", " ").split()) for room, allowed in rows}
    folders = {room for room in ROOMS if f"{room}.py" not in AT_THE_TOP}
    assert written == {room: {*ROOMS[room].split()} for room in folders}


def test_no_room_is_allowed_what_leads_back_to_it() -> None:
    assert circles({room: allowed.split() for room, allowed in ROOMS.items()}) == []


def test_at_the_top_stands_what_everybody_asks_for_and_nothing_else() -> None:
    assert {name for name in modules() if "/" not in name} == AT_THE_TOP


def test_no_two_modules_have_the_same_name() -> None:
    names = [name.rpartition("/")[2] for name in modules() if not name.endswith("__init__.py")]
    assert {name for name in names if names.count(name) > 1} == set()


def lines_of(name: str) -> int:
    """How long a file is, all in all."""
    return len((PACKAGE / name).read_text().splitlines())


def test_no_file_is_long_but_the_catalogue_of_replies() -> None:
    assert {name for name in modules() if lines_of(name) > MOST_LINES} <= {"replies.py"}


def test_few_files_are_so_short_that_another_could_hold_them() -> None:
    short = [name for name in modules() if lines_of(name) < FEW_LINES and not name.endswith("__init__.py")]
    assert len(short) <= MOST_SMALL_FILES, sorted(short)


def test_the_plugin_for_twist_alone_imports_the_command_line() -> None:
    assert [
        name for name in modules() if room_of(name) != "cli" and "cli" in map(room_of, graph()[name])
    ] == []
    # `twist` imports it when it is chosen.
    plugins = [
        path.name for path in (ROOT / "twisted").rglob("*.py") if "twisted_smtpguard.cli" in path.read_text()
    ]
    assert plugins == ["twisted_smtpguard.py"]


def test_the_engine_knows_no_clock_no_logger_no_transport_and_no_interface() -> None:
    unknown = {"twisted", "zope", "time", "datetime", "logging", "warnings", "socket", "ssl", "threading"}
    for name in of_room("engine"):
        assert {imported.partition(".")[0] for imported in imports(modules()[name])} & unknown == set(), name


def reached(name: str) -> set[str]:
    """A file, and all of the package that it imports, and they import."""
    found, new = {"__init__.py"}, {name}
    while new:
        found |= new
        new = {other for each in new for other in graph()[each]} - found
    return found - {"__init__.py"}


def test_the_client_side_of_smtp_knows_no_twisted_no_clock_and_no_logger() -> None:
    """Nor does anything that it stands on."""
    unknown = {"twisted", "zope", "time", "logging", "socket", "ssl", "threading", "OpenSSL"}
    name = "upstream/clientengine.py"
    assert {imported.partition(".")[0] for imported in imports(modules()[name])} & unknown == set()
    assert {room_of(each) for each in reached(name)} == {"upstream", "replies", "values", "inputs"}
    of_upstream = {each for each in reached(name) if room_of(each) == "upstream"}
    assert of_upstream == {name, "upstream/refusals.py", "upstream/replyparser.py"}
    for each in of_upstream:
        assert {imported.partition(".")[0] for imported in imports(modules()[each])} & unknown == set()


def test_what_the_engine_stands_on_needs_no_twisted() -> None:
    for name in of_room("values", "policyvalues", "replies", "limits", "inputs"):
        tops = {
            imported.partition(".")[0]
            for node in modules()[name].body
            for imported in imports(node)
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        assert tops & {"twisted", "zope"} == set(), name


def test_admission_knows_nothing_of_the_network_except_deferred_answers() -> None:
    for name in of_room("admission"):
        of_network = [each for each in imports(modules()[name]) if each.startswith("twisted.internet")]
        assert [each for each in of_network if not each.startswith("twisted.internet.defer.")] == [], name


def test_only_events_are_logged_at_info() -> None:
    allowed = {
        "log/events.py": {"self._log.info"},
        "log/serviceevents.py": {"self._log.info"},
        "log/eventlog.py": {"logger.observer"},
        # What Twisted itself would log, warnings and above.
        "transport/listener.py": {"theirs.observer"},
    }
    for name, tree in modules().items():
        informs = {call for call in calls(tree) if call.endswith((".info", ".emit", ".observer", "log.msg"))}
        assert informs == allowed.get(name, set()), name


def test_events_are_made_in_few_files_to_which_the_reference_is_held() -> None:
    makers = [
        name for name, tree in modules().items() if "twisted_smtpguard.log.eventlog.EventLog" in imports(tree)
    ]
    # A password file tells of a wrong line as a reload does, by the same event.
    assert sorted(makers) == [
        "checkers/passwordfile.py",
        "filters/dnsbllist.py",
        "log/eventfile.py",
        "log/events.py",
        "log/serviceevents.py",
        "upstream/notices.py",
    ]


WRITES = ("write", "writeSequence", "writeSomeData", "send", "sendall")


def test_only_the_output_and_the_refusal_at_accept_write_to_a_transport() -> None:
    # What an upstream server is told is written in one place too, and so is what a policy server is, or one of logins,
    # an operator, or a worker.
    writers = {
        "transport/output.py",
        "transport/turnaway.py",
        "upstream/smtpclient.py",
        "policies/policyserver.py",
        "checkers/dovecotconnection.py",
        "control/answering.py",
        "workers/channel.py",
    }
    for name in modules().keys() - writers:
        for call in calls(modules()[name]):
            receiver, _, method = call.rpartition(".")
            if method in WRITES:
                # Files are written to, and not transports.
                assert room_of(name) != "transport" or receiver in ("file", "named"), (name, call)
                assert "transport" not in receiver.lower(), (name, call)


def test_the_engine_writes_to_its_host_and_to_a_message_in_few_places() -> None:
    allowed = {
        "engine/connection.py": {"self.host.write"},
        "engine/engine.py": {"self.host.write"},
        "engine/receiving.py": {"engine.mail.write"},
        # A generator is sent a response.
        "engine/sasl.py": {"self._steps.send"},
    }
    for name in of_room("engine"):
        writes = {call for call in calls(modules()[name]) if call.rpartition(".")[2] in WRITES}
        assert writes == allowed.get(name, set()), name


def test_the_reactor_is_imported_nowhere_but_in_make_service() -> None:
    found = {
        name: [each for each in imports(tree) if names_reactor(each)] for name, tree in modules().items()
    }
    there = found.pop("cli/options.py")
    assert {name for name, reactors in found.items() if reactors} == set()
    functions = [node for node in ast.walk(modules()["cli/options.py"]) if isinstance(node, ast.FunctionDef)]
    (make_service,) = [node for node in functions if node.name == "makeService"]
    assert there == [each for each in imports(make_service) if names_reactor(each)] != []


def modules_after(statement: str) -> set[str]:
    """What a fresh interpreter has in sys.modules after `statement`."""
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_the_plugin_that_twist_imports_chooses_no_reactor() -> None:
    imported = modules_after("import twisted.plugins.twisted_smtpguard")
    assert "twisted.plugins.twisted_smtpguard" in imported
    assert "twisted.internet.reactor" not in imported


def test_importing_every_module_chooses_no_reactor() -> None:
    names = [f"twisted_smtpguard.{name.removesuffix('.py').replace('/', '.')}" for name in sorted(modules())]
    imported = modules_after(f"import {', '.join(name.removesuffix('.__init__') for name in names)}")
    assert {name.removesuffix(".__init__") for name in names} <= imported
    assert "twisted.internet.reactor" not in imported


@pytest.mark.parametrize("path", ["twisted/__init__.py", "twisted/plugins/__init__.py"])
def test_the_folders_that_belong_to_twisted_have_no_init(path: str) -> None:
    assert not (ROOT / path).exists()


def test_the_packages_that_are_built_are_the_folders_that_there_are() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    folders = {path.parent for top in ("twisted_smtpguard", "twisted") for path in (ROOT / top).rglob("*.py")}
    found = sorted(folder.relative_to(ROOT).as_posix().replace("/", ".") for folder in folders)
    assert sorted(setup["options"]["packages"].split()) == found


TESTS = sorted((ROOT / "tests").glob("*/*.py"))
"""With their helpers."""


def test_the_tests_stand_in_a_folder_for_each_room_and_in_those_that_the_page_names() -> None:
    text = (ROOT / "docs/explanation/architecture.md").read_text()
    named = re.findall(r"(?m)^\| `tests/(\w+)` \|", text)
    rooms = [room for room in ROOMS if f"{room}.py" not in AT_THE_TOP]
    assert sorted({path.parent.name for path in TESTS}) == sorted([*rooms, *named])


def test_no_test_stands_loose_but_this_one_and_none_among_the_helpers_of_all() -> None:
    assert {path.name for path in (ROOT / "tests").glob("*.py")} == {"conftest.py", Path(__file__).name}
    assert list((ROOT / "tests" / "support").glob("test_*.py")) == []


def test_no_two_files_of_the_tests_have_the_same_name() -> None:
    names = [path.name for path in TESTS]
    assert {name for name in names if names.count(name) > 1} == set()


def test_a_test_takes_helpers_from_its_own_folder_or_from_those_of_all() -> None:
    folders = {each.stem: each.parent.name for each in TESTS}
    for path in TESTS:
        tree = ast.parse(path.read_text())
        taken = {folders.get(name.partition(".")[0], "support") for name in imports(tree)}
        assert taken <= {path.parent.name, "support"}, path


def test_what_is_imported_of_others_is_required() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = [each for each in setup["options"]["install_requires"].splitlines() if not each.startswith("#")]
    required = {line.partition(">=")[0].strip() for line in lines if line}
    required |= {"uvloop", "metrics", "redis"} & set(setup["options.extras_require"])
    brought_by = {
        "prometheus_client": "metrics",
        "txredisapi": "redis",
        "OpenSSL": "Twisted[tls]",
        "cryptography": "Twisted[tls]",
        "twisted": "Twisted[tls]",
        "zope": "zope.interface",
    }
    # Twisted's own API has its types.
    brought_by["constantly"] = "Twisted[tls]"
    imported = {name.partition(".")[0] for tree in modules().values() for name in imports(tree)}
    others = imported - sys.stdlib_module_names - {"twisted_smtpguard"}
    assert {brought_by.get(name, name) for name in others} == required


def test_all_metadata_stands_in_setup_cfg() -> None:
    # A [project] table would override it, mostly without a word.
    assert "[project]" not in (ROOT / "pyproject.toml").read_text().splitlines()


def test_no_private_name_of_pyopenssl_is_used() -> None:
    """They change with its versions. `Context.get_cert_store()` and `Connection.get_peer_cert_chain()` do not."""
    private = {"_lib", "_ffi", "_ssl", "_x509", "_pkey", "_store_ctx"}
    for name, tree in modules().items():
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not used & private, name
