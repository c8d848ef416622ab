"""Takes channels out of a graph's weights, and puts numbers into biases in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, count
from typing import Any

import numpy as np
import onnx_ir.passes.common as passes
from numpy.typing import NDArray
from onnxscript import ir

from finetune.export.folding import constant
from finetune.export.tracing import Channels, Layer, Use

# On an initialiser whose name was taken: what it is to be called.
RENAMED = "finetune.name"

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]


def biases_instead(channels: Channels, incoming: Mapping[Layer, NDArray[Any]], gone: Mask) -> dict[Use, Floats]:
    """Return the biases of layers that read a number in place of each channel among `gone`.

    incoming: (channels,) numbers for what a layer reads, NaN for none. A layer without a bias reads nothing instead.
    """
    biases = {}
    for layer in channels.layers:
        weights = np.moveaxis(constant(layer.weights.value), (layer.writes, layer.reads), (0, 1))
        weights = weights.reshape(*weights.shape[:2], -1).sum(axis=2)
        given = gone[channels.uses[layer.weights][layer.reads]] & (np.nan_to_num(incoming[layer]) != 0)
        if given.any() and layer.bias is not None:
            added = weights[:, given] @ incoming[layer][given]
            biases[layer.bias] = (constant(layer.bias.value) + added).astype(np.float32)
    return biases


def remove(model: ir.Model, channels: Channels, gone: Mask, biases: dict[Use, Floats]) -> None:
    """Take the labels in `gone` out of every weight, bias, group count and shape; `biases` replace those there."""
    narrowed: dict[tuple[ir.Value, bytes], ir.Value] = {}
    for use, array in (*_slices(channels, gone, biases), *_shapes(channels, gone)):
        key = (use.value, array.tobytes())
        if key not in narrowed:
            narrowed[key] = add_initialiser(model, f"{use.value.name}", array)
        use.node.replace_input_with(use.position, narrowed[key])
    for use in channels.depthwise:
        source = use.node.inputs[0]
        assert source is not None
        use.node.attributes["group"] = ir.AttrInt64("group", int((~gone[channels.values[source][1]]).sum()))
    _infer_shapes_anew(model)


def _slices(channels: Channels, gone: Mask, biases: dict[Use, Floats]) -> Iterator[tuple[Use, NDArray[Any]]]:
    """Yield what is left of each initialiser that loses something."""
    for use, axes in channels.uses.items():
        if use in biases or any(gone[labels].any() for labels in axes):
            yield use, biases.get(use, constant(use.value))[np.ix_(*(~gone[labels] for labels in axes))]


def _shapes(channels: Channels, gone: Mask) -> Iterator[tuple[Use, NDArray[Any]]]:
    """Yield the shapes to reshape to that hold a number of channels."""
    for use in channels.shapes:
        axes = channels.values[use.node.outputs[0]]
        shape = constant(use.value)
        left = np.asarray([(~gone[labels]).sum() for labels in axes])
        fewer = np.asarray([gone[labels].any() for labels in axes]) & (shape > 0)
        if fewer.any():
            yield use, np.where(fewer, left, shape)


def _infer_shapes_anew(model: ir.Model) -> None:
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    passes.RemoveUnusedNodesPass()(model)
    for name, value in list(model.graph.initializers.items()):
        # its namesake was the wider one, which is gone by now
        original = value.metadata_props.pop(RENAMED, name)
        if original not in model.graph.initializers:
            value.name = original
    passes.ShapeInferencePass()(model)


def add_initialiser(model: ir.Model, name: str, array: NDArray[Any]) -> ir.Value:
    """Add an initialiser, under another name while this one is taken."""
    free = next(
        free for free in chain([name], (f"{name}.{n}" for n in count(1))) if free not in model.graph.initializers
    )
    value = ir.Value(
        name=free,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        const_value=ir.tensor(array),
        metadata_props={RENAMED: name},
    )
    model.graph.register_initializer(value)
    return value
