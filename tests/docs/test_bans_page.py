"""The page of bans has the points as they are, and what it says of them holds."""

from __future__ import annotations

import re

from documents import DOCS

from twisted_smtpguard import Limits, replies
from twisted_smtpguard.admission import bans, offences
from twisted_smtpguard.limits.points import POINTS, REJECTED_RECIPIENT

PAGE = DOCS / "reference" / "bans.md"
REPLIES = DOCS / "reference" / "replies.md"


def test_the_page_has_the_points_of_every_offence() -> None:
    rows = re.findall(r"(?m)^\| `(\w+)` \| (\d+) \|$", PAGE.read_text())
    assert {name: int(points) for name, points in rows} == POINTS
    assert [name for name, _ in rows] == list(POINTS)


def test_every_offence_is_a_reason_of_the_log() -> None:
    known = {each.reason for each in replies.catalogue()}
    known |= set(re.findall(r"`(\w+)`", REPLIES.read_text()))
    assert set(POINTS) - {REJECTED_RECIPIENT} <= known


BLAMELESS = {
    # The guard, its operator, a balancer, the delivery and the upstream server.
    "max_connections",
    "ip_filter",
    "ip_filter_timeout",
    "ban_after",
    "unexpected_proxy_header",
    "bad_proxy_header",
    "proxy_header_timeout",
    "auth_unavailable",
    "delivery_refused",
    "insufficient_storage",
    "max_pending_deliveries",
    "upstream_refused",
    "upstream_unavailable",
    "upstream_busy",
    "upstream_lost",
    "upstream_timeout",
    "upstream_garbled",
    "upstream_changed",
    "upstream_unsuitable",
    "lmtp_recipients",
    "delivery_timeout",
    "internal_error",
    "shutdown",
    "deferred",
    "ended_by_operator",
    "made_room",
    "max_tls_handshakes",
    "out_of_descriptors",
    # What the operator's policies decide, and their servers.
    "policy",
    "policy_failed",
    "policy_misconfigured",
    # What follows from offences that were counted, or is no wrong.
    "max_auth_failures",
    "auth_cancelled",
    "no_valid_recipients",
    "max_recipients",
    "oversize_drain",
    "max_received_fields",
    "max_message_line",
    "max_session_time",
    "max_junk_commands",
}
"""The reasons that are no offence, whatever an operator writes."""


def test_each_reason_of_the_catalogue_is_an_offence_or_is_known_to_be_none() -> None:
    reasons = {each.reason for each in replies.catalogue() if each.reason}
    assert reasons - set(POINTS) - BLAMELESS == set()
    assert BLAMELESS & set(POINTS) == set()


def test_its_numbers_are_those_of_the_code() -> None:
    text = " ".join(PAGE.read_text().split())
    assert f"`--ban-after {Limits.for_profile('edge').ban_after}`, which `--profile edge` has" in text
    assert (bans.FIRST_SECONDS, bans.MOST_SECONDS, bans.FORGOTTEN_SECONDS) == (600, 86_400, 7 * 86_400)
    assert "The first ban** takes 10 minutes" in text
    assert offences.WINDOW_SECONDS == 600
    assert f"{bans.CLIENTS_OF_NETWORK} different clients of it" in text
    assert (
        f"10 invalid commands are {10 * POINTS['unrecognized_command'] + POINTS['max_invalid_commands']} points"
        in text
    )
