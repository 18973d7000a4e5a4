"""docs/reference/interfaces.md below its introduction, made from interfaces.py and values.py.

    python tests/docs/interfaces_page.py

writes it. test_interfaces_page.py tells when that is due.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from twisted_smtpguard import interfaces

ROOT = Path(__file__).parents[2]
SOURCES = [
    ROOT / "twisted_smtpguard" / name
    for name in ("values.py", "policyvalues.py", "authinterfaces.py", "storeinterfaces.py", "interfaces.py")
]
"""What interfaces.py defines, and the values that it passes on."""
PAGE = ROOT / "docs" / "reference" / "interfaces.md"
BEGIN = "<!-- Below: python tests/docs/interfaces_page.py -->\n"

_CHAPTERS = {
    "IP filters": [
        "IIPFilter",
        "IExplainingFilter",
        "IMeasuredFilter",
        "FilterMetric",
        "IAsksForKnownClients",
        "ISelfTestingFilter",
        "IIPFilterFactory",
        "Verdict",
        "PASS",
        "TRUST",
        "refuse",
    ],
    "Session policies": [
        "ISessionPolicy",
        "ISessionPolicyFactory",
        "PolicyRequest",
        "PolicyVerdict",
        "PolicyUnavailable",
    ],
    "Deliveries": [
        "IDelivery",
        "IMailTransaction",
        "IMessageSink",
        "ISessionDelivery",
        "IRelayDelivery",
        "IRelayTransaction",
        "IPrependingTransaction",
        "IConnectingDelivery",
        "IReservingDelivery",
        "ICheckableDelivery",
        "ICheckingDeliveryFactory",
        "IReportsHealth",
        "IDeliveryFactory",
        "Refused",
    ],
    "Checkers": [
        "ISaslMechanisms",
        "ISaslExchange",
        "LoginClient",
        "Challenge",
        "LoggedIn",
        "CheckerUnavailable",
    ],
    "Reloading": ["IReloadable", "IPreparedReload", "IReadsFiles"],
    "Counting": [
        "ICounterStore",
        "IConnectingCounterStore",
        "IRecordStore",
        "Wanted",
        "Record",
        "RecordsSince",
        "CounterStoreUnavailable",
    ],
    "What they are told": ["Peer", "Client", "Path"],
}
"""Every public name of interfaces.py that has its own text, in the order of the page."""


def statements() -> list[ast.stmt]:
    """All of both files."""
    return [each for source in SOURCES for each in ast.parse(source.read_text()).body]


def documented() -> dict[str, ast.stmt]:
    """The public names of interfaces.py that have a docstring, and where they are defined."""
    body = statements()
    found: dict[str, ast.stmt] = {}
    for statement, text in _with_text(body):
        name = _name(statement)
        if text and name in interfaces.__all__:
            found[name] = statement
    return found


def chapters() -> Iterator[str]:
    """The page below its introduction, a line or a paragraph at a time."""
    where = documented()
    texts = {_name(statement): text for statement, text in _with_text(statements())}
    for title, names in _CHAPTERS.items():
        yield f"## {title}"
        for name in names:
            statement = where[name]
            if isinstance(statement, ast.ClassDef):
                bases = ", ".join(map(ast.unparse, statement.bases))
                yield f"### {name}"
                if bases not in ("", "Interface", "Exception", "NamedTuple"):
                    yield f"Everything of [{bases}](#{bases.lower()}), and:"
                yield _prose(ast.get_docstring(statement))
                yield from _members(statement)
            elif isinstance(statement, ast.FunctionDef):
                yield f"### {name}"
                yield f"`{_signature(statement)}`"
                yield _prose(ast.get_docstring(statement))
            else:
                yield f"### {name}"
                yield _prose(texts[name])


def _members(statement: ast.ClassDef) -> Iterator[str]:
    for member, text in _with_text(statement.body):
        if isinstance(member, ast.FunctionDef) and "property" in map(ast.unparse, member.decorator_list):
            yield f"- `{member.name}: {ast.unparse(member.returns)}`: {_prose(text)}"  # type: ignore[arg-type]
        elif isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
            yield f"**`{_signature(member)}`**"
            yield _prose(text)
        elif isinstance(member, ast.AnnAssign):
            yield _field(member, text)


def _field(member: ast.AnnAssign, text: str) -> str:
    """A field of a value, or an Attribute of an interface, which brings its own text."""
    value, default = member.value, ""
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "Attribute":
        text = ast.literal_eval(value.args[0])
    elif value is not None and not isinstance(value, ast.Call):
        default = f" = {ast.unparse(value)}"
    line = f"- `{ast.unparse(member.target)}: {ast.unparse(member.annotation)}{default}`"
    return f"{line}: {_prose(text)}" if text else line


def _with_text(body: list[ast.stmt]) -> Iterator[tuple[ast.stmt, str]]:
    """Each statement with its docstring, which of a constant or a field is the string after it."""
    for number, statement in enumerate(body):
        text = ""
        if isinstance(statement, ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(statement) or ""
        elif number + 1 < len(body):
            behind = body[number + 1]
            if isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant):
                text = inspect.cleandoc(str(behind.value.value))
        yield statement, text


def _name(statement: ast.stmt) -> str:
    if isinstance(statement, ast.ClassDef | ast.FunctionDef):
        return statement.name
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        return statement.targets[0].id
    return ""


def _signature(function: ast.FunctionDef) -> str:
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return f"{function.name}({ast.unparse(function.args)}){returns}"


def _prose(text: str | None) -> str:
    """A docstring as Markdown: each paragraph on one line, so that it may be folded anywhere in the code."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in (text or "").split("\n\n"))


def generated() -> str:
    """All that stands below BEGIN."""
    text = "\n\n".join(part for part in chapters() if part)
    # The items of one list stand line under line.
    return re.sub(r"^(- .*)\n\n(?=- )", r"\1\n", text, flags=re.MULTILINE) + "\n"


if __name__ == "__main__":
    introduction = PAGE.read_text().partition(BEGIN)[0]
    PAGE.write_text(introduction + BEGIN + "\n" + generated())
