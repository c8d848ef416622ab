from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch.nn import functional

from finetune.cli import run
from finetune.config import ImbalanceConfig
from finetune.training.affordable import affordable
from finetune.training.attempts import Attempt
from finetune.training.deadline import Clock, Deadline
from finetune.training.fit import CERTAIN, ahead, depth_for
from finetune.training.imbalance import choose_handling
from finetune.training.probe import deviations
from finetune.training.timing import Cost
from tests.conftest import TINY, freeze_config, paint_folder

WORDS = (*TINY, "data.batch_size=8", "trainer.accelerator=cpu", "augment=none", "probe.l2=[0.01]")
NO_LIMIT, A_LIMIT = Deadline.after(0.0, None), Deadline.after(0.0, 1.0)


def train(photos: Path, output: Path, *words: str) -> dict[str, Any]:
    assert run(["train", f"data.root={photos}", f"output={output}", *WORDS, *words]) == 0
    result: dict[str, Any] = json.loads((output / "result.json").read_text())
    return result


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def best_checkpoint_is_the_weights(folder: Path) -> bool:
    state = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    kept = safetensors.torch.load_file(folder / "weights.safetensors")
    # the temperature is fitted afterwards
    return all(torch.equal(state[f"classifier.{name}"], kept[name]) for name in kept if name != "temperature")


@pytest.mark.parametrize(
    ("mode", "photos", "deadline", "depth"),
    [
        ("auto", 300, NO_LIMIT, "head"),
        ("auto", 5000, NO_LIMIT, "partial"),
        ("auto", 50000, NO_LIMIT, "full"),
        ("auto", 300, A_LIMIT, "full"),
        ("lp_ft", 300, NO_LIMIT, "full"),
    ],
)
def test_depth_follows_the_photos_and_the_time(mode: str, photos: int, deadline: Deadline, depth: str) -> None:
    assert depth_for(freeze_config(mode=mode), photos, deadline) == depth


@pytest.fixture
def hard_photos(tmp_path: Path) -> Path:
    """Photos of which some have the wrong label, so that no head gets all of them right."""
    photos = paint_folder(tmp_path / "hard")
    for index in range(3):
        (photos / "red" / f"{index}.jpg").rename(photos / "blue" / f"red{index}.jpg")
        (photos / "blue" / f"{index}.jpg").rename(photos / "red" / f"blue{index}.jpg")
    return photos


def test_fine_tuning_starts_from_the_fitted_head(hard_photos: Path, tmp_path: Path) -> None:
    # so slow that it stays where it began
    slow = ("optimizer.learning_rate=1.0e-12", "trainer.max_epochs=1")
    result = train(hard_photos, tmp_path / "run", "freeze=lp_ft", *slow)
    assert result["freeze"] == "lp_ft"
    assert result["trainable_parameters"] == result["total_parameters"]
    *probes, epoch = rows_of(tmp_path / "run")
    # cross-validated figures come first, the chosen head on the validation photos last
    assert [row["folds"] for row in probes] == ["5"] * (len(probes) - 1) + ["1"]
    assert float(epoch["val_loss"]) == pytest.approx(float(probes[-1]["val_loss"]), rel=1e-3)
    assert epoch["epoch"] == "1"
    assert best_checkpoint_is_the_weights(tmp_path / "run")


@pytest.mark.parametrize("rate", [1e-12, 1.0])
def test_auto_is_never_worse_than_the_head(hard_photos: Path, tmp_path: Path, rate: float) -> None:
    words = ("freeze.head_below=1", "freeze.full_from=2", "trainer.max_epochs=2", f"optimizer.learning_rate={rate}")
    result = train(hard_photos, tmp_path / "run", *words, "optimizer=sgd", "trainer.clip_norm=1.0")
    *_, head = [row for row in rows_of(tmp_path / "run") if row["l2"]]
    accuracy = result["val_accuracy"]
    assert isinstance(accuracy, float)
    assert accuracy >= float(head["val_accuracy"]) - 1e-6
    assert best_checkpoint_is_the_weights(tmp_path / "run")


