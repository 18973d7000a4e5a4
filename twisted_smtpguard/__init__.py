"""An SMTP service for Twisted that stays up under abuse: the names that applications and plugins use.

They stand in public.py, which is imported when the first of them is asked for, so that `smtpguardctl`, which asks for
none, starts without Twisted.
"""

import typing
from importlib import import_module
from importlib.util import find_spec

if typing.TYPE_CHECKING:
    from twisted_smtpguard.public import *  # noqa: F403
else:

    def __getattr__(name):
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        # `from twisted_smtpguard import replies` inside the package must not import all of it.
        if find_spec(f"{__name__}.{name}") is not None:
            return import_module(f"{__name__}.{name}")
        public = import_module(f"{__name__}.public")
        globals().update({each: getattr(public, each) for each in ("__all__", *public.__all__)})
        if name not in globals():
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return globals()[name]
