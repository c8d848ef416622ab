"""`finetune export`: from a run folder to a bundle that answers as the trained model does."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from finetune.bundle import OUTPUT, SCHEMA, Bundle, BundleInfo, ModelCard, open_bundle, publish, stage
from finetune.config import ExportConfig
from finetune.data.manifest import Photo
from finetune.errors import FinetuneError
from finetune.export.parity import compare
from finetune.files import sha256
from finetune.models.classifier import Classifier
from finetune.models.graph import lasting_graph
from finetune.run import FinishedRun, versions
from finetune.serving.predictor import Predictor

log = logging.getLogger(__name__)


def main(config: ExportConfig) -> str:
    """Export, compare over the test photos, and publish; returns where the bundle is and how close it is."""
    run = FinishedRun(config.run)
    name = config.name or config.run.resolve().name
    existing = _same_export(config.output / name, run)
    if existing is not None:
        return f"already exported: {existing.folder}\n{_summary(existing)}"
    photos = _photos_to_compare(run)
    classifier = run.classifier()
    staging = stage(config.output)
    try:
        card = _card(run, name, classifier)
        model = staging / "model.onnx"
        log.info("exporting %s at %d px", run.result.backbone, run.result.image_size)
        _write_model(classifier, card, model)
        predictor = Predictor(model, card.labels, card.preprocessing, device="cpu")
        table = run.files.path / "parity.csv"
        parity = compare(classifier, predictor, run.manifest, photos, config.parity_limit, table)
        info = BundleInfo(schema_version=SCHEMA, model=card, parity=parity, sha256=sha256(model))
        bundle = publish(staging, config.output, info)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return f"bundle: {bundle.folder}\n{_summary(bundle)}\nnext: finetune serve models={config.output}"


class _Exported(nn.Module):
    """The whole graph: uint8 photos in, calibrated probabilities out."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier.probabilities(images)


def _write_model(classifier: Classifier, card: ModelCard, path: Path) -> None:
    with torch.no_grad():
        proto = lasting_graph(_Exported(classifier), card.preprocessing.image_size, OUTPUT)
    for key, value in card.model_dump(mode="json").items():
        entry = proto.metadata_props.add()
        entry.key = f"finetune.{key}"
        entry.value = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    path.write_bytes(proto.SerializeToString())


def _card(run: FinishedRun, name: str, classifier: Classifier) -> ModelCard:
    result = run.result
    return ModelCard(
        name=name,
        labels=result.classes,
        preprocessing=result.preprocessing,
        temperature=classifier.temperature.item(),
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


def _photos_to_compare(run: FinishedRun) -> tuple[Photo, ...]:
    """Return the test photos, or the validation photos of a run without any; every file must still be there."""
    photos = run.manifest.of("test") or run.manifest.of("val")
    return run.require(photos)


def _same_export(model: Path, run: FinishedRun) -> Bundle | None:
    """Return the newest version there if it was made from this very run."""
    if not model.is_dir():
        return None
    try:
        bundle = open_bundle(model)
    except FinetuneError as error:
        log.warning("the version there cannot be used: %s", error)
        return None
    return bundle if bundle.info.model.weights_sha256 == run.weights_sha256 else None


def _summary(bundle: Bundle) -> str:
    parity = bundle.info.parity
    return (
        f"verified on {parity.photos} photos at batch sizes {', '.join(map(str, parity.batch_sizes))}: "
        f"largest difference {parity.max_difference:.1g} (limit {parity.limit:g}), "
        f"same answer on {100 * parity.same_answer:.2f} %\n"
        f"accuracy: {100 * parity.torch_accuracy:.1f} % in torch, {100 * parity.onnx_accuracy:.1f} % in onnxruntime"
    )
