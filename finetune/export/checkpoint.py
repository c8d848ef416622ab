"""A timm network that was trained elsewhere, as something to export."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

from finetune.bundle import ModelCard
from finetune.config import ExportConfig
from finetune.data.audit import read_labelled
from finetune.errors import FinetuneError
from finetune.evaluation.subject import require_known_classes
from finetune.export.source import Source
from finetune.files import sha256
from finetune.golden import spread_over_classes
from finetune.models.backbone import BackboneSpec, require_known, takes_any_size
from finetune.models.classifier import Normalise, Scorer
from finetune.models.weights import StateDict, read_weights_file
from finetune.preprocess import Preprocessing, Readable, decode, load_pixels
from finetune.run import versions

log = logging.getLogger(__name__)

INTERPOLATIONS = ("bicubic", "bilinear", "lanczos", "nearest")
# Photos that are also put through timm's own preprocessing, to say what difference ours makes; in torch, which is slow.
BESIDE_TIMM = 24


class TimmNetwork(Scorer):
    """A whole timm network with its own classifier."""

    def __init__(self, spec: BackboneSpec, network: nn.Module) -> None:
        super().__init__()
        self.normalise, self.network = Normalise(spec), network
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, H, W, 3) uint8 RGB; returns logits (N, classes)."""
        logits: Tensor = self.network(self.normalise(images))
        return logits


def from_checkpoint(config: ExportConfig) -> Source:
    """Open a checkpoint with its labels; raises FinetuneError where the parts do not fit each other."""
    file, backbone, labels_file = config.checkpoint.file, config.checkpoint.backbone, config.checkpoint.labels
    root = config.data.root
    if file is None or backbone is None or labels_file is None or root is None:
        raise FinetuneError(
            "a checkpoint needs checkpoint.file=WEIGHTS checkpoint.backbone=NAME checkpoint.labels=LABELS.txt (a line "
            "an output) and data.root=PHOTOS, labelled photos to compare on"
        )
    labels = _read_labels(labels_file)
    require_known(backbone, "checkpoint.backbone")
    network, wanted = _load(file, backbone, len(labels), config.checkpoint.image_size)
    spec = BackboneSpec(backbone, wanted["input_size"][-1], tuple(wanted["mean"]), tuple(wanted["std"]))
    preprocessing = _preprocessing(config, spec.image_size, wanted)
    manifest = read_labelled(root, config.data.class_from or "folder")
    require_known_classes(manifest, labels, root)
    photos = manifest.of("test")
    scorer = TimmNetwork(spec, network).eval()
    if wanted["input_size"][0] != 3:
        raise FinetuneError(f"checkpoint.backbone={backbone} takes {wanted['input_size'][0]} channels; photos have 3")
    some = [photos[place] for place in spread_over_classes([photo.label for photo in photos], BESIDE_TIMM)]
    log.info("%s", _beside_timm(scorer, preprocessing, wanted, manifest.files(some)))
    # halves by content, so that copies are on one side
    first = tuple(photo for photo in photos if int(photo.sha256[:2], 16) % 2)
    return Source(
        network=scorer,
        card=ModelCard(
            name=config.name or file.stem,
            labels=labels,
            preprocessing=preprocessing,
            temperature=1.0,
            metrics={},
            backbone=backbone,
            dataset=manifest.fingerprint(),
            weights_sha256=sha256(file),
            versions=versions(),
        ),
        manifest=manifest,
        compared=photos,
        judging=first,
        calibration=tuple(photo for photo in photos if photo not in first),
        table=Path(f"{file.stem}-parity.csv"),
        run=None,
    )


def _read_labels(file: Path) -> tuple[str, ...]:
    try:
        labels = tuple(line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FinetuneError(f"checkpoint.labels={file}: {reason}; give a text file with a class name a line") from None
    except UnicodeDecodeError:
        raise FinetuneError(f"checkpoint.labels={file} is no text in UTF-8; write one class name a line") from None
    if len(labels) < 2 or "" in labels or len(set(labels)) < len(labels):
        raise FinetuneError(f"checkpoint.labels={file} must name each class once, one a line, and two at least")
    return labels


def _load(file: Path, backbone: str, classes: int, image_size: int | None) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network with all its weights, and how timm prepares photos for it."""
    options: dict[str, Any] = {} if image_size is None or takes_any_size(backbone) else {"img_size": image_size}
    try:
        network: Any = timm.create_model(backbone, num_classes=classes, **options)
        if image_size is not None:
            with torch.no_grad():
                network.eval()(torch.zeros(1, network.default_cfg["input_size"][0], image_size, image_size))
    except (AssertionError, RuntimeError, ValueError) as error:  # by what does not go into windows or patches
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "it is too small or no multiple"
        raise FinetuneError(f"checkpoint.image_size={image_size}: {backbone} does not take it: {reason}") from None
    state, expected = read_weights_file(file, "checkpoint.file"), network.state_dict()
    misfit = _misfit(state, expected)
    if misfit:
        raise FinetuneError(f"checkpoint.file={file} does not fit {backbone} with {classes} classes: {misfit}")
    endless = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if endless:
        raise FinetuneError(
            f"checkpoint.file={file}: {len(endless)} of its {len(state)} tensors hold NaN or infinity, the first is "
            f"{endless[0]}; give weights from before their training diverged"
        )
    network.load_state_dict(state)
    wanted: dict[str, Any] = resolve_data_config({}, model=network)  # type: ignore[no-untyped-call]
    if image_size is not None:
        wanted["input_size"] = (wanted["input_size"][0], image_size, image_size)
    return network, wanted


def _misfit(state: StateDict, expected: StateDict) -> str:
    """Say in what the tensors of a file are not those that a network has; empty where they are."""
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    wrong = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    if not (missing or unknown or wrong):
        return ""
    name = next(iter(wrong or missing or unknown))
    found = f"{tuple(state[name].shape)} there" if name in state else "not there"
    needed = f"{tuple(expected[name].shape)} here" if name in expected else "unknown here"
    return (
        f"of its tensors {len(missing)} are missing, {len(unknown)} unknown and {len(wrong)} of another shape, "
        f"as {name}: {found}, {needed}"
    )


def _preprocessing(config: ExportConfig, image_size: int, wanted: dict[str, Any]) -> Preprocessing:
    given = config.checkpoint
    interpolation = given.interpolation or wanted["interpolation"]
    if interpolation not in INTERPOLATIONS:
        raise FinetuneError(
            f"{given.backbone} was trained on photos resized by '{interpolation}'; choose "
            f"checkpoint.interpolation={'|'.join(INTERPOLATIONS)}"
        )
    squash = wanted["crop_mode"] == "squash" if given.fit is None else given.fit == "squash"
    return Preprocessing(
        image_size=image_size,
        fit="squash" if squash else "crop",
        crop_pct=1.0 if squash else given.crop_pct or wanted["crop_pct"],
        interpolation=interpolation,
    )


def _beside_timm(
    scorer: TimmNetwork, preprocessing: Preprocessing, wanted: dict[str, Any], files: Sequence[Readable]
) -> str:
    """Say on how many photos the network answers alike after timm's own preprocessing and after ours."""
    transform: Any = create_transform(**wanted, is_training=False)
    ours = np.stack([load_pixels(file, preprocessing) for file in files])
    theirs = torch.stack([transform(decode(file)) for file in files])
    with torch.inference_mode():
        alike = scorer(torch.from_numpy(ours)).argmax(1) == scorer.network(theirs).argmax(1)
    return (
        f"timm's own preprocessing gives the same answer on {int(alike.sum())} of {len(files)} photos "
        f"({preprocessing.in_words()})"
    )
