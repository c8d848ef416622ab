"""A backbone at an image size, and the heads that can be fitted to its features."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor

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
from finetune.training.head_fits import cross_validated
from finetune.training.imbalance import Handling, Judgement
from finetune.training.timing import Cost
from finetune.training.trial import Trial
from finetune.training.watching import Watch

log = logging.getLogger(__name__)

# Sizes are rounded to what most backbones shrink a photo by.
SIZE_STEP = 32
# Times the backbone's own size, at most.
LARGEST_FACTOR = 4


@dataclass(frozen=True)
class Search:
    """What a search goes by.

    components: those of the training photos, where augmentation shifts colours; rows: of a search that was killed;
    left_out: how many training photos the manifest lacks because there is no time for them.
    """

    config: TrainConfig
    handling: Handling
    manifest: Manifest
    device: torch.device
    deadline: Deadline
    watch: Watch
    components: ColourPCA | None = None
    rows: Sequence[Metrics] = ()
    left_out: int = 0


@dataclass(frozen=True)
class Candidate:
    """One head that was tried; judged and right: on the photos of the trial that were held out."""

    features: FeatureSet
    l2: float
    judged: Judgement
    right: Tensor


@dataclass
class Attempt:
    """A backbone at an image size; cost: what a photo takes, as far as is known."""

    search: Search
    backbone: str
    image_size: int
    cost: Cost = field(default=Cost())

    @cached_property
    def built(self) -> tuple[KeptFeatures, str]:
        """The features and where the weights came from; built when it is this one's turn."""
        config = self.search.config
        weights = config.model.weights_of(self.backbone)
        if weights != config.model.weights:
            given, its = config.model.weights, config.model.backbone
            log.info("%s: model.weights=%s is %s's file, so %s", self.backbone, given, its, weights)
        drop_path, drop_stages = config.model.drop_path, config.model.drop_stages
        backbone, origin = build_backbone(self.backbone, self.image_size, weights, drop_path, drop_stages)
        preprocessing = Preprocessing(
            image_size=self.image_size, fit=config.data.fit, alpha_over=config.data.alpha_over
        )
        views = _views(self.search, preprocessing) if config.probe.views else None
        spec, folder = describe_backbone(self.backbone), feature_folder(config.probe)
        return KeptFeatures(spec, backbone, preprocessing, self.search.device, folder, views), origin

    def on(self, search: Search) -> Attempt:
        """Return the same on other photos, network and graph handed over."""
        other = replace(self, search=search)
        other.__dict__["built"] = self.built
        self.release()
        return other

    def release(self) -> None:
        """Give the memory of network and graph back; what was computed stays on disk."""
        self.__dict__.pop("built", None)

    @property
    def kept(self) -> KeptFeatures:
        return self.built[0]

    def passes(self, trial: Trial) -> int:
        """Return how often a photo has to pass through the backbone for a trial and what is fitted after it."""
        views = range(self.search.config.probe.views)
        distorted = sum(self.kept.missing_of_view(trial.photos, view) for view in views)
        return self.kept.missing(trial.photos) + distorted

    def takes_s(self, trial: Trial, fits_s: float) -> float:
        """Return what a trial will take; fits_s: what each photo takes in the fits."""
        return self.cost.seconds * self.passes(trial) + fits_s * len(trial.photos)

    @property
    def test_s(self) -> float:
        """What the test photos will take."""
        return self.cost.seconds * self.kept.missing(self.search.manifest.of("test"))

    def learned_from(self, trial: Trial) -> int:
        """Return how many photos a trial shows to heads, distorted views among them."""
        return len(trial.photos) + self.search.config.probe.views * len(trial.learned)

    def rows(self, photos: Sequence[Photo], features: FeatureSet) -> tuple[Features, list[int]]:
        """Return features to be learned from, those of distorted views after the plain ones, and their targets."""
        manifest, views = self.search.manifest, range(self.search.config.probe.views)
        plain = self.kept.of(manifest, photos, features)
        distorted = [self.kept.of_view(manifest, photos, view, features) for view in views]
        return np.concatenate([plain, *distorted]), manifest.targets(tuple(photos)) * (1 + len(views))

    def candidates(self, trial: Trial) -> list[Candidate]:
        """Return every feature set with every penalty, as it does on the photos that are held out."""
        config, handling, manifest = self.search.config, self.search.handling, self.search.manifest
        wanted = torch.tensor(manifest.targets(trial.held_out))
        wished = config.model.features
        found = []
        for name in self.kept.backbone.feature_sets if wished == "auto" else (wished,):
            rows, targets, folds = self._tried(trial, name)
            own, classes = len(trial.photos), len(manifest.classes)
            for l2, logits in cross_validated(config, rows, targets, folds, own, classes, handling):
                found.append(Candidate(name, l2, handling.judge(logits, wanted), logits.argmax(1) == wanted))
        return found

    def _tried(self, trial: Trial, features: FeatureSet) -> tuple[Features, list[int], list[int]]:
        """Return rows, targets and folds: of the photos, then of the distorted views of those that are learned from."""
        manifest, views = self.search.manifest, range(self.search.config.probe.views)
        learned = [trial.photos[number] for number in trial.learned]
        plain = self.kept.of(manifest, trial.photos, features)
        distorted = [self.kept.of_view(manifest, learned, view, features) for view in views]
        targets = manifest.targets(trial.photos) + manifest.targets(tuple(learned)) * len(views)
        folds = [*trial.fold, *[trial.fold[number] for number in trial.learned] * len(views)]
        return np.concatenate([plain, *distorted]), targets, folds


