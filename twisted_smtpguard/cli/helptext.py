"""What `twist smtpguard --help` and `--show-limits` print: text made from `Limits` and the command line."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from twisted_smtpguard.cli.configuration import Setting
from twisted_smtpguard.limits.limits import IP_FILTER, Limits
from twisted_smtpguard.limits.spec import LimitSpec
from twisted_smtpguard.limits.units import FLAG, RATE

DEFAULT_LISTEN = "tcp:2525:interface=127.0.0.1"
DEFAULT_DELIVERY = "maildir:Maildir"

OPTIONS = {
    "listen": (
        "ENDPOINT",
        "A Twisted endpoint string to listen on, such as tcp:25 or unix:/run/smtp.sock. tcp6:25 takes IPv4 clients "
        "too. The colons of an IPv6 address are escaped: 'tcp6:25:interface=\\:\\:1'. May be given several times. "
        f"Default: {DEFAULT_LISTEN}.",
    ),
    "listen-tls": (
        "ENDPOINT",
        "The same, but TLS comes before the greeting. The endpoint itself is a plain one, such as tcp:465; the "
        "certificate is that of --tls-certificate. May be given several times.",
    ),
    "proxy-protocol-from": (
        "NETWORK",
        "Connections from this address or network come from a proxy, and begin with a PROXY header, of version 1 or 2, "
        "that tells the client; unix stands for UNIX sockets. May be given several times. From nowhere else a header "
        "is believed.",
    ),
    "proxy-protocol-tls": (
        "",
        "A client that has spoken TLS to such a proxy counts as one that speaks TLS, where the header, of version 2, "
        "tells so: AUTH is offered, and STARTTLS is not. Only for proxies that are reached by a way that nobody can "
        "read.",
    ),
    "auth": (
        "NAME[:ARGS]",
        "Who may log in, by AUTH PLAIN and LOGIN: one of --help-auth, such as file:PATH with lines `user:password`, "
        "where all after the first colon is the password. May be given several times; they are asked in their order. "
        "Offered under TLS only.",
    ),
    "auth-without-tls": ("", "Offer AUTH in clear too. Who can read the wire can then read passwords."),
    "require-auth": ("", "Refuse MAIL before AUTH: a submission service (RFC 6409)."),
    "require-tls": ("", "Refuse MAIL in clear."),
    "tls-certificate": (
        "FILE",
        "The certificate, in PEM form, with the rest of its chain after it. With it STARTTLS is offered. It is read "
        "again on SIGHUP. May be given several times, once for each kind of key: an RSA and an ECDSA certificate serve "
        "every client.",
    ),
    "tls-key": (
        "FILE",
        "Its private key, in PEM form, read again with it. May be given several times: a key tells itself to which "
        "certificate it belongs. Default: it is in the file of the certificate.",
    ),
    "tls-names": (
        "DIRECTORY",
        "Certificates for clients who ask for a name: files NAME.pem, such as mx.example.org.pem or "
        "*.example.org.pem, each with a certificate, its chain and its key. Who asks for no name, or for another one, "
        "gets --tls-certificate. They are read again on SIGHUP.",
    ),
    "tls-client-authorities": (
        "FILE",
        "Ask clients for a certificate that one of those in FILE has signed, for IP filters and deliveries to see. Who "
        "has none is not refused. FILE is read again on SIGHUP.",
    ),
    "hostname": (
        "NAME",
        "What the guard calls itself, in its greeting and in Received fields. Default: this host's full name.",
    ),
    "deliver": (
        "NAME[:ARGS]",
        f"Where messages go. Default: {DEFAULT_DELIVERY}, which is the directory ./Maildir.",
    ),
    "accept-domain": (
        "DOMAIN",
        "Take mail for this domain, and for no other than those given so, unless the client has logged in. What has a "
        "/ in it, such as ./domains, is a file with one domain a line, read again on SIGHUP. May be given several "
        "times. Default: mail for every domain.",
    ),
    "ip-filter": (
        "NAME[:ARGS]",
        "An IP filter, which is asked whether a client may come in. May be given several times: they are asked in this "
        "order, and the first that decides wins. One that fails refuses, unless fail-open: stands before its name. The "
        "log calls it NAME, or WORD where name=WORD: stands before that.",
    ),
    "deny": (
        "NETWORK",
        "Refuse clients from this address or network, such as 192.0.2.1 or 2001:db8::/32. May be given several times. "
        "All --deny and --trust are one list, asked before any --ip-filter; the longest prefix wins.",
    ),
    "trust": (
        "NETWORK",
        "Let clients from this address or network in, and exempt them from limits per client, rates, the greet delay, "
        "early-talker and error limits. May be given several times.",
    ),
    "profile": (
        "base|edge",
        "The defaults of all limits: edge switches every protection on, for a guard that strangers reach. An option "
        "that is given wins over it, 0 too. Default: base.",
    ),
    "dry-run": (
        "LIMIT[,LIMIT...]",
        "Limits, by the names of their options, that are decided, counted and logged with dry_run=true, but not "
        "enforced; ip-filter for the refusals of IP filters; all for all that can be tried. May be given several "
        "times.",
    ),
    "config": (
        "FILE",
        "Read options from FILE, one `option = value` a line, named as here. What is given on the command line "
        "wins over it.",
    ),
    "show-limits": ("", "Print every limit in force and where it came from, and exit."),
    "help-deliveries": ("", "List what --deliver may name, and exit."),
    "help-delivery": ("NAME", "Tell what may stand behind the colon of one of them, and exit."),
    "help-auth": ("", "List what --auth may name, and exit."),
    "help-auth-type": ("NAME", "Tell what may stand behind the colon of one of them, and exit."),
    "help-ip-filters": ("", "List what --ip-filter may name, and exit."),
    "help-ip-filter": ("NAME", "Tell what may stand behind the colon of one of them, and exit."),
    "version": ("", "Print the version and exit."),
    "help": ("", "Print this and exit."),
}
"""Every option that is not a limit: what its value is called, and its explanation."""

_ABOUT_LIMITS = (
    "Limits. 0 means no limit. A size is in octets, or ends in k, M or G (or kB, MB, GB) for powers of 1024. A time is "
    "in seconds, or ends in s, m, h or d. A rate such as 60/60 or 600/1h is so many of one client in so much time."
)


def usage_text(width: int) -> str:
    """Every option with its explanation, unit and default, in lines of at most `width` characters."""
    options = [_entry(option, value, text, width) for option, (value, text) in OPTIONS.items()]
    limits = [_entry(spec.option, _placeholder(spec), _explanation(spec), width) for spec in Limits.specs()]
    return "\n".join(["Options:", *options, "", textwrap.fill(_ABOUT_LIMITS, width), *limits, ""])


def limits_table(limits: Limits, given: Mapping[str, Setting], profile: str) -> str:
    """Every limit with its value, unit and origin. `given` is what the operator set, by option."""
    rows = [("limit", "value", "unit", "from")]
    for spec in Limits.specs():
        value = spec.unit.format(getattr(limits, spec.name))
        if spec.name in limits.dry_run:
            value += " (dry run)"
        origin = _origin(given[spec.option]) if spec.option in given else _default_origin(spec, profile)
        rows.append((spec.option, value, spec.unit.name, origin))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    if IP_FILTER in limits.dry_run:
        lines += ["", "IP filters: what they refuse is only logged (dry run)."]
    return "\n".join([line.rstrip() for line in lines])


def _entry(option: str, value: str, text: str, width: int) -> str:
    indent = " " * 8
    filled = textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent)
    return f"  --{option}={value}\n{filled}" if value else f"  --{option}\n{filled}"


def _placeholder(spec: LimitSpec) -> str:
    if spec.unit is FLAG:
        return ""
    return "N/SECONDS" if spec.unit is RATE else "|".join(spec.unit.choices) or "N"


def _explanation(spec: LimitSpec) -> str:
    default, edge = map(spec.unit.format, (spec.default, spec.edge))
    defaults = f"default: {default}" if edge == default else f"default: {default}; edge: {edge}"
    return f"{spec.help} ({spec.unit.name}; {defaults})"


def _default_origin(spec: LimitSpec, profile: str) -> str:
    return "profile edge" if profile == "edge" and spec.edge != spec.default else "default"


def _origin(setting: Setting) -> str:
    return f"config {setting.line}" if setting.line else "command line"
