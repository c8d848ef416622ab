"""The network that is trained, exported and served: uint8 photos in, class scores out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from finetune.config import HeadConfig
from finetune.models.backbone import Backbone, BackboneSpec, FeatureSet
from finetune.models.head import LINEAR, Head


class Normalise(nn.Module):
    """(N, H, W, 3) RGB in levels, uint8 or blended ones, to (N, 3, H, W) float32, normalised as in pretraining.

    The first layer of the model and not a step of the data pipeline, so that training and serving cannot disagree.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        # levels, not 0..1: the division by 255 is folded into the constants
        self.register_buffer("mean", 255.0 * torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255.0 * torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images.permute(0, 3, 1, 2).float() - self.mean) / self.std


class Scorer(nn.Module):
    """What gives logits to photos; the temperature that calibrates them (Guo et al. 2017) travels along."""

    temperature: Tensor

    def probabilities(self, images: Tensor) -> Tensor:
        """images: (N, H, W, 3) uint8 RGB; returns calibrated probabilities (N, classes), rows sum to 1."""
        return torch.softmax(self(images) / self.temperature, dim=1)


class Classifier(Scorer):
    """Normalise, backbone, head."""

    def __init__(
        self, spec: BackboneSpec, backbone: Backbone, features: FeatureSet, classes: int, head: HeadConfig = LINEAR
    ) -> None:
        super().__init__()
        self.features = features
        self.normalise = Normalise(spec)
        self.backbone = backbone
        self.head = Head(backbone.width(features), classes, head)
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, H, W, 3) uint8 RGB; returns logits (N, classes)."""
        logits: Tensor = self.head(self.backbone(self.normalise(images), self.features))
        return logits
