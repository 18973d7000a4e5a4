"""The status page: HTML, made of a snapshot. Whatever strangers sent is text on it.

It is one document that asks for nothing else: its style and its script stand in it, and its Content-Security-Policy
admits these two by their hashes, and no others. Every text passes through `_text`.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import Any

from twisted_smtpguard.inputs.escaping import escape_text
from twisted_smtpguard.metrics.charts import bars, meter
from twisted_smtpguard.metrics.snapshot import SAMPLES

Row = Mapping[str, Any]

_STYLE = (files(__package__) / "status.css").read_text("ascii")
_SCRIPT = (files(__package__) / "status.js").read_text("ascii")

_REASONS = 12
"""How many reasons are shown at once. The others can be unfolded."""

_CLIENTS = 10
"""How many clients are shown, of those that `top` lists."""


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            f"style-src {_hash(_STYLE)}",
            f"script-src {_hash(_SCRIPT)}",
            # It asks for itself again.
            "connect-src 'self'",
            # An empty icon, so that no browser asks for one.
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        )
    ),
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def page_of(snapshot: Row) -> str:
    """The page, in ASCII."""
    status = snapshot.get("status", {})
    name = _text(status.get("hostname", "the guard"))
    parts = [
        _part("now", "Now", _now(snapshot, status)),
        _part("hour", "The last hour", _hour(snapshot, status)) if snapshot["hour"] else "",
        _part("workers", "Workers", _workers(status["workers"])) if status.get("workers") else "",
        '<div class="pair"><div>',
        _part("reasons", "Refusals by reason", _reasons(status)),
        _part("hooks", "Filters, policies and delivery", _hooks(snapshot)),
        "</div>",
        _part("top", "Busiest clients", _top(snapshot)),
        "</div>",
        _part("recent", "Lately", _recent(snapshot)),
        _part("limits", "Limits in force", _limits(snapshot)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{name}: {_text(status.get("state", "unknown"))}</title><link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style></head><body>"
        f'<header id="head"><h1>{name}</h1>{_state(status)}'
        f'<p class="asof">As of <time>{_text(snapshot["time"])}</time>. Times are UTC.</p></header>'
        '<p id="alarm" role="alert" hidden></p>'
        f"<main>{''.join(parts)}</main>"
        f"<footer><p>twisted_smtpguard {_text(status.get('version'))}, process {_text(str(status.get('pid', '')))}. "
        '<a href="status.json">status.json</a> <a href="metrics">metrics</a> <a href="healthz">healthz</a></p>'
        "<noscript><p>Without JavaScript this page does not refresh itself.</p></noscript></footer>"
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def _text(value: object) -> str:
    """Any value as text of HTML. It is escaped as in the log first, so that nothing turns the direction of the page."""
    if value is None or value == "":
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return escape(escape_text(str(value)))


def _part(name: str, title: str, content: str) -> str:
    return (
        f'<section id="{name}" aria-labelledby="h-{name}"><h2 id="h-{name}">{title}</h2>{content}</section>'
    )


def _state(status: Row) -> str:
    problem = status.get("problem", "")
    if problem or not status:
        return f'<p class="state bad">{_text(problem or "It is not known how the guard is")}</p>'
    if status.get("deferring"):
        return '<p class="state warn">Listening; every MAIL is deferred</p>'
    if status.get("stress"):
        return '<p class="state warn">Listening, in stress: strangers have less time and fewer errors</p>'
    return '<p class="state good">Listening, takes mail</p>'


def _now(snapshot: Row, status: Row) -> str:
    if not status:
        return _problem(snapshot, "status")
    counts = status["statistics"]
    now, most = status["connections"], status["max_connections"]
    share = f"of {most:,} ({now / most:.0%})" if most else "without a cap"
    upstream = ", ".join(f"{_text(state)} {number:,}" for state, number in status.get("upstream", {}).items())
    tiles = [
        ("Connections", f"{now:,}", share + meter(now, most, f"{now} {share}")),
        ("Greeted", f"{status['sessions']:,}", f"at most {counts.get('peak_live_connections', 0):,} so far"),
        ("Messages accepted", f"{counts['messages_accepted']:,}", _octets(counts["octets_accepted"])),
        (
            "Refusals",
            f"{sum(counts['refusals'].values()):,}",
            f"{counts['connections_refused']:,} before the greeting",
        ),
        ("TLS handshakes", f"{status['tls_handshakes']:,}", f"{status['lingering']:,} connections linger"),
        ("Banned", f"{status.get('bans', 0):,}", "clients and networks, for their offences"),
        ("Failures", f"{counts['failures']:,}", "unexpected exceptions"),
    ]
    if upstream:
        tiles.append(("Upstream", "down" if status.get("problem") else "up", upstream))
    shown = "".join(
        f"<div><dt>{name}</dt><dd><b>{number}</b> {more}</dd></div>" for name, number, more in tiles
    )
    listening = ", ".join(_text(f"{name} ({address})") for name, address in status["listening"].items())
    return f'<dl class="tiles">{shown}</dl><p class="note">Listens on {listening or "nothing"}.</p>'


def _hour(snapshot: Row, status: Row) -> str:
    samples = snapshot["hour"]
    charts = [
        bars("Connections", samples, ["connections"], SAMPLES, status.get("max_connections", 0)),
        bars("New connections a minute", samples, ["accepted", "refused"], SAMPLES),
        bars("Messages accepted a minute", samples, ["messages"], SAMPLES),
        bars("Refusals a minute", samples, ["refusals"], SAMPLES),
    ]
    return f'<div class="charts">{"".join(charts)}</div>'


def _reasons(status: Row) -> str:
    counts = status.get("statistics", {})
    refused, tried = counts.get("refusals", {}), counts.get("dry_run_refusals", {})
    reasons = sorted({*refused, *tried}, key=lambda reason: (-refused.get(reason, 0), reason))
    rows = [(reason, refused.get(reason, 0), tried.get(reason, 0)) for reason in reasons]
    columns = ("Reason", "Refused#", "In dry run#")
    shown = _table("Since the start", columns, rows[:_REASONS])
    return shown + _more("reasons", "Less frequent reasons", columns, rows[_REASONS:])


def _workers(workers: Sequence[Row]) -> str:
    rows = [
        (row.get("worker"), str(row.get("pid")), row.get("state"), row.get("version"), row.get("connections"))
        for row in workers
    ]
    return _table("Processes", ("Worker", "Process", "State", "Version", "Connections#"), rows, wide=True)


def _top(snapshot: Row) -> str:
    columns = ("Client", "Connections#", "Messages#", "Recipients#", "Refusals#")
    shown = _problem(snapshot, "top")
    for verb, caption in (("top", "By open connections"), ("top_refused", "By refusals")):
        rows = [
            (row["client"], row["connections"], row["messages"], row["recipients"], row["refusals"])
            for row in snapshot.get(verb, ())[:_CLIENTS]
        ]
        shown += _table(caption, columns, rows, wide=True)
    return shown


def _hooks(snapshot: Row) -> str:
    rows = [
        (
            f"{row['part']} {row['name']}",
            row["outcome"],
            row["answers"],
            _seconds(row["mean_seconds"]),
            _within(row),
        )
        for row in snapshot.get("hooks", ())
    ]
    columns = ("Filter or hook", "Outcome", "Answers#", "On average#", "95 of 100 within#")
    return _problem(snapshot, "hooks") + _table("Since the start", columns, rows, wide=True)


def _within(row: Row) -> str:
    """How long most answers took at most. Where all came in their calls, the least time that is measured says less."""
    if row["within_seconds"] is None:
        return "longer"
    return _seconds(row["within_seconds"] if row["seconds"] else 0)


def _recent(snapshot: Row) -> str:
    recent, today = snapshot.get("recent", {}), snapshot["time"][:10]
    refusals = [
        (
            _time(row["time"], today),
            row.get("address"),
            str(row.get("reason", "")) + " (dry run)" * bool(row.get("dry_run")),
            " ".join(
                str(row[name]) for name in ("command", "network", "filter", "policy", "rule") if name in row
            ),
            f"{row['value']} of {row['limit']}" if "value" in row else str(row.get("limit", "")),
            row.get("reply"),
        )
        for row in recent.get("refusals", ())
    ]
    sessions = [
        (
            _time(row["ended"], today),
            row.get("address"),
            row.get("helo"),
            row.get("user"),
            row.get("tls"),
            row.get("messages"),
            _seconds(row.get("seconds", 0)),
            row.get("reason"),
        )
        for row in recent.get("sessions", ())
    ]
    columns = ("Time", "Client", "Reason", "At", "Limit", "Reply")
    others = ("Ended", "Client", "HELO", "User", "TLS", "Messages#", "Took#", "Reason")
    return (
        _problem(snapshot, "recent")
        + _table("Latest refusals", columns, refusals, wide=True)
        + _table("Latest sessions that have ended", others, sessions, wide=True)
    )


def _limits(snapshot: Row) -> str:
    rows = snapshot.get("limits", ())
    shown: dict[bool, list[tuple[str, str, str]]] = {False: [], True: []}
    for row in rows:
        value = f"{row['value']} (dry run)" if row["dry_run"] else f"{row['value']}"
        shown[row["from"] == "default"].append((row["limit"], value, row["from"]))
    columns = ("Limit", "Value", "Where from")
    return (
        _problem(snapshot, "limits")
        + _table("Not the default", columns, shown[False])
        + _more("limits", "At their default", columns, shown[True])
    )


def _problem(snapshot: Row, verb: str) -> str:
    problem = snapshot["problems"].get(verb)
    return f'<p class="state bad">{_text(problem)}</p>' if problem else ""


def _more(name: str, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table that can be unfolded, if it has rows."""
    if not rows:
        return ""
    summary = f'<summary id="s-{name}">{title} ({len(rows)})</summary>'
    return f'<details id="d-{name}">{summary}{_table(title, columns, rows)}</details>'


