"""The sentences for the operator about an endpoint: why its string is wrong, and why it cannot be listened on."""

from __future__ import annotations

import errno
import os
import re
import shlex
from collections.abc import Collection

from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort

_ADDRESS = re.compile(
    r"""(?P<before>.*?(?<=[:=]))
    \[?(?P<ip>[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f.]*)\]?
    (?P<after>(?::.*)?)""",
    re.VERBOSE,
)
_SOCKET = re.compile(r"systemd:(?:.*:)?(name|index)=([^:]*)")


def wrong_string(text: str, error: Exception) -> str:
    """Why the string `text` makes no endpoint. `error` is the exception of Twisted's parser, or of a plugin's."""
    if text.startswith("systemd:") and isinstance(error, KeyError | IndexError):
        return _no_such_socket(text)
    # A TypeError begins with the name of one of Twisted's functions, which tells an operator nothing.
    detail = re.sub(r"^[\w.]+\(\) ", "", str(error))
    # For a misspelt keyword the text of the exception says more than the hint.
    if "unexpected keyword" not in detail:
        detail = escape_hint(text) or detail
    return f"an endpoint such as tcp:2525:interface=127.0.0.1 is expected, not {text!r} ({detail})"


def escape_hint(text: str) -> str:
    """The sentence on how to escape the IPv6 address in `text`; "" if `text` has no unescaped one."""
    bare = re.sub(r"\\.", "", text)
    found = _ADDRESS.fullmatch(text)
    if not re.match(r"tcp6?:|ssl:|tls:|\[", bare):
        return ""
    if "::" not in bare and "[" not in bare and not (found and found["ip"].count(":") > 2):
        return ""
    hint = "the colons of an IPv6 address are written \\:"
    if found is None or "\\" in text:
        return f"{hint}, as in 'tcp6:2525:interface=\\:\\:1'"
    address = found["ip"].replace(":", "\\:")
    before = re.sub(r"^tcp(?=:\d)", "tcp6", found["before"])
    return f"{hint}: {shlex.quote(before + address + found['after'])}"


def client_hint(text: str) -> str:
    """As `escape_hint`, for the string of an upstream server."""
    hint = "the colons of an IPv6 address are written \\:, as in 'tcp:host=2001\\:db8\\:\\:1:port=25'"
    return hint if escape_hint(text) else ""


def _no_such_socket(text: str) -> str:
    asked = _SOCKET.match(text)
    kind, which = asked.groups() if asked else ("name", "")
    # Twisted removes the other variables of sd_listen_fds(3) from the environment, and leaves this one.
    names = os.environ.get("LISTEN_FDNAMES")
    passed = f"it has passed {', '.join(map(repr, names.split(':')))}; " if names else ""
    called = f" with FileDescriptorName={which}" if kind == "name" else ""
    return (
        f"systemd has passed no socket of the {kind} {which!r}: {passed}is there a socket unit{called}, and has it "
        "started this service?"
    )


def why_not(name: str, error: Exception, others: Collection[tuple[str, IListeningPort]]) -> str:
    """Why the guard cannot listen on the endpoint `name`. `others` are the names and ports of the endpoints on which it
    listens already."""
    if isinstance(error, CannotListenError):
        problem = error.socketError
        if isinstance(problem, OSError) and problem.errno == errno.EADDRINUSE:
            for other, port in others:
                if getattr(port.getHost(), "port", None) == error.port:
                    if other.partition(":")[0] == name.partition(":")[0]:
                        return f"{other} listens on port {error.port} already"
                    return (
                        f"{other} listens on port {error.port} already, and a tcp6: endpoint on all addresses takes "
                        "IPv4 clients too: the tcp6: one alone is enough"
                    )
        if "lock" in str(problem):
            return "another process listens on that socket"
    if isinstance(error, OSError) and error.strerror:
        # An error about a link has two file names, of which the second is that of the new link.
        path = os.fsdecode(error.filename2 or error.filename or "").removesuffix(".lock")
        if path:
            folder = os.path.dirname(path)  # noqa: PTH120 - it may be no path that Path takes
            if error.errno == errno.ENOENT:
                return f"there is no directory {folder}"
            return f"{path}: {error.strerror}"
    return str(error)
