"""The exported graph: uint8 photos in, calibrated probabilities out."""

from __future__ import annotations

import json

import onnx
import torch
from torch import Tensor, nn

from finetune.bundle import OUTPUT, ModelCard
from finetune.export.folding import fold_batch_norm, lean
from finetune.models.classifier import Scorer
from finetune.models.graph import lasting_graph


def exported_graph(classifier: Scorer, image_size: int) -> tuple[onnx.ModelProto, int]:
    """Return (N, image_size, image_size, 3) uint8 to (N, classes) probabilities, weights inside, N free.

    Beside it the number of nodes that the exporter had made of the same, before constants and batch norms were folded.
    """
    raw = raw_graph(classifier, image_size)
    return fold_batch_norm(lean(raw)), len(raw.graph.node)


def raw_graph(classifier: Scorer, image_size: int) -> onnx.ModelProto:
    """Return the same as torch's exporter makes it."""
    with torch.no_grad():
        return lasting_graph(_Probabilities(classifier), image_size, OUTPUT)


def describe(proto: onnx.ModelProto, card: ModelCard) -> None:
    """Write into the file what it is, so that it knows its labels and its input where it lies alone."""
    del proto.metadata_props[:]
    for key, value in card.model_dump(mode="json").items():
        entry = proto.metadata_props.add()
        entry.key = f"finetune.{key}"
        entry.value = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class _Probabilities(nn.Module):
    def __init__(self, classifier: Scorer) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier.probabilities(images)