def _table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, wide: bool = False
) -> str:
    """A table whose first column names the row. The columns whose name ends in `#` are numbers. A `wide` one becomes a
    list on a phone."""
    names = [name.rstrip("#") for name in columns]
    kinds = [" class=n" if name.endswith("#") else "" for name in columns]
    labels = [f' data-l="{name}"' if wide else "" for name in names]
    begins = [f"<td{kind}{label}>" for kind, label in zip(kinds, labels, strict=True)][1:]
    body = []
    for row in rows:
        first, *others = map(_text, row)
        cells = [
            f"{begin}{text}</td>" if text != "-" else "<td class=e>-</td>"
            for begin, text in zip(begins, others, strict=True)
        ]
        body.append(f"<tr><th scope=row>{first}</th>{''.join(cells)}</tr>")
    if not body:
        return f'<p class="note">{caption}: none.</p>'
    heads = "".join(f"<th scope=col{kind}>{name}</th>" for name, kind in zip(names, kinds, strict=True))
    return (
        f"<table{' class=wide' if wide else ''}><caption>{caption}</caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table>"
    )


def _time(text: str, today: str) -> str:
    """The time of day, and the date where it is not that of `today`."""
    date, _, time = text.rstrip("Z").partition("T")
    return time if date == today else f"{date} {time}"


def _seconds(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:,.1f} s"
    return f"{seconds * 1000:.3g} ms" if seconds else "at once"


def _octets(number: float) -> str:
    for unit in ("octets", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:,.0f} {unit}" if unit == "octets" else f"{number:,.1f} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"
