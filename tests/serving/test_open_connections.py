"""Who goes where one more connection comes than there are places."""

from __future__ import annotations

import pytest

from finetune.serving.open_connections import SETTLED_S, Guest, OpenConnections, Standing

NOW = 1000.0
LONG = NOW - 10 * SETTLED_S
JUST = NOW - 0.5 * SETTLED_S


class Told(Guest):
    """A connection that is about what the test says."""

    def __init__(self, standing: Standing = Standing.IDLE, since: float = LONG) -> None:
        self.told, self.is_open = (standing, since), True

    def standing(self) -> tuple[Standing, float]:
        return self.told

    def cut_off(self) -> None:
        self.is_open = False


def filled(**guests: list[Told]) -> OpenConnections:
    """Return places that are all taken, by addresses a, b, c; ..."""
    places = OpenConnections(sum(len(its) for its in guests.values()))
    for address, its in guests.items():
        for guest in its:
            assert places.take(guest, address, NOW)
    return places


def test_who_leaves_makes_room() -> None:
    first = Told(Standing.ASKING)
    places = filled(a=[first])
    assert not places.take(Told(), "a", NOW)
    places.leave(first)
    assert places.take(Told(), "a", NOW)


def test_room_is_taken_from_the_address_that_has_most_though_others_are_idle_for_longer() -> None:
    few, many = [Told(since=LONG - 5)], [Told(since=LONG), Told(since=LONG - 1), Told(since=LONG)]
    places = filled(a=few, b=many)
    for address in "abc":
        newcomer = Told()
        assert places.take(newcomer, address, NOW)
        assert few[0].is_open
        places.leave(newcomer)
        # its longest idle one has gone, and the places are filled again
        assert [one.is_open for one in many] == [True, False, True]
        many[1] = Told(since=LONG - 1)
        assert places.take(many[1], "b", NOW)


def test_the_idle_go_first_then_what_is_half_sent_then_what_is_not_read() -> None:
    order = [Told(standing, since) for standing in list(Standing)[:3] for since in (LONG - 1, LONG)]
    places = filled(a=[*order[::-1], Told(Standing.ASKING)])
    for gone in range(1, len(order) + 1):
        assert places.take(Told(Standing.ASKING), "a", NOW)
        assert [one.is_open for one in order] == [False] * gone + [True] * (len(order) - gone)
    assert not places.take(Told(), "a", NOW), "what is being answered stays"


@pytest.mark.parametrize("standing", [Standing.IDLE, Standing.HALF_SENT, Standing.UNREAD])
def test_what_may_just_be_sending_gives_way_to_nobody_of_its_own_address(standing: Standing) -> None:
    only = Told(standing, JUST)
    places = filled(a=[only])
    assert not places.take(Told(), "a", NOW)
    assert only.is_open


@pytest.mark.parametrize("standing", [Standing.IDLE, Standing.ASKING])
def test_an_address_with_few_comes_in_whatever_one_with_many_does(standing: Standing) -> None:
    many = [Told(standing, JUST - number / 100) for number in range(4)]
    places = filled(a=many)
    assert [places.take(Told(standing, JUST), "b", NOW) for _ in range(4)] == [True, True, False, False]
    assert [one.is_open for one in many] == [True, True, False, False], "until both have as many"


def test_where_every_address_has_one_the_longest_idle_goes() -> None:
    guests = [Told(Standing.HALF_SENT, LONG - 5), Told(), Told(since=LONG - 1)]
    places = filled(a=guests[:1], b=guests[1:2], c=guests[2:])
    assert places.take(Told(), "d", NOW)
    assert [one.is_open for one in guests] == [True, True, False]
