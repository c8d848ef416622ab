"""What a fine-tuning of layers starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetune.config import TrainConfig
from finetune.data.manifest import Manifest
from finetune.models.backbone import BackboneSpec, build_backbone
from finetune.models.classifier import Classifier
from finetune.preprocess import Preprocessing
from finetune.training.fitted import Metrics


@dataclass(frozen=True)
class Start:
    """A network with a head, and how photos are brought to it.

    weights_from: origin of the pretrained weights; rows: of metrics, of what was tried before.
    """

    spec: BackboneSpec
    classifier: Classifier
    preprocessing: Preprocessing
    weights_from: str
    rows: Sequence[Metrics] = ()


def fresh_start(config: TrainConfig, spec: BackboneSpec, manifest: Manifest) -> Start:
    """Return the pretrained backbone with a head that knows nothing."""
    size = spec.image_size if config.data.image_size == "auto" else config.data.image_size
    given = config.model
    backbone, weights_from = build_backbone(spec.name, size, given.weights, given.drop_path, given.drop_stages)
    features = "last" if given.features == "auto" else given.features
    classifier = Classifier(spec, backbone, features, len(manifest.classes), config.head)
    preprocessing = Preprocessing(image_size=size, fit=config.data.fit, alpha_over=config.data.alpha_over)
    return Start(spec, classifier, preprocessing, weights_from)
