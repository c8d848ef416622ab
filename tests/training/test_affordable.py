from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from finetune.errors import FinetuneError
from finetune.training.affordable import affordable, require_time
from finetune.training.attempts import Attempt, plan_attempts
from finetune.training.deadline import Deadline
from finetune.training.features import KeptFeatures
from finetune.training.search import RESERVE_S, search_heads
from finetune.training.timing import Cost
from tests.conftest import paint_folder
from tests.training.test_search import searched

WORDS = ("data.image_size=32", "budget_minutes=1")
NO_LIMIT = Deadline.after(0.0, None)


@pytest.fixture
def many_photos(tmp_path: Path) -> Path:
    return paint_folder(tmp_path / "many", 24)


def planned(photos: Path, *words: str) -> Attempt:
    (attempt,) = plan_attempts(searched(photos, NO_LIMIT, *WORDS, *words))
    attempt.cost = Cost(0.25, 0.75)
    return attempt


def photos_of(attempt: Attempt) -> tuple[int, int]:
    """Return how many photos train, and how many measure."""
    manifest = attempt.search.manifest
    return len(manifest.of("train")), len(manifest.of("val", "test"))


def test_all_photos_where_there_is_time(many_photos: Path) -> None:
    attempt = planned(many_photos)
    train, measuring = photos_of(attempt)
    assert affordable(attempt, 0.0, train + measuring) is attempt


def test_fewer_photos_of_every_class_where_there_is_not(many_photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    attempt = planned(many_photos)
    train, measuring = photos_of(attempt)
    fewer = affordable(attempt, 0.0, measuring + train / 2)
    assert photos_of(fewer) == (train // 2, measuring)
    assert fewer.search.left_out == train - train // 2
    assert fewer.search.manifest.classes == attempt.search.manifest.classes
    assert "built" not in attempt.__dict__
    assert "built" in fewer.__dict__
    assert f"budget_minutes=1 leaves time for {train // 2} of {train} training photos" in caplog.text


def test_classes_keep_their_proportions_but_for_a_few_of_each(tmp_path: Path) -> None:
    folder = paint_folder(tmp_path / "uneven", 60)
    for photo in sorted((folder / "blue").iterdir())[10:]:
        photo.unlink()
    attempt = planned(folder)
    before = Counter(photo.label for photo in attempt.search.manifest.of("train"))
    assert before["red"] > 3 * before["blue"] >= 3 * 4
    _, measuring = photos_of(attempt)
    half = before.total() // 2
    after = Counter(photo.label for photo in affordable(attempt, 0.0, measuring + half).search.manifest.of("train"))
    assert after.total() == half
    assert all(abs(after[label] - before[label] / 2) <= 3 for label in before)
    few = Counter(photo.label for photo in affordable(attempt, 0.0, measuring + 20).search.manifest.of("train"))
    assert few["blue"] == 4
    assert few["red"] > few["blue"]


def test_what_is_left_out_adds_up(many_photos: Path) -> None:
    attempt = planned(many_photos)
    train, measuring = photos_of(attempt)
    once = affordable(attempt, 0.0, measuring + train - 4)
    twice = affordable(once, 0.0, measuring + train - 8)
    assert once.search.left_out == 4
    assert twice.search.left_out == 8
    kept, before = (set(each.search.manifest.photos) for each in (twice, once))
    assert kept < before


def test_fits_take_their_time_too(many_photos: Path) -> None:
    attempt = planned(many_photos)
    train, _ = photos_of(attempt)
    val, test = (len(attempt.search.manifest.of(split)) for split in ("val", "test"))
    fewer = affordable(attempt, 1.0, 2 * (val + train / 2) + test)
    assert photos_of(fewer)[0] == train // 2


def test_what_is_kept_from_before_costs_nothing(many_photos: Path) -> None:
    attempt = planned(many_photos)
    manifest = attempt.search.manifest
    first = affordable(attempt, 0.0, photos_of(attempt)[1] + 14)
    first.kept.of(first.search.manifest, first.search.manifest.of("train", "val", "test"), "last")
    assert photos_of(affordable(planned(many_photos), 0.0, 5.0))[0] == 19
    again = planned(many_photos)
    assert affordable(again, 0.0, len(manifest.of("train")) - 14) is again


def test_views_take_as_long_as_photos(many_photos: Path) -> None:
    attempt = planned(many_photos, "probe.views=1", "augment=light")
    train, _ = photos_of(attempt)
    val, test = (len(attempt.search.manifest.of(split)) for split in ("val", "test"))
    assert photos_of(affordable(attempt, 0.0, 2 * (val + train / 2) + test))[0] == train // 2


def test_too_little_for_a_few_of_each_class_is_refused(many_photos: Path) -> None:
    attempt = planned(many_photos)
    _, measuring = photos_of(attempt)
    with pytest.raises(FinetuneError) as raised:
        require_time(attempt, 0.0, -20.0)
    least = 4 * len(attempt.search.manifest.classes)
    said = str(raised.value)
    assert f"budget_minutes=1 is too short: {least} training photos" in said
    assert f"take about {measuring + least} s with test_resnet at 32 px, and 0 s are left" in said
    # rounded up to a tenth of a minute
    enough = float(said.split("give budget_minutes=")[1].split(" ")[0])
    assert 0 <= enough - (1 + (20 + measuring + least) / 60) < 0.1


def test_the_search_learns_from_what_the_time_allows(many_photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeptFeatures, "cost", lambda *_: Cost(0.0, 100.0))
    monkeypatch.setattr("finetune.training.search.expect", lambda *_: None)
    search = searched(many_photos, NO_LIMIT, *WORDS, "probe.size_factors=[0.2,0.4]")
    measuring, train = len(search.manifest.of("val", "test")), len(search.manifest.of("train"))
    # what is left when that is asked differs by what was used up; a photo more or less takes 100 s
    enough = Deadline(time.monotonic() + RESERVE_S + 100 * (measuring + train // 2) + 60)
    found = search_heads(searched(many_photos, enough, *WORDS))
    assert found.attempt.search.left_out == train - train // 2
    assert {row["photos"] for row in found.rows} == {train // 2 + len(search.manifest.of("val"))}
    assert len(found.unseen) == len(search.manifest.of("val"))
    with pytest.raises(FinetuneError, match="is too short"):
        search_heads(searched(many_photos, Deadline(time.monotonic() + RESERVE_S + 100), *WORDS))


def test_the_sample_tells_that_time_is_shorter_than_expected(
    many_photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = 50.0
    monkeypatch.setattr(KeptFeatures, "cost", lambda *_: Cost(0.0, 0.001))
    monkeypatch.setattr(
        "finetune.training.search.expect",
        lambda attempts, *_: [setattr(each, "cost", Cost(0.0, slow)) for each in attempts],
    )
    search = searched(many_photos, NO_LIMIT, *WORDS)
    train, val, test = (len(search.manifest.of(split)) for split in ("train", "val", "test"))
    sampled = 12
    to_come = Deadline(time.monotonic() + RESERVE_S + slow * (test + (train + val - sampled) // 2) + slow / 2)
    found = search_heads(searched(many_photos, to_come, *WORDS, f"probe.sample={sampled}"))
    assert found.attempt.search.left_out > 0
    assert found.rows[-1]["photos"] == train + val - found.attempt.search.left_out
