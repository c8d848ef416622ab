"""One training, in as many processes as it takes."""

from __future__ import annotations

import logging
from pathlib import Path

import pytorch_lightning as pl
import torch

from finetune.data.datamodule import PhotoData
from finetune.errors import FinetuneError
from finetune.training.module import FineTuner, quietly

log = logging.getLogger(__name__)


def fit_or_resume(trainer: pl.Trainer, module: FineTuner, data: PhotoData, last: Path) -> None:
    """Train, from a checkpoint on if there is one."""
    with quietly():
        for left in last.parent.glob(f".*{last.suffix}"):
            # a process was killed while it wrote this
            left.unlink()
        try:
            if last.is_file():
                _require_whole(last)
                log.info("resuming from %s", last)
            trainer.fit(module, datamodule=data, ckpt_path=str(last) if last.is_file() else None, weights_only=True)
        except SystemExit:
            # Lightning turns Ctrl-C into exit code 1; the command line has its own for it
            raise KeyboardInterrupt from None


def _require_whole(checkpoint: Path) -> None:
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise nearly anything
        reason = str(error).splitlines()[0]
        raise FinetuneError(f"{checkpoint} cannot be read ({reason}); delete it to start over") from None
