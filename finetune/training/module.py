"""The LightningModule: a classifier of which some layers train."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.warnings import PossibleUserWarning
from torch import Tensor

from finetune.config import OptimizerConfig, ScheduleConfig
from finetune.models.classifier import Classifier
from finetune.models.freezing import FreezingPlan, apply_freezing, keep_statistics
from finetune.training.checkpoints import WholeFiles
from finetune.training.deadline import Timer
from finetune.training.divergence import diverged_in_validation
from finetune.training.epoch_loss import EpochLoss
from finetune.training.imbalance import Judgement
from finetune.training.loss import ClassificationLoss
from finetune.training.mixing import BatchMixing
from finetune.training.optimizer import build_optimizer
from finetune.training.schedule import rate_in_phases
from finetune.training.sparsity import shrink_weights

Batch = tuple[Tensor, Tensor]


def quiet_trainer(**options: Any) -> pl.Trainer:
    """Return a Trainer that keeps Lightning's greetings to itself and writes whole checkpoints; on one device if not
    told otherwise.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    options["plugins"] = [WholeFiles(), *options.get("plugins", ())]
    quietly = {"devices": 1, "enable_model_summary": False, "logger": False, "num_sanity_val_steps": 0}
    return pl.Trainer(**quietly | options)


@contextmanager
def quietly() -> Iterator[None]:
    """Keep to itself what Lightning would warn of while it trains."""
    with warnings.catch_warnings():
        # its advice on worker counts, logging intervals and loaders inside an epoch, which are ours to choose
        warnings.filterwarnings("ignore", category=PossibleUserWarning)
        # a resumed run's folder is not empty, of course
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        # and its own use of what torch deprecates
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        yield


class FineTuner(pl.LightningModule):
    """Trains what the plan says of a classifier; the rest stays bit-identical.

    judge: from logits (N, classes) and targets (N,) of all validation photos; mixing: blends the batches that are
    trained on, and no others; judged: what came of that in the last epoch; clock: the learning rate falls by the steps
    or by the time, whichever is further on.
    """

    def __init__(
        self,
        classifier: Classifier,
        plan: FreezingPlan,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        loss: ClassificationLoss,
        judge: Callable[[Tensor, Tensor], Judgement],
        mixing: BatchMixing | None = None,
        clock: Timer | None = None,
    ) -> None:
        super().__init__()
        self.classifier, self.plan, self.mixing = classifier, plan, mixing
        self.optimizer_config, self.schedule_config = optimizer, schedule
        self.loss, self.judge, self.clock = loss, judge, clock
        # or what does the same faster; its parameters are the classifier's
        self.answer: Callable[[Tensor], Tensor] = classifier.__call__
        self.epoch_loss = EpochLoss()
        self.validated: list[Batch] = []
        self.judged: Judgement | None = None

    def train(self, mode: bool = True) -> FineTuner:
        """Every way back to training mode, Lightning's included, leaves the frozen parts in eval mode."""
        super().train(mode)
        if mode:
            self._freeze()
        return self

    def on_train_start(self) -> None:
        # a run that goes on inside an epoch does not start it
        self._freeze()

    def on_train_epoch_start(self) -> None:
        self._freeze()
        self.epoch_loss.restart()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["epoch_loss"] = self.epoch_loss.total(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # counted once, whatever the number of processes
        self.epoch_loss.sums = checkpoint["epoch_loss"] * (self.global_rank == 0)

    def _freeze(self) -> None:
        # from the configuration and not from a checkpoint, so that a resumed run is frozen as it was
        apply_freezing(self.classifier, self.plan.trainable(self.current_epoch))
        if self.plan.keeps_statistics:
            keep_statistics(self.classifier)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, targets = batch
        if self.mixing is not None:
            images, targets = self.mixing(images, targets, self.current_epoch, batch_idx)
        loss: Tensor = self.loss(self.answer(images), targets)
        self.epoch_loss.add(loss, len(images))
        return loss

    def on_validation_epoch_start(self) -> None:
        self.validated.clear()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, targets = batch
        self.validated.append((self.answer(images).float().cpu(), targets.cpu()))

    def on_validation_epoch_end(self) -> None:
        logits, targets = (torch.cat(parts) for parts in zip(*self.validated, strict=True))
        self.judged = judged = self.judge(logits, targets)
        if not math.isfinite(judged.loss):
            # before a checkpoint of this epoch is written
            raise diverged_in_validation(self.trainer, judged, self.optimizer_config.peak)
        measured: dict[str, float | Tensor] = {
            "train_loss": self.epoch_loss.mean(self.device),
            "val_loss": judged.loss,
            "val_accuracy": judged.accuracy,
            "val_balanced_accuracy": judged.balanced_accuracy,
        }
        self.log_dict(measured, prog_bar=True)

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        super().optimizer_step(*arguments, **options)
        if self.optimizer_config.l1:
            shrink_weights(self.optimizers(), self.optimizer_config.l1)

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.optimizer_config, self.classifier, self.plan.rates)
        steps = int(self.trainer.estimated_stepping_batches)
        head_steps = steps * self.plan.head_epochs // (self.trainer.max_epochs or 1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(self._rate, steps, head_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, steps: int, head_steps: int, step: int) -> float:
        by_time = 0 if self.clock is None else int(self.clock.share * steps)
        return rate_in_phases(self.schedule_config, max(step, by_time), steps=steps, head_steps=head_steps)
