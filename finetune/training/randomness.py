"""torch's random numbers in training: dropout and stochastic depth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

# Keeps these draws apart from those of mixed batches, which come from the same three numbers.
STREAM = 2


class SeededBatches(pl.Callback):
    """Seeds torch before each training batch, from (seed, epoch, number of the batch, process).

    A run that goes on inside an epoch then draws what it would have drawn, with no generator's state to keep.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        words = (self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(words, spawn_key=(STREAM,)).generate_state(1, np.uint64)[0]))
