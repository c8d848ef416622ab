"""checkpoints/last.ckpt: whole at every moment, and never far behind the training."""

from __future__ import annotations

import io
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint, WeightAveraging

from finetune.errors import FinetuneError, Interrupted
from finetune.files import replacing

# Lightning's names of what a validation has done; this is one whose first batch has begun, which it starts over
VALIDATION = "epoch_loop.val_loop.batch_progress"
BEGUN = {"ready": 1, "started": 1, "processed": 0, "completed": 0}


class WholeFiles(TorchCheckpointIO):
    """Writes checkpoints beside their place and renames them.

    Lightning's own writing goes through the system's folder for temporary files, from where a checkpoint is copied if
    that lies on another disk: a kill then leaves half of one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raises FinetuneError where it cannot be written; what was there before stays."""
        # torch would turn the system's reason into one of its own
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            with replacing(Path(path)) as beside:
                beside.write_bytes(buffer.getbuffer())
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise FinetuneError(
                f"{path} cannot be written: {reason}; what was saved before is whole: "
                "mend that, and the same command goes on from there"
            ) from None


class LastCheckpoint(Checkpoint):
    """Saves at the end of each epoch, every `minutes` inside one between two steps, and before an interruption.

    Ctrl-C and SIGTERM are answered where the training can go on from bit by bit, with Interrupted; once more ends it
    at once.
    """

    def __init__(self, path: Path, minutes: float) -> None:
        self.path, self.interval_s = path, 60 * minutes
        self.began_s = self.saved_s = time.monotonic()
        self.earlier_s = 0.0
        self.stopped_early = False
        self.asked_to_stop = False

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.earlier_s + time.monotonic() - self.began_s, "stopped_early": self.stopped_early}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.earlier_s, self.stopped_early = state_dict["seconds"], state_dict["stopped_early"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning forgets that patience had ended the training
        trainer.should_stop = self.stopped_early
        self.saved_s = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            # in place of Lightning's, which leave inside a step; it sets back those from before when it ends
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:
                    signal.signal(number, self._ask_to_stop)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        between_steps = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        # after the last batch comes the validation, which begins with the same question
        if between_steps and not trainer.is_last_batch and self._due(trainer):
            self._save(trainer, trainer.current_epoch, batch_idx + 1)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # an epoch that a time limit cut short is the last one: it is saved when it ends
        if trainer.is_last_batch and self._due(trainer):
            self._save(trainer, trainer.current_epoch, int(trainer.num_training_batches))

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        # several processes may have different numbers of batches, and could not agree here
        if self.asked_to_stop and trainer.is_last_batch and trainer.world_size == 1:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, WeightAveraging):
                    # gives the weights that train back to the module
                    callback.on_validation_epoch_end(trainer, pl_module)
            self._save(trainer, trainer.current_epoch, int(trainer.num_training_batches))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stopped_early = trainer.should_stop
        self._save(trainer, trainer.current_epoch + 1, 0)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.validating:
            progress = checkpoint["loops"]["fit_loop"][VALIDATION]
            progress |= {"total": dict(BEGUN), "current": dict(BEGUN), "is_last_batch": False}

    def _due(self, trainer: pl.Trainer) -> bool:
        due = self.asked_to_stop or time.monotonic() - self.saved_s >= self.interval_s
        return bool(trainer.strategy.reduce_boolean_decision(due, all=False))

    def _save(self, trainer: pl.Trainer, epoch: int, batch: int) -> None:
        trainer.datamodule.position = (epoch, batch)  # type: ignore[attr-defined]
        trainer.save_checkpoint(self.path)
        self.saved_s = time.monotonic()
        if trainer.strategy.reduce_boolean_decision(self.asked_to_stop, all=False):
            after = f" after batch {batch} of {trainer.num_training_batches}" if batch else ""
            raise Interrupted(f"saved in epoch {epoch + 1} of at most {trainer.max_epochs}{after}")

    def _ask_to_stop(self, *_: object) -> None:
        if self.asked_to_stop:
            raise KeyboardInterrupt
        self.asked_to_stop = True
