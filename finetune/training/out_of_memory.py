"""Batches that memory does not hold: found before they are tried on a CPU, and after they have failed on a GPU."""

from __future__ import annotations

import logging
import math

from pytorch_lightning.utilities.memory import is_oom_error

from finetune.config import TrainConfig
from finetune.errors import FinetuneError
from finetune.run import Run
from finetune.training.batch_size import TrainingStep
from finetune.training.tuned import found_once

log = logging.getLogger(__name__)

# Ways of training for which a search chooses the image size.
SEARCHING = ("auto", "lp_ft")
# oneDNN's words on a CPU
ONEDNN = ("could not create a primitive", "could not execute a primitive")


def memory_ran_out(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or is_oom_error(error) or str(error).startswith(ONEDNN)


def advise_batch(step: TrainingStep, photos: int, accumulated: int) -> str:
    """Say what to write instead of so many photos a batch, and batches a step; to be called when that one is freed."""
    step.classifier.zero_grad()
    try:
        if photos <= step.world.least_batch:
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


def require_room(config: TrainConfig, step: TrainingStep, run: Run) -> TrainConfig:
    """Return the configuration with batches that memory holds, before a CPU's kernel would end the process for them.

    Where a search chose the image size, smaller batches make the same steps; where a person did, raises FinetuneError
    with a batch that fits. A GPU says by itself that it is full.
    """
    photos, trainer = config.data.batch_size, config.trainer
    if photos == "auto" or step.device.type != "cpu":
        return config
    if config.freeze.mode not in SEARCHING:
        if step.cannot_hold(photos):
            advice = advise_batch(step, photos, trainer.accumulate)
            raise FinetuneError(f"memory does not suffice for batches of {photos} photos: {advice}")
        return config
    size = found_once(run.batch_size, lambda: photos if step.holds(photos) else step.batch_size(photos), int)
    if size == photos:
        return config
    accumulate = math.ceil(photos * trainer.accumulate / size)
    log.info(
        "memory holds no %d photos of %d px: %d batches of %d make a step", photos, step.image_size, accumulate, size
    )
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"batch_size": size}),
            "trainer": trainer.model_copy(update={"accumulate": accumulate}),
        }
    )
