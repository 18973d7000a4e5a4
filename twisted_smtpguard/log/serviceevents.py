"""The events of a guard as a whole: its start and stop, its setup, its reloads, and what an operator does."""

from __future__ import annotations

from collections.abc import Collection

from twisted_smtpguard.log.eventlog import EventLog, counted, item, of_file, sentence, word
from twisted_smtpguard.log.measurements import Measurements
from twisted_smtpguard.tls.doubts import MAX_NAMES_SHOWN, Doubt


class ServiceEvents:
    """Logs these events. A base class of `Events`, which has the log and the measurements."""

    _log: EventLog
    measured: Measurements

    def listening(self, endpoint: str, address: str) -> None:
        """A listener accepts connections. `endpoint` is the operator's string, `address` the address it listens on."""
        self._log.info("listening", {"endpoint": word(endpoint), "address": word(address)})

    def serving_metrics(self, endpoint: str, address: str) -> None:
        """Metrics and health are served over HTTP. The arguments are as for `listening`."""
        self._log.info("serving_metrics", {"endpoint": word(endpoint), "address": word(address)})

    def ssl_endpoint(self, endpoint: str) -> None:
        """A listener's endpoint begins TLS itself. So it accepts no PROXY header, and never reloads its certificate."""
        problem = "it accepts no PROXY header, and its certificate is not read again"
        self._log.warn("ssl_endpoint", {"endpoint": word(endpoint)}, problem)

    def delivering(self, delivery: str) -> None:
        """The delivery that gets the messages, in the operator's words. Logged once, at start-up."""
        self._log.info("delivering", {"delivery": word(delivery)})

    def filtering(self, ip_filter: str) -> None:
        """An IP filter will be asked about every connection, in the order of these lines. Logged once for each, at
        start-up."""
        self._log.info("filtering", {"filter": word(ip_filter)})

    def policing(self, policy: str, stages: Collection[str]) -> None:
        """A session policy will be asked at these stages, in the order of these lines. Logged once for each, at
        start-up."""
        self._log.info("policing", {"policy": word(policy), "stages": ",".join(sorted(stages))})

    def dry_run(self, limits: Collection[str]) -> None:
        """Limits are in dry run: refusals by them are counted and logged, but not enforced. Logged once, at start-up,
        and when a reload has changed which."""
        self._log.warn("dry_run", {"limits": ",".join(sorted(limits))})

    def reloaded(self, what: str, option: str, file: str = "") -> None:
        """A filter, the delivery, the certificates, a password file, that of `--event-log` or the configuration have
        been reloaded. Logged once for each file. `option` is the command-line option that names the file."""
        self._log.info("reloaded", of_file(what, option, file))

    def reload_failed(self, what: str, option: str, problem: str, file: str = "") -> None:
        """A filter, the delivery, a certificate, a password file, that of `--event-log` or the configuration could not
        be reloaded, and keeps its old data."""
        fields = of_file(what, option, file)
        words = " ".join(map(str, fields.values()))
        self.measured.failed_reloads[what] = f"{words}: {sentence(problem)}"
        self._log.warn("reload_failed", fields, problem)

    def restart_needed(self, option: str, origin: str) -> None:
        """An option differs from what the guard was started with, and is read at the start only. Logged at each reload.
        `origin` is where it is given now."""
        fields: dict[str, object] = {"option": f"--{option}", "origin": word(origin)}
        self._log.warn("restart_needed", fields, "the option holds from a restart")

    def doubtful_certificate(self, doubt: Doubt) -> None:
        """Clients will not accept a certificate that the guard serves. Logged at each start and reload, once for each
        problem."""
        fields: dict[str, object] = {"reason": doubt.reason, "option": f"--{doubt.option}"}
        fields |= {"file": word(doubt.file), "subject": word(doubt.subject)}
        names = ",".join([item(each) for each in doubt.names[:MAX_NAMES_SHOWN]])
        fields |= {"names": names, "ends": f"{doubt.ends:%Y-%m-%dT%H:%M:%SZ}"}
        self._log.warn("doubtful_certificate", fields, doubt.problem)

    def no_connection_cap(self, descriptors: int) -> None:
        """No limit on connections is set, so the file descriptors of the process are the only limit."""
        self._log.warn("no_connection_cap", {"descriptors": descriptors})

    def descriptors_below_cap(self, descriptors: int, cap: int, lingering: int, upstream: int) -> None:
        """The process may have fewer file descriptors than it needs for the connections that may be admitted (`cap`),
        linger after their end, and be open to the upstream server."""
        fields = {"descriptors": descriptors, "cap": cap, "lingering": lingering, "upstream": upstream}
        self._log.warn("descriptors_below_cap", fields)

    def open_relay(self, delivery: str) -> None:
        """Mail from anybody to any domain is passed to an upstream server that cannot tell clients from the guard. If
        it trusts the guard, this is an open relay. Logged at every start."""
        problem = (
            "the upstream server cannot tell clients from the guard: if it trusts the guard, anybody can send to "
            "any address through it; name your domains with --accept-domain, or, if the guard does not log in there, "
            "let the server see the client with announce=xclient or announce=proxy"
        )
        self._log.warn("open_relay", {"delivery": word(delivery)}, problem)

    def counters_away(self, problem: str) -> None:
        """The counter store is away. Until it is back, the limits of this guard apply to its own clients only.

        Logged once for each outage. A store that raises an exception of another kind has its traceback in a `failure`.
        """
        self._log.warn("counters_away", {}, f"this guard counts alone: {problem}")

    def counters_back(self, seconds: float) -> None:
        """The counter store answers again, after `seconds`, and has been told what this guard holds."""
        remark = "the limits apply to the clients of all guards again"
        self._log.warn("counters_back", {"seconds": round(seconds, 3)}, remark=remark)

    def stress(self, connections: float, cap: int, *, begins: bool) -> None:
        """Stress begins, since 80 % of the cap are taken, or ends, since less than 60 % are. In stress strangers have
        less time and fewer errors. `connections` are those of all guards that count together."""
        remark = (
            "strangers have less time from now on" if begins else "strangers have their usual limits again"
        )
        state = "begins" if begins else "ends"
        self._log.warn("stress", {"state": state, "connections": connections, "cap": cap}, remark=remark)

    def draining(self, sessions: int, verdicts: int) -> None:
        """The guard admits nobody, and waits for sessions and verdicts. Logged at once, then every 10 seconds.

        `sessions` is the number of open connections. `verdicts` is the number of pending verdicts of the delivery, also
        for clients that have disconnected.
        """
        self._log.info(
            "draining",
            {"sessions": sessions, "verdicts": verdicts},
            f"waiting for {counted(sessions, 'session')}, {counted(verdicts, 'verdict')}",
        )

    def operator(self, by: str, verb: str, what: Collection[str] = ()) -> None:
        """An operator has changed something in the running guard. `by` is `uid:` and the user's number, or
        `application`; `what` has the arguments of the verb, with commas between them."""
        fields: dict[str, object] = {"by": word(by), "verb": word(verb)}
        self._log.info("operator", {**fields, **({"what": ",".join(map(item, what))} if what else {})})

    def state_restored(self, directory: str, limits: int, rules: int, records: int = 0) -> None:
        """What operators had changed before the restart holds again until its end: so many limits, and networks that
        are denied, trusted or allowed. So many `records` of clients, such as bans, are known again. Not logged if there
        is nothing of it."""
        fields: dict[str, object] = {"directory": word(directory), "limits": limits, "rules": rules}
        self._log.info("state_restored", {**fields, **({"records": records} if records else {})})

    def state_failed(self, directory: str, problem: str) -> None:
        """What an operator has changed, or records of clients such as bans, could not be written, and hold until the
        process ends. The next change, and the stop, try it again; so do records, every 10 seconds, and only the first
        of these attempts is logged."""
        self._log.warn("state_failed", {"directory": word(directory)}, problem)

    def worker_started(self, number: int, pid: int, version: str) -> None:
        """A worker accepts connections. `version` is that of its code, which may have been replaced on the disk."""
        self._log.info("worker_started", {"worker": number, "pid": pid, "version": word(version)})

    def worker_died(self, number: int, pid: int, how: str, seconds: float) -> None:
        """A worker has ended by itself, `seconds` after its start, and is replaced. `how` is `signal:NAME` or
        `status:N`."""
        fields: dict[str, object] = {"worker": number, "pid": pid, "how": how, "seconds": round(seconds, 3)}
        self._log.warn("worker_died", fields)

    def worker_retired(self, number: int, pid: int, seconds: float) -> None:
        """A worker that was replaced in a restart has ended its last session, `seconds` after its start, and is
        gone."""
        fields: dict[str, object] = {"worker": number, "pid": pid, "seconds": round(seconds, 3)}
        self._log.info("worker_retired", fields)

    def restart_failed(self, problem: str) -> None:
        """The workers could not be replaced, or not all of them. Those that were not go on."""
        self._log.warn("restart_failed", {}, problem)

    def setup_warning(self, what: str, problem: str) -> None:
        """The setup of the guard has a risk that does not keep it from starting. Logged once for each, at every
        start."""
        self._log.warn("setup_warning", {"what": what}, problem)
