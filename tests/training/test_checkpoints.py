from __future__ import annotations

import itertools
import json
import random
import resource
import shlex
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision

from finetune.cli import run
from finetune.training import checkpoints, share
from finetune.training.module import FineTuner, quiet_trainer
from tests.conftest import TINY, paint_folder
from tests.training.random_kills import command, kill_often, outcome

# 6 batches and 3 steps an epoch; everything that draws, and a depth more in every epoch
WORDS = (
    *TINY,
    "freeze=gradual",
    "freeze.epochs_per_group=0.3",
    "head.dropout=0.3",
    "model.drop_path=0.3",
    "augment=[standard,mixup]",
    "data.batch_size=4",
    "trainer.accumulate=2",
    "trainer.max_epochs=3",
    "trainer.accelerator=cpu",
)


@pytest.fixture(scope="module")
def two_dozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 photos to train on, and 6 to validate with."""
    root = tmp_path_factory.mktemp("resumed") / "photos"
    paint_folder(root / "train", 8)
    paint_folder(root / "val", 2)
    return root


@pytest.fixture(scope="module")
def whole(two_dozen: Path) -> dict[str, Any]:
    """What an undisturbed run makes."""
    assert run(["train", f"data.root={two_dozen}", f"output={two_dozen.parent / 'whole'}", *WORDS]) == 0
    return outcome(two_dozen.parent / "whole")


def stop_in(monkeypatch: pytest.MonkeyPatch, step: str, epoch: int, batch: int) -> None:
    """Have this process be told to end in the midst of a training or validation step."""
    ordinary = getattr(FineTuner, step)

    def interrupted(module: FineTuner, photos: Any, batch_idx: int) -> Any:
        if (module.current_epoch, batch_idx) == (epoch, batch):
            signal.raise_signal(signal.SIGTERM)
        return ordinary(module, photos, batch_idx)

    monkeypatch.setattr(FineTuner, step, interrupted)


@pytest.mark.parametrize(
    ("step", "epoch", "batch", "said"),
    [
        # between two batches that make one step: it is finished first
        ("training_step", 0, 0, "epoch 1 of at most 3 after batch 2 of 6"),
        ("training_step", 1, 3, "epoch 2 of at most 3 after batch 4 of 6"),
        ("training_step", 1, 5, "epoch 2 of at most 3 after batch 6 of 6"),
        ("validation_step", 1, 0, "epoch 2 of at most 3 after batch 6 of 6"),
        ("validation_step", 2, 1, "epoch 3 of at most 3 after batch 6 of 6"),
    ],
)
def test_a_signal_at_any_moment_saves_and_the_same_command_makes_what_an_undisturbed_one_does(
    two_dozen: Path,
    whole: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    step: str,
    epoch: int,
    batch: int,
    said: str,
) -> None:
    words = ["train", f"data.root={two_dozen}", f"output={tmp_path / 'run'}", *WORDS]
    with monkeypatch.context() as patched:
        stop_in(patched, step, epoch, batch)
        assert run(words) == 130
    error = capsys.readouterr().err
    assert f"finetune train: interrupted; saved in {said}\n" in error
    assert shlex.split(error.splitlines()[-1]) == ["finetune", *words]
    assert run(words) == 0
    assert outcome(tmp_path / "run") == whole


def test_a_run_folder_that_was_moved_goes_on_where_it_is_now(
    two_dozen: Path, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", f"data.root={two_dozen}", *WORDS]
    with monkeypatch.context() as patched:
        stop_in(patched, "training_step", 2, 1)
        assert run([*words, f"output={tmp_path / 'before'}"]) == 130
    (tmp_path / "before").rename(tmp_path / "after")
    assert run([*words, f"output={tmp_path / 'after'}"]) == 0
    assert outcome(tmp_path / "after") == whole
    assert not (tmp_path / "before").exists()


def test_a_second_signal_ends_at_once(
    two_dozen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ordinary = FineTuner.training_step

    def interrupted(module: FineTuner, photos: Any, batch_idx: int) -> Any:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        return ordinary(module, photos, batch_idx)

    monkeypatch.setattr(FineTuner, "training_step", interrupted)
    assert run(["train", f"data.root={two_dozen}", f"output={tmp_path / 'run'}", *WORDS]) == 130
    assert "interrupted\n" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_averaged_weights_go_on_where_they_were(
    two_dozen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", f"data.root={two_dozen}", *WORDS, "trainer.ema_decay=0.9", "trainer.soup=2"]
    assert run([*words, f"output={tmp_path / 'whole'}"]) == 0
    with monkeypatch.context() as patched:
        # while the average stands in for the weights that train
        stop_in(patched, "validation_step", epoch=1, batch=0)
        assert run([*words, f"output={tmp_path / 'run'}"]) == 130
    assert run([*words, f"output={tmp_path / 'run'}"]) == 0
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
def test_a_loss_scale_goes_on_where_it_was_and_the_steps_it_skips_are_no_divergence(
    two_dozen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scalers = []

    def scaling(**options: Any) -> pl.Trainer:
        # so far up that the first steps are skipped
        scalers.append(torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=3))
        del options["precision"]
        return quiet_trainer(plugins=[MixedPrecision("16-mixed", "cpu", scalers[-1])], **options)

    monkeypatch.setattr(share, "quiet_trainer", scaling)
    words = ["train", f"data.root={two_dozen}", *WORDS]
    assert run([*words, f"output={tmp_path / 'whole'}"]) == 0
    assert scalers[0].get_scale() < 2.0**24
    with monkeypatch.context() as patched:
        stop_in(patched, "training_step", epoch=1, batch=1)
        assert run([*words, f"output={tmp_path / 'run'}"]) == 130
    assert run([*words, f"output={tmp_path / 'run'}"]) == 0
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_a_run_that_patience_ended_does_not_train_on(two_dozen: Path, tmp_path: Path) -> None:
    words = ["train", f"data.root={two_dozen}", f"output={tmp_path / 'run'}", *WORDS]
    words += ["trainer.max_epochs=30", "trainer.patience=2", "optimizer.learning_rate=1e-9"]
    assert run(words) == 0
    before = outcome(tmp_path / "run")
    seconds = json.loads((tmp_path / "run" / "result.json").read_text())["train_seconds"]
    assert len(before["metrics"]) < 30
    for name in ("result.json", "weights.safetensors", "metrics.csv"):
        (tmp_path / "run" / name).unlink()
    assert run(words) == 0
    assert outcome(tmp_path / "run") == before
    # the second process had little to do, but the first one's time counts
    assert json.loads((tmp_path / "run" / "result.json").read_text())["train_seconds"] > 0.9 * seconds


def test_checkpoints_are_written_inside_an_epoch_and_what_a_kill_left_beside_them_goes(
    two_dozen: Path, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", f"data.root={two_dozen}", f"output={tmp_path / 'run'}", *WORDS]
    positions = []
    ordinary = pl.Trainer.save_checkpoint

    def noted(trainer: pl.Trainer, path: Path, *rest: Any) -> None:
        if Path(path).name == "last.ckpt":
            positions.append(trainer.datamodule.position)  # type: ignore[attr-defined]
        ordinary(trainer, path, *rest)

    with monkeypatch.context() as patched:
        stop_in(patched, "training_step", epoch=0, batch=0)
        assert run(words) == 130
    (tmp_path / "run" / "checkpoints" / ".last-01234567.ckpt").touch()
    monkeypatch.setattr(pl.Trainer, "save_checkpoint", noted)
    ticks = itertools.count(step=700)
    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    assert run(words) == 0
    inside = [(epoch, batch) for epoch in (1, 2) for batch in (2, 4, 6)]
    # a step is two batches; before the validation, and once more after it
    assert positions == sorted([(0, 4), (0, 6), (1, 0), *inside, (2, 0), (3, 0)])
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert outcome(tmp_path / "run") == whole


@pytest.mark.parametrize("trouble", ["full", "unwritable"])
def test_a_checkpoint_that_cannot_be_written_is_said_and_the_same_command_goes_on(
    two_dozen: Path,
    whole: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trouble: str,
) -> None:
    words = ["train", f"data.root={two_dozen}", f"output={tmp_path / 'run'}", *WORDS]
    folder = tmp_path / "run" / "checkpoints"
    ordinary, unlimited = FineTuner.training_step, resource.getrlimit(resource.RLIMIT_FSIZE)

    def troubled(module: FineTuner, photos: Any, batch_idx: int) -> Any:
        if (module.current_epoch, batch_idx) == (1, 0):
            if trouble == "full":
                # no file may be larger than this from now on; Python ignores the signal that says so
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, unlimited[1]))
            else:
                folder.rename(tmp_path / "away")
                folder.touch()
        return ordinary(module, photos, batch_idx)

    try:
        with monkeypatch.context() as patched:
            patched.setattr(FineTuner, "training_step", troubled)
            assert run([*words, "trainer.checkpoint_minutes=0"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    said = capsys.readouterr().err
    if trouble == "full":
        assert f"{folder / 'last.ckpt'} cannot be written: file too large; what was saved before is whole: " in said
    else:
        assert f"{folder} cannot be made: file exists; choose a folder that can be written" in said
        folder.unlink()
        (tmp_path / "away").rename(folder)
    assert {path.name for path in folder.iterdir()} == {"last.ckpt", "best.ckpt"}
    assert torch.load(folder / "last.ckpt", weights_only=True)["PhotoData"] == {"epoch": 1, "batch": 0}
    assert run([*words, "trainer.checkpoint_minutes=0"]) == 0
    assert outcome(tmp_path / "run") == whole


def test_kills_at_random_moments_change_nothing(two_dozen: Path, tmp_path: Path) -> None:
    words = (*WORDS, "data.num_workers=2", "trainer.checkpoint_minutes=0.001", "trainer.max_epochs=6")
    assert run(["train", f"data.root={two_dozen}", f"output={tmp_path / 'whole'}", *words]) == 0
    kill_often(command(two_dozen, tmp_path / "run", words), tmp_path / "run", 2, random.Random(1))
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
