"""The settings of an upstream server: `ENDPOINT[,key=value…]` is read into values. Pure but for the files that a value
may name."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import attrs

from twisted_smtpguard.inputs.arguments import check_fields
from twisted_smtpguard.limits.units import COUNT, SECONDS, Unit, one_of, parse_path
from twisted_smtpguard.tls.certificates import read_certificates
from twisted_smtpguard.upstream.login import Credentials, read_credentials

T = TypeVar("T")

ANNOUNCE = ("received", "xclient", "xforward", "proxy", "proxy-v1")
BDAT = ("client", "small")
TLS = ("off", "opportunistic", "required")

_COMMA = re.compile(r"(?<!\\),")
_HOST = re.compile(r"(?:tcp|tls|ssl):(?:host(?:name)?=)?((?:[^:\\]|\\.)+)", re.IGNORECASE)
_NAMED = re.compile(r"(?<!\\):hostname=[^:]")


def _parse_announce(text: str) -> str:
    return "proxy" if text == "proxy-v2" else one_of(*ANNOUNCE, "proxy-v2").parse(text)


def _parse_certificates(path: str) -> str:
    read_certificates(path := parse_path(path))
    return path


def _parse_word(name: str) -> str:
    if re.fullmatch(r"[!-~]{1,255}", name) is None:
        raise ValueError("one word of printable ASCII is expected")
    return name


def _text(parse: Callable[[str], T]) -> Unit[T]:
    """The unit of a setting that `parse` reads from the operator's text. A value from an application is taken as it
    is."""
    return Unit("text", parse, lambda value: None)


def _more_than_0(unit: Unit[T]) -> Unit[T]:
    return attrs.evolve(
        unit, check=lambda value: unit.check(value) or (None if value else "must be more than 0")
    )


_SOME_SECONDS = _more_than_0(SECONDS)
_ANNOUNCE = attrs.evolve(one_of(*ANNOUNCE), parse=_parse_announce)


@attrs.frozen(kw_only=True)
class UpstreamOptions:
    """The settings of an upstream server, each with its default. Times are in seconds."""

    tls: str = attrs.field(default="off", metadata={"unit": one_of(*TLS)})
    """`off`, `opportunistic` (STARTTLS if the server offers it, without a check of the certificate) or `required`."""
    tls_name: str = attrs.field(default="", metadata={"unit": _text(str)})
    """The name that the certificate must have; "": the host of the endpoint."""
    tls_ca: str = attrs.field(default="", metadata={"unit": _text(_parse_certificates)})
    """A PEM file with the certificates to trust; "": those of the system."""
    auth: Credentials | None = attrs.field(
        default=None, metadata={"unit": _text(lambda path: read_credentials(parse_path(path)))}
    )
    announce: str = attrs.field(default="received", metadata={"unit": _ANNOUNCE})
    """`received`, `xclient`, `xforward`, `proxy` (version 2) or `proxy-v1`."""
    bdat: str = attrs.field(default="client", metadata={"unit": one_of(*BDAT)})
    """`client` (a message goes on by BDAT if it came by BDAT) or `small` (a small one also if it came by DATA)."""
    helo: str = attrs.field(default="", metadata={"unit": _text(_parse_word)})
    """The guard's name in EHLO or LHLO; "": its hostname."""
    connections: int = attrs.field(default=50, metadata={"unit": _more_than_0(COUNT)})
    """How many connections may be open at once."""
    messages: int = attrs.field(default=100, metadata={"unit": COUNT})
    """How many messages one connection is used for; 0: no limit."""
    idle: float = attrs.field(default=30.0, metadata={"unit": SECONDS})
    """How long an unused connection is kept."""
    wait: float = attrs.field(default=10.0, metadata={"unit": _SOME_SECONDS})
    """How long a transaction waits for a free connection."""
    connect: float = attrs.field(default=10.0, metadata={"unit": _SOME_SECONDS})
    """The time limit for each of TCP, the greeting and a TLS handshake. All steps until MAIL together have three times
    as long, with an attempt in clear after a failed handshake."""
    timeout: float = attrs.field(default=60.0, metadata={"unit": _SOME_SECONDS})
    """The time limit for the reply to a command, and for room to send more of a message."""
    verdict: float = attrs.field(default=280.0, metadata={"unit": _SOME_SECONDS})
    """The time limit for the reply to a message. It should be less than --delivery-timeout."""
    recipients: int = attrs.field(default=0, metadata={"unit": COUNT})
    """How many recipients one message may have, in LMTP only; 0: no limit."""

    def __attrs_post_init__(self) -> None:
        check_fields(self)
        for field in attrs.fields(UpstreamOptions):
            value = getattr(self, field.name)
            problem = field.metadata["unit"].check(value)
            if problem:
                raise ValueError(f"{field.name} {problem}, not {value!r}")
        if self.auth and self.announce == "xclient":
            raise ValueError(
                "auth= and announce=xclient exclude each other: XCLIENT makes the server forget who logged in"
            )

    @property
    def proxied(self) -> bool:
        """Whether each connection belongs to one client, which its PROXY header names."""
        return self.announce in ("proxy", "proxy-v1")

    @property
    def server_sees_client(self) -> bool:
        """Whether the server applies its rules to the client's address instead of the guard's."""
        return self.proxied or self.announce == "xclient"


