"""The how-to of an IP filter that anybody can copy.

What holds for its template is in test_plugin_templates.py. Whether `twist` finds it once it is installed is a test in
test_packaging.py.
"""

from __future__ import annotations

import re
from typing import Any

from documents import ROOT
from twisted.internet.task import Clock

from twisted_smtpguard import DiscardDelivery, NetworksFilter

HOW_TO = ROOT / "docs" / "how-to" / "write-an-ip-filter.md"


def test_an_application_gives_its_filters_to_the_service_as_the_how_to_says() -> None:
    (code,) = re.findall(r"```python\n(from twisted_smtpguard import .*?)```", HOW_TO.read_text(), re.DOTALL)
    names: dict[str, Any] = {
        "reactor": Clock(),
        "endpoints": [],
        "delivery": DiscardDelivery(),
        "MyFilter": NetworksFilter,
        "AnotherFilter": NetworksFilter,
    }
    exec(code, names)
    entries = names["service"].factory.filters
    assert [entry.fail_open for entry in entries] == [True, False]
