from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.splits import Member, Shares, Split, assign_splits

SHARES = Shares(val=0.2, test=0.2)
LABELS = ("a", "b", "c")
# few names, so that sets of several photos, and of several classes, are common
FOLDERS = st.lists(st.tuples(st.sampled_from(LABELS), st.integers(0, 40)), max_size=60, unique=True)


def members(photos: list[tuple[str, int]]) -> list[Member]:
    return [Member(label, f"photo {name}") for label, name in photos]


def by_photo(photos: list[tuple[str, int]], seed: int = 0, shares: Shares = SHARES) -> dict[tuple[str, int], Split]:
    return dict(zip(photos, assign_splits(members(photos), shares, seed), strict=True))


def complete(splits: dict[tuple[str, int], Split]) -> set[str]:
    """Classes with a photo to train on and one to validate with."""
    found: dict[str, set[str]] = defaultdict(set)
    for (label, _), split in splits.items():
        found[label].add(split)
    return {label for label, there in found.items() if {"train", "val"} <= there}


def large_class(count: int, label: str = "a") -> list[Member]:
    return [Member(label, f"{label} {number}") for number in range(count)]


@given(FOLDERS, st.integers(0, 5))
def test_what_belongs_together_stands_in_one_split(photos: list[tuple[str, int]], seed: int) -> None:
    splits: dict[int, set[str]] = defaultdict(set)
    for (_, name), split in by_photo(photos, seed).items():
        splits[name].add(split)
    assert all(len(found) == 1 for found in splits.values())


@given(FOLDERS, st.integers(0, 5))
def test_every_class_trains_and_validates_if_it_has_two_sets_of_its_own(
    photos: list[tuple[str, int]], seed: int
) -> None:
    own = [(label, 3 * name + LABELS.index(label)) for label, name in photos]
    sets = Counter(label for label, _ in own)
    assert complete(by_photo(own, seed)) == {label for label, count in sets.items() if count > 1}


@given(FOLDERS, FOLDERS, st.integers(0, 5))
def test_photos_that_come_or_go_move_no_other(
    photos: list[tuple[str, int]], more: list[tuple[str, int]], seed: int
) -> None:
    """Large classes never borrow, so nothing at all moves; 100 photos a class make them large."""
    rest = [(label, 1000 + 100 * k + number) for k, label in enumerate(LABELS) for number in range(100)]
    before = by_photo(list(dict.fromkeys([*rest, *photos])), seed)
    after = by_photo(list(dict.fromkeys([*rest, *more])), seed)
    assert all(after[photo] == split for photo, split in before.items() if photo in after)


@given(FOLDERS, st.tuples(st.sampled_from(LABELS), st.integers(41, 60)), st.integers(0, 5))
def test_one_more_photo_moves_at_most_what_its_class_had_borrowed(
    photos: list[tuple[str, int]], new: tuple[str, int], seed: int
) -> None:
    own = [(label, 3 * name + LABELS.index(label)) for label, name in photos]
    added = (new[0], 3 * new[1] + LABELS.index(new[0]))
    before, after = by_photo(own, seed), by_photo([*own, added], seed)
    moved = [photo for photo in own if before[photo] != after[photo]]
    assert all(label == new[0] for label, _ in moved)
    assert len(moved) <= 2


@given(FOLDERS, FOLDERS, st.integers(0, 5))
def test_photos_that_keep_their_split_never_move(
    photos: list[tuple[str, int]], more: list[tuple[str, int]], seed: int
) -> None:
    before = by_photo(photos, seed)
    everything = list(dict.fromkeys([*photos, *more]))
    kept = [Member(label, f"photo {name}", before.get((label, name))) for label, name in everything]
    after = dict(zip(everything, assign_splits(kept, SHARES, seed), strict=True))
    assert all(after[photo] == split for photo, split in before.items())


@given(st.randoms(use_true_random=False), FOLDERS)
def test_the_order_of_the_photos_does_not_matter(random: object, photos: list[tuple[str, int]]) -> None:
    shuffled = list(photos)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert by_photo(shuffled) == by_photo(photos)


@pytest.mark.parametrize("seed", range(8))
def test_a_class_gives_its_share_within_the_documented_bound(seed: int) -> None:
    for count in (100, 1000, 10_000):
        found = Counter(assign_splits(large_class(count), SHARES, seed))
        for split in ("val", "test"):
            # two standard deviations are the bound for 95 of 100; five hold for all of these
            assert abs(found[split] - 0.2 * count) <= 5 * (count * 0.2 * 0.8) ** 0.5


def test_changing_one_share_moves_nothing_of_the_other() -> None:
    photos = large_class(500)
    small = assign_splits(photos, Shares(val=0.1, test=0.1), 0)
    large = assign_splits(photos, Shares(val=0.1, test=0.4), 0)
    assert [split == "val" for split in small] == [split == "val" for split in large]
    assert all(now == "test" for now, before in zip(large, small, strict=True) if before == "test")


def test_other_seeds_give_other_splits() -> None:
    photos = large_class(50)
    assert len({tuple(assign_splits(photos, SHARES, seed)) for seed in range(10)}) == 10


def test_every_photo_validates_in_exactly_one_fold_and_tests_in_none() -> None:
    photos = large_class(400)
    folds = [assign_splits(photos, Shares(val=0.2, test=0.2, fold=(fold, 5)), 0) for fold in range(5)]
    for splits in zip(*folds, strict=True):
        assert set(splits) == {"test"} or Counter(splits) == {"val": 1, "train": 4}


def test_a_set_joins_the_split_in_which_part_of_it_stands() -> None:
    photos = [Member("a", "x", "test"), Member("a", "x"), Member("b", "y", "val"), Member("b", "y", "train")]
    assert assign_splits(photos, SHARES, 0) == ["test", "test", "val", "train"]


def test_no_shares_leave_everything_to_train() -> None:
    assert set(assign_splits(large_class(30), Shares(val=0.0, test=0.0), 0)) == {"train"}
    assert assign_splits([], SHARES, 0) == []
