"""What is to be exported, and the photos that prove it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.bundle import ModelCard
from finetune.config import ExportConfig
from finetune.data.manifest import Manifest, Photo
from finetune.golden import spread_over_classes
from finetune.models.classifier import Scorer
from finetune.run import FinishedRun, versions

# int8 ranges hardly change after this many photos.
CALIBRATION_PHOTOS = 256


@dataclass(frozen=True)
class Source:
    """A trained network. compared: photos on which the bundle must agree with it; judging: those that decide whether
    another precision loses accuracy, as unknown to the network as there are; calibration: those that show it the range
    of values.

    table: where every photo's answers are written; run: that it came from, None for a checkpoint.
    """

    network: Scorer
    card: ModelCard
    manifest: Manifest
    compared: tuple[Photo, ...]
    judging: tuple[Photo, ...]
    calibration: tuple[Photo, ...]
    table: Path
    run: FinishedRun | None

    def targets(self, photos: Sequence[Photo]) -> list[int]:
        """Return the number of each photo's class among the model's outputs."""
        number = {label: place for place, label in enumerate(self.card.labels)}
        return [number[photo.label] for photo in photos]


def from_run(run: FinishedRun, config: ExportConfig) -> Source:
    """Open a finished run; raises FinetuneError where photos that are needed are gone."""
    manifest = run.manifest
    compared = run.require(manifest.of("test") or manifest.of("val"))
    train = manifest.of("train")
    seen = [train[place] for place in spread_over_classes([photo.label for photo in train], CALIBRATION_PHOTOS)]
    # a head was fitted to the validation photos too in the end: on those, losses look larger than they are
    judging = manifest.of("test" if run.result.freeze == "head" else "val") or compared
    classifier = run.classifier()
    return Source(
        network=classifier,
        card=_card(run, config.name or run.files.path.resolve().name, classifier.temperature.item()),
        manifest=manifest,
        compared=compared,
        judging=run.require(judging) if config.reduces else (),
        calibration=run.require(seen) if config.reduces else (),
        table=run.files.path / "parity.csv",
        run=run,
    )


def _card(run: FinishedRun, name: str, temperature: float) -> ModelCard:
    result = run.result
    return ModelCard(
        name=name,
        labels=result.classes,
        preprocessing=result.preprocessing,
        temperature=temperature,
        metrics={
            "val_accuracy": result.val_accuracy,
            "val_balanced_accuracy": result.val_balanced_accuracy,
            "test_accuracy": result.test_accuracy,
            "test_balanced_accuracy": result.test_balanced_accuracy,
        },
        backbone=result.backbone,
        dataset=result.dataset,
        weights_sha256=run.weights_sha256,
        versions=versions(),
    )
