"""The table of verbs: what an operator may say to a running guard.

A row names a method of `Operator`. The control socket checks a request by it, `smtpguardctl` makes its command line and
its help of it, and the reference is held to it. A new verb is a method and a row. This file imports no Twisted, since a
command has to start fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from twisted_smtpguard.limits.units import parse_seconds
from twisted_smtpguard.operations import suggestions

TOP = ("connections", "messages", "recipients", "refusals")
"""What `top` can order clients by."""

TOP_OF = ("clients", "networks")
"""What `top` can list."""


def parse_duration(text: str) -> float:
    """Parse a time such as `10m` into seconds."""
    try:
        seconds = parse_seconds(text)
    except ValueError:
        seconds = 0
    if not seconds:
        raise ValueError(f"a time such as 10m or 1h is expected, not {text[:40]!r}")
    return seconds


class Argument(NamedTuple):
    """One argument of a verb."""

    name: str
    """Its name in a request. On a command line it stands at its place, or is `--name` if it is an `option`."""
    value: str
    """Its placeholder in a help text, such as NETWORK."""
    help: str
    required: bool = True
    option: bool = False
    choices: tuple[str, ...] = ()
    parse: Callable[[str], Any] = str
    """Makes the method's value of the text. ValueError: a sentence."""
    parameter: str = ""
    """The name of the method's parameter, if `name` is none in Python."""


class Verb(NamedTuple):
    """One verb."""

    name: str
    help: str
    """One or more sentences. The first says what it does."""
    arguments: tuple[Argument, ...] = ()
    changes: bool = False
    """Whether it changes something. The method then has a parameter `by`, which says who asks, and logs an event."""
    method: str = ""
    """The name of the method, if the verb's own is none in Python."""
    seconds: int = 10
    """How long a client waits for the beginning of the answer."""
    streams: bool = False
    """Whether the rows of the answer come as they happen, and are shown one by one."""
    lines: Callable[[Sequence[Mapping[str, Any]]], Iterator[str]] | None = None
    """Makes the lines that people are shown of the rows; None: a table."""

    def parameters(self, given: Mapping[str, object]) -> dict[str, Any]:
        """The arguments of the method, from those of a request, which are texts.

        ValueError: one of them is missing, unknown or wrong.
        """
        known = {argument.name for argument in self.arguments}
        for name in given:
            if name not in known:
                raise ValueError(f"{self.name} has no argument {name[:40]!r}")
        values = {}
        for argument in self.arguments:
            text = given.get(argument.name)
            if text is None:
                if argument.required:
                    raise ValueError(f"{self.name} needs {argument.value}")
                continue
            if not isinstance(text, str):
                raise ValueError(f"{self.name}: {argument.name} must be a text")
            if argument.choices and text not in argument.choices:
                one_of = ", ".join(argument.choices)
                raise ValueError(f"{self.name}: {argument.name} must be one of {one_of}, not {text[:40]!r}")
            values[argument.parameter or argument.name] = argument.parse(text)
        return values


_FOR = Argument(
    "for",
    "TIME",
    "How long, such as 10m or 1h. Without it until the process ends.",
    required=False,
    option=True,
    parse=parse_duration,
    parameter="seconds",
)
_RULE = (
    Argument("network", "NETWORK", "An address or a network, such as 192.0.2.1 or 2001:db8::/32."),
    _FOR,
)

