"""The part of a training that every process takes: its share of each batch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from pytorch_lightning.callbacks import Callback

from finetune.config import TrainConfig
from finetune.data.datamodule import PhotoData, loading_workers
from finetune.run import Run
from finetune.training.averaging import MovingAverage
from finetune.training.best_epochs import BestEpochs
from finetune.training.callbacks import EpochBar, EpochRows, StopInTime
from finetune.training.checkpointing import StatisticsOnce
from finetune.training.checkpoints import LastCheckpoint
from finetune.training.compiling import CompiledPhases, compiled
from finetune.training.divergence import FiniteLoss
from finetune.training.first_batch import FirstBatch
from finetune.training.fitted import Metrics
from finetune.training.module import FineTuner, quiet_trainer
from finetune.training.processes import Processes
from finetune.training.randomness import SeededBatches
from finetune.training.resuming import fit_or_resume
from finetune.training.spread import AgreedClock, spread


class Trained(NamedTuple):
    """What a training leaves on disk; best: the checkpoint of the best epoch; ingredients: of good ones, best first."""

    best: Path
    ingredients: list[Path]
    rows: list[Metrics]
    earlier_s: float


def smaller_shares() -> str:
    """Return advice that takes no trying: the other processes still hold their memory."""
    return "use a smaller data.batch_size, of which each process takes its share, with a larger trainer.accumulate"


def train_share(
    processes: Processes,
    config: TrainConfig,
    module: FineTuner,
    data: PhotoData,
    run: Run,
    advise: Callable[[], str] = smaller_shares,
    update: Callable[[Sequence[Metrics]], None] = lambda rows: None,
    show: Callable[[str, Path], None] = lambda name, picture: None,
) -> Trained:
    """Train, or go on from checkpoints/last.ckpt; the parameters of `module` are changed in place.

    advise, update, show: of rank 0, which says what batch fits where memory does not suffice, and is told the rows and
    shown the first batch.
    """
    data = data.of(processes.share, loading_workers(config.data.num_workers, processes.world.local_size))
    rows = EpochRows(update)
    best = BestEpochs(run.checkpoints, patience=config.trainer.patience)
    last = LastCheckpoint(run.checkpoints / "last.ckpt", config.trainer.checkpoint_minutes)
    ingredients = BestEpochs(run.ingredients, config.trainer.soup, "epoch={}.ckpt")
    callbacks: list[Callback] = [SeededBatches(config.seed), FiniteLoss(config)]
    callbacks += [FirstBatch(run.path / "augmented.png", data.manifest.classes, show), rows]
    callbacks += _optional(config, processes.device)
    if module.clock is not None:
        module.clock = agreed = AgreedClock(module.clock, processes)
        callbacks += [agreed, StopInTime(agreed)]
    if config.trainer.soup > 1:
        callbacks.append(ingredients)
    # the last checkpoint holds what the others have, so it comes after them
    callbacks += [best, last]
    on_terminal = sys.stderr.isatty()
    if on_terminal:
        callbacks.append(EpochBar())
    trainer = quiet_trainer(
        **spread(config.trainer.strategy, processes, module, data),
        max_epochs=config.trainer.max_epochs,
        precision=config.trainer.precision,
        accumulate_grad_batches=config.trainer.accumulate,
        gradient_clip_val=config.trainer.clip_norm,
        callbacks=callbacks,
        enable_progress_bar=on_terminal,
        default_root_dir=run.path,
    )
    if config.trainer.compile:
        module.answer = compiled(module.classifier, processes.device)
    advise = advise if processes.world.size == 1 else smaller_shares
    fit_or_resume(trainer, module, data, last.path, advise)
    return Trained(best.paths()[0], ingredients.paths(), rows.rows, last.earlier_s)


def _optional(config: TrainConfig, device: torch.device) -> Iterator[Callback]:
    """Give what the configuration switches on."""
    if config.trainer.ema_decay is not None:
        yield MovingAverage(config.trainer.ema_decay, device)
    if config.trainer.gradient_checkpointing:
        yield StatisticsOnce()
    if config.trainer.compile:
        yield CompiledPhases()
