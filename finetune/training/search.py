"""The search for the best head on a frozen backbone: over backbones, image sizes, feature sets and penalties.

Cheapest first, so that whatever time there is gives the best answer that fits into it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import version

import numpy as np
import torch

from finetune.config import TrainConfig
from finetune.data.augmentation import Augmentation
from finetune.data.manifest import Manifest, Photo
from finetune.data.pca import ColourPCA
from finetune.files import digest
from finetune.models.backbone import FeatureSet, build_backbone, describe_backbone, require_known, takes_any_size
from finetune.preprocess import Preprocessing
from finetune.training.deadline import Deadline
from finetune.training.features import Features, KeptFeatures, Views, feature_folder
from finetune.training.fitted import Metrics
from finetune.training.head_fits import HeadFit, fit_heads
from finetune.training.imbalance import Handling, Judgement
from finetune.training.watching import Watch

log = logging.getLogger(__name__)

# Sizes are rounded to what most backbones shrink a photo by.
SIZE_STEP = 32
# For the last fit, the report and the files of the run.
RESERVE_S = 5.0


@dataclass(frozen=True)
class Search:
    """What a search goes by; components: those of the training photos, where augmentation shifts colours."""

    config: TrainConfig
    handling: Handling
    manifest: Manifest
    device: torch.device
    deadline: Deadline
    watch: Watch
    components: ColourPCA | None = None


@dataclass(frozen=True)
class Candidate:
    """One head that was tried, fitted to the training photos and judged on the validation photos."""

    features: FeatureSet
    l2: float
    judged: Judgement
    fit: HeadFit


@dataclass
class Attempt:
    """A backbone at an image size; cost_s: what a photo takes, as far as is known."""

    search: Search
    backbone: str
    image_size: int
    cost_s: float = 0.0

    @cached_property
    def built(self) -> tuple[KeptFeatures, str]:
        """The features and where the weights came from; built when it is this one's turn."""
        config = self.search.config
        weights = config.model.weights
        if self.backbone != config.model.backbone and weights not in ("auto", "none"):
            log.info("%s: model.weights=%s is %s's file, so auto", self.backbone, weights, config.model.backbone)
            weights = "auto"
        drop_path, drop_stages = config.model.drop_path, config.model.drop_stages
        backbone, origin = build_backbone(self.backbone, self.image_size, weights, drop_path, drop_stages)
        preprocessing = Preprocessing(
            image_size=self.image_size, fit=config.data.fit, alpha_over=config.data.alpha_over
        )
        views = _views(self.search, preprocessing) if config.probe.views else None
        spec, folder = describe_backbone(self.backbone), feature_folder(config.probe)
        return KeptFeatures(spec, backbone, preprocessing, self.search.device, folder, views), origin

    @property
    def kept(self) -> KeptFeatures:
        return self.built[0]

    def rows(self, photos: Sequence[Photo], features: FeatureSet) -> tuple[Features, list[int]]:
        """Return features to be trained on, those of distorted views after the plain ones, and their targets."""
        manifest, views = self.search.manifest, range(self.search.config.probe.views)
        plain = self.kept.of(manifest, photos, features)
        distorted = [self.kept.of_view(manifest, photos, view, features) for view in views]
        return np.concatenate([plain, *distorted]), manifest.targets(tuple(photos)) * (1 + len(views))


@dataclass
class Found:
    """The best candidate and the attempt it came from; rows: one for each candidate that was tried."""

    attempt: Attempt
    best: Candidate
    rows: list[Metrics] = field(default_factory=list)
    photos_seen: int = 0


def search_heads(search: Search) -> Found:
    """Try what fits into the time, and the cheapest in any case."""
    photos = search.manifest.of("train", "val")
    attempts = plan_attempts(search)
    found: Found | None = None
    while attempts:
        attempt = attempts.pop(0)
        if found is not None and not _fits(search, attempt, found):
            continue
        started, to_compute = time.monotonic(), attempt.kept.missing(photos)
        tried = _try_all(attempt)
        seconds = time.monotonic() - started
        best = max(tried, key=lambda candidate: candidate.judged.rank)
        rows = [_row(attempt, candidate, seconds) for candidate in tried]
        seen = len(photos) + search.config.probe.views * len(search.manifest.of("train"))
        if found is not None:
            rows, seen = found.rows + rows, found.photos_seen + seen
        # only the best fit is kept: a thousand classes on wide features take a gigabyte
        if found is None or best.judged.rank > found.best.judged.rank:
            found = Found(attempt, best)
        found.rows, found.photos_seen = rows, seen
        search.watch.update(rows)
        _say(attempt, best, seconds)
        if to_compute == len(photos):
            _learn(attempts, attempt, seconds / len(photos))
    assert found is not None
    return found


