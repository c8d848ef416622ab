"""From features to class scores."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torch
from timm.layers import create_act_layer  # type: ignore[attr-defined]
from torch import Tensor, nn

from finetune.config import HeadConfig

LINEAR = HeadConfig(hidden=[], activation="relu", batch_norm=False, dropout=0.0)


class Head(nn.Module):
    """Standardise each feature with fixed statistics, then hidden layers, if any, and a linear one.

    (N, width) to (N, classes).
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, classes: int, config: HeadConfig = LINEAR) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        widths = [width, *config.hidden]
        self.hidden = nn.Sequential(*(_hidden(below, above, config) for below, above in pairwise(widths)))
        self.dropout = nn.Dropout(config.dropout)
        self.linear = nn.Linear(widths[-1], classes)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.dropout(self.hidden((features - self.mean) / self.scale)))
        return logits


def _hidden(below: int, above: int, config: HeadConfig) -> nn.Sequential:
    layers: dict[str, nn.Module] = {"dropout": nn.Dropout(config.dropout), "linear": nn.Linear(below, above)}
    if config.batch_norm:
        layers["norm"] = nn.BatchNorm1d(above)
    layers["activation"] = create_act_layer(config.activation)
    return nn.Sequential(OrderedDict(layers))
