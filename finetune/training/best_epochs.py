"""The checkpoints of the best epochs, and the end of a training that brings no better one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

log = logging.getLogger(__name__)

# Of an epoch: its rank on the validation photos, and its number from 0.
Ranked = tuple[float, float, int]


class BestEpochs(Checkpoint):
    """Keeps the epochs of the highest rank, by which heads are compared too; the earlier one where two are equal.

    Lightning's ModelCheckpoint goes by a single number, and by paths that are wrong once a run folder has been moved.
    """

    def __init__(self, folder: Path, count: int = 1, name: str = "best.ckpt", patience: int | None = None) -> None:
        """name: with {} for the epoch's number, where there are several; patience: epochs without a better one after
        which training ends."""
        self.folder, self.count, self.name, self.patience = folder, count, name, patience
        self.kept: list[Ranked] = []

    @property
    def state_key(self) -> str:
        return f"{type(self).__name__} {self.name}"

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.kept = [tuple(each) for each in state_dict["kept"]]

    def paths(self) -> list[Path]:
        """Return the checkpoints, the best first."""
        return [self.folder / self.name.format(epoch) for _, _, epoch in self.kept]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # not when a better one has been saved: until the last checkpoint is, a killed run would go on from before that
        if trainer.is_global_zero:
            for path in {*self.folder.glob(self.name.format("*"))} - {*self.paths()}:
                path.unlink(missing_ok=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # the first process decides: another's sums may differ in the last bit, and all must save together or not at all
        accuracy, sureness = trainer.strategy.broadcast(pl_module.judged.rank)  # type: ignore[union-attr, misc]
        ranked = (accuracy, sureness, trainer.current_epoch)
        self.kept = sorted([*self.kept, ranked], key=lambda each: (-each[0], -each[1], each[2]))[: self.count]
        if ranked in self.kept:
            trainer.save_checkpoint(self.folder / self.name.format(trainer.current_epoch))
        without = trainer.current_epoch - self.kept[0][2]
        if self.patience is not None and without >= self.patience:
            log.info("no better epoch in %d: training ends", without)
            trainer.should_stop = True
