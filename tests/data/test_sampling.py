from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.sampling import BalancedShuffle, EpochShuffle, Place


def places(sampler: EpochShuffle, epoch: int) -> list[Place]:
    sampler.set_epoch(epoch)
    drawn = list(sampler)
    assert len(drawn) == len(sampler)
    return drawn


def test_a_shuffle_holds_every_place_once() -> None:
    drawn = places(EpochShuffle(50, seed=3), 4)
    assert sorted(drawn) == [(4, number, 0) for number in range(50)]
    assert drawn != sorted(drawn)


@pytest.mark.parametrize("kind", ["shuffled", "balanced"])
def test_an_order_depends_on_seed_and_epoch_and_nothing_else(kind: str) -> None:
    def order(seed: int, epoch: int) -> tuple[Place, ...]:
        sampler = EpochShuffle(50, seed) if kind == "shuffled" else BalancedShuffle([0] * 45 + [1] * 5, seed)
        # a run that was resumed has not been through the epochs before
        assert places(sampler, epoch) == places(sampler, epoch)
        return tuple(number for _, number, _ in places(sampler, epoch))

    orders = {order(seed, epoch) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


@given(targets=st.lists(st.integers(0, 4), min_size=1, max_size=60), seed=st.integers(0, 2**32 - 1))
def test_balanced_draws_every_class_equally_often_and_its_photos_as_evenly_as_can_be(
    targets: list[int], seed: int
) -> None:
    drawn = places(BalancedShuffle(targets, seed), 1)
    by_class = Counter(targets[number] for _, number, _ in drawn)
    assert set(by_class) == set(targets)
    assert len(set(by_class.values())) == 1
    assert len(targets) <= len(drawn) < len(targets) + len(by_class)
    by_photo = Counter(number for _, number, _ in drawn)
    times = defaultdict(set)
    for number, target in enumerate(targets):
        times[target].add(by_photo[number])
    assert all(max(counts) - min(counts) <= 1 for counts in times.values())


def test_a_photo_drawn_again_has_another_place() -> None:
    drawn = places(BalancedShuffle([0] * 9 + [1], seed=0), 0)
    assert len(set(drawn)) == len(drawn)
    assert [place for place in drawn if place[1] == 9] == [(0, 9, again) for again in range(5)]


def test_balanced_shows_other_photos_of_a_common_class_in_another_epoch() -> None:
    sampler = BalancedShuffle([0] * 40 + [1] * 2, seed=0)
    first, second = ({number for _, number, _ in places(sampler, epoch) if number < 40} for epoch in (0, 1))
    assert first != second
    assert len(first) == len(second) == 21


@pytest.mark.parametrize("kind", ["shuffled", "balanced"])
def test_an_epoch_goes_on_after_the_places_that_were_taken_and_the_next_one_is_whole(kind: str) -> None:
    sampler, again = (EpochShuffle(20, 5) if kind == "shuffled" else BalancedShuffle([0, 1] * 10, 5) for _ in range(2))
    whole = [places(sampler, epoch) for epoch in (3, 4)]
    again.resume(3, taken=8)
    assert list(again) == whole[0][8:]
    assert places(again, 4) == whole[1]
    assert len(again) == 20
