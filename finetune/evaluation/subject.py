"""What is measured, and on which photos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from finetune.bundle import Bundle, open_bundle
from finetune.config import EvaluateConfig
from finetune.data.audit import SPLITS, read_labelled
from finetune.data.manifest import Manifest, Photo
from finetune.data.splits import Split
from finetune.errors import FinetuneError, nearest
from finetune.evaluation.scoring import Probabilities, answer_with_torch
from finetune.preprocess import Readable
from finetune.run import FinishedRun
from finetune.runtime import Device
from finetune.serving.predictor import open_predictor


@dataclass(frozen=True)
class Subject:
    """A model that answers. kind: a run, in torch; a bundle, in onnxruntime through the code that serves.

    answer: probabilities of photos in order; device: where they are computed.
    """

    kind: Literal["run", "bundle"]
    name: str
    place: Path
    weights_sha256: str
    backbone: str
    classes: tuple[str, ...]
    preprocessing: str
    device: str
    answer: Callable[[Sequence[Readable]], Probabilities]


@dataclass(frozen=True)
class Chosen:
    """The photos to measure on. split: None means all of them; seen: how many the model was trained or chosen on."""

    manifest: Manifest
    photos: tuple[Photo, ...]
    split: Split | None
    seen: int | None


def open_subject(config: EvaluateConfig, run: FinishedRun | None) -> Subject:
    """Open the bundle, or else the run."""
    if config.model is not None:
        return _of_bundle(open_bundle(config.model), config.model, config.device, config.engine_cache)
    if run is None:
        raise FinetuneError("give run=RUN, a run folder of `finetune train`, or model=MODELS/NAME, an exported one")
    return _of_run(run, config.device)


def _of_run(run: FinishedRun, device: Device) -> Subject:
    classifier, preprocessing = run.classifier().to(_torch_device(device)), run.result.preprocessing
    return Subject(
        kind="run",
        name=run.files.path.resolve().name,
        place=run.files.path,
        weights_sha256=run.weights_sha256,
        backbone=run.result.backbone,
        classes=run.result.classes,
        preprocessing=preprocessing.in_words(),
        device=str(classifier.temperature.device.type),
        answer=lambda files: answer_with_torch(classifier, preprocessing, files),
    )


def _of_bundle(bundle: Bundle, place: Path, device: Device, engine_cache: Path | None) -> Subject:
    card = bundle.info.model
    predictor = open_predictor(bundle, device, engine_cache=engine_cache)
    return Subject(
        kind="bundle",
        name=f"{bundle.name} version {bundle.version}",
        place=place,
        weights_sha256=card.weights_sha256,
        backbone=card.backbone,
        classes=card.labels,
        preprocessing=card.preprocessing.in_words(),
        device=predictor.session.provider,
        answer=lambda files: predictor.answer(files, "scoring photos"),
    )


def choose_photos(config: EvaluateConfig, subject: Subject, run: FinishedRun | None) -> Chosen:
    """Return the photos of data.root, or the run's own; raises FinetuneError where this model cannot be asked."""
    if config.data.root is None:
        return _own(run, subject, config.split or "test")
    class_from = config.data.class_from or (run.data.class_from if run else "folder")
    manifest = read_labelled(config.data.root, class_from, config.split)
    require_known_classes(manifest, subject.classes, config.data.root)
    return Chosen(manifest, manifest.of("test"), config.split, _seen(run, manifest) if run else None)


def require_known_classes(manifest: Manifest, classes: Sequence[str], root: str) -> None:
    """Raise FinetuneError where photos under `root` are of classes that a model does not have."""
    unknown = [label for label in manifest.classes if label not in classes]
    if unknown:
        names = ", ".join(f"'{label}'{nearest(label, classes)}" for label in unknown[:3])
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise FinetuneError(
            f"data.root={root} has {'classes' if len(unknown) > 1 else 'a class'} that the model does not "
            f"know: {names}{more} (it knows {_some(classes)})"
        )


def _own(run: FinishedRun | None, subject: Subject, split: Split) -> Chosen:
    if run is None:
        raise FinetuneError("a bundle does not know its photos: give data.root=FOLDER, or the run=RUN it came from")
    if subject.weights_sha256 != run.weights_sha256:
        raise FinetuneError(
            f"model={subject.place} was not exported from run={run.files.path} as it is now, whose {split} photos it "
            "may have been trained on; export it again, or give data.root="
        )
    photos = run.manifest.of(split)
    if not photos:
        there = [f"split={name} ({len(run.manifest.of(name))})" for name in SPLITS if run.manifest.of(name)]
        raise FinetuneError(
            f"run={run.files.path} has no {split} photos; choose {' or '.join(there)}, or give data.root="
        )
    return Chosen(run.manifest, run.require(photos), split, 0 if split == "test" else len(photos))


def _seen(run: FinishedRun, manifest: Manifest) -> int | None:
    """Return how many of these photos' contents the run was trained or chosen on; None where that is lost."""
    if not run.files.manifest.is_file():
        return None
    trained_on = Manifest.load(run.files.manifest, manifest.store)  # any store: only its rows are wanted
    before = {photo.sha256 for photo in trained_on.of("train", "val")}
    return sum(photo.sha256 in before for photo in manifest.of("test"))


def _some(names: Sequence[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _torch_device(device: Device) -> torch.device:
    if device in ("tensorrt", "openvino"):
        raise FinetuneError(
            f"device={device} runs exported models only: give model=MODELS/NAME too, or use auto, cpu or cuda"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise FinetuneError("device=cuda, but torch finds no CUDA GPU here; use auto or cpu")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