def plan_attempts(search: Search) -> list[Attempt]:
    """Return all that is to be tried, cheapest first."""
    config = search.config
    attempts = []
    for backbone in config.probe.backbones:
        require_known(backbone)
    for backbone in dict.fromkeys((config.model.backbone, *config.probe.backbones)):
        of_this = [Attempt(search, backbone, size) for size in image_sizes(config, backbone)]
        if config.probe.backbones or search.deadline.is_set:
            _learn(of_this, of_this[0], of_this[0].kept.seconds_a_photo())
        attempts += of_this
    return sorted(attempts, key=lambda attempt: attempt.cost_s)


def image_sizes(config: TrainConfig, backbone: str) -> list[int]:
    """Return the sizes to try in px, smallest first."""
    if config.data.image_size != "auto":
        return [config.data.image_size]
    own_px = describe_backbone(backbone).image_size
    if not takes_any_size(backbone):
        return [own_px]
    rounded = {round(own_px * factor / SIZE_STEP) * SIZE_STEP for factor in config.probe.size_factors}
    return sorted({max(SIZE_STEP, size) for size in rounded})


def _views(search: Search, preprocessing: Preprocessing) -> Views:
    config = search.config
    augmentation = Augmentation(config.augment, preprocessing, search.components)
    components = search.components.model_dump_json() if search.components else ""
    described = digest(config.augment.model_dump_json(), components, str(config.seed), version("albumentations"))
    return Views(augmentation, config.seed, described)


def _fits(search: Search, attempt: Attempt, found: Found) -> bool:
    """Whether an attempt, and what is to be done after it, fits into the time that is left."""
    if not search.deadline.is_set:
        return True
    train, val, test = (search.manifest.of(split) for split in ("train", "val", "test"))
    passes = attempt.kept.missing((*train, *val)) + search.config.probe.views * len(train)
    # whichever is better has the test photos to do
    after_s = max(each.cost_s * each.kept.missing(test) for each in (attempt, found.attempt))
    needed_s, left_s = attempt.cost_s * passes + after_s + RESERVE_S, search.deadline.left_s
    if needed_s > left_s:
        log.info(
            "%s at %d px: not tried, it would take about %.0f s and %.0f s are left",
            *(attempt.backbone, attempt.image_size, needed_s, max(0.0, left_s)),
        )
    return needed_s <= left_s


def _learn(attempts: Sequence[Attempt], measured: Attempt, cost_s: float) -> None:
    """Expect of a backbone's other sizes what was measured at one; time goes with the area."""
    for attempt in attempts:
        if attempt.backbone == measured.backbone:
            attempt.cost_s = cost_s * (attempt.image_size / measured.image_size) ** 2


def _try_all(attempt: Attempt) -> list[Candidate]:
    search = attempt.search
    config, handling, manifest = search.config, search.handling, search.manifest
    train, val = manifest.of("train"), manifest.of("val")
    judge = partial(handling.judge, targets=torch.tensor(manifest.targets(val)))
    classes, wished = len(manifest.classes), config.model.features
    candidates = []
    for name in attempt.kept.backbone.feature_sets if wished == "auto" else (wished,):
        rows, targets = attempt.rows(train, name)
        loss = handling.training_loss(targets, classes)
        unseen = attempt.kept.of(manifest, val, name)
        fits = fit_heads(config, rows, targets, classes, loss, judge, unseen)
        candidates += [Candidate(name, l2, judge(fit.logits(unseen)), fit) for l2, fit in fits]
    return candidates


def _say(attempt: Attempt, best: Candidate, seconds: float) -> None:
    log.info(
        "%s at %d px: validation accuracy %.1f %%, balanced %.1f %%, in %.0f s",
        *(attempt.backbone, attempt.image_size),
        *(100 * best.judged.accuracy, 100 * best.judged.balanced_accuracy, seconds),
    )


def _row(attempt: Attempt, candidate: Candidate, seconds: float) -> Metrics:
    return {
        "backbone": attempt.backbone,
        "image_size": attempt.image_size,
        "features": candidate.features,
        "l2": candidate.l2,
        "val_accuracy": round(candidate.judged.accuracy, 6),
        "val_balanced_accuracy": round(candidate.judged.balanced_accuracy, 6),
        "val_loss": round(candidate.judged.loss, 6),
        "seconds": round(seconds, 2),
    }
