"""Which batch would have fitted, where memory ran out."""

from __future__ import annotations

import math

from pytorch_lightning.utilities.memory import is_oom_error

from finetune.errors import FinetuneError
from finetune.training.batch_size import LEAST, TrainingStep

# oneDNN's words on a CPU
ONEDNN = ("could not create a primitive", "could not execute a primitive")


def memory_ran_out(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or is_oom_error(error) or str(error).startswith(ONEDNN)


def advise_batch(step: TrainingStep, photos: int, accumulated: int) -> str:
    """Say what to write instead of so many photos a batch, and batches a step; to be called when that one is freed."""
    step.classifier.zero_grad()
    try:
        if photos <= LEAST:
            raise FinetuneError("no batch is smaller")
        smaller = step.batch_size(photos // 2)
    except Exception as error:
        if not isinstance(error, FinetuneError) and not memory_ran_out(error):
            raise
        return (
            "no smaller batch fits; choose a smaller data.image_size or model.backbone, "
            "or trainer.gradient_checkpointing=true"
        )
    accumulate = math.ceil(photos * accumulated / smaller)
    alike = "makes the same steps" if smaller * accumulate == photos * accumulated else "makes steps of about as many"
    return f"data.batch_size={smaller} trainer.accumulate={accumulate} fits, and {alike}"
