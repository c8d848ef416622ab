from __future__ import annotations

from collections import Counter, defaultdict
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.splits import assign_splits
from finetune.files import digest

Photos = list[tuple[str, str]]
Fractions = dict[Literal["train", "val", "test"], float]


def photos_of(**counts: int) -> Photos:
    """Return (label, sha256) of so many photos a class, no two alike."""
    return [(label, digest(label, str(number))) for label, count in counts.items() for number in range(count)]


# (label, sha256) with distinct sha256, in any order
some_photos = st.lists(
    st.tuples(st.sampled_from("abcd"), st.integers(0, 10**9).map(lambda number: digest(str(number)))),
    unique_by=lambda photo: photo[1],
    max_size=80,
)
share = st.floats(0.01, 0.4)
seeds = st.integers(0, 2**32 - 1)


@given(photos=some_photos, val=share, test=share, seed=seeds)
def test_each_class_gives_its_share_within_one_photo(photos: Photos, val: float, test: float, seed: int) -> None:
    assigned = assign_splits(photos, {"val": val, "test": test}, seed)
    totals = Counter(label for label, _ in photos)
    got = Counter((label, split) for (label, _), split in zip(photos, assigned, strict=True))
    for label, total in totals.items():
        assert abs(got[label, "val"] - round(total * val)) <= 1
        assert abs(got[label, "test"] - round(total * test)) <= 1
        assert sum(got[label, split] for split in ("train", "val", "test")) == total


@given(photos=some_photos, val=st.floats(0.001, 0.999), test=st.floats(0, 0.999), seed=seeds)
def test_two_photos_of_a_class_are_enough_to_train_and_validate(
    photos: Photos, val: float, test: float, seed: int
) -> None:
    assigned = assign_splits(photos, {"test": test, "val": val}, seed)
    splits = defaultdict(set)
    for (label, _), split in zip(photos, assigned, strict=True):
        splits[label].add(split)
    for label, total in Counter(label for label, _ in photos).items():
        assert splits[label] >= ({"train", "val"} if total >= 2 else {"train"})


@given(photos=some_photos, val=share, test=share, seed=seeds, data=st.data())
def test_the_order_of_the_photos_does_not_matter(
    photos: Photos, val: float, test: float, seed: int, data: st.DataObject
) -> None:
    fractions: Fractions = {"val": val, "test": test}
    split_of = dict(zip(photos, assign_splits(photos, fractions, seed), strict=True))
    shuffled = data.draw(st.permutations(photos))
    assert dict(zip(shuffled, assign_splits(shuffled, fractions, seed), strict=True)) == split_of


@given(photos=some_photos, seed=seeds)
def test_the_same_seed_gives_the_same_splits(photos: Photos, seed: int) -> None:
    fractions: Fractions = {"val": 0.2, "test": 0.2}
    assert assign_splits(photos, fractions, seed) == assign_splits(photos, fractions, seed)


@given(photos=some_photos, extra=some_photos, seed=seeds)
def test_a_class_is_split_without_regard_to_the_other_classes(photos: Photos, extra: Photos, seed: int) -> None:
    alone = assign_splits(photos, {"val": 0.2}, seed)
    more = [*photos, *((f"other {label}", sha) for label, sha in extra)]
    assert assign_splits(more, {"val": 0.2}, seed)[: len(photos)] == alone


def test_other_seeds_give_other_splits() -> None:
    photos = photos_of(red=40, blue=40)
    different = {tuple(assign_splits(photos, {"val": 0.2, "test": 0.2}, seed)) for seed in range(20)}
    assert len(different) == 20


def test_every_photo_is_validated_with_under_some_seed() -> None:
    photos = photos_of(red=10)
    validated = [
        number
        for seed in range(60)
        for number, split in enumerate(assign_splits(photos, {"val": 0.2}, seed))
        if split == "val"
    ]
    assert set(validated) == set(range(10))


def test_a_known_class_gives_exactly_its_rounded_shares() -> None:
    assigned = assign_splits(photos_of(red=103), {"test": 0.2, "val": 0.1}, seed=0)
    assert Counter(assigned) == {"train": 72, "test": 21, "val": 10}


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, {"train": 1}),
        (2, {"train": 1, "val": 1}),
        (3, {"train": 1, "val": 1, "test": 1}),
        (4, {"train": 2, "val": 1, "test": 1}),
    ],
)
def test_the_test_split_is_the_first_that_a_small_class_goes_without(count: int, expected: dict[str, int]) -> None:
    assert Counter(assign_splits(photos_of(red=count), {"test": 0.3, "val": 0.3}, seed=0)) == expected


def test_no_fractions_leave_everything_to_train() -> None:
    assert assign_splits(photos_of(red=3, blue=1), {}, seed=0) == ["train"] * 4


def test_no_photos_give_no_splits() -> None:
    assert assign_splits([], {"val": 0.2}, seed=0) == []
