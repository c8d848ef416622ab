"""freeze=head: a linear head on kept features, as the search found it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence

import torch

from finetune.data.manifest import Photo
from finetune.evaluation.scoring import score_with_torch
from finetune.models.classifier import Classifier
from finetune.models.freezing import plan_freezing
from finetune.run import Run
from finetune.training.fitted import Fitted
from finetune.training.head_fits import HeadFit, load_fit, refit
from finetune.training.loss import ClassificationLoss
from finetune.training.module import FineTuner, quiet_trainer
from finetune.training.probe import fit_temperature
from finetune.training.search import Found
from finetune.training.start import Start

log = logging.getLogger(__name__)


def fit_head(found: Found) -> Fitted:
    """Refit the best candidate on training and validation photos together."""
    search, best, kept = found.attempt.search, found.best, found.attempt.kept
    manifest = search.manifest
    train, val = manifest.of("train"), manifest.of("val")
    log.info(
        "chosen: %s at %d px, features=%s, l2=%g, validation accuracy %.1f %%; refitting",
        *(found.attempt.backbone, found.attempt.image_size, best.features, best.l2, 100 * found.judged.accuracy),
    )
    rows, targets = found.attempt.rows((*train, *val), best.features)
    again = refit(search.config, found.fit, best.l2, rows, targets, len(manifest.classes), search.handling)
    classifier = _assemble(found, again)
    classifier.backbone.requires_grad_(False)
    # calibrated on photos that this head has not seen; the refitted one has seen them all
    classifier.temperature.fill_(fit_temperature(found.unseen, manifest.targets(val)))

    def score(photos: Sequence[Photo]) -> torch.Tensor:
        if search.device.type == "cuda":  # kept features were computed in half precision
            return score_with_torch(classifier.to(search.device), kept.preprocessing, manifest.files(photos))
        with torch.inference_mode():
            logits: torch.Tensor = classifier.head(torch.from_numpy(kept.of(manifest, photos, best.features)))
        return logits

    return Fitted(
        freeze="head",
        handling=search.handling,
        spec=kept.spec,
        classifier=classifier,
        preprocessing=kept.preprocessing,
        weights_from=found.attempt.built[1],
        judged=found.judged,
        val_logits=found.unseen,
        trainable_parameters=sum(parameter.numel() for parameter in classifier.head.parameters()),
        photos_seen=found.photos_seen,
        metrics=found.rows,
        score=score,
        left_out=search.left_out,
    )


def probed_start(found: Found) -> Start:
    """Return the network with the best head as it was fitted to the training photos alone."""
    kept = found.attempt.kept
    return Start(kept.spec, _assemble(found, found.fit), kept.preprocessing, found.attempt.built[1], found.rows)


def _assemble(found: Found, fit: HeadFit) -> Classifier:
    """Make a fitted head part of the network."""
    kept, search = found.attempt.kept, found.attempt.search
    # a copy: the original may be on a GPU, and still gives features
    backbone = copy.deepcopy(kept.backbone).cpu()
    classes = len(search.manifest.classes)
    classifier = Classifier(kept.spec, backbone, found.best.features, classes, search.config.head)
    load_fit(classifier.head, fit)
    return classifier.eval()


def save_checkpoints(found: Found, classifier: Classifier, run: Run, *names: str) -> None:
    """Leave the checkpoints that other ways of training leave, so that Lightning can train on from here."""
    config, handling = found.attempt.search.config, found.attempt.search.handling
    plan = plan_freezing(classifier, config.freeze, "head", config.optimizer.layer_decay)
    trainer = quiet_trainer(accelerator="cpu", enable_progress_bar=False, default_root_dir=run.path)
    # any loss: checkpoints hold nothing of it
    module = FineTuner(classifier, plan, config.optimizer, config.schedule, ClassificationLoss(), handling.judge)
    trainer.strategy.connect(module)
    for name in names:
        trainer.save_checkpoint(run.checkpoints / name)
