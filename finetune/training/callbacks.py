"""What happens around the epochs: a bar or lines in a log, rows of metrics. Whoever reads them counts epochs from 1."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar

from finetune.training.deadline import Timer
from finetune.training.fitted import Metrics

log = logging.getLogger(__name__)

MEASURED = ("train_loss", "val_loss", "val_accuracy", "val_balanced_accuracy")


class StopInTime(pl.Callback):
    """Ends training, after a last validation, when its time is over."""

    def __init__(self, clock: Timer) -> None:
        self.clock = clock

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if self.clock.share >= 1:
            trainer.should_stop = True


class EpochBar(RichProgressBar):
    """Lightning's bar, which would count from 0 and to one less than there are."""

    def _get_train_description(self, current_epoch: int) -> str:
        return f"epoch {current_epoch + 1} of {self.trainer.max_epochs}"


class EpochRows(pl.Callback):
    """Collects one row of metrics an epoch, and says it in one line; rows survive a resume in the checkpoint.

    update: takes all rows so far.
    """

    def __init__(self, update: Callable[[Sequence[Metrics]], None]) -> None:
        self.update = update
        self.rows: list[Metrics] = []
        self.started = time.monotonic()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        row: Metrics = {"epoch": trainer.current_epoch + 1}
        row |= {name: round(float(trainer.callback_metrics[name]), 6) for name in MEASURED}
        row["learning_rate"] = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        row["seconds"] = round(time.monotonic() - self.started, 2)
        self.rows.append(row)
        if trainer.is_global_zero:
            self.update(self.rows)
        log.info(
            "epoch %d of at most %s: training loss %.4f, validation loss %.4f, accuracy %.1f %%, balanced %.1f %%",
            row["epoch"],
            trainer.max_epochs,
            row["train_loss"],
            row["val_loss"],
            100 * float(row["val_accuracy"]),
            100 * float(row["val_balanced_accuracy"]),
        )

    def state_dict(self) -> dict[str, list[Metrics]]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, list[Metrics]]) -> None:
        # in the checkpoints of older versions they count from 0
        self.rows = [{**row, "epoch": number} for number, row in enumerate(state_dict["rows"], start=1)]
