"""Rules of an operator for networks: who is refused, until when, and how they go together with what is configured."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import FakeFilter
from logbook import logbook
from operated import Operated
from twisted.internet.task import Clock

from twisted_smtpguard.interfaces import PASS, TRUST, Peer, refuse
from twisted_smtpguard.operations import rules
from twisted_smtpguard.operations.rules import NetworkRules


def told(guard: Operated) -> list[tuple[str, str, str]]:
    return [(row["network"], row["rule"], row["until"]) for row in guard.operator.rules()]


def test_a_network_is_refused_from_the_next_connection_on_and_sessions_go_on() -> None:
    guard = Operated()
    client = guard.connect()
    with logbook() as log:
        answer = guard.operator.deny("192.0.2.0/24", by="uid:7")
        assert log.take("operator") == ["operator by=uid:7 verb=deny what=192.0.2.0/24,until\\x20restart"]
        assert answer == {"network": "192.0.2.0/24", "rule": "deny", "until": "restart", "from": "uid:7"}
        assert guard.tries("192.0.2.9") == 421
        (line,) = log.take("reject")
        assert " reason=ip_filter filter=deny/trust rule=192.0.2.0/24 code=421" in line
    assert client.codes("NOOP") == [220, 250]
    assert guard.tries("192.0.3.9") == 220


def test_a_rule_with_a_time_ends_with_it() -> None:
    guard = Operated()
    assert guard.operator.carry_out("deny", {"network": "192.0.2.1", "for": "10m"})["until"] == (
        "1970-01-01T00:10:00Z"
    )
    guard.clock.advance(599.9)
    assert guard.tries() == 421
    assert told(guard) == [("192.0.2.1", "deny", "1970-01-01T00:10:00Z")]
    guard.clock.advance(0.1)
    assert told(guard) == []
    assert guard.tries() == 220


def test_a_time_that_no_calendar_holds_is_shown_as_the_end_of_it() -> None:
    guard = Operated()
    last = "9999-12-31T23:59:59Z"
    assert guard.operator.carry_out("deny", {"network": "192.0.2.1", "for": "999999999d"})["until"] == last
    assert told(guard) == [("192.0.2.1", "deny", last)]


def test_its_end_is_kept_where_nobody_looks_before_the_next_client() -> None:
    guard = Operated()
    guard.operator.deny("192.0.2.1", 10)
    guard.clock.advance(10)
    assert guard.tries() == 220
    # Without rules no filter is asked at all.
    assert guard.factory.admission.asks_nothing


def test_the_longest_prefix_decides() -> None:
    guard = Operated(max_connections_per_client=1)
    guard.operator.deny("192.0.2.0/24")
    guard.operator.allow("192.0.2.128/25")
    guard.operator.trust("192.0.2.129")
    assert guard.tries("192.0.2.1") == 421
    assert [guard.tries("192.0.2.128"), guard.tries("192.0.2.128")] == [220, 421]
    assert [guard.tries("192.0.2.129"), guard.tries("192.0.2.129")] == [220, 220]


def test_a_rule_takes_the_place_of_that_for_the_same_network() -> None:
    guard = Operated()
    guard.operator.deny("::ffff:192.0.2.1")
    guard.operator.trust("192.0.2.1/32", 60)
    assert told(guard) == [("192.0.2.1", "trust", "1970-01-01T00:01:00Z")]
    assert guard.tries() == 220


def test_a_ban_is_lifted_and_nothing_else() -> None:
    guard = Operated()
    guard.operator.deny("192.0.2.1")
    guard.operator.trust("192.0.2.2")
    assert guard.tries() == 421
    assert guard.operator.unban("192.0.2.1")["network"] == "192.0.2.1"
    assert guard.tries() == 220
    for address in ("192.0.2.1", "192.0.2.2", "192.0.2.3"):
        with pytest.raises(ValueError, match=f"no operator has denied {address}"):
            guard.operator.unban(address)
    assert [row["network"] for row in guard.operator.rules()] == ["192.0.2.2"]


def test_a_rule_can_be_removed() -> None:
    guard = Operated()
    guard.operator.deny("192.0.2.0/24")
    with logbook() as log:
        guard.operator.remove("192.0.2.0/24")
        assert log.take("operator") == ["operator by=application verb=remove what=192.0.2.0/24"]
    assert guard.tries() == 220
    with pytest.raises(ValueError, match=r"^no operator has made a rule for 192\.0\.2\.0/24$"):
        guard.operator.remove("192.0.2.0/24")


# With what is configured.


def configured(deny: dict[str, str], trust: dict[str, str]) -> Operated:
    guard = Operated()
    guard.operator.networks.configure(deny, trust)
    return guard


def test_what_is_configured_is_shown_with_its_place() -> None:
    guard = configured({"192.0.2.0/24": "file f line 2"}, {"2001:db8::/32": "command line"})
    guard.operator.deny("198.51.100.1", 60, by="uid:0")
    assert list(guard.operator.rules()) == [
        {"network": "192.0.2.0/24", "rule": "deny", "until": "", "from": "file f line 2"},
        {"network": "198.51.100.1", "rule": "deny", "until": "1970-01-01T00:01:00Z", "from": "uid:0"},
        {"network": "2001:db8::/32", "rule": "trust", "until": "", "from": "command line"},
    ]


def test_one_who_is_configured_as_denied_can_be_allowed_by_a_longer_prefix() -> None:
    guard = configured({"192.0.2.0/24": "command line"}, {})
    guard.operator.allow("192.0.2.1", 60)
    assert [guard.tries("192.0.2.1"), guard.tries("192.0.2.2")] == [220, 421]
    guard.clock.advance(60)
    assert guard.tries("192.0.2.1") == 421


@pytest.mark.parametrize("verb", ["trust", "allow"])
def test_a_rule_that_would_have_no_effect_is_refused(verb: str) -> None:
    guard = configured({"192.0.2.0/24": "file f line 2"}, {})
    problem = r"^192\.0\.2\.0/24 is denied by file f line 2, which wins over a rule for the same network$"
    with pytest.raises(ValueError, match=problem):
        guard.operator.carry_out(verb, {"network": "192.0.2.0/24"})
    assert guard.operator.deny("192.0.2.0/24")["rule"] == "deny"


def test_who_is_configured_as_trusted_can_be_denied_or_allowed() -> None:
    guard = configured({}, {"192.0.2.1": "command line"})
    guard.operator.deny("192.0.2.1")
    assert guard.tries() == 421
    guard.operator.allow("192.0.2.1")
    assert guard.connect().protocol.engine.trusted is False
    guard.operator.remove("192.0.2.1")
    assert guard.connect().protocol.engine.trusted is True


def test_a_network_that_is_both_denied_and_trusted_is_denied() -> None:
    assert configured({"192.0.2.1": "a"}, {"192.0.2.1": "b"}).tries() == 421


def test_rules_of_an_operator_stay_when_others_are_configured() -> None:
    guard = configured({"192.0.2.1": "a"}, {})
    guard.operator.deny("192.0.2.2")
    guard.operator.networks.configure({}, {})
    assert [guard.tries("192.0.2.1"), guard.tries("192.0.2.2")] == [220, 421]


def test_a_wrong_network_changes_nothing_of_what_is_configured() -> None:
    guard = configured({"192.0.2.1": "a"}, {})
    with pytest.raises(ValueError, match=r"^'x' is not a network"):
        guard.operator.networks.configure({"192.0.2.2": "a", "x": "a"}, {})
    assert [guard.tries("192.0.2.1"), guard.tries("192.0.2.2")] == [421, 220]


# Wrong requests, and bounds.


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        (
            {"network": "192.0.2.1/24"},
            "'192.0.2.1/24' has bits set after its prefix; 192.0.2.0/24 is expected",
        ),
        ({"network": "mail.example"}, "'mail.example' is not a network; one such as"),
        ({"network": "192.0.2.1", "for": "0"}, "a time such as 10m or 1h is expected, not '0'"),
        ({"network": "192.0.2.1", "for": "-1h"}, "a time such as 10m or 1h is expected, not '-1h'"),
        ({"network": "192.0.2.1", "for": "soon"}, "a time such as 10m or 1h is expected, not 'soon'"),
    ],
)
def test_a_wrong_request_is_refused_with_a_sentence(request_: dict[str, str], problem: str) -> None:
    guard = Operated()
    with pytest.raises(ValueError) as refused, logbook() as log:
        guard.operator.carry_out("deny", request_)
    assert str(refused.value).startswith(problem)
    assert log.take("operator") == told(guard) == []


def test_a_time_of_an_application_must_be_more_than_0() -> None:
    with pytest.raises(ValueError, match=r"^the time of a rule must be more than 0$"):
        Operated().operator.deny("192.0.2.1", float("nan"))


def test_rules_are_bounded_and_one_that_has_ended_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MAX_RULES", 3)
    guard = Operated()
    for host in range(3):
        guard.operator.deny(f"192.0.2.{host}", 60 + host)
    with pytest.raises(ValueError, match=r"^there are 3 rules already, and no more are kept$"):
        guard.operator.deny("192.0.2.9")
    guard.operator.deny("192.0.2.1")
    guard.clock.advance(60)
    guard.operator.deny("192.0.2.9")
    assert [row[0] for row in told(guard)] == ["192.0.2.1", "192.0.2.2", "192.0.2.9"]


def test_the_other_filters_are_asked_after_the_rules() -> None:
    other = FakeFilter(refuse())
    guard = Operated(ip_filters=[other])
    guard.operator.trust("192.0.2.1")
    guard.operator.allow("192.0.2.2")
    assert [guard.tries("192.0.2.1"), guard.tries("192.0.2.2")] == [220, 421]
    assert [str(peer.address) for peer in other.peers] == ["192.0.2.2"]


def test_a_peer_of_a_unix_socket_passes() -> None:
    asked: list[Any] = []
    table = NetworkRules(Clock().seconds, asked.append)
    table.add("deny", "0.0.0.0/0", None, "uid:0")
    assert table.check(Peer(None, None, None, None)) is PASS
    assert len(asked) == 1
    assert TRUST not in asked
