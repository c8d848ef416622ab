from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader

from finetune.cli import run
from finetune.training.averaging import MovingAverage, _move, decay_at
from finetune.training.module import quiet_trainer
from tests.conftest import TINY, paint_folder
from tests.training.test_train import kill_when, table, weights

DECAY = 0.6


class Small(pl.LightningModule):
    """Half of it frozen, a batch norm in each half; notes its weights after each step and as they are validated."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).requires_grad_(False)
        self.trained = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.stepped: list[dict[str, Tensor]] = []
        self.validated: list[dict[str, Tensor]] = []

    def noted(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.state_dict().items()}

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.frozen.eval()
        loss: Tensor = self.trained(self.frozen(batch)).square().sum()
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        self.stepped.append(self.noted())

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.validated.append(self.noted())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.3)


def test_the_average_is_that_of_the_steps_and_is_what_is_validated(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Small()
    before = module.noted()
    batches: DataLoader[Tensor] = DataLoader(torch.randn(32, 3), batch_size=8)  # type: ignore[arg-type]
    trainer = quiet_trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[MovingAverage(DECAY, torch.device("cpu"))],
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, batches, batches, weights_only=True)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    average = dict(module.stepped[0])
    for updates, stepped in enumerate(module.stepped[1:], 1):
        kept = decay_at(DECAY, updates)
        average = {
            name: kept * average[name] + (1 - kept) * stepped[name]
            if stepped[name].is_floating_point()
            else stepped[name]
            for name in stepped
        }
    assert len(module.stepped) == 8
    assert all(torch.allclose(module.validated[-1][name], average[name], atol=1e-6) for name in average)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for name, tensor in checkpoint["state_dict"].items():
        assert torch.equal(tensor, module.validated[-1][name])
        assert not name.startswith("frozen") or torch.equal(tensor, before[name])
    assert not torch.equal(average["trained.1.running_mean"], module.stepped[-1]["trained.1.running_mean"])


@given(st.integers(1, 10**6), st.floats(0.01, 0.9999))
def test_the_decay_rises_to_what_is_configured(updates: int, decay: float) -> None:
    assert 0.37 * decay <= decay_at(decay, 1) <= decay_at(decay, updates) <= decay_at(decay, updates + 1) <= decay
    assert decay_at(decay, 10**9) == decay


@given(st.floats(-(2.0**100), 2.0**100, width=32), st.integers(1, 10**5), st.floats(0.01, 0.9999))
def test_the_average_of_equal_numbers_is_that_number(number: float, updates: int, decay: float) -> None:
    averages = [torch.full((size,), number) for size in (2, 40)]
    same = [tensor.clone() for tensor in averages]
    _move(decay, averages, same, updates)
    assert all(torch.equal(average, tensor) for average, tensor in zip(averages, same, strict=True))


def test_averaging_changes_what_is_kept_and_not_how_it_trains(photos: Path, tmp_path: Path) -> None:
    words = ["train", f"data.root={photos}", *TINY, "freeze=partial", "trainer.max_epochs=2", "data.batch_size=5"]
    for name, more in (("plain", ()), ("averaged", ("trainer.ema_decay=0.9",))):
        assert run([*words, f"output={tmp_path / name}", *more]) == 0
    plain, averaged = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("plain", "averaged")
    )
    assert plain["epoch"] == averaged["epoch"]
    for name, tensor in plain["state_dict"].items():
        assert torch.equal(tensor, averaged["current_model_state"][name])
    best = torch.load(tmp_path / "averaged" / "checkpoints" / "best.ckpt", weights_only=True)
    kept = weights(tmp_path / "averaged")
    for name, tensor in kept.items():
        assert name == "temperature" or torch.equal(tensor, best["state_dict"][f"classifier.{name}"])
    changed = {name for name in kept if not torch.equal(kept[name], best["current_model_state"][f"classifier.{name}"])}
    frozen = {name for name in kept if name.startswith(("backbone.network.conv1", "backbone.network.bn1"))}
    assert any("layer4" in name for name in changed)
    assert not changed & frozen
    # what validation said of the best epoch is true of the weights that were kept
    result = json.loads((tmp_path / "averaged" / "result.json").read_text())
    best_row = min(table(tmp_path / "averaged" / "metrics.csv"), key=lambda row: float(row["val_loss"]))
    assert result["val_accuracy"] == pytest.approx(float(best_row["val_accuracy"]), abs=1e-6)


def test_a_killed_run_goes_on_with_its_average_and_its_good_epochs(tmp_path: Path) -> None:
    photos = paint_folder(tmp_path / "photos")
    words = [*TINY, "freeze=gradual", "freeze.epochs_per_group=2", "freeze.head_epochs=2", "data.batch_size=5"]
    words += ["trainer.max_epochs=12", "trainer.patience=null", "trainer.ema_decay=0.95", "trainer.soup=4"]
    command = [sys.executable, "-m", "finetune", "train", f"data.root={photos}", f"output={tmp_path / 'run'}", *words]
    assert run([word.replace(str(tmp_path / "run"), str(tmp_path / "whole")) for word in command[3:]]) == 0
    assert kill_when(tmp_path / "run" / "checkpoints" / "last.ckpt", command, signal.SIGKILL) == -9
    assert not (tmp_path / "run" / "result.json").exists()
    assert run(command[3:]) == 0
    resumed, whole = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("run", "whole")]
    assert results[0]["soup_epochs"] == results[1]["soup_epochs"] != []
    assert not (tmp_path / "run" / "ingredients").exists()