def plan_attempts(search: Search) -> list[Attempt]:
    """Return all that is to be tried, cheapest first."""
    config = search.config
    attempts = []
    for backbone in config.probe.backbones:
        require_known(backbone, "probe.backbones")
    for backbone in dict.fromkeys((config.model.backbone, *config.probe.backbones)):
        of_this = [Attempt(search, backbone, size) for size in image_sizes(config, backbone)]
        if config.probe.backbones and config.model.features != "auto":
            # it says so where there is no such set, before another backbone takes its time
            of_this[0].kept.backbone.columns(config.model.features)
        if config.probe.backbones or search.deadline.is_set:
            files = search.manifest.files(search.manifest.of("train"))
            expect(of_this, of_this[0], of_this[0].kept.cost(files))
        attempts += of_this
    return sorted(attempts, key=lambda attempt: attempt.cost.seconds)


def expect(attempts: Sequence[Attempt], measured: Attempt, cost: Cost) -> None:
    """Expect of a backbone's sizes what was measured at one."""
    for attempt in attempts:
        if attempt.backbone == measured.backbone:
            attempt.cost = cost.at((attempt.image_size / measured.image_size) ** 2)


def image_sizes(config: TrainConfig, backbone: str) -> list[int]:
    """Return the sizes to try in px, smallest first."""
    if config.data.image_size != "auto":
        return [config.data.image_size]
    own_px = describe_backbone(backbone).image_size
    if not takes_any_size(backbone):
        return [own_px]
    rounded = {round(own_px * factor / SIZE_STEP) * SIZE_STEP for factor in config.probe.size_factors}
    return sorted({max(SIZE_STEP, size) for size in rounded})


def larger_attempt(attempt: Attempt) -> Attempt | None:
    """Return the same backbone at twice the area, where the configuration and the architecture leave that open."""
    if attempt.search.config.data.image_size != "auto" or not takes_any_size(attempt.backbone):
        return None
    size = max(1 + attempt.image_size // SIZE_STEP, round(math.sqrt(2) * attempt.image_size / SIZE_STEP)) * SIZE_STEP
    if size > LARGEST_FACTOR * describe_backbone(attempt.backbone).image_size:
        return None
    return Attempt(attempt.search, attempt.backbone, size, attempt.cost.at((size / attempt.image_size) ** 2))


def _views(search: Search, preprocessing: Preprocessing) -> Views:
    config = search.config
    augmentation = Augmentation(config.augment, preprocessing, search.components)
    components = search.components.model_dump_json() if search.components else ""
    described = digest(config.augment.model_dump_json(), components, str(config.seed), version("albumentations"))
    return Views(augmentation, config.seed, described)
