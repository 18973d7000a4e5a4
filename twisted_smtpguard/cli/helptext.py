"""The text of `twist smtpguard --help` and `--show-limits`, made from `Limits` and the command line."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

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
        "An endpoint on which TLS begins before the greeting. The endpoint itself is a plain one, such as tcp:465; the "
        "certificate is that of --tls-certificate. May be given several times.",
    ),
    "proxy-protocol-from": (
        "NETWORK",
        "The address or network of a proxy, whose connections begin with a PROXY header, of version 1 or 2, that "
        "names the client; unix stands for UNIX sockets. May be given several times. A header from any other address "
        "is refused.",
    ),
    "proxy-protocol-tls": (
        "",
        "If the header, of version 2, says that the client uses TLS with the proxy, the connection counts as one under "
        "TLS: AUTH is offered, and STARTTLS is not. Use it only if nobody can read the traffic between the proxy and "
        "the guard.",
    ),
    "auth": (
        "NAME[:ARGS]",
        "A checker of credentials for AUTH PLAIN and LOGIN: one of --help-auth, such as file:PATH with lines "
        "`user:password`, where everything after the first colon is the password. May be given several times; the "
        "checkers are asked in order. AUTH is offered under TLS only.",
    ),
    "auth-without-tls": (
        "",
        "Offer AUTH without TLS too. Anybody who can read the traffic can then read passwords.",
    ),
    "require-auth": ("", "Refuse MAIL before AUTH: a submission service (RFC 6409)."),
    "require-tls": ("", "Refuse MAIL without TLS."),
    "tls-certificate": (
        "FILE",
        "The certificate, in PEM form, with the rest of its chain after it. With it STARTTLS is offered. It is read "
        "again on SIGHUP. May be given several times, once for each kind of key: an RSA and an ECDSA certificate serve "
        "every client.",
    ),
    "tls-key": (
        "FILE",
        "The private key of the certificate, in PEM form. It is read again with it. May be given several times: each "
        "key is matched with its certificate. Default: the key is in the file of the certificate.",
    ),
    "tls-names": (
        "DIRECTORY",
        "Certificates for clients that ask for a server name: files NAME.pem, such as mx.example.org.pem or "
        "*.example.org.pem, each with a certificate, its chain and its key. A client that asks for no name, or for "
        "another one, gets --tls-certificate. The files are read again on SIGHUP.",
    ),
    "tls-client-authorities": (
        "FILE",
        "Ask clients for a certificate that is signed by one in FILE, for IP filters and deliveries to see. A client "
        "without one is not refused. FILE is read again on SIGHUP.",
    ),
    "hostname": (
        "NAME",
        "The guard's name in its greeting and in Received fields. Default: this host's full name.",
    ),
    "deliver": (
        "NAME[:ARGS]",
        f"The delivery that takes the messages. Default: {DEFAULT_DELIVERY}, which is the directory ./Maildir.",
    ),
    "accept-domain": (
        "DOMAIN",
        "Accept mail only for this domain and others given in this way, unless the client has logged in. A value with "
        "a / in it, such as ./domains, is a file with one domain on each line, which is read again on SIGHUP. May be "
        "given several times. Default: mail for every domain.",
    ),
    "ip-filter": (
        "NAME[:ARGS]",
        "An IP filter, which is asked whether a client is admitted. May be given several times: the filters are asked "
        "in this order, and the first that decides wins. A filter that fails refuses the client, unless fail-open: is "
        "before its name. Its name in the log is NAME, or WORD if name=WORD: is before that.",
    ),
    "deny": (
        "NETWORK",
        "Refuse clients from this address or network, such as 192.0.2.1 or 2001:db8::/32. May be given several times. "
        "All --deny and --trust make one list, which is asked before any --ip-filter; the longest prefix wins.",
    ),
    "trust": (
        "NETWORK",
        "Admit clients from this address or network, and exempt them from limits per client, rates, the greet delay, "
        "early-talker and error limits. May be given several times.",
    ),
    "profile": (
        "base|edge",
        "The defaults of all limits: edge switches every protection on, for a guard that strangers can reach. An "
        "option that is given overrides the profile, also with 0. Default: base.",
    ),
    "dry-run": (
        "LIMIT[,LIMIT...]",
        "Limits, by the names of their options, that are put into dry run: refusals are counted and logged with "
        "dry_run=true, but not enforced. ip-filter stands for the refusals of IP filters, all for every limit that has "
        "a dry run. May be given several times.",
    ),
    "config": (
        "FILE",
        "Read options from FILE, with one `option = value` on each line, named as here. An option on the command line "
        "overrides the file.",
    ),
    "show-limits": ("", "Print every limit in force and where it comes from, and exit."),
    "help-deliveries": ("", "List the deliveries that --deliver may name, and exit."),
    "help-delivery": ("NAME", "Describe the argument after the colon of one delivery, and exit."),
    "help-auth": ("", "List the checkers that --auth may name, and exit."),
    "help-auth-type": ("NAME", "Describe the argument after the colon of one checker, and exit."),
    "help-ip-filters": ("", "List the IP filters that --ip-filter may name, and exit."),
    "help-ip-filter": ("NAME", "Describe the argument after the colon of one IP filter, and exit."),
    "version": ("", "Print the version and exit."),
    "help": ("", "Print this help and exit."),
}
"""Every option that is not a limit: the placeholder of its value, and its explanation."""

_ABOUT_LIMITS = (
    "Limits. 0 means no limit. A size is in octets, or ends in k, M or G (or kB, MB, GB) for powers of 1024. A time is "
    "in seconds, or ends in s, m, h or d. A rate such as 60/60 or 600/1h is a number of events of one client in a time."
)


def usage_text(width: int) -> str:
    """The help: every option with its explanation, unit and default, in lines of at most `width` characters."""
    options = [_entry(option, value, text, width) for option, (value, text) in OPTIONS.items()]
    limits = [_limit_entry(spec, width) for spec in Limits.specs()]
    return "\n".join(["Options:", *options, "", textwrap.fill(_ABOUT_LIMITS, width), *limits, ""])


def limits_table(limits: Limits, given: Mapping[str, Sequence[Setting]], profile: str) -> str:
    """A table of every limit with its value, unit and origin. `given` has the operator's settings, by option."""
    rows = [("limit", "value", "unit", "from")]
    for spec in Limits.specs():
        value = spec.unit.format(getattr(limits, spec.name))
        if spec.name in limits.dry_run:
            value += " (dry run)"
        origin = "profile edge" if profile == "edge" and spec.edge != spec.default else "default"
        for setting in given.get(spec.option, ()):
            origin = f"config {setting.line}" if setting.line else "command line"
        rows.append((spec.option, value, spec.unit.name, origin))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    if IP_FILTER in limits.dry_run:
        lines += ["", "IP filters: their refusals are logged and not enforced (dry run)."]
    return "\n".join([line.rstrip() for line in lines])


def _entry(option: str, value: str, text: str, width: int) -> str:
    indent = " " * 8
    filled = textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent)
    return f"  --{option}={value}\n{filled}" if value else f"  --{option}\n{filled}"


def _limit_entry(spec: LimitSpec, width: int) -> str:
    value = "N/SECONDS" if spec.unit is RATE else "|".join(spec.unit.choices) or "N"
    default, edge = map(spec.unit.format, (spec.default, spec.edge))
    defaults = f"default: {default}" if edge == default else f"default: {default}; edge: {edge}"
    text = f"{spec.help} ({spec.unit.name}; {defaults})"
    return _entry(spec.option, "" if spec.unit is FLAG else value, text, width)
