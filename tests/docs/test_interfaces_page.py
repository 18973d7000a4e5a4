"""docs/reference/interfaces.md says what interfaces.py says."""

from __future__ import annotations

from interfaces_page import BEGIN, PAGE, documented, generated
from zope.interface.interface import InterfaceClass

from twisted_smtpguard import interfaces


def test_the_page_is_the_text_of_the_code() -> None:
    written = PAGE.read_text().partition(BEGIN)[2].strip()
    assert written == generated().strip(), "python tests/docs/interfaces_page.py writes it anew"


def test_the_page_leaves_no_interface_out() -> None:
    names = {name for name, value in vars(interfaces).items() if isinstance(value, InterfaceClass)}
    names -= {"Interface"}
    assert names <= documented().keys()
    headings = [line.removeprefix("### ") for line in generated().splitlines() if line.startswith("### ")]
    assert sorted(headings) == sorted(documented())


def test_the_page_has_every_method_with_its_types() -> None:
    for name in documented():
        value = getattr(interfaces, name)
        if isinstance(value, InterfaceClass):
            for member in value.names():
                assert f"`{member}(" in generated() or f"- `{member}: " in generated(), member
