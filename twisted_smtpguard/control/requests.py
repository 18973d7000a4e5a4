"""The lines of the control protocol, which docs/reference/control-protocol.md describes. No Twisted, no socket."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

VERSION = 1
"""The version of the protocol. It changes when what a program may rely on changes."""

MAX_REQUEST_OCTETS = 64 * 1024
"""The longest line of a request, its LF included."""

MAX_ID_CHARACTERS = 64

DEFAULT_PATH = "/run/smtpguard/control.sock"
"""Where `smtpguardctl` looks for a socket if it is told nothing."""


class Request(NamedTuple):
    """One request, whose arguments have not been looked at."""

    verb: str
    arguments: dict[str, object]
    id: str | int | None = None
    """What the client calls it. Every line of the answer has it."""


class RequestError(ValueError):
    """A line is no request. The text is a sentence for the client; `id` is what could be read of the request's."""

    def __init__(self, problem: str, id: str | int | None = None) -> None:  # noqa: A002 - the field's name
        super().__init__(problem)
        self.id = id


def parse_request(line: bytes) -> Request:
    """The request in a line. RequestError: it is none, or one of another version."""
    try:
        given = json.loads(line)
    # A line of brackets only is too deep for the parser.
    except (ValueError, RecursionError):
        raise RequestError('a line of JSON such as {"version": 1, "verb": "status"} is expected') from None
    if not isinstance(given, dict):
        raise RequestError("an object of JSON is expected")
    name = given.get("id")
    fits = isinstance(name, str | int | None) and len(str(name)) <= MAX_ID_CHARACTERS
    if not fits:
        raise RequestError(f"id must be a number or a text of at most {MAX_ID_CHARACTERS} characters")
    if given.get("version") != VERSION:
        raise RequestError(f"version must be {VERSION}, the only one that this guard speaks", name)
    verb, arguments = given.get("verb"), given.get("args", {})
    if not isinstance(verb, str):
        raise RequestError("verb must be a text", name)
    if not isinstance(arguments, dict):
        raise RequestError("args must be an object", name)
    unknown = given.keys() - {"version", "id", "verb", "args"}
    if unknown:
        raise RequestError(f"a request has no field {min(unknown)[:40]!r}", name)
    return Request(verb, arguments, name)


def line_of(value: dict[str, Any]) -> bytes:
    """One line of JSON, which is printable ASCII."""
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"


def request_line(verb: str, arguments: dict[str, str]) -> bytes:
    """The line of a request without an id."""
    return line_of({"version": VERSION, "verb": verb, "args": arguments})
