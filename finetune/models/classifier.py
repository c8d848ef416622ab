"""The network that is trained, exported and served: uint8 photos in, class scores out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from finetune.models.backbone import Backbone, BackboneSpec, FeatureSet


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


class LinearHead(nn.Module):
    """Standardise each feature with fixed statistics, then one linear layer; (N, width) to (N, classes).

    dropout: chance that a feature is left out while training.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, classes)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.dropout((features - self.mean) / self.scale))
        return logits


class Classifier(nn.Module):
    """Normalise, backbone, head; the temperature that calibrates it (Guo et al. 2017) travels along."""

    temperature: Tensor

    def __init__(
        self, spec: BackboneSpec, backbone: Backbone, features: FeatureSet, classes: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.features = features
        self.normalise = Normalise(spec)
        self.backbone = backbone
        self.head = LinearHead(backbone.width(features), classes, dropout)
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, H, W, 3) uint8 RGB; returns logits (N, classes)."""
        logits: Tensor = self.head(self.backbone(self.normalise(images), self.features))
        return logits

    def probabilities(self, images: Tensor) -> Tensor:
        """images: (N, H, W, 3) uint8 RGB; returns calibrated probabilities (N, classes), rows sum to 1."""
        return torch.softmax(self(images) / self.temperature, dim=1)