def test_fine_tuning_that_diverges_costs_auto_nothing(
    hard_photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ("freeze.head_below=1", "freeze.full_from=2", "optimizer=sgd", "optimizer.learning_rate=1e30")
    result = train(hard_photos, tmp_path / "run", *words)
    assert result["freeze"] == "head"
    assert "fine-tuning from the head failed, the head alone is kept: training diverged in epoch 1" in caplog.text
    assert best_checkpoint_is_the_weights(tmp_path / "run")


def test_a_time_limit_ends_fine_tuning_and_the_run_is_whole(
    hard_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(hard_photos, tmp_path / "run", "budget_minutes=0.3", "trainer.max_epochs=100000")
    epochs = [row for row in rows_of(tmp_path / "run") if row["epoch"]]
    assert 0 < len(epochs) < 100000
    assert result["freeze"] in ("head", "lp_ft")
    assert best_checkpoint_is_the_weights(tmp_path / "run")


def test_too_little_time_for_an_epoch_leaves_the_head(
    hard_photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.training.fit.seconds_a_training_photo", lambda *_: 1000.0)
    with caplog.at_level("INFO", "finetune"):
        result = train(hard_photos, tmp_path / "run", "budget_minutes=1")
    assert result["freeze"] == "head"
    assert "not fine-tuned: an epoch would take about" in caplog.text


def test_too_little_time_for_a_few_photos_is_refused(
    hard_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", f"data.root={hard_photos}", f"output={tmp_path / 'run'}", *WORDS, "budget_minutes=0.001"]
    assert run(words) == 2
    assert "budget_minutes=0.001 is too short: 12 training photos" in capsys.readouterr().err


def test_too_little_time_for_all_photos_trains_the_head_on_fewer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def as_if_slow(attempt: Attempt, fits_s: float, left_s: float) -> Attempt:
        attempt.cost = Cost(0.0, 1.0)
        return affordable(attempt, fits_s, len(attempt.search.manifest.of("val", "test")) + 20.5)

    monkeypatch.setattr("finetune.training.search.affordable", as_if_slow)
    result = train(paint_folder(tmp_path / "many", 24), tmp_path / "run", "budget_minutes=5")
    trained = result["photos"]["train"]
    assert (result["left_out"], result["freeze"]) == (trained - 20, "head")
    assert f"budget_minutes left no time for {trained - 20} of {trained} training photos" in capsys.readouterr().out


def test_layers_are_taken_where_they_are_surely_better() -> None:
    handling = choose_handling(ImbalanceConfig(method="none", focal_gamma=2, auto_ratio=10), "head", "ab")

    def fitted(right: int) -> Any:
        answers = torch.tensor([1] * right + [0] * (16 - right))
        return SimpleNamespace(val_logits=functional.one_hot(answers).float(), handling=handling)

    targets = [1] * 16
    assert ahead(fitted(10), fitted(8), targets) < CERTAIN < ahead(fitted(16), fitted(8), targets)
    assert ahead(fitted(8), fitted(10), targets) < 0


def test_a_head_without_mistakes_is_not_fine_tuned(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "finetune"):
        result = train(photos, tmp_path / "run", "budget_minutes=5")
    assert (result["freeze"], result["val_accuracy"]) == ("head", 1.0)
    assert "every validation photo is right" in caplog.text


def test_a_clock_tells_the_share_that_is_over() -> None:
    now = time.monotonic()
    assert Clock(now - 10, now + 10).share == pytest.approx(0.5, abs=0.05)
    assert Clock(now - 10, now - 5).share > 1


def test_a_stretch_of_no_length_is_over() -> None:
    now = time.monotonic()
    assert Clock(now, now).share == Clock(now, now - 5).share == 1


def test_a_limit_too_short_for_layers_is_refused(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", f"data.root={photos}", f"output={tmp_path / 'run'}", *WORDS[:-1], "freeze=full"]
    assert run([*words, "budget_minutes=0.01"]) == 2
    assert "budget_minutes=0.01 is too short for layers: an epoch would take about" in capsys.readouterr().err


def test_a_search_that_had_chosen_chooses_the_same_again(hard_photos: Path, tmp_path: Path) -> None:
    words = ("budget_minutes=0.3", "trainer.max_epochs=2", "model.features=auto")
    train(hard_photos, tmp_path / "run", *words)
    chosen = json.loads((tmp_path / "run" / "choice.json").read_text())
    # as after a kill: nothing is finished, and another choice stands there
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / "checkpoints" / "last.ckpt").unlink()
    other = {"last": "all", "all": "last", "stages": "last"}[chosen["features"]]
    (tmp_path / "run" / "choice.json").write_text(json.dumps({**chosen, "features": other}))
    train(hard_photos, tmp_path / "run", *words)
    rows = [row for row in rows_of(tmp_path / "run") if row["l2"]]
    before = len(chosen["rows"])
    assert [float(row["val_loss"]) for row in rows[:before]] == [row["val_loss"] for row in chosen["rows"]]
    assert {row["features"] for row in rows[before:]} == {other}


def test_a_feature_that_was_constant_does_not_drown_the_others_once_it_moves() -> None:
    features = torch.randn(50, 6)
    features[:, 2] = 3.0
    features[:, 4] *= 1e-7
    scale = deviations(features)
    assert scale.min() > 0.5
    assert torch.equal(scale[[0, 1, 3, 5]], features.std(0, correction=0)[[0, 1, 3, 5]])
