from __future__ import annotations

from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from finetune.data.manifest import Manifest, Photo
from finetune.training.trial import (
    ENOUGH_TO_VALIDATE,
    FOLDS,
    LEAST_A_CLASS,
    Trial,
    _deal,
    in_proportion,
    in_turn,
    plan_trial,
    validation,
)
from tests.conftest import manifest_of


def photos_of(labels: str, splits: list[str], together: list[str], split_from: str = "drawn") -> Manifest:
    rows = [
        Photo(f"{n}.jpg", label, splits[n], f"{n:064x}", "", together=together[n], split_from=split_from)
        for n, label in enumerate(labels)
    ]
    return Manifest(None, tuple(rows))  # type: ignore[arg-type]  # no file is opened


def alone(count: int) -> list[str]:
    return [""] * count


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9)), min_size=12, max_size=60), st.integers(0, 99))
def test_every_photo_is_held_out_once_and_what_belongs_together_at_once(
    drawn: list[tuple[str, int]], seed: int
) -> None:
    labels = "".join(label for label, _ in drawn)
    names = [f"set {number}" if number < 5 else "" for _, number in drawn]
    splits = ["val" if n % 5 == 0 else "train" for n in range(len(drawn))]
    manifest = photos_of(labels, splits, names)
    trial = plan_trial(manifest, seed)
    if trial == validation(manifest):
        # one set, with the share of the other classes that its fold is dealt, would be more than half
        assert max(Counter(_deal(trial.photos, seed)).values()) > len(drawn) / 2
        assert max(Counter(photo.together for photo in trial.photos if photo.together).values()) > len(drawn) / 5
        return
    assert set(trial.held_out) == set(trial.photos)
    assert len(trial.photos) == len(drawn)
    assert 2 <= trial.folds <= FOLDS
    assert set(trial.fold) == set(range(trial.folds))
    for name in {photo.together for photo in trial.photos} - {""}:
        assert len({fold for photo, fold in zip(trial.photos, trial.fold, strict=True) if photo.together == name}) == 1


def test_folds_have_the_same_share_of_each_class() -> None:
    manifest = photos_of("a" * 40 + "b" * 10, ["val", *["train"] * 49], alone(50))
    trial = plan_trial(manifest, 0)
    dealt = Counter((fold, photo.label) for fold, photo in zip(trial.fold, trial.photos, strict=True))
    assert {dealt[fold, "a"] for fold in range(FOLDS)} == {8}
    assert {dealt[fold, "b"] for fold in range(FOLDS)} == {2}
    assert plan_trial(manifest, 0) == trial
    assert plan_trial(manifest, 1) != trial


def test_validation_photos_that_the_source_names_are_the_ones_to_validate_with() -> None:
    manifest = photos_of("ab" * 10, ["train"] * 15 + ["val"] * 5, alone(20), split_from="source")
    trial = plan_trial(manifest, 0)
    assert trial == validation(manifest)
    assert trial.held_out == manifest.of("val")
    assert [trial.photos[number] for number in trial.learned] == list(manifest.of("train"))


def test_a_folder_with_val_is_told_from_one_without(photos: Path, tmp_path: Path) -> None:
    assert plan_trial(manifest_of(photos), 0).folds == FOLDS
    for folder in sorted(photos.iterdir()):
        for split, chosen in (("train", "[0-5]*"), ("val", "[67]*")):
            (tmp_path / "named" / split / folder.name).mkdir(parents=True)
            for photo in folder.glob(chosen):
                photo.rename(tmp_path / "named" / split / folder.name / photo.name)
    assert plan_trial(manifest_of(tmp_path / "named"), 0).folds == 1


def test_many_validation_photos_need_no_turns() -> None:
    count = 2 * ENOUGH_TO_VALIDATE
    manifest = photos_of("ab" * ENOUGH_TO_VALIDATE, ["train", "val"] * ENOUGH_TO_VALIDATE, alone(count))
    assert plan_trial(manifest, 0).folds == 1


@given(st.integers(1, 60), st.booleans(), st.sampled_from(["a" * 60 + "b" * 20, "a" * 70 + "b" * 8 + "cc"]))
def test_a_sample_has_as_many_of_each_class_as_there_are(most: int, turns: bool, labels: str) -> None:
    manifest = photos_of(labels, ["train", "train", "train", "val"] * 20, alone(80))
    trial = plan_trial(manifest, 0) if turns else validation(manifest)
    sample = trial.sample(most)
    where = dict(zip(trial.photos, trial.fold, strict=True))
    assert all(where[photo] == fold for photo, fold in zip(sample.photos, sample.fold, strict=True))
    assert len(set(sample.photos)) == len(sample.photos)
    assert len(sample.held_out) == min(most, len(trial.held_out))
    there = Counter(photo.label for photo in trial.held_out)
    taken = Counter(photo.label for photo in sample.held_out)
    fewest = most // len(there)
    assert all(taken[label] >= min(there[label], fewest) for label in there)


def test_folds_are_of_one_size_whatever_the_sets() -> None:
    together = ["one"] * 16 + ["two"] * 16 + alone(48)
    trial = plan_trial(photos_of("ab" * 40, ["val", *["train"] * 79], together), 0)
    assert set(Counter(trial.fold).values()) == {16}


def test_a_set_of_most_photos_leaves_turns_to_nobody() -> None:
    manifest = photos_of("ab" * 20, ["train"] * 30 + ["val"] * 10, ["one"] * 25 + alone(15))
    assert plan_trial(manifest, 0) == validation(manifest)


def test_a_trial_as_large_as_its_sample_is_itself() -> None:
    manifest = photos_of("ab" * 10, ["train"] * 15 + ["val"] * 5, alone(20))
    trial = plan_trial(manifest, 0)
    sample = trial.sample(500)
    assert isinstance(sample, Trial)
    assert sorted(sample.photos) == sorted(trial.photos)


@given(st.text("abc", min_size=1, max_size=60))
def test_orders_begin_with_as_many_of_each_class_or_with_their_proportions(labels: str) -> None:
    photos = photos_of(labels, ["train"] * len(labels), alone(len(labels))).photos
    whole = Counter(labels)
    for order in (in_turn(photos), in_proportion(photos)):
        assert sorted(order) == list(range(len(photos)))
    for most in range(len(photos) + 1):
        even = Counter(photos[place].label for place in in_turn(photos)[:most])
        assert all(even[label] >= min(whole[label], most // len(whole)) for label in whole)
        share = Counter(photos[place].label for place in in_proportion(photos)[:most])
        if most >= LEAST_A_CLASS * len(whole):
            assert all(share[label] >= min(whole[label], LEAST_A_CLASS) for label in whole)
