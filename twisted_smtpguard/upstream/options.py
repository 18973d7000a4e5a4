"""How the mail server behind is reached and treated: `ENDPOINT[,key=value…]` read into values. Pure but for the files
that a value may name."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import attrs

from twisted_smtpguard.arguments import check_fields
from twisted_smtpguard.certificates import read_certificates
from twisted_smtpguard.units import COUNT, SECONDS, one_of, parse_path
from twisted_smtpguard.upstream.login import Credentials, read_credentials

ANNOUNCE = ("received", "xclient", "xforward", "proxy", "proxy-v1")
TLS = ("off", "opportunistic", "required")

_COMMA = re.compile(r"(?<!\\),")
_HOST = re.compile(r"(?:tcp|tls|ssl):(?:host(?:name)?=)?((?:[^:\\]|\\.)+)", re.IGNORECASE)
_NAMED = re.compile(r"(?<!\\):hostname=[^:]")


@attrs.frozen(kw_only=True)
class UpstreamOptions:
    """Every key with its default. Times are in seconds."""

    tls: str = "off"
    """`off`, `opportunistic` (STARTTLS where it is offered, no certificate is looked at) or `required`."""
    tls_name: str = ""
    """Whom the certificate has to name; "": the host that is connected to."""
    tls_ca: str = ""
    """A PEM file with the certificates to trust; "": those of the system."""
    auth: Credentials | None = None
    announce: str = "received"
    """`received`, `xclient`, `xforward`, `proxy` (version 2) or `proxy-v1`."""
    helo: str = ""
    """What the guard calls itself to the server; "": its hostname."""
    connections: int = 50
    """At once."""
    messages: int = 100
    """For which one connection is used; 0: no limit."""
    idle: float = 30.0
    """For which a connection is kept that nobody uses."""
    wait: float = 10.0
    """For a free connection, all being in use."""
    connect: float = 10.0
    """For TCP, for the greeting, and for a handshake. All that is done until a connection is ready has three times as
    long together."""
    timeout: float = 60.0
    """For the answer to a command, and for room to send more of a message."""
    verdict: float = 280.0
    """For the answer to a message. Less than --delivery-timeout."""
    recipients: int = 0
    """Of one message; LMTP only. 0: no limit."""

    def __attrs_post_init__(self) -> None:
        check_fields(self)
        for name, choices in (("tls", TLS), ("announce", ANNOUNCE)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}")
        for name in _NUMBERS:
            value = getattr(self, name)
            problem = SECONDS.check(value) or (name in _AT_LEAST_ONE and not value and "must be more than 0")
            if problem:
                raise ValueError(f"{name} {problem}, not {value!r}")

    @property
    def proxied(self) -> bool:
        """A connection is one client's."""
        return self.announce in ("proxy", "proxy-v1")

    @property
    def tells_client(self) -> bool:
        """The server's own rules see the client's address, and not ours."""
        return self.proxied or self.announce == "xclient"


def _certificate_file(path: str) -> str:
    read_certificates(path := parse_path(path))
    return path


def _credentials_file(path: str) -> Credentials:
    return read_credentials(parse_path(path))


def _word(name: str) -> str:
    if re.fullmatch(r"[!-~]{1,255}", name) is None:
        raise ValueError("one word of printable ASCII is expected")
    return name


_KEYS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "tls": ("tls", one_of(*TLS).parse),
    "tls-name": ("tls_name", str),
    "tls-ca": ("tls_ca", _certificate_file),
    "auth": ("auth", _credentials_file),
    "announce": ("announce", one_of(*ANNOUNCE, "proxy-v2").parse),
    "helo": ("helo", _word),
    "connections": ("connections", COUNT.parse),
    "messages": ("messages", COUNT.parse),
    "idle": ("idle", SECONDS.parse),
    "wait": ("wait", SECONDS.parse),
    "connect": ("connect", SECONDS.parse),
    "timeout": ("timeout", SECONDS.parse),
    "verdict": ("verdict", SECONDS.parse),
    "recipients": ("recipients", COUNT.parse),
}
"""Of each key the field, and what makes its value of the text."""

_NUMBERS = ("connections", "messages", "idle", "wait", "connect", "timeout", "verdict", "recipients")
_AT_LEAST_ONE = ("connections", "connect", "timeout", "verdict", "wait")


@attrs.frozen
class Upstream:
    """What an operator wrote: the endpoint's string, and the rest."""

    endpoint: str
    options: UpstreamOptions

    @property
    def kind(self) -> str:
        """What stands before the first colon of the endpoint, which Twisted takes in capitals too."""
        return self.endpoint.partition(":")[0].lower()

    @property
    def host(self) -> str:
        """The host of the endpoint, "" where it has none, as a UNIX socket."""
        match = _HOST.match(self.endpoint)
        return re.sub(r"\\(.)", r"\1", match[1]) if match else ""


def parse_upstream(name: str, text: str) -> Upstream:
    """`tcp:10.0.0.5:25,tls=required` of the delivery `name`. ValueError is one sentence about what is wrong. A comma in
    the endpoint is written `\\,`."""
    endpoint, *settings = (part.replace("\\,", ",") for part in _COMMA.split(text))
    if not endpoint:
        raise ValueError(f"{name} needs a client endpoint, such as {name}:tcp:127.0.0.1:25")
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if key not in _KEYS or not equals:
            raise ValueError(f"{setting!r} is no key=value of {name}; known are {', '.join(_KEYS)}")
        if _KEYS[key][0] in values:
            raise ValueError(f"{key} stands twice")
        field, parse = _KEYS[key]
        try:
            values[field] = parse(value)
        except ValueError as error:
            raise ValueError(
                f"{key}: {error}" + ("" if value and str(error).startswith(value) else f", not {value!r}")
            ) from error
        if key in _AT_LEAST_ONE and not values[field]:
            raise ValueError(f"{key}: more than 0 is expected")
    if values.get("announce") == "proxy-v2":
        values["announce"] = "proxy"
    upstream = Upstream(endpoint, UpstreamOptions(**values))
    problem = _contradiction(name, upstream)
    if problem:
        raise ValueError(problem)
    return upstream


def _contradiction(name: str, upstream: Upstream) -> str:
    options = upstream.options
    implicit = upstream.kind in ("tls", "ssl")
    if upstream.kind == "ssl" and not _NAMED.search(upstream.endpoint):
        return "ssl: endpoints need hostname=, for without it any certificate is good enough: write tls:HOST:PORT"
    if implicit and options.tls != "off":
        return "tls: the endpoint is under TLS already"
    if implicit and options.tls_ca:
        return "tls-ca= is for STARTTLS: of an endpoint under TLS its own string says whom to trust, by trustRoots="
    if implicit and options.tls_name:
        return "tls-name= is for STARTTLS: of an endpoint under TLS its own string says whom to expect"
    if implicit and options.proxied:
        return f"announce={options.announce} needs an endpoint in clear, for a PROXY header stands before TLS"
    if options.tls != "required" and (options.tls_ca or options.tls_name):
        return "tls-ca= and tls-name= need tls=required, for no certificate is looked at without it"
    if options.tls == "required" and not (options.tls_name or upstream.host):
        return "tls=required needs tls-name=, for the endpoint has no host that a certificate could name"
    if options.auth and not (implicit or options.tls == "required" or upstream.kind == "unix"):
        return "auth= needs tls=required, for no password is sent in clear"
    if options.auth and options.announce == "xclient":
        return "auth= and announce=xclient exclude each other: XCLIENT makes the server forget who logged in"
    if name != "lmtp" and options.recipients:
        return "recipients= is for lmtp: only"
    return ""
