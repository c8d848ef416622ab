"""A narrower network: channels that do nothing, or least, are taken out of the graph's weights.

The magnitude of a filter is the sum of its absolute weights (Li et al. 2017, "Pruning Filters for Efficient ConvNets");
a channel's is the mean over all weights that write and read it, each relative to the mean of its layer, so that layers
can be compared (Fang et al. 2023, "DepGraph", section 3.3). Batch norms are folded first: their scale is part of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir.passes.common as passes
from numpy.typing import NDArray
from onnxscript import ir

from finetune.errors import FinetuneError
from finetune.export.channels import find_channels
from finetune.export.constants import along, constant_channels, reads_constants
from finetune.export.folding import constant
from finetune.export.narrowing import add_initialiser, remove
from finetune.export.tracing import KEPT, Channels, Layer, Use, is_constant

# onnxruntime computes convolutions on a CPU in blocks of so many; a layer of 95 channels is no faster than one of 96
BLOCK = 8

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Pruned:
    """A graph with fewer channels; layers: each narrowed layer's name, how many filters it had and has."""

    proto: onnx.ModelProto
    layers: dict[str, tuple[int, int]]


def remove_dead_channels(proto: onnx.ModelProto) -> Pruned:
    """Remove channels that are constant or that nothing reads; answers change by rounding only.

    What a constant channel gave to the layers that read it goes into their biases, where it is the same at the photo's
    edges; what has no bias to take it stays. Of a layer's dead channels some stay to make a whole number of blocks.
    """
    model = _opened(proto)
    before = _filters(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _give_biases(model)
    while True:
        channels = find_channels(model)
        constants = constant_channels(model)
        dead = _dead(channels, constants)
        gone = _in_blocks(channels, dead, np.zeros(len(dead), np.float32), math.ceil)
        if not gone.any():
            return _closed(model, before)
        remove(model, channels, gone, _biases(channels, constants, gone))


def prune(proto: onnx.ModelProto, share: float) -> Pruned:
    """Remove the channels of least magnitude, `share` (0..1) of all that can be removed, in whole blocks a layer.

    Each group of channels that goes together keeps at least one block. Raises FinetuneError where the graph has none
    that could be removed.
    """
    if not 0 < share < 1:
        raise FinetuneError(f"prune={share:g}: the share of channels to remove lies between 0 and 1")
    model = _opened(proto)
    before = _filters(model)
    channels = find_channels(model)
    magnitude = _magnitudes(channels)
    removable = np.flatnonzero(np.isfinite(magnitude))
    if not len(removable):
        raise FinetuneError("no channel of this network can be removed without touching what joins all of them")
    chosen = np.zeros(len(magnitude), bool)
    chosen[removable[np.argsort(magnitude[removable], kind="stable")][: round(share * len(removable))]] = True
    remove(model, channels, _in_blocks(channels, chosen, magnitude, round), {})
    return _closed(model, before)


def _opened(proto: onnx.ModelProto) -> ir.Model:
    model = ir.from_proto(proto)
    passes.ShapeInferencePass()(model)
    return model


def _closed(model: ir.Model, before: dict[str, int]) -> Pruned:
    after = _filters(model)
    narrowed = {name: (size, after[name]) for name, size in before.items() if after.get(name, size) != size}
    return Pruned(ir.to_proto(model), narrowed)


def _filters(model: ir.Model) -> dict[str, int]:
    """Return how many filters each layer has, by its weights' name."""
    layers = find_channels(model).layers
    return {str(layer.weights.value.name): constant(layer.weights.value).shape[layer.writes] for layer in layers}


def _give_biases(model: ir.Model) -> None:
    """Add biases of 0 where a convolution has none, so that it can take over what constants give."""
    for node in model.graph:
        if node.op_type == "Conv" and len(node.inputs) == 2 and is_constant(node, 1):
            zeros = np.zeros(len(constant(Use(node, 1).value)), np.float32)
            bias = add_initialiser(model, f"{node.outputs[0].name}_bias", zeros)
            node.resize_inputs(3)
            node.replace_input_with(2, bias)


def _count(channels: Channels) -> int:
    """Return how many labels there are."""
    every = (*channels.values.values(), *channels.uses.values())
    return 1 + max(int(labels.max(initial=KEPT)) for axes in every for labels in axes)


def _magnitudes(channels: Channels) -> Floats:
    """Return the relative magnitude of each label, infinite for what has to stay."""
    total, times = np.zeros(_count(channels)), np.zeros(_count(channels))
    kernels = [(layer.weights, axis) for layer in channels.layers for axis in (layer.reads, layer.writes)]
    for use, axis in [*kernels, *((use, 0) for use in channels.depthwise)]:
        weights = np.abs(constant(use.value))
        slices = weights.sum(axis=tuple(other for other in range(weights.ndim) if other != axis))
        labels = channels.uses[use][axis]
        np.add.at(total, labels, slices / max(slices.mean(), np.finfo(np.float32).tiny))
        np.add.at(times, labels, 1)
    written = np.zeros(len(total), bool)
    for layer in channels.layers:
        written[channels.uses[layer.weights][layer.writes]] = True
    written[KEPT] = False
    return np.where(written, total / np.maximum(times, 1), np.inf).astype(np.float32)


def _groups(channels: Channels) -> list[NDArray[np.intp]]:
    """Return the labels that the same layers write and read, group by group."""
    places: dict[int, list[tuple[int, int]]] = {}
    for number, layer in enumerate(channels.layers):
        for axis in (layer.reads, layer.writes):
            for label in set(channels.uses[layer.weights][axis].tolist()) - {KEPT}:
                places.setdefault(label, []).append((number, axis))
    groups: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for label, where in places.items():
        groups.setdefault(tuple(where), []).append(label)
    return [np.asarray(labels, np.intp) for labels in groups.values()]


def _in_blocks(channels: Channels, chosen: Mask, magnitude: Floats, rounded: Callable[[float], float]) -> Mask:
    """Return `chosen`, but some more or fewer, least first, so that each group is left with whole blocks."""
    gone = np.zeros(len(chosen), bool)
    for group in _groups(channels):
        left = len(group) - int(chosen[group].sum())
        blocks = max(1, int(rounded(left / BLOCK)))
        order = group[np.lexsort((magnitude[group], ~chosen[group]))]
        gone[order[: max(0, len(group) - blocks * BLOCK)]] = True
    return gone


def _dead(channels: Channels, constants: dict[ir.Value, Floats]) -> Mask:
    """Return which labels no layer would miss."""
    dead = np.ones(_count(channels), bool)
    dead[KEPT] = False
    for layer in channels.layers:
        weights = constant(layer.weights.value)
        unread = (weights == 0).all(axis=tuple(axis for axis in range(weights.ndim) if axis != layer.reads))
        incoming = _incoming(layer, constants, weights.shape[layer.reads])
        foldable = reads_constants(layer.weights.node, incoming)
        if layer.bias is None:
            foldable &= incoming == 0
        dead[channels.uses[layer.weights][layer.reads][~(unread | foldable)]] = False
    return dead


def _incoming(layer: Layer, constants: dict[ir.Value, Floats], size: int) -> Floats:
    value = layer.weights.node.inputs[0]
    assert value is not None
    return along(constants[value], layer.input_axis, size) if value in constants else np.full(size, np.nan, np.float32)


def _biases(channels: Channels, constants: dict[ir.Value, Floats], gone: Mask) -> dict[Use, Floats]:
    """Return the biases that take over what the constant channels among `gone` gave."""
    biases = {}
    for layer in channels.layers:
        weights = np.moveaxis(constant(layer.weights.value), (layer.writes, layer.reads), (0, 1))
        weights = weights.reshape(*weights.shape[:2], -1).sum(axis=2)
        incoming = _incoming(layer, constants, weights.shape[1])
        given = gone[channels.uses[layer.weights][layer.reads]] & (np.nan_to_num(incoming) != 0)
        if given.any() and layer.bias is not None:
            biases[layer.bias] = constant(layer.bias.value) + weights[:, given] @ incoming[given]
    return biases
