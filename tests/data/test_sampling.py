from __future__ import annotations

from collections import Counter, defaultdict
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.sampling import BalancedShuffle, EpochShuffle, Place, Share, SharedBatches
from finetune.errors import FinetuneError


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


@given(photos=st.integers(1, 80), size=st.integers(1, 6))
def test_shares_of_a_batch_are_all_of_it_and_hold_the_partners_that_mixing_blends(photos: int, size: int) -> None:
    shares = [Share(rank, size).of(photos) for rank in range(size)]
    assert sorted(place for share in shares for place in share) == list(range(photos))
    # as BatchMixing pairs them: the first of an odd batch with the second
    partner = {place: photos - 1 - place for place in range(photos)}
    if photos % 2:
        partner = {place: photos - place for place in range(1, photos)} | {0: 1 % photos}
    for share in shares:
        assert share == sorted(share)
        for number, place in enumerate(share):
            odd = len(share) % 2
            among_its_own = share[1 % len(share)] if odd and number == 0 else share[len(share) - 1 - number + odd]
            assert among_its_own == partner[place]
    assert max(map(len, shares)) - min(map(len, shares)) <= 3


@given(photos=st.integers(12, 90), batch_size=st.integers(6, 40), size=st.integers(1, 3), taken=st.integers(0, 1))
def test_processes_draw_together_what_one_draws(photos: int, batch_size: int, size: int, taken: int) -> None:
    def drawn(rank: int, size: int) -> list[list[Place]]:
        sampler = EpochShuffle(photos, seed=1)
        sampler.resume(3, taken * batch_size)
        batches = SharedBatches(sampler, batch_size, Share(rank, size))
        assert len(batches) == len(list(batches)) + taken * (len(batches) > 0)
        return list(batches)

    together = [sorted(chain(*shares)) for shares in zip(*(drawn(rank, size) for rank in range(size)), strict=True)]
    alone = [sorted(batch) for batch in drawn(0, 1)]
    assert together == alone[: len(together)]
    # what is left out has not two photos for each
    assert sum(len(batch) for batch in alone[len(together) :]) < 2 * size
    sizes = SharedBatches(EpochShuffle(photos, seed=1), batch_size, Share(0, size))
    assert [len(batch) for batch in together] == [sizes.photos(number) for number in range(taken, len(sizes))]


@given(photos=st.integers(1, 40), size=st.integers(1, 6))
def test_every_process_has_as_many_photos_of_a_split_and_in_turn_they_are_the_split(photos: int, size: int) -> None:
    shares = [Share(rank, size).all_of(photos) for rank in range(size)]
    assert len({len(share) for share in shares}) == 1
    in_turn = [number for row in zip(*shares, strict=True) for number in row]
    assert in_turn[:photos] == list(range(photos))


def test_fewer_photos_than_two_for_each_process_are_refused() -> None:
    with pytest.raises(FinetuneError, match="7 training photos are too few for 4 processes"):
        SharedBatches(EpochShuffle(7, seed=0), 8, Share(0, 4))
