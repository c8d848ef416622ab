from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from finetune.cli import run
from finetune.data.manifest import Manifest
from finetune.models.classifier import Classifier
from finetune.run import Run
from finetune.stores import open_store
from finetune.training.divergence import _named
from tests.conftest import TINY, manifest_of, paint_folder

WORDS = (
    *TINY,
    "freeze=full",
    "augment=none",
    "data.batch_size=4",
    "trainer.accelerator=cpu",
    "trainer.checkpoint_minutes=0",
    "trainer.max_epochs=3",
)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("epoch", [1, 2])
def test_a_loss_that_is_no_number_stops_the_training_and_names_the_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: float, epoch: int
) -> None:
    photos = tmp_path / "photos"
    paint_folder(photos / "train", 8)
    paint_folder(photos / "val", 2)
    white = photos / "train" / "green" / "white.png"
    Image.fromarray(np.full((64, 64, 3), 255, np.uint8)).save(white)
    ordinary, seen = Classifier.forward, 0

    def spoilt(classifier: Classifier, images: Tensor) -> Tensor:
        nonlocal seen
        logits = ordinary(classifier, images)
        if not (images == 255).all(dim=(1, 2, 3)).any():
            return logits
        seen += 1
        return logits * value if seen == epoch else logits

    monkeypatch.setattr(Classifier, "forward", spoilt)
    assert run(["train", f"data.root={photos}", f"output={tmp_path / 'run'}", *WORDS]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"finetune train: training diverged in epoch {epoch}, batch ")
    assert said[0].endswith(" on these photos:")
    named = [line.strip() for line in said[1:-1]]
    assert len(named) == 4
    assert "train/green/white.png" in named
    known = {photo.path for photo in Manifest.load(Run(tmp_path / "run").manifest, open_store(str(photos))).photos}
    assert set(named) <= known
    assert said[-1].startswith(
        "lower optimizer.learning_rate (0.0003), or look whether the photos are what they should"
    )
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    if epoch == 2:
        state = torch.load(last, weights_only=True)["state_dict"]
        assert all(tensor.isfinite().all() for tensor in state.values())


def test_a_validation_loss_that_is_no_number_names_the_photos_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    paint_folder(photos / "train", 4)
    paint_folder(photos / "val", 3)
    for name in ("b", "a"):
        Image.fromarray(np.full((64, 64, 3), 255, np.uint8)).save(photos / "val" / "green" / f"{name}.png")
    ordinary = Classifier.forward

    def spoilt(classifier: Classifier, images: Tensor) -> Tensor:
        white = (images == 255).all(dim=(1, 2, 3))
        return torch.where(white[:, None], torch.nan, ordinary(classifier, images))

    monkeypatch.setattr(Classifier, "forward", spoilt)
    assert run(["train", f"data.root={photos}", f"output={tmp_path / 'run'}", *WORDS]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "finetune train: training diverged in epoch 1: the validation loss is nan, from 2 of 11 photos:",
        "  val/green/a.png",
        "  val/green/b.png",
        "lower optimizer.learning_rate (0.0003), or look whether the photos are what they should be; "
        "checkpoints that were saved before are as they were",
    ]
    assert not (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()


def test_of_many_photos_some_are_named(tmp_path: Path) -> None:
    photos = manifest_of(paint_folder(tmp_path / "photos", 8)).photos
    assert _named(photos).splitlines() == [*(f"  {photo.path}" for photo in photos[:20]), "  and 4 more"]
