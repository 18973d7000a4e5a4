"""`--check`: what is in force, and what a start would find, told without a start.

The service has been made already, which opens the files; it never listens. What is said here is what the service would
log at its start, and what its certificates and its delivery tell of themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, LogLevel
from twisted.python.failure import Failure

from twisted_smtpguard.checkers.dovecot import DovecotAuth
from twisted_smtpguard.cli.configuration import Setting
from twisted_smtpguard.cli.counterstore import check_counters, shown_counters
from twisted_smtpguard.cli.helptext import OPTIONS, in_columns
from twisted_smtpguard.cli.plugins import shown_delivery
from twisted_smtpguard.delivery.domains import AcceptedDomains
from twisted_smtpguard.filters.networks import NetworksFactory
from twisted_smtpguard.hooks.later import answer_of
from twisted_smtpguard.inputs.escaping import escape_text
from twisted_smtpguard.interfaces import ICheckableDelivery, ISelfTestingFilter
from twisted_smtpguard.policies.policyserver import PolicyServer
from twisted_smtpguard.service.service import SMTPGuardService
from twisted_smtpguard.service.startwarnings import warn_of_setup, warnings_of_process
from twisted_smtpguard.tls.doubts import OUT_OF_TIME, described
from twisted_smtpguard.tls.files import CertificateFiles

_FILTER = re.compile(r"((?:name=[^:]*:)?(?:fail-open:)?([^:]*))(:.*)?", re.DOTALL)


async def check(
    service: SMTPGuardService,
    given: Mapping[str, Sequence[Setting]],
    setting_of_file: Callable[[str, str], Setting],
    secrets: Sequence[Iterable[str]],
    told: Sequence[LogEvent],
) -> list[str]:
    """Check what making `service` has not checked. Returns the lines for the operator: the settings in force, then what
    was found. UsageError: a start would succeed, and no client would be served as it should.

    `given` has the settings of each option; `setting_of_file` is asked for the one that has named a file. `secrets` are
    those of `warnings_of_process`. `told` has the events that the service logs, those that are still to come too.
    """
    context, tls = service.factory.context, service.factory.tls
    rows = [
        (setting.option, escape_text(_shown(setting)), setting.origin)
        for option in OPTIONS
        for setting in given.get(option, ())
    ]
    lines = in_columns([("option", "value", "from"), *rows])
    if isinstance(tls, CertificateFiles):
        for doubt in tls.doubts(context.hostname, context.seconds()):
            if doubt.reason in OUT_OF_TIME:
                raise setting_of_file(doubt.option, doubt.file).wrong(f"{doubt.file}: {doubt.problem}")
            context.events.doubtful_certificate(doubt)
        lines += ["", *(f"{pair.file}: {escape_text(described(pair))}" for pair in tls.served)]
    warn_of_setup(context, ())
    for what, problem in warnings_of_process(*secrets):
        context.events.setup_warning(what, problem)
    warnings = [str(event["text"]) for event in told if event["log_level"] >= LogLevel.warn]
    delivery = (
        context.delivery.delivery if isinstance(context.delivery, AcceptedDomains) else context.delivery
    )
    if ICheckableDelivery.providedBy(delivery):
        with given["deliver"][-1].blamed():
            missing = await answer_of(delivery.check())
        if missing:
            warnings.append(escape_text(missing))
    for setting, entry in zip(given["ip-filter"], service.factory.filters, strict=True):
        if ISelfTestingFilter.providedBy(entry.filter):
            with setting.blamed():
                missing = await answer_of(ISelfTestingFilter(entry.filter).self_test())
            if missing:
                warnings.append(escape_text(f"{entry.name}: {missing}"))
    servers: dict[Any, str] = {part: "" for part in service if isinstance(part, DovecotAuth)}
    servers |= {entry.policy: f"{entry.name}: " for entry in reversed(service.factory.policies)}
    for server, name in servers.items():
        if isinstance(server, DovecotAuth | PolicyServer):
            missing = await server.self_test()
            if missing:
                warnings.append(escape_text(f"{name}{missing}"))
    answers, away = await check_counters(service.factory.counting.store)
    lines += ["", answers] if answers else []
    warnings += [escape_text(away)] if away else []
    return [*lines, *(["", *(f"warning: {warning}" for warning in warnings)] if warnings else [])]


def _shown(setting: Setting) -> str:
    """The text of a setting, without what may be a password or a key."""
    if setting.option == "auth":
        return setting.text.partition(":")[0]
    if setting.option == "deliver":
        return shown_delivery(setting.text)
    if setting.option == "counters":
        return shown_counters(setting.text)
    if setting.option in ("ip-filter", "policy-plugin") and (found := _FILTER.fullmatch(setting.text)):
        # The argument of another filter, or of a policy, may have a key in it.
        ours = setting.option == "ip-filter" and found[2] == NetworksFactory.name
        return setting.text if ours else found[1]
    return setting.text


def awaited(work: Coroutine[Any, Any, list[str]], reactor: Any) -> list[str]:
    """The result of `work`, for which the reactor runs if it needs it, or its exception. SystemExit: it was
    interrupted."""
    outcome: list[Any] = []
    done = Deferred.fromCoroutine(work).addBoth(outcome.append)
    if not outcome:
        done.addBoth(lambda _: reactor.stop())
        reactor.run()
    if not outcome:
        raise SystemExit(1)
    if isinstance(outcome[0], Failure):
        outcome[0].raiseException()
    result: list[str] = outcome[0]
    return result