_KEYS = {field.name.replace("_", "-"): field for field in attrs.fields(UpstreamOptions)}
"""The field that each key sets."""


@attrs.frozen
class Upstream:
    """An upstream server as the operator wrote it: the endpoint's string, and the settings."""

    endpoint: str
    options: UpstreamOptions

    @property
    def kind(self) -> str:
        """The type of the endpoint in lower case, such as `tcp`. Twisted allows capitals too."""
        return self.endpoint.partition(":")[0].lower()

    @property
    def host(self) -> str:
        """The host of the endpoint; "" if it has none, such as a UNIX socket."""
        match = _HOST.match(self.endpoint)
        return re.sub(r"\\(.)", r"\1", match[1]) if match else ""


def parse_upstream(name: str, text: str) -> Upstream:
    """Read the argument of the delivery `name`, such as `tcp:10.0.0.5:25,tls=required`. A comma in the endpoint is
    written `\\,`. ValueError says in one sentence what is wrong."""
    endpoint, *settings = (part.replace("\\,", ",") for part in _COMMA.split(text))
    if not endpoint:
        raise ValueError(f"{name} needs a client endpoint, such as {name}:tcp:127.0.0.1:25")
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if key not in _KEYS or not equals:
            raise ValueError(f"{setting!r} is no key=value of {name}; known are {', '.join(_KEYS)}")
        field = _KEYS[key]
        if field.name in values:
            raise ValueError(f"{key} is given twice")
        try:
            values[field.name] = field.metadata["unit"].parse(value)
        except ValueError as error:
            raise ValueError(
                f"{key}: {error}" + ("" if value and str(error).startswith(value) else f", not {value!r}")
            ) from error
    upstream = Upstream(endpoint, UpstreamOptions(**values))
    problem = _contradiction(name, upstream)
    if problem:
        raise ValueError(problem)
    return upstream


def _contradiction(name: str, upstream: Upstream) -> str:
    """What is wrong with settings that contradict each other or the endpoint, in one sentence; "": nothing."""
    options = upstream.options
    implicit = upstream.kind in ("tls", "ssl")
    if upstream.kind == "ssl" and not _NAMED.search(upstream.endpoint):
        return (
            "ssl: endpoints need hostname=, since any certificate is accepted without it: write tls:HOST:PORT"
        )
    if implicit and options.tls != "off":
        return "tls= is for STARTTLS, and the endpoint uses TLS already"
    if implicit and options.tls_ca:
        return "tls-ca= is for STARTTLS: an endpoint with TLS names the certificates to trust itself, by trustRoots="
    if implicit and options.tls_name:
        return "tls-name= is for STARTTLS: an endpoint with TLS names the expected host itself"
    if implicit and options.proxied:
        return f"announce={options.announce} needs an endpoint without TLS, since a PROXY header is sent before TLS"
    if options.tls != "required" and (options.tls_ca or options.tls_name):
        return "tls-ca= and tls-name= need tls=required, since no certificate is checked without it"
    if options.tls == "required" and not (options.tls_name or upstream.host):
        return "tls=required needs tls-name=, since the endpoint has no host that a certificate could name"
    if options.auth and not (implicit or options.tls == "required" or upstream.kind == "unix"):
        return "auth= needs tls=required, since no password is sent in clear"
    if name != "lmtp" and options.recipients:
        return "recipients= is for lmtp: only"
    return ""
