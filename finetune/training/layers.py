"""Train layers of the backbone with Lightning, whichever and for how long."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
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
from finetune.models.freezing import Depth, FreezingPlan, apply_freezing, decay_per_depth, plan_freezing
from finetune.preprocess import Preprocessing
from finetune.run import Run
from finetune.training.batch_size import TrainingStep, settle_batch_size
from finetune.training.checkpointing import checkpoint_gradients
from finetune.training.colours import colour_pca
from finetune.training.deadline import Clock
from finetune.training.fitted import Fitted
from finetune.training.imbalance import Handling, Judgement
from finetune.training.mixing import configured_mixing
from finetune.training.out_of_memory import advise_batch, require_room
from finetune.training.plan_table import describe_plan
from finetune.training.probe import fit_temperature
from finetune.training.processes import Processes
from finetune.training.rate_finder import settle_learning_rate
from finetune.training.settling import settle_epochs
from finetune.training.share import Trained, train_share
from finetune.training.soup import stir
from finetune.training.spread import fine_tuner_for
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
    processes: Processes,
    watch: Watch,
    clock: Clock | None = None,
) -> Fitted:
    """Fine-tune, stop early, and return the best epoch's weights; goes on from checkpoints/last.ckpt.

    clock: the time there is; the learning rate falls with it.
    """
    photos = len(manifest.of("train"))
    classifier = _prepared(config, start)
    plan = plan_freezing(classifier, config.freeze, depth, decay_per_depth(classifier, config.optimizer))
    size_px, device = start.preprocessing.image_size, processes.device
    step = TrainingStep(classifier, plan, config.optimizer, config.trainer.precision, size_px, device, processes.world)
    config = require_room(config, step, run)
    data = _photo_data(config, handling, start.preprocessing, step, manifest, run)
    config = settle_epochs(config, photos, len(data.of(processes.share).batches))
    plan = _opening(plan, config.trainer.max_epochs)
    mixing = configured_mixing(config.augment, photos, len(manifest.classes), config.seed)
    targets = manifest.targets(manifest.of("train"))
    loss = handling.training_loss(targets, len(manifest.classes), config.trainer.label_smoothing)
    kind = fine_tuner_for(config.trainer.strategy, processes)
    module = kind(classifier, plan, config.optimizer, config.schedule, loss, handling.judge, mixing, clock)
    config = settle_learning_rate(config, module, data, device, run)
    log.info(describe_plan(plan, config.optimizer.peak))
    module.optimizer_config = config.optimizer
    trained = processes.run(
        train_share,
        config,
        module,
        data,
        run,
        advise=lambda: advise_batch(step, data.batch_size, config.trainer.accumulate),
        update=lambda rows: watch.update([*start.rows, *rows]),
        show=watch.show,
    )
    _load_best(classifier, trained.best, plan.ever)
    classifier.to(device)
    return _conclude(depth, handling, start, plan, manifest, trained)


def _opening(plan: FreezingPlan, epochs: int) -> FreezingPlan:
    """Return the plan within so many epochs; says where some depths would begin after them, refuses where all would."""
    within = plan.within(epochs)
    planned, begun = (sum(group.from_epoch is not None for group in each.groups) for each in (plan, within))
    advice = "train for more epochs, or lower freeze.epochs_per_group"
    if begun == 1 < planned:
        raise FinetuneError(f"no depth of the backbone begins to train within {epochs} epochs; {advice}")
    if begun < planned:
        late = planned - begun
        log.warning("%d of %d depths would begin after the last of %d epochs; %s", late, planned, epochs, advice)
    return within


def _prepared(config: TrainConfig, start: Start) -> Classifier:
    if config.trainer.gradient_checkpointing:
        checkpoint_gradients(start.classifier, start.spec.name)
    keep_freed_memory()
    # a step takes two thirds of the time in this layout on a CPU; its photos come as (N, H, W, 3) anyway
    start.classifier.to(memory_format=torch.channels_last)
    return start.classifier


def _photo_data(
    config: TrainConfig,
    handling: Handling,
    preprocessing: Preprocessing,
    step: TrainingStep,
    manifest: Manifest,
    run: Run,
) -> PhotoData:
    augmentation = Augmentation(config.augment, preprocessing, colour_pca(config.augment, manifest, run))
    stages: dict[Split, Stage] = {"train": augmentation.stage, "val": preprocessing}
    return PhotoData(
        manifest,
        take_pixels(config.data.cache, manifest, stages, run.pixels),
        augmentation,
        settle_batch_size(config, step, len(manifest.of("train")), run),
        config.data.num_workers,
        config.seed,
        handling.sampling,
    )


def _conclude(
    depth: Depth, handling: Handling, start: Start, plan: FreezingPlan, manifest: Manifest, trained: Trained
) -> Fitted:
    """Average good epochs where that is wanted, calibrate, and judge."""
    classifier, val = start.classifier, manifest.of("val")
    wanted = manifest.targets(val)

    def score(photos: Sequence[Photo]) -> Tensor:
        return score_fast(classifier, start.preprocessing, manifest.files(photos))

    def judge() -> Judgement:
        return handling.judge(score(val), torch.tensor(wanted))

    # patience or a time limit may have ended the training before all depths had begun
    trained_ever = plan.within(len(trained.rows)).ever
    epochs = stir(classifier, trained.ingredients, judge) if trained.ingredients else ()
    logits = score(val)
    classifier.temperature.fill_(fit_temperature(logits, wanted))
    return Fitted(
        freeze=depth,
        handling=handling,
        spec=start.spec,
        classifier=classifier,
        preprocessing=start.preprocessing,
        weights_from=start.weights_from,
        judged=handling.judge(logits, torch.tensor(wanted)),
        val_logits=logits,
        trainable_parameters=sum(p.numel() for name, p in classifier.named_parameters() if name in trained_ever),
        photos_seen=len(manifest.of("train")) * len(trained.rows),
        metrics=[*start.rows, *trained.rows],
        score=score,
        earlier_s=trained.earlier_s,
        soup_epochs=epochs,
    )


def _load_best(classifier: Classifier, checkpoint: Path, trainable: frozenset[str]) -> None:
    if not checkpoint.is_file():
        raise FinetuneError(f"the best epoch's checkpoint {checkpoint} is gone; delete its folder to start over")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    classifier.load_state_dict({name.removeprefix("classifier."): tensor for name, tensor in state.items()})
    apply_freezing(classifier, trainable)
    classifier.eval()
