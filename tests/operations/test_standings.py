"""`known` and `forget`: which clients are known, and that one is not any more."""

from __future__ import annotations

from typing import Any

import pytest
from logbook import logbook
from operated import Operated

ADDRESS = "192.0.2.1"
MAIL = ("MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA", "x", ".")


def rows(guard: Operated, *address: str) -> list[dict[str, Any]]:
    return list(guard.operator.carry_out("known", dict(zip(["address"], address, strict=False))))


def mailed(*hosts: str, **limits: Any) -> Operated:
    """A guard that has accepted a mail from each of these."""
    guard = Operated(**limits)
    for host in hosts:
        assert guard.greeted(host).say(*MAIL).endswith("250 2.0.0 Message accepted\r\n")
    return guard


def test_the_clients_whose_mail_was_accepted_are_listed_with_the_time_until_which_they_are_known() -> None:
    guard = mailed(ADDRESS, "2001:db8::1", known_for=3600)
    known = {"known": True, "by": "mail", "accepted": "1970-01-01T00:00:00Z", "until": "1970-01-01T01:00:00Z"}
    assert rows(guard) == [{"client": ADDRESS, **known}, {"client": "2001:db8::/64", **known}]
    assert rows(guard, "2001:db8::99") == [{"client": "2001:db8::/64", **known}]
    guard.clock.advance(3600)
    assert rows(guard) == []


def test_of_an_address_it_is_told_whether_its_client_is_known_and_by_what() -> None:
    guard = mailed(ADDRESS)
    guard.service.factory.known.is_listed = lambda address: str(address).startswith("198.51.100.")
    assert [(row["known"], row["by"], row["until"]) for row in rows(guard, ADDRESS)] == [
        (True, "mail", "1970-01-31T00:00:00Z")
    ]
    listed = {"client": "198.51.100.1", "known": True, "by": "file", "accepted": "", "until": ""}
    assert rows(guard, "198.51.100.1") == [listed]
    stranger = {"client": "203.0.113.1", "known": False, "by": "", "accepted": "", "until": ""}
    assert rows(guard, "203.0.113.1") == [stranger]
    assert not rows(guard, "unix")[0]["known"]


def test_a_client_is_forgotten_until_its_next_mail_and_the_log_says_by_whom() -> None:
    guard = mailed(ADDRESS)
    with logbook() as log:
        assert guard.operator.carry_out("forget", {"address": ADDRESS}, "uid:7") == {"forgotten": ADDRESS}
        assert log.take("operator") == [f"operator by=uid:7 verb=forget what={ADDRESS}"]
    assert rows(guard) == []
    with pytest.raises(ValueError, match=f"no mail of {ADDRESS} was accepted lately"):
        guard.operator.forget(ADDRESS)


@pytest.mark.parametrize("verb", ["known", "forget"])
def test_what_is_no_address_is_refused_with_a_sentence(verb: str) -> None:
    with pytest.raises(ValueError, match=r"'192.0.2.0/24' is no address; one such as 192.0.2.1"):
        Operated().operator.carry_out(verb, {"address": "192.0.2.0/24"})
