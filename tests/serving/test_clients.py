from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.serving.clients import Places, name_client


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("testclient", "testclient"),
    ],
)
def test_addresses_of_one_owner_are_one_client(address: str, name: str) -> None:
    assert name_client(None, address) == name
    assert name_client("camera", address) == "key camera"


def filled(places: Places, who: str, each: int = 1) -> int:
    """Let a client take what it gets, and return how many places it has then."""
    while places.has_room(who, each):
        places.hold(who, each)
    return places.of[who]


def test_a_client_alone_gets_nearly_all_and_leaves_a_part() -> None:
    assert filled(Places(256), "a") == 192
    assert filled(Places(256), "a", each=64) == 192
    # of so few, a quarter is no place
    assert filled(Places(3), "a") == 3


def test_who_comes_finds_room_beside_a_greedy_one_and_then_an_even_share() -> None:
    places = Places(256)
    filled(places, "greedy")
    assert places.has_room("new", 64), "all of the largest request"
    assert filled(places, "new") == 64
    assert not places.has_room("new", 1)
    for _ in range(200):
        # one of the greedy one's leaves, and both want its place
        places.hold("greedy", -1)
        filled(places, "greedy")
        filled(places, "new")
    assert places.of["new"] == 256 // 3, "and as much again for who comes next"
    assert places.of["greedy"] >= 256 // 3
    assert places.has_room("next", 64)
    places.hold("greedy", -places.of["greedy"])
    assert places.taken == places.of["new"]
    assert set(places.of) == {"new"}, "who left is forgotten"


def test_there_are_never_more_than_there_are_however_many_come() -> None:
    places = Places(256)
    for number in range(60):
        filled(places, str(number), each=20)
        filled(places, str(number))
    assert places.taken == 256


@given(st.integers(1, 40), st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(-5, 8)), max_size=60))
def test_none_is_held_twice(most: int, asked: list[tuple[str, int]]) -> None:
    places = Places(most)
    for who, more in asked:
        if more > 0 and places.has_room(who, more):
            places.hold(who, more)
        elif more < 0:
            places.hold(who, -min(-more, places.of[who]))
        assert places.taken == sum(places.of.values()) <= most
        assert all(places.of.values())
