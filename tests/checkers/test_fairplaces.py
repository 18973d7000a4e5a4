"""Places that clients share fairly."""

from __future__ import annotations

from twisted_smtpguard.checkers.fairplaces import FairPlaces


def test_a_newcomer_gets_the_oldest_place_of_the_client_that_holds_most() -> None:
    evicted: list[str] = []
    places = FairPlaces[str](4, evicted.append)
    for holder in ("b1", "a1", "a2", "a3"):
        assert places.take(holder[0], holder)
    assert places.take("c", "c1")
    assert places.take("b", "b2") is True
    assert evicted == ["a1", "a2"]
    assert places.taken == 4
    # Now b holds two of four, and nobody more.
    assert places.take("b", "b3") is False
    assert places.take("d", "d1")
    assert evicted == ["a1", "a2", "b1"]


def test_among_clients_that_hold_as_many_the_first_to_come_loses_its_place() -> None:
    evicted: list[str] = []
    places = FairPlaces[str](3, evicted.append)
    for holder in "abcde":
        assert places.take(holder, holder)
    assert evicted == ["a", "b"]
    assert places.take("e", "again") is False


def test_a_place_is_given_back_once() -> None:
    places = FairPlaces[str](2, evict=lambda _: None)
    places.take("a", "a1")
    places.take("a", "a2")
    for _ in range(2):
        places.give_back("a", "a1")
        places.give_back("b", "a2")
    assert places.taken == 1
    places.give_back("a", "a2")
    assert (places.taken, places._held) == (0, {})
