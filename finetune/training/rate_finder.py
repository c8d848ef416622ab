"""optimizer.learning_rate=auto: a short training whose rate rises from far too small to far too large (Smith 2017).

All of it happens on a copy: the classifier, its optimizer, the random states and the order of the photos of the
training that follows are what they would have been without it.
"""

from __future__ import annotations

import copy
import csv
import logging
import math
import sys
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.utilities.seed import isolate_rng

from finetune.config import TrainConfig
from finetune.data.datamodule import PhotoData
from finetune.errors import FinetuneError
from finetune.files import replacing
from finetune.run import Run
from finetune.training.module import FineTuner, quiet_trainer, quietly
from finetune.training.randomness import SeededBatches
from finetune.training.rate_curve import draw_rate_curve
from finetune.training.tuned import found_once

log = logging.getLogger(__name__)

LOWEST, HIGHEST = 1e-6, 10.0
# as fastai has it: training has diverged where the loss, the mean of some steps, is this many times the lowest
DIVERGED = 4.0
RECENT = 5
# of the steps; a single batch is too noisy to be compared with another
SMOOTHED_SHARE = 0.1
STILL_SHARE = 0.2
# of the loss at the start, and in standard errors of what is averaged; less is noise
LEAST_FALL, LEAST_ERRORS = 0.02, 4.0


@dataclass(frozen=True)
class RateCurve:
    """Learning rates tried, rising, the loss (of one step) at each, and the same averaged over neighbours.

    reach: how many on each side, fewer at the ends.
    """

    rates: NDArray[np.float64]
    losses: NDArray[np.float64]
    smoothed: NDArray[np.float64]
    reach: int

    @classmethod
    def of(cls, rates: list[float], losses: list[float], steps: int) -> RateCurve:
        """steps: how many there would have been without divergence."""
        raw = np.array(losses)
        reach = max(1, round(SMOOTHED_SHARE * steps) // 2)
        smoothed = [raw[max(0, number - reach) : number + reach + 1].mean() for number in range(len(raw))]
        return cls(np.array(rates), raw, np.array(smoothed), reach)

    def suggestion(self) -> float:
        """Return the rate at which the loss has done half of its fall.

        About where it falls most steeply, but no matter of one noisy step. Raises FinetuneError where it falls at none.
        """
        bottom = int(self.smoothed.argmin())
        # at the lowest rates nothing moves yet
        still = self.losses[: max(1, round(STILL_SHARE * len(self.losses)))]
        start = float(still.mean())
        fall = start - float(self.smoothed[bottom])
        # of a difference of two means
        scatter = float((self.losses - self.smoothed)[: max(bottom + 1, 4 * self.reach)].std())
        error = scatter * math.sqrt(1 / len(still) + 1 / (2 * self.reach + 1))
        if bottom < len(still) or not fall > max(LEAST_FALL * start, LEAST_ERRORS * error):
            raise FinetuneError(
                f"optimizer.learning_rate=auto: the loss falls at no rate from {LOWEST:g} to {self.rates[-1]:g} by "
                "more than chance; choose a number, larger batches or more trainer.search_steps"
            )
        above = np.flatnonzero(self.smoothed[:bottom] > start - fall / 2)
        return float(f"{self.rates[above[-1] + 1 if len(above) else bottom]:.2g}")


def settle_learning_rate(
    config: TrainConfig, module: FineTuner, data: PhotoData, device: torch.device, run: Run
) -> TrainConfig:
    """Return the configuration with a number for its learning rate, found if it is `auto`."""
    if config.optimizer.learning_rate != "auto":
        return config
    rate = found_once(run.learning_rate, lambda: _find(config, module, data, device, run), float)
    return config.model_copy(update={"optimizer": config.optimizer.at_rate(rate)})


def _find(config: TrainConfig, module: FineTuner, data: PhotoData, device: torch.device, run: Run) -> float:
    steps, started = config.trainer.search_steps, time.monotonic()
    log.info("learning rate: trying %g to %g in at most %d steps", LOWEST, HIGHEST, steps)
    searched = copy.deepcopy(module)
    # shares of 1: what a depth learns at, in proportion to the head
    searched.optimizer_config = config.optimizer.at_rate(1.0)
    groups = (replace(group, from_epoch=None if group.from_epoch is None else 0) for group in module.plan.groups)
    searched.plan = replace(module.plan, groups=tuple(groups), head_epochs=0)
    rising = RisingRate(steps)
    callbacks: list[pl.Callback] = [SeededBatches(config.seed), rising]
    with isolate_rng(), quietly():
        loader = data.train_dataloader()
        trainer = quiet_trainer(
            max_steps=steps,
            max_epochs=math.ceil(steps * config.trainer.accumulate / len(loader)),
            accelerator="gpu" if device.type == "cuda" else "cpu",
            precision=config.trainer.precision,
            accumulate_grad_batches=config.trainer.accumulate,
            gradient_clip_val=config.trainer.clip_norm,
            callbacks=[*callbacks, RichProgressBar()] if sys.stderr.isatty() else callbacks,
            enable_progress_bar=sys.stderr.isatty(),
            enable_checkpointing=False,
            default_root_dir=run.path,
        )
        try:
            trainer.fit(searched, train_dataloaders=loader)
        except SystemExit:
            # Lightning turns Ctrl-C into exit code 1; the command line has its own for it
            raise KeyboardInterrupt from None
    if not rising.losses:
        raise FinetuneError(
            f"optimizer.learning_rate=auto: the loss is not a number at the lowest rate, {LOWEST:g}; "
            "use other weights or trainer.precision=32-true"
        )
    curve = RateCurve.of(rising.rates, rising.losses, steps)
    _save(curve, None, run)
    log.info("learning rate: the curve is in %s", run.learning_rate_curve)
    rate = curve.suggestion()
    _save(curve, rate, run)
    log.info("learning rate: %g, found in %.0f s", rate, time.monotonic() - started)
    return rate


@dataclass
class RisingRate(pl.Callback):
    """Sets the rate of each step, whatever schedule there is, and ends the training where it diverges."""

    steps: int
    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.batches: list[float] = []
        self.recent: list[float] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.rate = LOWEST * (HIGHEST / LOWEST) ** (trainer.global_step / (self.steps - 1))
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self.rate * group["initial_lr"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Lightning gives each batch's share of the step's loss
        self.batches.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)
        if trainer.global_step == len(self.losses):
            return
        loss = math.fsum(self.batches) / len(self.batches)
        self.batches.clear()
        if math.isfinite(loss):
            self.rates.append(self.rate)
            self.losses.append(loss)
        if len(self.losses) >= RECENT:
            self.recent.append(float(np.mean(self.losses[-RECENT:])))
        diverged = bool(self.recent) and self.recent[-1] > DIVERGED * min(self.recent)
        trainer.should_stop = not math.isfinite(loss) or diverged


def _save(curve: RateCurve, rate: float | None, run: Run) -> None:
    """rate: the chosen one; None where there is none yet."""
    with replacing(run.learning_rate_curve.with_suffix(".csv")) as beside, beside.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("learning_rate", "loss", "smoothed_loss"))
        table.writerows(zip(curve.rates, curve.losses, curve.smoothed, strict=True))
    with replacing(run.learning_rate_curve) as beside:
        Image.fromarray(draw_rate_curve(curve.rates, curve.losses, curve.smoothed, rate)).save(beside, optimize=True)
