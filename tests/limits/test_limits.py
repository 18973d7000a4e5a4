"""Limits: what may be set, what each profile sets, and that the reference page tells the truth."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from reference_pages import assert_rows, row_of_limit

from twisted_smtpguard import replies
from twisted_smtpguard.cli.settings import parse_dry_run
from twisted_smtpguard.limits import limits as limits_module
from twisted_smtpguard.limits.limits import Limits, LimitSpec, dry_runnable
from twisted_smtpguard.limits.units import NO_RATE, Part, Rate

SPECS = list(Limits.specs())
each_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)

LENGTHS_IPV4 = "must be at most 4 prefix lengths from 1 to 31"
LENGTHS_IPV6 = "must be at most 4 prefix lengths from 1 to 127"


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("max_connections", -1, "must be 0 or more"),
        ("max_connections", 1.0, "must be a whole number"),
        ("max_connections", True, "must be a number"),
        ("max_connections", "20", "must be a number"),
        ("max_connections", None, "must be a number"),
        ("max_message_size", 0.5, "must be a whole number"),
        ("min_data_rate", -500, "must be 0 or more"),
        ("read_timeout", -0.1, "must be 0 or more"),
        ("read_timeout", float("inf"), "must be 0 or more"),
        ("read_timeout", float("nan"), "must be 0 or more"),
        ("read_timeout", "5m", "must be a number"),
        ("bare_newline", "Reject", "must be one of reject, normalize"),
        ("strict_enhanced_codes", 1, "must be True or False"),
        ("connection_rate", 60, "must be a Rate such as Rate(60, 60)"),
        ("connection_rate", "60/60", "must be a Rate such as Rate(60, 60)"),
        ("connection_rate", Rate(60, 0), "must be a whole number of events in a number of seconds"),
        ("connection_rate", Rate(1.5, 60), "must be a whole number of events in a number of seconds"),  # type: ignore[arg-type]
        ("ipv4_client_prefix", 0, "must be a whole number from 1 to 32"),
        ("ipv6_client_prefix", 129, "must be a whole number from 1 to 128"),
        ("ipv4_networks", 24, f"{LENGTHS_IPV4}, each below the one before"),
        ("ipv4_networks", (32,), f"{LENGTHS_IPV4}, each below the one before"),
        ("ipv4_networks", (24, True), f"{LENGTHS_IPV4}, each below the one before"),
        ("ipv6_networks", (48, 56), f"{LENGTHS_IPV6}, each below the one before"),
        ("ipv6_networks", (56, 56), f"{LENGTHS_IPV6}, each below the one before"),
        ("ipv6_networks", (56, 48, 40, 32, 24), f"{LENGTHS_IPV6}, each below the one before"),
        ("ipv6_networks", "48", f"{LENGTHS_IPV6}, each below the one before"),
        ("ipv6_networks", None, f"{LENGTHS_IPV6}, each below the one before"),
        ("network_factor", 0, "must be a whole number from 1 to 1000"),
        ("network_factor", 1001, "must be a whole number from 1 to 1000"),
        ("network_factor", 1.5, "must be a whole number from 1 to 1000"),
    ],
)
def test_a_value_out_of_range_is_refused_by_the_name_of_its_field(
    field: str, value: object, problem: str
) -> None:
    with pytest.raises(ValueError) as refusal:
        Limits(**{field: value})
    assert str(refusal.value) == f"{field} {problem}, not {value!r}"


def test_a_limit_is_changed_by_its_name_and_the_others_keep_their_defaults() -> None:
    changed = attrs.asdict(Limits(max_connections=500))
    assert changed == {**attrs.asdict(Limits()), "max_connections": 500}


def test_limits_are_frozen() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Limits().max_connections = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_connections", 0),
        ("max_connections_per_client", 0),
        ("connection_rate", NO_RATE),
        ("message_rate", NO_RATE),
        ("recipient_rate", NO_RATE),
        ("ipv4_client_prefix", 32),
        ("ipv6_client_prefix", 64),
        ("ipv4_networks", ()),
        ("ipv6_networks", ()),
        ("network_factor", 3),
        ("max_tracked_clients", 100_000),
        ("ip_filter_timeout", 10),
        ("early_talker", "log"),
        ("greet_delay", 0),
        ("max_tls_handshakes", 0),
        ("unexpected_pipelining", "serve"),
        ("max_invalid_commands", 10),
        ("max_errors", 0),
        ("max_junk_commands", 0),
        ("max_recipients", 100),
        ("strict_enhanced_codes", False),
        ("max_rejected_recipients", 0),
        ("max_messages", 0),
        ("max_command_line", 2048),
        ("max_endless_line", 65536),
        ("max_message_size", 10 * 1024 * 1024),
        ("bare_newline", "reject"),
        ("max_header_size", 256 * 1024),
        ("max_received_fields", 100),
        ("read_timeout", 300),
        ("write_timeout", 300),
        ("min_data_rate", 0),
        ("max_session_time", 0),
        ("delivery_timeout", 300),
        ("max_lingering", 1024),
        ("shutdown_grace", 30),
        ("max_log_lines", 200),
        ("max_log_lines_per_client", 10),
    ],
)
def test_the_defaults_are_those_of_the_base_profile(field: str, value: object) -> None:
    assert getattr(Limits(), field) == value


EDGE = {
    "max_connections": 2000,
    "reserved_connections": Part(20, percent=True),
    "max_connections_per_client": 20,
    "connection_rate": Rate(60, 60),
    "ipv4_networks": (24,),
    "ipv6_networks": (56, 48),
    "ban_after": 20,
    "early_talker": "refuse",
    "greet_delay": 2,
    "max_tls_handshakes": 500,
    "max_errors": 20,
    "max_junk_commands": 20,
    "max_rejected_recipients": 10,
    "max_messages": 100,
    "unexpected_pipelining": "refuse",
    "min_data_rate": 500,
    "max_session_time": 1800,
}


def test_the_profile_edge_sets_exactly_its_column() -> None:
    assert Limits.for_profile("edge") == Limits(**EDGE)  # type: ignore[arg-type]
    assert Limits.for_profile("base") == Limits()


def test_what_is_given_by_name_wins_over_the_profile_and_a_0_too() -> None:
    limits = Limits.for_profile("edge", max_errors=0, max_messages=7)
    assert limits == Limits(**{**EDGE, "max_errors": 0, "max_messages": 7})  # type: ignore[arg-type]


def test_there_is_no_other_profile() -> None:
    with pytest.raises(ValueError, match=r"^one of base, edge is expected, not 'Edge'$"):
        Limits.for_profile("Edge")


def test_a_rate_of_0_is_no_limit() -> None:
    assert Limits(connection_rate=0).connection_rate == NO_RATE


# Networks of clients.


@pytest.mark.parametrize("given", [0, (), []])
def test_an_application_writes_no_networks_as_0_or_as_nothing(given: Any) -> None:
    assert Limits(ipv6_networks=given).ipv6_networks == ()


def test_an_application_may_give_a_list_of_networks() -> None:
    assert Limits(ipv6_networks=[56, 48]).ipv6_networks == (56, 48)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "times"),
    [
        ("", 1),
        ("unix", 1),
        ("192.0.2.1", 1),
        ("192.0.2.0/24", 3),
        ("192.0.0.0/16", 9),
        ("2001:db8::/64", 1),
        ("2001:db8::/56", 3),
        ("2001:db8::/48", 9),
        ("2001:db8::/32", 27),
        ("2001:d00::/24", 1),
    ],
)
def test_each_wider_network_is_allowed_the_factor_of_the_next_narrower_one(key: str, times: int) -> None:
    limits = Limits(ipv4_networks=(24, 16), ipv6_networks=(56, 48, 32), connection_rate=Rate(5, 60))
    assert limits.of_client("connection_rate", key) == Rate(5 * times, 60)
    assert Limits(ipv6_networks=(56,), network_factor=1).times("2001:db8::/56") == 1


def test_a_network_that_is_not_wider_than_a_client_limits_nothing() -> None:
    limits = Limits.for_profile("edge", ipv4_client_prefix=24, ipv6_client_prefix=56)
    assert (limits.networks(4), limits.networks(6)) == ((), (48,))
    assert [limits.times(key) for key in ("192.0.2.0/24", "2001:db8::/56", "2001:db8::/48")] == [1, 1, 3]


@pytest.mark.parametrize(
    "bound",
    [
        "max_command_line",
        "max_endless_line",
        "max_input_buffer",
        "max_output_buffer",
        "socket_send_buffer",
        "socket_receive_buffer",
        "oversize_drain",
        "max_pending_deliveries",
        "max_tracked_clients",
        "read_timeout",
        "write_timeout",
        "min_free_space",
        "no_such_limit",
    ],
)
def test_what_bounds_memory_disk_or_time_held_is_always_enforced(bound: str) -> None:
    with pytest.raises(ValueError, match=f"^dry_run: '{bound}' has no dry run$"):
        Limits(dry_run=[bound])


def test_limits_to_try_are_named_as_on_the_command_line_with_a_comma_between() -> None:
    assert parse_dry_run("max-errors, connection-rate") == {"max_errors", "connection_rate"}
    assert parse_dry_run("ip-filter") == {"ip_filter"}
    assert parse_dry_run("all") == dry_runnable()


@pytest.mark.parametrize("text", ["", "max-errors,", "read-timeout", "ALL", "all,max-errors"])
def test_no_other_limit_can_be_in_dry_run(text: str) -> None:
    with pytest.raises(
        ValueError,
        match=r"^all, or some of auth-failure-rate, .*bare-newline, connection-rate, .* is expected$",
    ):
        parse_dry_run(text)


@each_spec
def test_every_limit_explains_itself(spec: LimitSpec) -> None:
    assert spec.help.endswith(".")
    assert spec.help[0].isupper()
    assert spec.unit.name
    assert spec.option == spec.name.replace("_", "-")


def test_a_limit_that_was_installed_without_its_source_has_no_help(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_source(module: object) -> str:
        raise OSError("could not get source code")

    monkeypatch.setattr("inspect.getsource", no_source)
    spec = attrs.evolve(SPECS[0], owner=type("Others", (Limits,), {}))
    limits_module._docstrings.cache_clear()
    assert spec.help == ""
    limits_module._docstrings.cache_clear()


@each_spec
def test_every_reply_that_a_limit_names_is_in_the_catalogue(spec: LimitSpec) -> None:
    assert set(spec.replies) <= {entry.name for entry in replies.catalogue()}


@each_spec
def test_the_default_that_is_shown_reads_back_as_the_default(spec: LimitSpec) -> None:
    assert spec.unit.parse(spec.unit.format(spec.default)) == spec.default


def test_the_reference_page_has_exactly_the_rows_that_are_true() -> None:
    assert_rows("limits.md", "| `--", map(row_of_limit, SPECS))
