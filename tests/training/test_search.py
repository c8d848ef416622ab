from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from finetune.config import TrainConfig
from finetune.manual import conf_dir
from finetune.schema import parse
from finetune.training.attempts import Attempt, Candidate, Search, image_sizes, larger_attempt, plan_attempts
from finetune.training.deadline import Deadline
from finetune.training.features import KeptFeatures
from finetune.training.imbalance import Judgement, choose_handling
from finetune.training.search import Found, lead, search_heads
from finetune.training.timing import Cost
from finetune.training.trial import Trial, plan_trial
from finetune.training.watching import Watch
from tests.conftest import manifest_of, paint_folder

CPU = torch.device("cpu")
WORDS = ("model.backbone=test_resnet", "model.weights=none", "probe.l2=[0.01,1.0]")


def config_of(photos: Path, *words: str) -> TrainConfig:
    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        composed = compose("train", [f"data.root={photos}", "output=run", *WORDS, *words])
    values: Any = OmegaConf.to_container(composed, resolve=True)
    return parse(TrainConfig, values)


def searched(photos: Path, deadline: Deadline, *words: str) -> Search:
    config = config_of(photos, *words)
    manifest = manifest_of(photos, val_fraction=0.25, test_fraction=0.25)
    handling = choose_handling(config.imbalance, "head", [photo.label for photo in manifest.of("train")])
    torch.manual_seed(0)
    return Search(config, handling, manifest, CPU, deadline, Watch(photos.parent / "metrics.csv", {}))


def tried(found: Found) -> list[tuple[object, object]]:
    return list(dict.fromkeys((row["backbone"], row["image_size"]) for row in found.rows))


NO_LIMIT = Deadline.after(0.0, None)


def test_every_size_feature_set_and_penalty_is_tried(photos: Path) -> None:
    found = search_heads(searched(photos, NO_LIMIT, "probe.size_factors=[0.2,0.4]"))
    assert tried(found) == [("test_resnet", 32), ("test_resnet", 64)]
    assert {(row["features"], row["l2"]) for row in found.rows} == {
        (features, l2) for features in ("last", "stages", "all") for l2 in (0.01, 1.0)
    }
    assert found.best.judged.accuracy == max(row["val_accuracy"] for row in found.rows)
    assert found.photos_seen == 2 * len(found.attempt.search.manifest.of("train", "val"))


def test_backbones_are_tried_cheapest_first(photos: Path) -> None:
    words = ("probe.backbones=[test_efficientnet]", "probe.size_factors=[0.2,0.4]")
    attempts = plan_attempts(searched(photos, NO_LIMIT, *words))
    assert len(attempts) == 4
    costs = [attempt.cost.seconds for attempt in attempts]
    assert costs == sorted(costs)
    assert costs[0] > 0
    by_backbone = [attempt.image_size for attempt in attempts if attempt.backbone == "test_resnet"]
    assert by_backbone == sorted(by_backbone)


