"""A loss that is no number any more, and the photos that it is of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from finetune.config import TrainConfig
from finetune.data.datamodule import PhotoData
from finetune.data.manifest import Photo
from finetune.errors import DivergedError
from finetune.training.imbalance import Judgement

MOST_NAMED = 20


@dataclass(frozen=True)
class Seen:
    """The loss of a batch on its way to the CPU; arrived: None where it was there from the start."""

    loss: Tensor
    arrived: torch.cuda.Event | None
    epoch: int
    batch: int


class FiniteLoss(pl.Callback):
    """Raises DivergedError with the batch's photos where the training loss is NaN or infinite, before a save.

    It is the loss before a gradient scaler's factor, so the steps that a scaler skips are none of its concern.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.seen: Seen | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # a GPU is asked for the loss of the batch before, so that nobody waits
        self._judge(trainer)
        loss = outputs["loss"].detach()
        arrived = torch.cuda.Event() if loss.is_cuda else None  # type: ignore[no-untyped-call]
        self.seen = Seen(loss.to("cpu", non_blocking=True), arrived, trainer.current_epoch, batch_idx)
        if arrived is None:
            self._judge(trainer)
        else:
            arrived.record()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._judge(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._judge(trainer)

    def _judge(self, trainer: pl.Trainer) -> None:
        seen, self.seen = self.seen, None
        if seen is None:
            return
        if seen.arrived is not None:
            seen.arrived.synchronize()
        if math.isfinite(seen.loss.item()):
            return
        photos = _data(trainer).photos_of(seen.epoch, seen.batch)
        raise DivergedError(
            f"training diverged in epoch {seen.epoch + 1}, batch {seen.batch + 1} of {trainer.num_training_batches}: "
            f"the training loss is {seen.loss.item():g} on these photos:\n"
            f"{_named(photos)}{_advice(trainer, self.config.optimizer.peak)}"
        )


def diverged_in_validation(trainer: pl.Trainer, judged: Judgement, rate: float) -> DivergedError:
    """Return what to say of a validation loss that is no number; rate: the highest learning rate."""
    val = _data(trainer).manifest.of("val")
    photos = [val[number] for number in judged.not_finite]
    return DivergedError(
        f"training diverged in epoch {trainer.current_epoch + 1}: the validation loss is {judged.loss:g}, "
        f"from {len(photos)} of {len(val)} photos:\n{_named(photos)}{_advice(trainer, rate)}"
    )


def _data(trainer: pl.Trainer) -> PhotoData:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, PhotoData)
    return data


def _named(photos: Sequence[Photo]) -> str:
    more = f"  and {len(photos) - MOST_NAMED} more\n" if len(photos) > MOST_NAMED else ""
    return "".join(f"  {photo.path}\n" for photo in photos[:MOST_NAMED]) + more


def _advice(trainer: pl.Trainer, rate: float) -> str:
    wider = ", use trainer.precision=bf16-mixed or 32-true" if trainer.precision == "16-mixed" else ""
    return (
        f"lower optimizer.learning_rate ({rate:g}){wider}, or look whether the photos are what they should be; "
        "checkpoints that were saved before are as they were"
    )
