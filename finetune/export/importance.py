"""How much each channel of a graph is worth to the layers that read it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from finetune.export.activations import Activity
from finetune.export.folding import constant
from finetune.export.tracing import Channels, first

Floats = NDArray[np.float64]


def importance(channels: Channels, activity: Mapping[str, Activity]) -> dict[int, float]:
    """Return by label which share of its readers' variance a channel brings; activity: of what layers read, by name.

    A channel brings a layer its variance times the squares of the weights that read it; its mean a bias can bring too.
    In shares, a channel of a layer of 32 is worth more than one of 1,152: narrow first layers are not the first to go.
    """
    brought: dict[int, float] = {}
    for layer in channels.layers:
        weights = constant(layer.weights.value).astype(np.float64)
        squares = np.square(weights).sum(axis=tuple(axis for axis in range(weights.ndim) if axis != layer.reads))
        variance = activity[str(first(layer.weights.node).name)].variance * squares
        shares = variance / max(variance.sum(), np.finfo(np.float64).tiny)
        for label, share in zip(channels.uses[layer.weights][layer.reads].tolist(), shares.tolist(), strict=True):
            brought[label] = brought.get(label, 0.0) + share
    return brought
