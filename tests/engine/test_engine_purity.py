"""The engine needs neither Twisted nor zope: it is imported, and holds a dialogue, where neither can be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "twisted_smtpguard"
PURE = sorted(
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
    for path in (
        *(PACKAGE / "engine").glob("*.py"),
        *(PACKAGE / "limits").glob("*.py"),
        PACKAGE / "replies.py",
        PACKAGE / "values.py",
    )
)

# The package's own __init__ imports the public names, most of which need Twisted: a bare module stands for it.
WITHOUT_TWISTED = f"""
import sys, types

class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("twisted", "zope", "OpenSSL"):
            raise ImportError(f"{{name}} cannot be imported here")

sys.meta_path.insert(0, Nowhere())
package = types.ModuleType("twisted_smtpguard")
package.__path__ = [{str(PACKAGE)!r}]
sys.modules["twisted_smtpguard"] = package
sys.path.insert(0, {str(ROOT / "tests" / "engine")!r})
"""

DIALOGUE = r"""
from purehost import PureDelivery, PureGuard

plan = {"begin": "later", "finish": "later"}
guard = PureGuard(PureDelivery(lambda hook: plan.pop(hook, "now")))
client = guard.connect()
client.send(b"EHLO client.example\r\nMAIL FROM:<a@b.example>\r\n")
assert client.codes() == [220, 250]
guard.answer_all()
client.send(b"RCPT TO:<c@d.example>\r\nDATA\r\nSubject: x\r\n\r\ny\r\n.\r\nQUIT\r\n")
assert client.codes() == [250, 250, 354]
guard.answer_all()
assert client.codes() == [250, 221]
assert guard.delivery.messages == [b"Subject: x\r\n\r\ny\r\n"]
guard.check_all_given_back()
"""


def run(code: str) -> str:
    """What a fresh interpreter prints that can import neither Twisted nor zope."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TWISTED + code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_twisted_cannot_be_imported() -> None:
    with pytest.raises(AssertionError, match=r"ImportError: (twisted|zope)[a-z.]* cannot be imported here"):
        run("import twisted_smtpguard.transport.protocol")


def test_the_engine_and_all_that_it_stands_on_is_imported_without_twisted() -> None:
    assert "twisted_smtpguard.engine.engine" in PURE
    assert set(PURE) <= set(run(f"import {', '.join(PURE)}; print(*sys.modules)").split())


def test_a_dialogue_is_held_without_twisted() -> None:
    assert run(DIALOGUE) == ""
