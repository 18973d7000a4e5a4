"""`Operator`, the `operator` of a service: every verb as a method.

The control socket, `smtpguardctl`, the status page and applications all use it. Its parts do the work.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import version
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from twisted_smtpguard.log.eventlog import utc
from twisted_smtpguard.operations import condition, sessions, standings
from twisted_smtpguard.operations.limitsettings import Settings
from twisted_smtpguard.operations.rules import NetworkRules
from twisted_smtpguard.operations.traces import Trace, Traces
from twisted_smtpguard.operations.verbs import TOP, TOP_OF, VERBS
from twisted_smtpguard.operations.why import timed, why
from twisted_smtpguard.records.recordtables import RULE
from twisted_smtpguard.replies import deferral, text_of
from twisted_smtpguard.transport.factory import SMTPGuardFactory

APPLICATION = "application"
"""The `by` of a change that an application has made, and no user on the control socket."""

RECENT = 20
"""How many refusals and ended sessions are listed."""


@cache
def _version() -> str:
    # It is read from a file.
    return version("twisted_smtpguard")


def when_kept(kept: Deferred[str], answer: dict[str, Any]) -> Deferred[dict[str, Any]]:
    """The answer to a change, when `kept` has fired with "". If it has fired with a problem: ValueError."""

    def done(problem: str) -> dict[str, Any]:
        if problem:
            raise ValueError(f"the change holds until the process ends, but it cannot be kept: {problem}")
        return answer

    return kept.addCallback(done)


class Guard(Protocol):
    """What an operator needs of a guard. It is an SMTPGuardService."""

    factory: SMTPGuardFactory

    @property
    def state(self) -> str: ...
    @property
    def addresses(self) -> Mapping[str, str]: ...
    def startService(self) -> None: ...  # noqa: N802 - Twisted's name
    def drain(self) -> Deferred[None]: ...
    def reload(self) -> Deferred[None]: ...


class Operator:
    """What an operator may ask a running guard, and change in it.

    Every answer is made of what JSON has: a dict, or an iterator of dicts where there may be many rows. What a stranger
    chose is escaped in it, as in the log. ValueError: the request is refused, by its text, which is a sentence. A
    change holds from the moment at which the method returns, or its Deferred fires; it is one `operator` event in the
    log, with `by`, which says who asked.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        factory = guard.factory
        self.settings = Settings(factory)
        """The limits in force."""
        self.networks = NetworkRules(factory.context.seconds, factory.admission.ask_first)
        """The networks that are denied, trusted or allowed."""
        self.networks.share(factory.records[RULE], factory.context.hostname)
        self._traces = Traces(factory)
        self.context = factory.context
        self.told_elsewhere = False
        """Whether the event of the change that is being made is logged by another process."""
        self.keep: Callable[[], Deferred[str]] | None = None
        """Called after each change, to keep those that outlast the process. Its Deferred fires with "", or with what is
        wrong, and never fails. None: nothing is kept."""
        self._kept: Deferred[str] | None = None

    def carry_out(self, verb: str, arguments: Mapping[str, object], by: str = APPLICATION) -> Any:
        """Call the method of a verb with the arguments of a request, which are texts. Returns what the method does; for
        a change that is kept, a Deferred of it, which fires when it is on the disk.

        ValueError: there is no such verb, an argument is missing, unknown or wrong, the method refuses, or the change
        holds and cannot be kept.
        """
        row = VERBS.get(verb)
        if row is None:
            raise ValueError(f"there is no verb {verb[:40]!r}; there are {', '.join(sorted(VERBS))}")
        parameters = row.parameters(arguments)
        if row.changes:
            parameters["by"] = by
        answer = getattr(self, row.method or row.name)(**parameters)
        kept, self._kept = self._kept, None
        return answer if kept is None or isinstance(answer, Deferred) else when_kept(kept, answer)

    # What an operator asks.

    def status(self) -> dict[str, Any]:
        """Whether the guard listens, its connections against the cap, and its statistics. It costs the same however
        many connections there are."""
        factory = self._guard.factory
        limits, statistics = factory.context.limits, factory.statistics
        return {
            "version": _version(),
            "pid": os.getpid(),
            "hostname": factory.context.hostname,
            "state": self._guard.state,
            "problem": condition.problem_of(self._guard.state, factory.context.delivery),
            "deferring": factory.context.deferral is not None,
            "listening": dict(self._guard.addresses),
            "connections": factory.connections,
            "max_connections": limits.max_connections,
            "reserved_connections": limits.reserved_connections.of(limits.max_connections),
            "stress": factory.context.stressed,
            "sessions": statistics.live_connections,
            "lingering": factory.lingering,
            "tls_handshakes": len(factory.context.handshakes),
            "bans": len(factory.bans),
            "upstream": condition.upstream_of(factory.context.delivery),
            "statistics": statistics.snapshot(),
        }

    def hooks(self) -> Iterator[dict[str, Any]]:
        """One row for each outcome of each IP filter and of each hook of the delivery: how many answers there were,
        and how long they took."""
        return condition.rows(self._guard.factory)

    def recent(self) -> dict[str, Any]:
        """The latest `refusals`, and the latest `sessions` that have ended, of all clients that are remembered: the
        latest first."""
        history = self._guard.factory.context.events.history
        return {
            "refusals": [timed(row) for row in history.refusals.latest(RECENT)],
            "sessions": [timed(row) for row in history.sessions.latest(RECENT)],
        }

    def top(self, order: str = TOP[0], of: str = TOP_OF[0]) -> Deferred[Iterator[dict[str, Any]]]:
        """One row for each of the `clients`, or of their widest `networks`, that have most of `order`: `connections`
        that are open, `messages`, `recipients` or `refusals`. They are counted as long as a client is one of the 10,000
        that are remembered. Fires some turns of the reactor later if there are many."""
        if of not in TOP_OF:
            raise ValueError(f"one of {', '.join(TOP_OF)} is expected, not {of[:40]!r}")
        if order not in TOP:
            raise ValueError(f"one of {', '.join(TOP)} is expected, not {order[:40]!r}")
        factory = self._guard.factory
        tallies, clock = factory.context.events.history.tallies, factory.deadlines.clock
        network_of = factory.clients.widest_network if of == "networks" else None
        return Deferred.fromCoroutine(
            sessions.top(factory.sessions(), tallies, order, clock, network_of=network_of)
        )

    def sessions(self, network: str = "") -> Iterator[dict[str, Any]]:
        """One row for each open connection whose client is in `network`; `unix` stands for UNIX sockets."""
        return sessions.rows(self._guard.factory.sessions(), network)

    def limits(self) -> Iterator[dict[str, Any]]:
        """One row for each limit: its value, where that came from, and from when on a change holds."""
        return self.settings.rows()

    def rules(self) -> Iterator[dict[str, Any]]:
        """One row for each network that is denied, trusted or allowed. `until` is `restart` where an operator gave no
        time, and "" for what is configured."""
        return self.networks.rows()

    def why(self, address: str) -> Deferred[dict[str, Any]]:
        """What would happen to a client at an address now, decided by what decides, without counting; then its last
        refusals and sessions, and what would let it in. Fires when the filters have answered."""
        return why(self._guard.factory, self.networks, address)

    def known(self, address: str = "") -> Iterator[dict[str, Any]]:
        """One row for each client that is known by its mail; with an address one row, which says whether its client is
        known, by its mail or by a file of --known."""
        factory = self._guard.factory
        if not address:
            return standings.rows(factory.known)
        key, of_client = standings.client_at(factory.clients, address)
        return iter([{"client": key, **standings.shown(factory.known.standing(key, of_client))}])

    def bans(self) -> Iterator[dict[str, Any]]:
        """One row for each client or network that is banned for its offences."""
        return standings.ban_rows(self._guard.factory.bans.rows())

    def suggest(self) -> Deferred[Iterator[dict[str, Any]]]:
        """One row for each limit per client that could be counted: values that would refuse 1 in 1,000 and 1 in 100,000
        of the clients whose mail was accepted, and how many of these and of others; with the peaks from which that
        follows. Fires some turns of the reactor later."""
        factory = self._guard.factory
        return Deferred.fromCoroutine(standings.suggested(factory.clients, factory.deadlines.clock))

    def trace(self, network: str, seconds: float = 600) -> Trace:
        """The dialogues of clients in a network as they happen, for so many seconds: call `begin()` of what this
        returns. They hold no message data and no credentials."""
        return self._traces.start(network, seconds)

    # What an operator changes.

    def set(
        self, limit: str, value: str, seconds: float | None = None, *, by: str = APPLICATION
    ) -> dict[str, Any]:
        """Set a limit to a value that is written as its option's, for so many seconds; None: until the process ends. It
        stays until it is unset, also over a reload."""
        row = self.settings.set(limit, value, seconds, by)
        end = [] if seconds is None else [f"until {utc(self.context.seconds() + seconds)}"]
        self._changed(by, "set", f"{row['limit']}={row['value']}", *end)
        return row

    def unset(self, limit: str, *, by: str = APPLICATION) -> dict[str, Any]:
        """Give a limit the value back that it has without `set`."""
        row = self.settings.unset(limit)
        self._changed(by, "unset", f"{row['limit']}={row['value']}")
        return row

    def deny(self, network: str, seconds: float | None = None, *, by: str = APPLICATION) -> dict[str, Any]:
        """Refuse clients from a network, for so many seconds; None: until the process ends."""
        return self._rule("deny", network, seconds, by)

    def trust(self, network: str, seconds: float | None = None, *, by: str = APPLICATION) -> dict[str, Any]:
        """Trust clients from a network, as --trust does."""
        return self._rule("trust", network, seconds, by)

    def allow(self, network: str, seconds: float | None = None, *, by: str = APPLICATION) -> dict[str, Any]:
        """Let the other filters decide about a network, within a wider one that is denied or trusted."""
        return self._rule("allow", network, seconds, by)

    def remove(self, network: str, *, by: str = APPLICATION) -> dict[str, Any]:
        """Remove the rule that an operator has made for a network."""
        try:
            row = self.networks.remove(network)
        except ValueError:
            # Elsewhere it may have been removed a moment before, since guards share rules.
            if not self.told_elsewhere:
                raise
            row = {"network": network}
        self._changed(by, "remove", row["network"])
        return row

    def unban(self, address: str, *, by: str = APPLICATION) -> dict[str, Any]:
        """Lift the ban of the client at an address, with those of its networks, and the deny that an operator, or a
        program such as fail2ban, has made for the address. `lifted` has whose bans have ended."""
        factory = self._guard.factory
        row: dict[str, Any] = {}
        problem = ""
        try:
            row = self.networks.lift(address)
        except ValueError as error:
            problem = str(error)
        lifted = standings.unban(factory.bans, factory.offences, factory.clients, address)
        # Elsewhere the bans may have ended a moment before, since all share them.
        if problem and not lifted and not self.told_elsewhere:
            raise ValueError(f"no ban holds for it, and {problem}")
        self._changed(by, "unban", *dict.fromkeys((row.get("network", address), *lifted)))
        return {**row, "lifted": lifted}

    def forget(self, address: str, *, by: str = APPLICATION) -> dict[str, Any]:
        """Forget that the client at an address is known by its mail."""
        factory = self._guard.factory
        key, _ = standings.client_at(factory.clients, address)
        if not factory.known.forget(key):
            raise ValueError(f"no mail of {key} was accepted lately")
        self._changed(by, "forget", key)
        return {"forgotten": key}

    def defer(self, state: str, text: str = "", *, by: str = APPLICATION) -> dict[str, Any]:
        """Refuse every MAIL with `451 4.3.2` and this text, if `state` is `on`. Sessions go on."""
        reply = None
        if state == "on":
            reply = deferral(text)
        elif state != "off" or text:
            raise ValueError("defer on [text] or defer off is expected")
        self._guard.factory.context.defer(reply)
        self._changed(by, "defer", state, *reply.lines if reply else ())
        return {"deferring": state == "on", "reply": text_of(reply) if reply else ""}

    def end(self, session: str, *, by: str = APPLICATION) -> dict[str, Any]:
        """End a session with a 421: now, or after the verdict that it waits for."""
        if not self._guard.factory.end_session(session):
            raise ValueError(f"there is no session {session[:40]!r}")
        self._changed(by, "end", session)
        return {"ended": session}

    def drain(self, *, by: str = APPLICATION) -> dict[str, Any]:
        """Stop listening and end the sessions, as SMTPGuardService.drain() does. Returns at once."""
        if self._guard.state not in ("listening", "starting", "draining"):
            raise ValueError(f"the guard does not listen, it is {self._guard.state}")
        self._changed(by, "drain")
        self._guard.drain()
        factory = self._guard.factory
        return {
            "state": "draining",
            "sessions": len(factory.sessions()),
            "verdicts": factory.pending_verdicts,
        }

    def restart(self, *, by: str = APPLICATION) -> dict[str, Any]:
        """Replace the workers of a guard that has some. ValueError: this one has none."""
        raise ValueError("the guard is one process, started without --workers, and cannot replace itself")

    def resume(self, *, by: str = APPLICATION) -> dict[str, Any]:
        """Listen again after a drain."""
        state = self._guard.state
        if state == "draining":
            raise ValueError("the drain is not over, connections are open; end their sessions, or wait")
        if state != "drained":
            raise ValueError(f"the guard is not drained, it is {state}")
        try:
            self._guard.startService()
        # A guard that handles its process would end it by a SystemExit with one sentence.
        except (Exception, SystemExit) as error:
            raise ValueError(f"the guard cannot listen: {error}") from error
        self._changed(by, "resume")
        return {"state": self._guard.state, "listening": dict(self._guard.addresses)}

    def reload(self, *, by: str = APPLICATION) -> Deferred[dict[str, Any]]:
        """Reload as on SIGHUP. Fires when that is done. ValueError: something keeps its old data, for a reason that is
        told; all else has been reloaded."""
        self._changed(by, "reload")
        return self._guard.reload().addCallback(lambda _: self._reloaded())

    def _reloaded(self) -> dict[str, Any]:
        failed = self._guard.factory.context.events.measured.failed_reloads
        if failed:
            raise ValueError(
                f"what follows could not be read, and keeps its old data: {'; '.join(failed.values())}"
            )
        return {"reloaded": True}

    def _rule(self, verb: str, network: str, seconds: float | None, by: str) -> dict[str, Any]:
        row = self.networks.add(verb, network, seconds, by)
        self._changed(by, verb, row["network"], f"until {row['until']}")
        return row

    def _changed(self, by: str, verb: str, *what: str) -> None:
        self._kept = self.keep() if self.keep is not None else None
        if not self.told_elsewhere:
            self._guard.factory.context.events.operator(by, verb, what)
