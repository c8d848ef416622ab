"""One training, in as many processes as it takes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.memory import garbage_collection_cuda

from finetune.data.datamodule import PhotoData
from finetune.errors import FinetuneError
from finetune.models.allocator import return_freed_memory
from finetune.training.module import FineTuner, quietly
from finetune.training.out_of_memory import memory_ran_out

log = logging.getLogger(__name__)


def fit_or_resume(
    trainer: pl.Trainer, module: FineTuner, data: PhotoData, last: Path, advise: Callable[[], str]
) -> None:
    """Train, from a checkpoint on if there is one.

    Raises FinetuneError where the checkpoint is damaged, and with advice on the batch where memory runs out.
    """
    with quietly():
        for left in last.parent.glob(f".*{last.suffix}"):
            # a process was killed while it wrote this
            left.unlink(missing_ok=True)
        try:
            if last.is_file():
                _require_whole(last)
                log.info("resuming from %s", last)
            trainer.fit(module, datamodule=data, ckpt_path=str(last) if last.is_file() else None, weights_only=True)
            return
        except SystemExit:
            # Lightning turns Ctrl-C into exit code 1; the command line has its own for it
            raise KeyboardInterrupt from None
        except Exception as error:
            if not memory_ran_out(error):
                raise
            reason = next(iter(str(error).splitlines()), type(error).__name__)
        finally:
            data.stop_workers()
    # not in the handler, where the error still holds what the step had made
    garbage_collection_cuda()
    return_freed_memory()
    advice = advise()
    elsewhere = " (with another output=, as this one has checkpoints)" if last.is_file() else ""
    raise FinetuneError(
        f"memory does not suffice for batches of {data.batch_size} photos: {advice}{elsewhere}\n{reason}"
    )


def _require_whole(checkpoint: Path) -> None:
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise nearly anything
        reason = str(error).splitlines()[0]
        raise FinetuneError(f"{checkpoint} cannot be read ({reason}); delete it to start over") from None
