from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.config import SourceConfig
from finetune.data.audit import split_photos
from finetune.data.duplicates import Together, alike
from finetune.data.look import Facts
from finetune.data.manifest import Photo
from finetune.data.relations import FEW, relate
from finetune.files import digest
from tests.conftest import source

LABELS = ("a", "b", "c")


class Made(NamedTuple):
    """Photos of one motif are near-duplicates of each other, of one motif and version copies."""

    label: str
    motif: int
    version: int
    group: str
    split: str


PHOTOS = st.lists(
    st.builds(
        Made,
        st.sampled_from(LABELS),
        st.integers(0, 20),
        st.integers(0, 2),
        st.sampled_from(["", "", "", "g", "h"]),
        st.sampled_from(["", "", "", "", "train", "val", "test"]),
    ),
    max_size=40,
)
# of a class each, no two alike: so many that no class ever borrows
REST = [Made(label, 1000 * k + number, 0, "", "") for k, label in enumerate(LABELS, 1) for number in range(100)]


def looked_at(made: Sequence[Made]) -> tuple[list[Photo], list[Facts]]:
    photos, facts = [], []
    for number, one in enumerate(made):
        content = digest(f"{one.motif} {one.version}")
        pattern = int(digest(str(one.motif))[:16], 16) ^ (1 << one.version)
        photos.append(Photo(f"{number}.jpg", one.label, one.split, content, "", one.group))
        facts.append(Facts(sha256=content, perceptual=pattern))
    return photos, facts


def split(made: Sequence[Made], seed: int = 0, config: SourceConfig | None = None) -> list[Photo]:
    relations = relate(*looked_at(made), 4)
    return split_photos(relations.photos, relations, config or source("photos"), seed)


@given(PHOTOS, st.integers(0, 5))
def test_what_belongs_together_never_straddles_and_what_is_placed_stays(made: list[Made], seed: int) -> None:
    # the rest keeps every motif below half of its class
    made = [*made, *REST]
    photos = split(made, seed)
    used = [number for number, photo in enumerate(photos) if not photo.problem]
    together = Together(len(made))
    for names in (
        [f"motif {one.motif}" for one in made],
        [one.group for one in made],
    ):
        kept = [name if not photo.problem else "" for name, photo in zip(names, photos, strict=True)]
        together.join(alike(kept))
    torn = set()
    for members in together.sets():
        placed = {made[number].split for number in members} - {""}
        given_away = {photos[number].split for number in members if not made[number].split}
        assert len(given_away) <= 1
        assert not placed or given_away <= placed
        if len(placed) > 1:
            # a person has put what belongs together into two splits: copies of either have nowhere to go
            torn |= {photos[number].sha256 for number in members}
    by_content = defaultdict(set)
    for number in used:
        by_content[photos[number].sha256].add((photos[number].split, photos[number].label))
        if made[number].split:
            assert photos[number].split == made[number].split
    assert all(len(found) == 1 for content, found in by_content.items() if content not in torn)


@given(PHOTOS, st.lists(st.integers(100, 200), max_size=30, unique=True), st.integers(0, 5))
def test_photos_that_belong_to_no_other_move_none(made: list[Made], motifs: list[int], seed: int) -> None:
    before = split([*made, *REST], seed)
    new = [Made(LABELS[motif % 3], motif, 0, "", "") for motif in motifs]
    after = split([*made, *REST, *new], seed)
    assert [photo.split for photo in after[: len(before)]] == [photo.split for photo in before]


def bursts(sizes: Sequence[int]) -> list[Made]:
    """Near-duplicates of class a, so many of each motif; versions differ in a bit each."""
    return [Made("a", motif, version % 3, "", "") for motif, size in enumerate(sizes) for version in range(size)]


@pytest.mark.parametrize("sizes", [[20] * 6, [FEW], [40, 300], [11, 11]])
def test_a_burst_of_up_to_half_a_class_stays_in_one_split(sizes: list[int]) -> None:
    made = bursts(sizes[:1] * (len(sizes) if len(set(sizes)) == 1 else 1))
    if len(set(sizes)) > 1:
        made += [Made("a", 1000 + number, 0, "", "") for number in range(sizes[1])]
    for seed in range(5):
        found = defaultdict(set)
        for one, photo in zip(made, split(made, seed), strict=True):
            found[one.motif].add(photo.split)
        assert all(len(splits) == 1 for splits in found.values())


def test_what_is_most_of_a_class_is_split_one_by_one_and_said() -> None:
    made = [*(Made("a", 1, version, "", "") for version in range(12)), *REST[100:200]]
    relations = relate(*looked_at(made), 12)
    assert [len(case.paths) for case in relations.found["look_alike"]] == [12]
    assert len({photo.split for photo in split_photos(relations.photos, relations, source("photos"), 0)[:12]}) > 1


def test_a_copy_that_nobody_has_placed_joins_the_one_that_is() -> None:
    made = [Made("a", 1, 0, "", "train"), Made("a", 1, 0, "", ""), Made("a", 2, 0, "", "val")]
    photos = split(made)
    assert [(photo.split, photo.problem) for photo in photos[:2]] == [("train", ""), ("train", "")]


def test_a_copy_that_nobody_has_placed_joins_the_one_that_stays() -> None:
    made = [Made("a", 1, 0, "", where) for where in ("train", "test", "")]
    photos = split([*made, *REST])
    assert [photo.split for photo in photos[1:3]] == ["test", "test"]
    assert photos[0].problem == "the same photo as 1.jpg, which is for test"


@pytest.mark.parametrize("others", [("",), ("", "test"), ("", "val"), ("", "val", "test")])
def test_photos_that_a_table_gives_to_train_stay_there(others: tuple[str, ...]) -> None:
    given_to_train = [one._replace(split="train") for one in REST[:150]]
    rest = [one._replace(split=others[number % len(others)]) for number, one in enumerate(REST[150:])]
    photos = split([*given_to_train, *rest])
    assert {photo.split for photo in photos[:150]} == {"train"}
    assert {photo.split for photo in photos} == {"train", "val", "test"}


def test_only_where_all_are_for_train_and_test_does_train_give_the_validation_photos_up() -> None:
    made = [one._replace(split="test" if number % 5 == 0 else "train") for number, one in enumerate(REST)]
    photos = split(made)
    assert all(photo.split == "test" for photo, one in zip(photos, made, strict=True) if one.split == "test")
    assert {photo.split for photo, one in zip(photos, made, strict=True) if one.split == "train"} == {"train", "val"}
