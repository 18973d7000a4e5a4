"""Values for the limits per client, from what clients had, as rows and as lines of a file of options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from logins import Checker, plain
from operated import Operated
from twisted.cred.error import UnauthorizedLogin

from twisted_smtpguard import Limits, Rate
from twisted_smtpguard.admission.peaks import GROUPS, NOTED_LIMITS
from twisted_smtpguard.cli.configuration import read_configuration
from twisted_smtpguard.operations import suggestions
from twisted_smtpguard.operations.suggestions import ONE_IN, lines, merged, row

SINCE = "2026-11-23T10:00:00Z"
LIMITS = Limits(message_rate=Rate(500, 3600), dry_run={"message_rate"})


def seen(accepted: dict[int, int], limits: Limits = LIMITS, **others: dict[int, int]) -> dict[str, Any]:
    return row(
        limits,
        "message_rate",
        {"accepted": accepted, "refused": {}, "banned": {}, **others},
        SINCE,
    )


def said(**given: Any) -> str:
    return "\n".join(lines([seen(**given)]))


histograms = st.dictionaries(st.integers(0, 50), st.integers(1, 60_000), max_size=8)


@given(histograms, histograms, histograms)
def test_a_value_is_the_lowest_that_refuses_no_more_than_its_part(
    accepted: dict[int, int], refused: dict[int, int], banned: dict[int, int]
) -> None:
    told = seen(accepted, refused=refused, banned=banned)
    number = sum(accepted.values())
    assert [each["one_in"] for each in told["suggestions"]] == list(ONE_IN)
    for each in told["suggestions"]:
        if number < each["one_in"]:
            assert each["value"] == ""
            continue

        def above(peaks: dict[int, int], value: int) -> int:
            return sum(clients for peak, clients in peaks.items() if peak > value)

        lowest = next(value for value in range(1, 100) if above(accepted, value) <= number // each["one_in"])
        assert each["value"] == f"{lowest}/3600"
        of_all = (accepted, refused, banned)
        assert [each[group] for group in GROUPS] == [above(peaks, lowest) for peaks in of_all]


@given(st.lists(st.tuples(histograms, histograms), min_size=1, max_size=4))
def test_the_rows_of_workers_are_those_of_one_guard_with_all_their_clients(
    parts: list[tuple[dict[int, int], dict[int, int]]],
) -> None:
    def added(several: list[dict[int, int]]) -> dict[int, int]:
        return {peak: sum(each.get(peak, 0) for each in several) for each in several for peak in each}

    (together,) = merged([seen(accepted, refused=refused) for accepted, refused in parts])
    accepted, refused = zip(*parts, strict=True)
    assert together == seen(added([*accepted]), refused=added([*refused]))


def test_what_cannot_be_told_yet_is_not_suggested() -> None:
    text = said(accepted={1: 998, 40: 1})
    assert "# 1 in 1,000: not known, since mail of fewer than 1,000 clients was accepted." in text
    assert not [line for line in text.splitlines() if line and not line.startswith("#")]


def test_the_most_careful_value_is_set_and_the_other_is_a_comment() -> None:
    peaks = {1: 150_000, 7: 100, 20: 50, 400: 1}
    text = said(accepted=peaks, refused={1: 5, 30: 3}, banned={400: 2})
    assert text == (
        "# Seen since 2026-11-23T10:00:00Z: 150,151 clients whose mail was accepted, 8 others that were refused, 2 "
        "others that were banned.\n"
        "\n"
        "# message-rate is 500/3600, in dry run; take it out of dry-run to have it enforced.\n"
        "# 1 in 1,000: 7/3600 would have refused 51 of 150,151 accepted, 3 of 8 refused, 2 of 2 banned.\n"
        "# 1 in 100,000: 20/3600 would have refused 1 of 150,151 accepted, 3 of 8 refused, 2 of 2 banned.\n"
        "#   message-rate = 7/3600\n"
        "message-rate = 20/3600"
    )


def test_what_an_enforced_limit_has_cut_off_is_not_guessed() -> None:
    enforced = attrs.evolve(LIMITS, message_rate=Rate(10, 60), dry_run=set())
    text = said(accepted={1: 1000, 5: 1, 11: 9}, limits=enforced)
    assert "not known, since 10/60 has refused more. Have it counted in dry run." in text
    assert "message-rate = 10/60" not in text
    assert "message-rate = 5/60" in said(accepted={1: 1000, 5: 8, 11: 1}, limits=enforced)


def test_a_limit_that_is_off_is_not_suggested_but_how_to_have_it_counted() -> None:
    text = "\n".join(
        lines([row(Limits(), name, {key: {} for key in GROUPS}, SINCE) for name in NOTED_LIMITS])
    )
    assert "#   message-rate = 1000000/60\n#   dry-run = message-rate" in text
    assert "#   max-connections-per-client = 1000000\n" in text
    assert "# auth-failure-rate is 10/600, enforced." in text


# With a guard.


def of(guard: Operated, limit: str) -> dict[str, Any]:
    told: list[dict[str, Any]] = []
    guard.operator.suggest().addCallback(told.extend)
    guard.clock.pump([0] * len(NOTED_LIMITS))
    (found,) = [each for each in told if each["limit"] == limit]
    return found


def mail(client: Any, messages: int = 1, recipients: int = 1) -> None:
    client.say("HELO x")
    for _ in range(messages):
        client.say("MAIL FROM:<a@client.example>", *["RCPT TO:<b@guard.example>"] * recipients, "DATA")
        client.say("Subject: x", "", ".")


COUNTED = {
    "max_connections_per_client": 4,
    "connection_rate": Rate(4, 60),
    "message_rate": Rate(4, 60),
    "recipient_rate": Rate(4, 60),
}


@pytest.mark.parametrize("networks", [(), (24,)])
@pytest.mark.parametrize("dry", [False, True])
def test_a_guard_notes_what_its_clients_have(networks: tuple[int, ...], dry: bool) -> None:
    guard = Operated(**COUNTED, ipv4_networks=networks, network_factor=100, dry_run=COUNTED if dry else ())
    clients = [guard.connect("192.0.2.1") for _ in range(3)]
    mail(clients[0], messages=3, recipients=1)
    mail(guard.connect("192.0.2.2"), messages=1, recipients=4)
    mail(guard.connect("192.0.2.3"))
    for _ in range(6):
        guard.connect("192.0.2.4")
    # The fourth has no mail, and was refused where that is enforced: at its fifth connection.
    accepted = {name: of(guard, name.replace("_", "-"))["peaks"]["accepted"] for name in COUNTED}
    assert accepted == {
        "max_connections_per_client": [[0, 2], [3, 1]],
        "connection_rate": [[0, 2], [3, 1]],
        "message_rate": [[0, 2], [3, 1]],
        "recipient_rate": [[0, 1], [3, 1], [4, 1]],
    }
    refused = of(guard, "max-connections-per-client")["peaks"]["refused"]
    assert refused == ([] if dry else [[5, 1]])


def test_in_dry_run_counts_above_the_limit_are_noted_too() -> None:
    guard = Operated(**COUNTED, dry_run=COUNTED)
    mail(guard.connect("192.0.2.1"), messages=9, recipients=2)
    for _ in range(10):
        guard.connect("192.0.2.1")
    found = {name: of(guard, name.replace("_", "-"))["peaks"]["accepted"] for name in COUNTED}
    assert found == {
        "max_connections_per_client": [[11, 1]],
        "connection_rate": [[11, 1]],
        "message_rate": [[9, 1]],
        "recipient_rate": [[19, 1]],
    }


def test_an_enforced_limit_notes_that_more_was_wanted() -> None:
    guard = Operated(**COUNTED)
    mail(guard.connect("192.0.2.1"), messages=9)
    assert of(guard, "message-rate")["peaks"]["accepted"] == [[5, 1]]


def test_trusted_clients_are_left_out() -> None:
    guard = Operated(**COUNTED)
    guard.operator.trust("192.0.2.1")
    mail(guard.connect("192.0.2.1"), messages=9)
    assert of(guard, "message-rate")["accepted"] == 0


def test_a_refused_client_is_told_apart_from_one_whose_mail_is_accepted_later() -> None:
    guard = Operated(**COUNTED)
    for host in ("192.0.2.1", "192.0.2.2"):
        client = guard.connect(host)
        client.say("FNORD")
    assert (of(guard, "message-rate")["accepted"], of(guard, "message-rate")["refused"]) == (0, 2)
    mail(client)
    assert (of(guard, "message-rate")["accepted"], of(guard, "message-rate")["refused"]) == (1, 1)


def test_a_banned_client_is_told_apart() -> None:
    guard = Operated(**COUNTED, ban_after=2, max_invalid_commands=0)
    for host in ("192.0.2.1", "192.0.2.2"):
        guard.connect(host).say("FNORD")
    guard.connect("192.0.2.1").say("FNORD")
    found = of(guard, "connection-rate")
    assert [row["banned"] for row in guard.operator.bans()] == ["192.0.2.1"]
    assert (found["peaks"]["refused"], found["peaks"]["banned"]) == ([[0, 1]], [[2, 1]])


def test_wrong_passwords_are_noted_and_that_more_were_tried() -> None:
    checker = Checker(UnauthorizedLogin())
    guard = Operated(checkers=[checker], max_auth_failures=0, auth_failure_rate=Rate(3, 600))
    guesser = guard.connect("192.0.2.1")
    guesser.say("EHLO x")
    for failures, peak in ((1, 1), (2, 2), (3, 3), (4, 4), (5, 4)):
        guesser.say(f"AUTH PLAIN {plain()}")
        assert of(guard, "auth-failure-rate")["peaks"]["refused"] == [[peak, 1]], failures
    assert len(checker.asked) == 3


def test_right_passwords_are_no_failures() -> None:
    guard = Operated(checkers=[Checker(b"ann")], auth_failure_rate=Rate(3, 600))
    for _ in range(9):
        client = guard.connect("192.0.2.2")
        client.say("EHLO x")
        client.say(f"AUTH PLAIN {plain()}")
    mail(client)
    assert of(guard, "auth-failure-rate")["peaks"]["accepted"] == [[0, 1]]


def test_why_notes_nothing() -> None:
    guard = Operated(**COUNTED)
    guard.operator.deny("192.0.2.1")
    guard.operator.why("192.0.2.1")
    guard.operator.why("192.0.2.2")
    assert guard.factory.clients.peaks.sizes() == {"peaks_accepted": 0, "peaks_others": 0}


def test_the_lines_are_those_of_a_file_of_options(tmp_path: Path) -> None:
    path = tmp_path / "guard.conf"
    path.write_text(said(accepted={1: 150_000, 7: 200}))
    (setting,) = read_configuration(str(path), ["message-rate"], [])
    assert (setting.option, setting.text) == ("message-rate", "7/3600")
    assert suggestions.ONE_IN == (1_000, 100_000)