_VERBS = (
    Verb("status", "Show whether the guard listens, its connections and what it has counted."),
    Verb(
        "top",
        "List the 20 clients that have most: connections that are open, accepted messages, their recipients, and "
        "refusals. They are counted as long as the client is one of the 10,000 that the guard remembers.",
        (
            Argument(
                "by",
                "|".join(TOP),
                "What the clients are ordered by. Without it by connections.",
                required=False,
                option=True,
                choices=TOP,
                parameter="order",
            ),
            Argument(
                "of",
                "|".join(TOP_OF),
                "Whether clients are listed, or networks: the widest of --ipv4-networks and --ipv6-networks, or where "
                "there is none a /24 and a /48. Without it clients.",
                required=False,
                option=True,
                choices=TOP_OF,
            ),
        ),
    ),
    Verb(
        "sessions",
        "List the connections that are open: id, client, stage, since when, HELO, TLS, user and accepted messages. A "
        "connection that has not been greeted has no id.",
        (Argument("network", "NETWORK", "Only clients in this address or network.", required=False),),
    ),
    Verb(
        "recent",
        "Show the latest 20 refusals, and the latest 20 sessions that have ended, of all clients that the guard "
        "remembers.",
    ),
    Verb(
        "hooks",
        "List how often and how fast each IP filter, session policy and hook of the delivery has answered since the "
        "start, by outcome. At least 95 of 100 answers came in `within_seconds`; it is empty if that is longer than is "
        "measured.",
    ),
    Verb(
        "why",
        "Show what would happen to a client at an address now, by each filter and limit; then its last refusals and "
        "sessions, and what would let it in. Nothing is counted.",
        (Argument("address", "ADDRESS", "An IP address, or `unix`."),),
        # Filters that answer later are asked one after the other.
        seconds=60,
    ),
    Verb(
        "known",
        "List the clients that are known: mail of theirs was accepted lately. With an address show whether its client "
        "is, and until when; networks of --known are known too.",
        (Argument("address", "ADDRESS", "An IP address, or `unix`.", required=False),),
    ),
    Verb(
        "forget",
        "Forget that a client is known, until its next mail is accepted. Whom a file of --known names stays known.",
        (Argument("address", "ADDRESS", "An IP address, or `unix`."),),
        changes=True,
    ),
    Verb(
        "bans",
        "List the clients and networks that are banned for what they have done, until when, how often so far, "
        "and for which offences.",
    ),
    Verb(
        "suggest",
        "Suggest values for the limits per client, from what the clients of this guard had at most: those that would "
        "have refused 1 in 1,000 and 1 in 100,000 of the clients whose mail was accepted. The answer can be pasted "
        "into a --config file.",
        lines=suggestions.lines,
    ),
    Verb(
        "trace",
        "Show the dialogues of clients in a network as they happen, for a time; message data as a count, credentials "
        "never.",
        (
            Argument("network", "NETWORK", "An address or a network, or `unix`."),
            Argument(
                "for",
                "TIME",
                "How long, such as 1h; by default 10m.",
                required=False,
                option=True,
                parse=parse_duration,
                parameter="seconds",
            ),
        ),
        streams=True,
    ),
    Verb(
        "end",
        "End one session with a 421. If the verdict on its message is pending, the session ends after that.",
        (Argument("session", "SESSION", "The id of the session, as in `sessions` and in the log."),),
        changes=True,
    ),
    Verb(
        "drain",
        "Stop listening, and end the sessions as at a stop; the process goes on. `status` shows when the last session "
        "has ended.",
        changes=True,
    ),
    Verb("limits", "List every limit: its value, and where that came from."),
    Verb(
        "set",
        "Set a limit, until it is unset or its time is over. `limits` shows from when on a change holds.",
        (
            Argument("limit", "LIMIT", "The name of its option, such as max-connections."),
            Argument("value", "VALUE", "Written as the option's value."),
            _FOR,
        ),
        changes=True,
    ),
    Verb(
        "unset",
        "Give a limit back the value that it has without `set`.",
        (Argument("limit", "LIMIT", "The name of its option."),),
        changes=True,
    ),
    Verb("rules", "List the networks that are denied, trusted or allowed, and until when."),
    Verb("deny", "Refuse clients from a network, from the next connection on.", _RULE, changes=True),
    Verb(
        "trust",
        "Admit clients from a network, and exempt them from limits per client, as --trust does.",
        _RULE,
        changes=True,
    ),
    Verb(
        "allow",
        "Let the other filters decide about a network, within a wider one that is denied or trusted.",
        _RULE,
        changes=True,
    ),
    Verb(
        "remove",
        "Remove the rule that an operator has made for a network.",
        (Argument("network", "NETWORK", "The network of the rule, as in `rules`."),),
        changes=True,
    ),
    Verb(
        "unban",
        "Lift the ban of an address, with those of its networks, and the deny that an operator, or a program such as "
        "fail2ban, has made for it. It begins anew: no points, and no longer ban the next time.",
        (Argument("address", "ADDRESS", "The address, as in `bans` or `rules`."),),
        changes=True,
    ),
    Verb(
        "defer",
        "Refuse every MAIL for now with a 451, so that clients keep their mail and come again; sessions go on.",
        (
            Argument("state", "on|off", "Whether mail is deferred.", choices=("on", "off")),
            Argument("text", "TEXT", "The words after 451 4.3.2.", required=False, option=True),
        ),
        changes=True,
    ),
    Verb(
        "restart",
        "Replace the workers of a guard with --workers one by one, by the code that is on the disk now. Sessions go "
        "on, and no connection is refused. Answered when all new workers accept connections.",
        changes=True,
        seconds=600,
    ),
    Verb("resume", "Listen again after a drain.", changes=True),
    Verb(
        "reload",
        "Read the --config file and the data of filters, deliveries, certificates and password files again, as on "
        "SIGHUP. What has changed or failed is in the log.",
        changes=True,
        seconds=150,
    ),
)


def by_name(verbs: Iterable[Verb]) -> dict[str, Verb]:
    """The rows by the names of the verbs."""
    return {verb.name: verb for verb in verbs}


VERBS: Mapping[str, Verb] = by_name(_VERBS)
"""Every verb, by its name."""
