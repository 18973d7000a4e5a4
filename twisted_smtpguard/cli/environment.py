"""The environment variables `SMTPGUARD_…`, one for each option that may stand in a --config file, and SMTPGUARD_CONFIG.

An option that may be repeated has all its values in one variable, with blanks or line ends between them, as one would
write them on a command line. A value with a blank in it stands in quotes. Nothing else is special: a backslash, which
endpoint strings need, is a backslash.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping

from twisted.python.usage import UsageError

from twisted_smtpguard.cli.configuration import ENVIRONMENT, Setting, variable

_PREFIX = "SMTPGUARD_"
_VALUE = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([^\s"']\S*))(?=\s|$)""")
_OF_KUBERNETES = re.compile(
    r"_SERVICE_HOST$|_SERVICE_PORT(_[A-Z0-9_]+)?$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$"
)
"""What Kubernetes sets for a Service whose name begins with smtpguard, beside …_PORT, which is told by its value."""


def read_environment(
    environment: Mapping[str, str], options: Collection[str], repeatable: Collection[str]
) -> list[Setting]:
    """Every setting in `environment`. `options` has every name that the --config file may contain.

    UsageError names the variable. Values are not checked.
    """
    names = {variable(option): option for option in (*options, "config")}
    settings: list[Setting] = []
    for name, value in sorted(environment.items()):
        if not name.startswith(_PREFIX):
            continue
        if name not in names:
            if _OF_KUBERNETES.search(name) or (name.endswith("_PORT") and "://" in value):
                continue
            close = difflib.get_close_matches(name, names, 1)
            hint = f", did you mean {close[0]}?" if close else ""
            raise UsageError(f"{name}: there is no option of that name for the environment{hint}")
        setting = Setting(names[name], value.strip(), ENVIRONMENT)
        if not setting.text:
            raise setting.wrong("there is no value in it")
        if setting.option in repeatable:
            with setting.blamed(f", not {setting.text!r}"):
                settings += [Setting(setting.option, text, ENVIRONMENT) for text in _values(setting.text)]
        else:
            settings.append(setting)
    return settings


def _values(text: str) -> list[str]:
    """The values in `text`, which has one at least."""
    values, end = [], 0
    while end < len(text):
        found = _VALUE.match(text, end)
        if found is None:
            raise ValueError(
                "values with blanks between them, in quotes if there is a blank in one, are expected"
            )
        values.append(next(each for each in found.groups() if each is not None))
        end = found.end()
    return values