@pytest.fixture
def takes_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos are expected to take a second each at 32 px, whatever they really take."""
    monkeypatch.setattr(KeptFeatures, "cost", lambda *_: Cost(0.0, 1.0))
    monkeypatch.setattr("finetune.training.search.expect", lambda *_: None)


@pytest.mark.usefixtures("takes_a_second")
def test_what_there_is_no_time_for_is_not_tried(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    search = searched(photos, Deadline(time.monotonic() + 60), "probe.size_factors=[0.2,0.4]")
    with caplog.at_level(logging.INFO, "finetune"):
        found = search_heads(search)
    assert tried(found) == [("test_resnet", 32)]
    assert found.attempt.search is search
    assert "test_resnet at 64 px: not tried, it would take about" in caplog.text


@pytest.mark.usefixtures("takes_a_second")
def test_what_was_computed_before_takes_no_time(photos: Path) -> None:
    words = ("probe.size_factors=[0.2,0.4]",)
    a_minute = Deadline(time.monotonic() + 60)
    first = search_heads(searched(photos, a_minute, *words))
    assert tried(first) == [("test_resnet", 32)]
    whole = search_heads(searched(photos, NO_LIMIT, *words))
    for attempt in plan_attempts(searched(photos, NO_LIMIT, *words)):
        attempt.kept.of(whole.attempt.search.manifest, whole.attempt.search.manifest.of("test"), "last")
    assert tried(search_heads(searched(photos, a_minute, *words))) == [("test_resnet", 32), ("test_resnet", 64)]


def test_distorted_views_join_the_training_photos_only(photos: Path) -> None:
    search = searched(photos, NO_LIMIT, "probe.views=2", "augment=light", "data.image_size=32")
    (attempt,) = plan_attempts(search)
    train = search.manifest.of("train")
    rows, targets = attempt.rows(train, "last")
    assert len(rows) == len(targets) == 3 * len(train)
    assert targets == 3 * search.manifest.targets(train)
    found = search_heads(search)
    assert found.best.judged.accuracy == 1


@pytest.mark.parametrize(
    ("words", "sizes"),
    [
        (["data.image_size=100"], [100]),
        (["probe.size_factors=[1.0,1.4,2.0]"], [160, 224, 320]),
        (["probe.size_factors=[0.01,1.0,1.01]"], [32, 160]),
        (["model.backbone=test_vit"], [160]),
    ],
)
def test_sizes_are_multiples_of_what_backbones_shrink_by(photos: Path, words: list[str], sizes: list[int]) -> None:
    config = config_of(photos, *words)
    assert image_sizes(config, config.model.backbone) == sizes


def test_the_file_of_weights_is_the_first_backbones(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def build(name: str, size: int, weights: str, *_: object) -> Any:
        asked.append((name, weights))
        raise InterruptedError

    monkeypatch.setattr("finetune.training.attempts.build_backbone", build)
    search = searched(photos, NO_LIMIT, "model.weights=some.pth", "probe.backbones=[test_efficientnet]")
    for backbone in ("test_resnet", "test_efficientnet"):
        with pytest.raises(InterruptedError):
            _ = Attempt(search, backbone, 64).kept
    assert asked == [("test_resnet", "some.pth"), ("test_efficientnet", "auto")]


@pytest.fixture
def many_photos(tmp_path: Path) -> Path:
    return paint_folder(tmp_path / "many", 24)


def test_what_a_sample_shows_to_be_behind_does_not_see_the_other_photos(
    many_photos: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def candidates(attempt: Attempt, trial: Trial) -> list[Candidate]:
        right = torch.arange(len(trial.held_out)) < {32: 4, 64: 15, 96: 16}[attempt.image_size]
        accuracy = right.double().mean().item()
        return [Candidate("last", 1.0, Judgement(accuracy, accuracy, 1.0, (accuracy, -1.0)), right)]

    monkeypatch.setattr(Attempt, "candidates", candidates)
    search = searched(many_photos, NO_LIMIT, "probe.size_factors=[0.2,0.4,0.6]", "probe.sample=20")
    with caplog.at_level(logging.INFO, "finetune"):
        found = search_heads(search)
    # the last row is the best head's on the validation photos
    seen = [(row["image_size"], row["photos"]) for row in found.rows[:-1]]
    whole = len(search.manifest.of("train", "val"))
    assert seen == [(32, 20), (64, 20), (96, 20), (96, whole), (64, whole)]
    assert found.photos_seen == 20 + 2 * whole
    assert "so not tried on the other photos: test_resnet at 32 px" in caplog.text
    assert "built" in found.attempt.__dict__


def test_the_leader_of_the_sample_comes_first_where_time_is_short(
    many_photos: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [1000.0]

    def candidates(attempt: Attempt, trial: Trial) -> list[Candidate]:
        seconds = attempt.cost.seconds * len(trial.photos)
        now[0] += seconds
        attempt.kept.computed_s += seconds
        accuracy = {32: 0.7, 64: 0.75}[attempt.image_size]
        right = torch.arange(len(trial.held_out)) < accuracy * len(trial.held_out)
        return [Candidate("last", 1.0, Judgement(accuracy, accuracy, 1.0, (accuracy, -1.0)), right)]

    monkeypatch.setattr(Attempt, "candidates", candidates)
    monkeypatch.setattr(KeptFeatures, "cost", lambda *_: Cost(0.0, 0.2))
    monkeypatch.setattr("finetune.training.search.time.monotonic", lambda: now[0])
    search = searched(many_photos, Deadline(1085.0), "probe.size_factors=[0.2,0.4]", "probe.sample=20")
    with caplog.at_level(logging.INFO, "finetune"):
        found = search_heads(search)
    # 4 and 16 s for the sample, then 46 for all photos at 64 px; with its test photos still to do, 32 px is too much
    assert found.attempt.image_size == 64
    assert now[0] <= 1085
    assert "32 px: not tried on the other photos, it would take about" in caplog.text


def test_heads_with_hidden_layers_take_turns_too(photos: Path) -> None:
    found = search_heads(
        searched(photos, NO_LIMIT, "head.hidden=[8]", "data.image_size=32", "probe.views=1", "augment=light")
    )
    assert {row["folds"] for row in found.rows} == {5, 1}
    assert found.judged.accuracy > 0.5


def test_views_are_learned_from_and_never_judged(photos: Path) -> None:
    search = searched(photos, NO_LIMIT, "probe.views=2", "augment=light", "data.image_size=32")
    (attempt,) = plan_attempts(search)
    trial = plan_trial(search.manifest, 0)
    assert attempt.passes(trial) == 3 * len(trial.photos)
    candidates = attempt.candidates(trial)
    assert {len(candidate.right) for candidate in candidates} == {len(trial.photos)}
    assert attempt.passes(trial) == 0
    assert attempt.learned_from(trial) == 3 * len(trial.photos)


def test_few_photos_are_not_sampled(photos: Path) -> None:
    found = search_heads(searched(photos, NO_LIMIT, "probe.size_factors=[0.2,0.4]", "probe.sample=20"))
    assert {row["photos"] for row in found.rows} == {len(found.attempt.search.manifest.of("train", "val"))}


def test_with_time_left_sizes_go_on_while_the_largest_is_the_best(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def candidates(attempt: Attempt, trial: Trial) -> list[Candidate]:
        accuracy = {32: 0.5, 64: 0.6, 96: 0.7, 128: 0.65}[attempt.image_size]
        right = torch.arange(len(trial.held_out)) < accuracy * len(trial.held_out)
        return [Candidate("last", 1.0, Judgement(accuracy, accuracy, 1.0, (accuracy, -1.0)), right)]

    monkeypatch.setattr(Attempt, "candidates", candidates)
    words = ("probe.size_factors=[0.2,0.4]",)
    with_time = search_heads(searched(photos, Deadline(time.monotonic() + 3600), *words))
    assert tried(with_time) == [("test_resnet", size) for size in (32, 64, 96, 128)]
    assert with_time.attempt.image_size == 96
    assert tried(search_heads(searched(photos, NO_LIMIT, *words))) == [("test_resnet", 32), ("test_resnet", 64)]


def test_sizes_do_not_go_on_for_ever(photos: Path) -> None:
    search = searched(photos, NO_LIMIT)
    sizes = [32]
    attempt: Attempt | None = Attempt(search, "test_resnet", 32, Cost(0.5, 1.0))
    while attempt := larger_attempt(attempt):
        sizes.append(attempt.image_size)
        assert attempt.cost == pytest.approx((0.5, (attempt.image_size / 32) ** 2))
    assert sizes == [32, 64, 96, 128, 192, 256, 352, 512]
    assert larger_attempt(Attempt(searched(photos, NO_LIMIT, "data.image_size=64"), "test_resnet", 64)) is None
    assert larger_attempt(Attempt(search, "test_vit", 160)) is None


def test_one_is_ahead_by_what_only_one_of_two_has_right() -> None:
    def right(answers: str) -> torch.Tensor:
        return torch.tensor([answer == "1" for answer in answers])

    even = torch.ones(8)
    assert lead(right("11111111"), right("11111111"), even) == 0
    assert lead(right("11111100"), right("11000000"), even) == pytest.approx(2)
    assert lead(right("11110000"), right("00001111"), even) == 0
    # a class of which there are few counts more
    rare = torch.tensor([4.0, *[1.0] * 7])
    assert lead(right("10000000"), right("00000001"), rare) == pytest.approx(3 / 17**0.5)
