"""freeze=head: choose image size, features and penalty of a linear head on a frozen backbone."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from finetune.config import TrainConfig
from finetune.data.manifest import Manifest, Photo
from finetune.models.backbone import BackboneSpec, FeatureSet, build_backbone, takes_any_size
from finetune.models.classifier import Classifier
from finetune.models.freezing import plan_freezing
from finetune.preprocess import Preprocessing
from finetune.run import Run
from finetune.training.deep_head import WEIGHT_DECAY, DeepFit, fit_deep_head, refit_deep_head
from finetune.training.features import Features, KeptFeatures
from finetune.training.fitted import Fitted, Metrics
from finetune.training.imbalance import Handling, Judgement
from finetune.training.loss import ClassificationLoss
from finetune.training.module import FineTuner, quiet_trainer
from finetune.training.probe import LinearFit, fit_linear, fit_temperature
from finetune.training.watching import Watch

log = logging.getLogger(__name__)

FEATURE_SETS: tuple[FeatureSet, ...] = ("last", "stages", "all")
# Sizes are rounded to what most backbones shrink a photo by.
SIZE_STEP = 32


@dataclass(frozen=True)
class Candidate:
    """One head that was tried, judged on the validation photos."""

    image_size: int
    features: FeatureSet
    l2: float
    judged: Judgement
    fit: LinearFit | DeepFit
    val_logits: torch.Tensor


def fit_head(
    config: TrainConfig,
    handling: Handling,
    spec: BackboneSpec,
    manifest: Manifest,
    run: Run,
    device: torch.device,
    watch: Watch,
) -> Fitted:
    """Try every size, feature set and penalty; refit the best on training and validation photos together."""
    train, val = manifest.of("train"), manifest.of("val")
    chosen: Candidate | None = None
    metrics: list[Metrics] = []
    kept: dict[int, KeptFeatures] = {}
    for size in image_sizes(config, spec):
        started = time.monotonic()
        backbone, weights_from = build_backbone(
            spec.name, size, config.model.weights, drop_stages=config.model.drop_stages
        )
        preprocessing = Preprocessing(image_size=size, fit=config.data.fit, alpha_over=config.data.alpha_over)
        kept[size] = KeptFeatures(spec, backbone, preprocessing, device, run.features)
        features = kept[size].of(manifest, train + val, "training")
        tried = _try_all(config, handling, manifest, kept[size], features)
        seconds = time.monotonic() - started
        metrics += [_row(candidate, seconds) for candidate in tried]
        watch.update(metrics)
        best = max(tried, key=lambda candidate: candidate.judged.rank)
        # only the best fit is kept: a thousand classes on wide features take a gigabyte
        if chosen is None or best.judged.rank > chosen.judged.rank:
            chosen = best
        accuracy, balanced = 100 * best.judged.accuracy, 100 * best.judged.balanced_accuracy
        log.info("%d px: validation accuracy %.1f %%, balanced %.1f %%, in %.0f s", size, accuracy, balanced, seconds)
    assert chosen is not None
    log.info("chosen: %d px, features=%s, l2=%g; refitting", chosen.image_size, chosen.features, chosen.l2)
    source = kept[chosen.image_size]
    classifier = _build(config, handling, spec, manifest, source, chosen)
    _save_checkpoints(config, handling, classifier, run)

    def score(photos: Sequence[Photo]) -> torch.Tensor:
        features = source.of(manifest, photos, "test")[:, source.columns(chosen.features)]
        with torch.inference_mode():
            logits: torch.Tensor = classifier.head(torch.from_numpy(np.ascontiguousarray(features)))
        return logits

    return Fitted(
        classifier=classifier,
        preprocessing=source.preprocessing,
        weights_from=weights_from,
        val_accuracy=chosen.judged.accuracy,
        val_balanced_accuracy=chosen.judged.balanced_accuracy,
        val_logits=chosen.val_logits,
        trainable_parameters=sum(parameter.numel() for parameter in classifier.head.parameters()),
        photos_seen=len(train + val) * len(kept),
        metrics=metrics,
        score=score,
    )


def image_sizes(config: TrainConfig, spec: BackboneSpec) -> list[int]:
    """Return the sizes to try in px, smallest first."""
    if config.data.image_size != "auto":
        return [config.data.image_size]
    if not takes_any_size(spec.name):
        return [spec.image_size]
    rounded = {round(spec.image_size * factor / SIZE_STEP) * SIZE_STEP for factor in config.probe.size_factors}
    return sorted({max(SIZE_STEP, size) for size in rounded})


def _try_all(
    config: TrainConfig, handling: Handling, manifest: Manifest, kept: KeptFeatures, features: Features
) -> list[Candidate]:
    train, val = manifest.of("train"), manifest.of("val")
    targets = manifest.targets(train)
    wanted = torch.tensor(manifest.targets(val))
    loss = handling.training_loss(targets, len(manifest.classes))
    candidates = []
    for name in FEATURE_SETS if config.model.features == "auto" else (config.model.features,):
        columns = np.ascontiguousarray(features[:, kept.columns(name)])
        seen, held_out, classes = columns[: len(train)], columns[len(train) :], len(manifest.classes)
        fits: Sequence[LinearFit | DeepFit]
        if config.head.hidden:
            judge = partial(handling.judge, targets=wanted)
            fits = [fit_deep_head(config.head, seen, targets, classes, loss, judge, held_out, config.seed)]
        else:
            fits = fit_linear(seen, targets, classes, config.probe.l2, loss)
        for l2, fit in zip([WEIGHT_DECAY] if config.head.hidden else config.probe.l2, fits, strict=True):
            logits = fit.logits(held_out)
            judged = handling.judge(logits, wanted)
            candidates.append(Candidate(kept.preprocessing.image_size, name, l2, judged, fit, logits))
    return candidates


def _build(
    config: TrainConfig,
    handling: Handling,
    spec: BackboneSpec,
    manifest: Manifest,
    kept: KeptFeatures,
    chosen: Candidate,
) -> Classifier:
    """Make the chosen head, refitted with the validation photos, part of the network."""
    train, val = manifest.of("train"), manifest.of("val")
    features = kept.of(manifest, train + val, "training")[:, kept.columns(chosen.features)]
    columns = np.ascontiguousarray(features)
    # calibrated on photos that this head has not seen; the refitted one has seen them all
    temperature = fit_temperature(chosen.val_logits, manifest.targets(val))
    targets, classes = manifest.targets(train + val), len(manifest.classes)
    loss = handling.training_loss(targets, classes)
    # a copy: the original may be on a GPU, and still gives features
    backbone = copy.deepcopy(kept.module.backbone).cpu()
    classifier = Classifier(spec, backbone, chosen.features, classes, config.head)
    if isinstance(chosen.fit, DeepFit):
        deep = refit_deep_head(config.head, columns, targets, classes, loss, chosen.fit.epochs, config.seed)
        classifier.head.load_state_dict(deep.head.state_dict())
    else:
        (refit,) = fit_linear(columns, targets, classes, [chosen.l2], loss)
        with torch.no_grad():
            classifier.head.mean.copy_(refit.mean)
            classifier.head.scale.copy_(refit.scale)
            classifier.head.linear.weight.copy_(refit.weight)
            classifier.head.linear.bias.copy_(refit.bias)
    classifier.temperature.fill_(temperature)
    return classifier.eval()


def _save_checkpoints(config: TrainConfig, handling: Handling, classifier: Classifier, run: Run) -> None:
    """Leave the checkpoints that other ways of training leave, so that Lightning can train on from here."""
    plan = plan_freezing(classifier, config.freeze, "head", config.optimizer.layer_decay)
    trainer = quiet_trainer(accelerator="cpu", enable_progress_bar=False, default_root_dir=run.path)
    # any loss: checkpoints hold nothing of it
    loss = ClassificationLoss()
    module = FineTuner(classifier, plan, config.optimizer, config.schedule, loss, handling.judge)
    trainer.strategy.connect(module)
    for name in ("best.ckpt", "last.ckpt"):
        trainer.save_checkpoint(run.checkpoints / name)


def _row(candidate: Candidate, seconds: float) -> Metrics:
    return {
        "image_size": candidate.image_size,
        "features": candidate.features,
        "l2": candidate.l2,
        "val_accuracy": round(candidate.judged.accuracy, 6),
        "val_balanced_accuracy": round(candidate.judged.balanced_accuracy, 6),
        "val_loss": round(candidate.judged.loss, 6),
        "seconds": round(seconds, 2),
    }
