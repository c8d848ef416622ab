"""freeze=partial and full: train layers of the backbone with Lightning."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar
from torch import Tensor

from finetune.config import TrainConfig
from finetune.data.augmentation import Augmentation
from finetune.data.datamodule import PhotoData
from finetune.data.manifest import Manifest, Photo
from finetune.data.pixels import Stage, take_pixels
from finetune.data.splits import Split
from finetune.errors import FinetuneError
from finetune.evaluation.scoring import score_fast
from finetune.models.allocator import keep_freed_memory
from finetune.models.classifier import Classifier
from finetune.models.freezing import Depth, apply_freezing, decay_per_depth, plan_freezing
from finetune.run import Run
from finetune.training.averaging import MovingAverage
from finetune.training.batch_size import TrainingStep, settle_batch_size
from finetune.training.callbacks import EpochRows, StopInTime
from finetune.training.checkpointing import StatisticsOnce, checkpoint_gradients
from finetune.training.checkpoints import LastCheckpoint
from finetune.training.colours import colour_pca
from finetune.training.compiling import CompiledPhases, compiled
from finetune.training.deadline import Clock
from finetune.training.divergence import FiniteLoss
from finetune.training.first_batch import FirstBatch
from finetune.training.fitted import Fitted
from finetune.training.imbalance import Handling
from finetune.training.mixing import configured_mixing
from finetune.training.module import FineTuner, quiet_trainer
from finetune.training.plan_table import describe_plan
from finetune.training.probe import fit_temperature
from finetune.training.randomness import SeededBatches
from finetune.training.rate_finder import settle_learning_rate
from finetune.training.resuming import fit_or_resume
from finetune.training.settling import settle_epochs
from finetune.training.soup import Ingredients, stir
from finetune.training.start import Start
from finetune.training.watching import Watch

log = logging.getLogger(__name__)


def fit_layers(
    config: TrainConfig,
    depth: Depth,
    handling: Handling,
    start: Start,
    manifest: Manifest,
    run: Run,
    device: torch.device,
    watch: Watch,
    clock: Clock | None = None,
) -> Fitted:
    """Fine-tune, stop early, and return the best epoch's weights; goes on from checkpoints/last.ckpt.

    clock: the time there is; the learning rate falls with it.
    """
    last = LastCheckpoint(run.checkpoints / "last.ckpt", config.trainer.checkpoint_minutes)
    classifier, preprocessing = start.classifier, start.preprocessing
    if config.trainer.gradient_checkpointing:
        checkpoint_gradients(classifier, start.spec.name)
    keep_freed_memory()
    # a step takes two thirds of the time in this layout on a CPU; its photos come as (N, H, W, 3) anyway
    classifier.to(memory_format=torch.channels_last)
    plan = plan_freezing(classifier, config.freeze, depth, decay_per_depth(classifier, config.optimizer))
    augmentation = Augmentation(config.augment, preprocessing, colour_pca(config.augment, manifest, run))
    stages: dict[Split, Stage] = {"train": augmentation.stage, "val": preprocessing}
    step = TrainingStep(classifier, plan, config.optimizer, config.trainer.precision, preprocessing.image_size, device)
    data = PhotoData(
        manifest,
        take_pixels(config.data.cache, manifest, stages, run.pixels),
        augmentation,
        settle_batch_size(config, step, len(manifest.of("train")), run),
        config.data.num_workers,
        config.seed,
        handling.sampling,
    )
    config = settle_epochs(config, len(manifest.of("train")), len(data.train_dataloader()))
    rows = EpochRows(lambda rows: watch.update([*start.rows, *rows]))
    first = FirstBatch(run.path / "augmented.png", manifest.classes, watch.show)
    best = ModelCheckpoint(run.checkpoints, filename="best", monitor="val_loss", enable_version_counter=False)
    # before the last checkpoint is written, which holds what they have
    ingredients = Ingredients(run.ingredients, config.trainer.soup)
    mixing = configured_mixing(config.augment, len(manifest.of("train")), len(manifest.classes), config.seed)
    targets = manifest.targets(manifest.of("train"))
    loss = handling.training_loss(targets, len(manifest.classes), config.trainer.label_smoothing)
    module = FineTuner(classifier, plan, config.optimizer, config.schedule, loss, handling.judge, mixing, clock)
    config = settle_learning_rate(config, module, data, device, run)
    log.info(describe_plan(plan, config.optimizer.peak))
    module.optimizer_config = config.optimizer
    if config.trainer.compile:
        module.answer = compiled(classifier, device)
    callbacks = [SeededBatches(config.seed), FiniteLoss(config), first, rows, *_optional(config, device, ingredients)]
    callbacks += [] if clock is None else [StopInTime(clock)]
    trainer = _trainer(config, run, device, [*callbacks, best, last])
    fit_or_resume(trainer, module, data, last.path, step)
    if run.pixels.exists():
        shutil.rmtree(run.pixels)
    _load_best(classifier, Path(best.best_model_path), plan.ever)
    classifier.to(device)

    def score(photos: Sequence[Photo]) -> Tensor:
        return score_fast(classifier, preprocessing, manifest.files(photos))

    val = manifest.of("val")
    targets = manifest.targets(val)
    epochs = (
        stir(classifier, ingredients.ranked(), lambda: handling.judge(score(val), torch.tensor(targets)))
        if config.trainer.soup > 1
        else ()
    )
    logits = score(val)
    classifier.temperature.fill_(fit_temperature(logits, targets))
    judged = handling.judge(logits, torch.tensor(targets))
    return Fitted(
        freeze=depth,
        handling=handling,
        spec=start.spec,
        classifier=classifier,
        preprocessing=preprocessing,
        weights_from=start.weights_from,
        judged=judged,
        val_logits=logits,
        trainable_parameters=sum(p.numel() for name, p in classifier.named_parameters() if name in plan.ever),
        photos_seen=len(manifest.of("train")) * len(rows.rows),
        metrics=[*start.rows, *rows.rows],
        score=score,
        earlier_s=last.earlier_s,
        soup_epochs=epochs,
    )


def _optional(config: TrainConfig, device: torch.device, ingredients: Ingredients) -> Iterator[Callback]:
    """Give what the configuration switches on."""
    if config.trainer.ema_decay is not None:
        yield MovingAverage(config.trainer.ema_decay, device)
    if config.trainer.patience is not None:
        yield EarlyStopping("val_loss", patience=config.trainer.patience)
    if config.trainer.soup > 1:
        yield ingredients
    if config.trainer.gradient_checkpointing:
        yield StatisticsOnce()
    if config.trainer.compile:
        yield CompiledPhases()


def _trainer(config: TrainConfig, run: Run, device: torch.device, callbacks: list[Callback]) -> pl.Trainer:
    on_terminal = sys.stderr.isatty()
    return quiet_trainer(
        max_epochs=config.trainer.max_epochs,
        accelerator="gpu" if device.type == "cuda" else "cpu",
        precision=config.trainer.precision,
        accumulate_grad_batches=config.trainer.accumulate,
        gradient_clip_val=config.trainer.clip_norm,
        callbacks=[*callbacks, RichProgressBar()] if on_terminal else callbacks,
        enable_progress_bar=on_terminal,
        default_root_dir=run.path,
    )


def _load_best(classifier: Classifier, checkpoint: Path, trainable: frozenset[str]) -> None:
    if not checkpoint.is_file():
        raise FinetuneError(f"the best epoch's checkpoint {checkpoint} is gone; delete its folder to start over")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    classifier.load_state_dict({name.removeprefix("classifier."): tensor for name, tensor in state.items()})
    apply_freezing(classifier, trainable)
    classifier.eval()
