"""What a configuration leaves to the photos: tables by their number and size are read, empty promises named."""

from __future__ import annotations

import logging
import math
from statistics import median

from finetune.config import TrainConfig
from finetune.config.idle import idle_keys
from finetune.config.tables import row_at, value_at
from finetune.data.manifest import Manifest
from finetune.errors import FinetuneError
from finetune.models.freezing import Depth

log = logging.getLogger(__name__)


def settle_image_size(config: TrainConfig, manifest: Manifest) -> TrainConfig:
    """Read data.auto_sizes by the size of the training photos, where data.image_size is auto."""
    if config.data.image_size != "auto" or config.data.auto_sizes is None:
        return config
    side_px = median(math.sqrt(photo.width * photo.height) for photo in manifest.of("train"))
    size_px = row_at(config.data.auto_sizes, side_px)
    log.info("photos of %.0f px: data.image_size=%d", side_px, size_px)
    return config.model_copy(update={"data": config.data.model_copy(update={"image_size": size_px})})


def settle_epochs(config: TrainConfig, photos: int, batches: int) -> TrainConfig:
    """Read trainer.max_steps by the number of training photos, and make epochs of it; batches: of one epoch.

    Raises FinetuneError where the epochs are over before the layers begin to train.
    """
    trainer = config.trainer
    if trainer.max_steps is not None:
        steps = math.ceil(batches / trainer.accumulate)
        wanted = value_at(trainer.max_steps, photos)
        epochs = min(trainer.max_epochs, math.ceil(wanted / steps))
        log.info("%d training photos: at most %d steps, %d in an epoch: %d epochs", photos, wanted, steps, epochs)
        trainer = trainer.model_copy(update={"max_epochs": epochs})
    if trainer.max_epochs <= config.freeze.head_epochs:
        raise FinetuneError(
            f"freeze.head_epochs={config.freeze.head_epochs} of {trainer.max_epochs} epochs leaves none in which "
            "layers train; raise trainer.max_epochs, or use freeze=head"
        )
    return config.model_copy(update={"trainer": trainer})


def require_used(config: TrainConfig, depth: Depth) -> None:
    """Warn of what was typed and does nothing at the depth that it came to.

    Refused it would be in the way of scripts for every way of training, of sweeps and of runs that go on. Raises
    FinetuneError where a rate is to be looked for that a fitted head hides.
    """
    came_to = f"freeze=auto came to freeze={depth}: " if config.freeze.mode == "auto" else ""
    for line in idle_keys(config, config.typed.keys, depth):
        log.warning("%s%s", came_to, line)
    if config.freeze.mode == "auto" and depth != "head" and config.optimizer.learning_rate == "auto":
        raise FinetuneError(
            "optimizer.learning_rate=auto looks for the rate at which a loss falls, and freeze=auto begins with a "
            "fitted head, whose loss is low already; give a rate"
        )
