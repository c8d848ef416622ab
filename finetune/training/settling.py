"""What a configuration leaves to the photos: tables by their number and size are read, empty promises refused."""

from __future__ import annotations

import logging
import math
from statistics import median

from finetune.config import TrainConfig
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
    """Raise FinetuneError where a value was given that would come to nothing."""
    if config.optimizer.l1 > 0 and config.trainer.ema_decay is not None:
        raise FinetuneError(
            "optimizer.l1 makes weights exactly 0, and the moving average of trainer.ema_decay makes them small again "
            "instead; leave one of the two out"
        )
    if config.budget_minutes is not None and config.optimizer.learning_rate == "auto":
        raise FinetuneError(
            "optimizer.learning_rate=auto searches for as long as it takes, which budget_minutes does not know; "
            "give a rate, or leave the limit out"
        )
    if config.freeze.mode in ("auto", "lp_ft") and depth != "head" and config.optimizer.learning_rate == "auto":
        raise FinetuneError(
            f"optimizer.learning_rate=auto looks for the rate at which a loss falls, and freeze={config.freeze.mode} "
            "begins with a fitted head, whose loss is low already; give a rate"
        )
    ignored = {
        "optimizer.l1": config.optimizer.l1 > 0,
        "trainer.ema_decay": config.trainer.ema_decay is not None,
        "trainer.soup": config.trainer.soup > 1,
        "freeze.head_epochs": config.freeze.head_epochs > 0,
    }
    if config.freeze.mode == "head":
        # with auto they may come to use another day, when there are more photos or a time limit
        ignored |= {
            "trainer.label_smoothing": config.trainer.label_smoothing > 0,
            "trainer.compile": config.trainer.compile,
            "trainer.gradient_checkpointing": config.trainer.gradient_checkpointing,
            "optimizer.learning_rate": config.optimizer.learning_rate == "auto",
            "data.batch_size": config.data.batch_size == "auto",
            "freeze.groups": config.freeze.groups is not None,
            "head.dropout": config.head.dropout > 0 and not config.head.hidden,
        }
    given = [key for key, is_set in ignored.items() if is_set]
    if depth == "head" and given:
        chosen = "freeze=auto came to head" if config.freeze.mode == "auto" else "freeze=head"
        raise FinetuneError(
            f"{chosen}, which learns from kept features and does not use {', '.join(given)}; "
            "leave that out (a recipe= may have set it), or choose freeze=partial, full or gradual"
        )
