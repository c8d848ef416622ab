from __future__ import annotations

import csv
import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from finetune.cli import run
from finetune.errors import FinetuneError
from finetune.training.rate_curve import CHOSEN, draw_rate_curve
from finetune.training.rate_finder import HIGHEST, LOWEST, RateCurve
from tests.conftest import TINY, paint_folder
from tests.training.test_processes import start
from tests.training.test_train import split_folders

RATES = np.geomspace(LOWEST, HIGHEST, 100)
SEARCH = (*TINY, "trainer.max_epochs=2", "data.batch_size=5", "trainer.accelerator=cpu")
AUTO = ("optimizer.learning_rate=auto", "trainer.search_steps=30")


def curve(losses: np.ndarray) -> RateCurve:
    return RateCurve.of(RATES[: len(losses)].tolist(), losses.tolist(), 100)


def fall(middle: float) -> np.ndarray:
    """A loss that falls from 2 to 1 around a rate, and rises two decades above it."""
    distance = np.log10(RATES / middle)
    return 2 - 1 / (1 + np.exp(-4 * distance)) + np.exp(4 * (distance - 2))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(safetensors.torch.load_file(folder / "weights.safetensors"))


@pytest.mark.parametrize("middle", [3e-4, 1e-2, 0.1])
@pytest.mark.parametrize("noise", [0.0, 0.15])
def test_the_rate_suggested_is_where_the_loss_has_done_half_of_its_fall(middle: float, noise: float) -> None:
    losses = fall(middle) + noise * np.random.default_rng(0).normal(size=100)
    suggested = curve(losses[: np.searchsorted(RATES, 100 * middle)]).suggestion()
    assert 0.4 * middle < suggested < 2.5 * middle


def test_a_loss_that_falls_nowhere_is_an_error() -> None:
    rising = curve(1 + np.linspace(0, 3, 60))
    with pytest.raises(FinetuneError, match="the loss falls at no rate from 1e-06 to "):
        rising.suggestion()


def test_noise_is_not_taken_for_a_fall() -> None:
    refused = 0
    for seed in range(100):
        try:
            curve(1 + 0.3 * np.random.default_rng(seed).normal(size=100)).suggestion()
        except FinetuneError:
            refused += 1
    assert refused >= 97


def test_the_picture_marks_the_chosen_rate_where_it_lies() -> None:
    drawn = curve(fall(1e-2))
    picture = draw_rate_curve(drawn.rates, drawn.losses, drawn.smoothed, 10**-2.5)
    red = np.argwhere((picture == CHOSEN).all(2))
    # halfway from 1e-6 to 10 in the logarithm
    assert abs(np.median(red[:, 1]) - (110 + 1200 / 2)) < 3
    lower = draw_rate_curve(drawn.rates, drawn.losses, drawn.smoothed, 1e-4)
    assert np.median(np.argwhere((lower == CHOSEN).all(2))[:, 1]) < np.median(red[:, 1]) - 200


def test_the_rate_found_is_used_kept_and_nothing_else_changes(photos: Path, tmp_path: Path) -> None:
    words = ["train", f"data.root={photos}", *SEARCH, "freeze=full", "head.dropout=0.5", "optimizer.layer_decay=0.9"]
    found = tmp_path / "found"
    assert run([*words, f"output={found}", *AUTO]) == 0
    rate = json.loads((found / "learning_rate.json").read_text())
    assert LOWEST < rate < HIGHEST
    assert "learning_rate: auto" in (found / "config.yaml").read_text()
    with (found / "learning_rate.csv").open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert 10 < len(rows) <= 30
    assert [row["learning_rate"] for row in rows] == sorted(row["learning_rate"] for row in rows)
    assert rows[0]["learning_rate"] == pytest.approx(LOWEST)
    with Image.open(found / "learning_rate.png") as picture:
        assert picture.size[0] > 1000
    # weights, optimizer, order of photos, dropout: bit for bit what they are with the same rate typed
    assert run([*words, f"output={tmp_path / 'typed'}", f"optimizer.learning_rate={rate}"]) == 0
    typed, after_search = weights(tmp_path / "typed"), weights(found)
    assert all(torch.equal(typed[name], after_search[name]) for name in typed)
    # and the same search finds the same
    assert run([*words, f"output={tmp_path / 'again'}", *AUTO]) == 0
    assert (tmp_path / "again" / "learning_rate.csv").read_bytes() == (found / "learning_rate.csv").read_bytes()


def test_a_resumed_run_does_not_search_again_and_a_corrected_one_does(photos: Path, tmp_path: Path) -> None:
    words = ["train", f"data.root={photos}", f"output={tmp_path / 'run'}", *SEARCH, "freeze=gradual", *AUTO]
    assert run(words) == 0
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / "learning_rate.json").write_text("0.0123")
    (tmp_path / "run" / "learning_rate.csv").unlink()
    assert run(words) == 0
    assert not (tmp_path / "run" / "learning_rate.csv").exists()
    # before anything was computed a mistake is corrected in place, and what was found for it is void
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.yaml").write_text((tmp_path / "run" / "config.yaml").read_text())
    (other / "learning_rate.json").write_text("0.0123")
    assert run([word.replace(str(tmp_path / "run"), str(other)) for word in words]) == 0
    assert (other / "learning_rate.json").read_text() != "0.0123"


def test_batches_that_make_one_step_are_searched_as_one(tmp_path: Path) -> None:
    paint_folder(tmp_path / "photos" / "train", 8)
    paint_folder(tmp_path / "photos" / "val", 2)
    words = [
        "train",
        f"data.root={tmp_path / 'photos'}",
        "model.backbone=test_vit",
        "freeze=full",
        "augment=none",
        AUTO[0],
    ]
    words += [*TINY[1:2], "data.num_workers=0", "trainer.max_epochs=1", "trainer.accelerator=cpu"]
    words += ["trainer.search_steps=20", "schedule=none", "optimizer=momentum"]
    losses = []
    for name, size, accumulate in (("large", 8, 1), ("small", 4, 2)):
        given = [f"output={tmp_path / name}", f"data.batch_size={size}", f"trainer.accumulate={accumulate}"]
        assert run([*words, *given]) == 0
        with (tmp_path / name / "learning_rate.csv").open(newline="") as file:
            losses.append([float(row["loss"]) for row in csv.DictReader(file)][:10])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_a_damaged_answer_is_named(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", f"data.root={photos}", f"output={tmp_path / 'run'}", *SEARCH, "freeze=full", *AUTO]
    assert run(words) == 0
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / "learning_rate.json").write_text("{")
    assert run(words) == 2
    assert f"{tmp_path / 'run' / 'learning_rate.json'} is damaged" in capsys.readouterr().err


def test_ctrl_c_while_it_searches_ends_with_the_command_that_goes_on(tmp_path: Path) -> None:
    photos = split_folders(tmp_path / "photos")
    words = ["train", f"data.root={photos}", f"output={tmp_path / 'run'}", *TINY, "trainer.accelerator=cpu"]
    words += ["freeze=full", "optimizer.learning_rate=auto", "trainer.search_steps=5000"]
    log = tmp_path / "log"
    child = start(words, log)
    deadline = time.monotonic() + 120
    while "learning rate: trying" not in log.read_text() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    # within its steps, which Lightning takes the signal in
    time.sleep(1)
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=120) == 130, log.read_text()
    assert f"output={tmp_path / 'run'}" in log.read_text()
