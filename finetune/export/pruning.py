"""A narrower network: channels that do nothing are taken out of the graph's weights, then those that matter least.

What a channel is worth is measured over calibration photos, and the layers that read one that goes get its mean in
their biases instead. Batch norms are folded first: their scale is part of what a channel does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import onnx
from onnxscript import ir

from finetune.errors import FinetuneError
from finetune.export.activations import Activity, measure_activity
from finetune.export.blocks import least_blocks, removable
from finetune.export.channels import find_channels
from finetune.export.dead_channels import opened, remove_dead_channels
from finetune.export.folding import constant
from finetune.export.importance import importance
from finetune.export.narrowing import biases_instead, remove
from finetune.export.tracing import Channels, Layer, first, sizes
from finetune.preprocess import Pixels

# Of the share asked for, tried in turn until the accuracy holds; with the last only dead channels go.
PARTS = (1, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 0)


@dataclass(frozen=True)
class Pruned:
    """A graph with fewer channels. filters: each layer's, before and after, by the name of its weights.

    share: of the channels that could go, the most that were to; 0 where only dead ones went, and answers stay.
    """

    proto: onnx.ModelProto
    share: float
    filters: dict[str, tuple[int, int]]

    @property
    def before(self) -> int:
        return sum(before for before, _ in self.filters.values())

    @property
    def removed(self) -> int:
        return sum(before - after for before, after in self.filters.values())


class Pruner:
    """A graph without its dead channels, and what the others do over photos."""

    def __init__(self, proto: onnx.ModelProto, batches: Iterable[Pixels]) -> None:
        """batches: (N, H, W, 3) uint8 photos of the training split, some tens; read once, if there is need to."""
        self.batches = batches
        whole = find_channels(opened(proto))
        self.filters, self.channels = _filters(whole), int(removable(whole).sum())
        self.alive = remove_dead_channels(proto)
        self.dead = self.channels - int(removable(find_channels(opened(self.alive))).sum())

    def without(self, share: float) -> Pruned:
        """Remove all dead channels, then others up to `share` (0..1) of all, in whole blocks of a layer.

        Raises FinetuneError where there is a share to remove, and no channel that could go.
        """
        if share and not self.channels:
            raise FinetuneError("no channel of this network can be removed without touching what joins all of them")
        most = round(share * self.channels) - self.dead
        return self._without_least(share, most) if most > 0 else self._pruned(self.alive, 0.0)

    @cached_property
    def activity(self) -> dict[str, Activity]:
        """Of what the layers read, by name."""
        layers = find_channels(opened(self.alive)).layers
        axes = {_input(layer): (layer.input_axis, len(sizes(first(layer.weights.node)))) for layer in layers}
        return measure_activity(self.alive, axes, self.batches)

    def _without_least(self, share: float, most: int) -> Pruned:
        model = opened(self.alive)
        channels = find_channels(model)
        gone = least_blocks(channels, importance(channels, self.activity), most)
        if not gone.any():
            return self._pruned(self.alive, 0.0)
        means = {layer: self.activity[_input(layer)].mean for layer in channels.layers}
        remove(model, channels, gone, biases_instead(channels, means, gone))
        return self._pruned(ir.to_proto(model), share)

    def _pruned(self, proto: onnx.ModelProto, share: float) -> Pruned:
        after = _filters(find_channels(opened(proto)))
        return Pruned(proto, share, {name: (before, after.get(name, before)) for name, before in self.filters.items()})


def search_pruned(pruner: Pruner, share: float, refusal: Callable[[onnx.ModelProto], str]) -> tuple[Pruned | None, str]:
    """Return the graph without the largest part of `share` that is not refused, None if all are.

    Beside it why `share` itself was refused, an empty string if it was not. refusal: says why a graph is, or an empty
    string.
    """
    refused = ""
    for part in PARTS:
        found = pruner.without(part * share)
        why = refusal(found.proto)
        if not why:
            return found, refused
        refused = refused or why
    return None, refused


def _filters(channels: Channels) -> dict[str, int]:
    return {
        str(layer.weights.value.name): constant(layer.weights.value).shape[layer.writes] for layer in channels.layers
    }


def _input(layer: Layer) -> str:
    return str(first(layer.weights.node).name)
