"""Channels that do nothing: they are constant, or nothing reads them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir.passes.common as passes
from numpy.typing import NDArray
from onnxscript import ir

from finetune.export.blocks import removable, whole_blocks
from finetune.export.channels import find_channels
from finetune.export.constants import along, constant_channels, reads_constants
from finetune.export.folding import constant
from finetune.export.narrowing import add_initialiser, biases_instead, remove
from finetune.export.tracing import KEPT, Channels, Layer, Use, first, is_constant

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]


def remove_dead_channels(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Remove channels that are constant or that nothing reads; answers change by rounding only.

    What a constant channel gave to the layers that read it goes into their biases, where it is the same at the photo's
    edges; what has no bias to take it stays. Of a layer's dead channels some stay to make a whole number of blocks.
    Convolutions come back with a bias, and all constants as initialisers.
    """
    model = opened(proto)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _give_biases(model)
    while True:
        channels = find_channels(model)
        constants = constant_channels(model)
        incoming = {layer: _incoming(layer, constants) for layer in channels.layers}
        gone = whole_blocks(channels, _dead(channels, incoming))
        if not gone.any():
            return ir.to_proto(model)
        remove(model, channels, gone, biases_instead(channels, incoming, gone))


def opened(proto: onnx.ModelProto) -> ir.Model:
    """Return a graph whose values know their shapes."""
    model = ir.from_proto(proto)
    passes.ShapeInferencePass()(model)
    return model


def _give_biases(model: ir.Model) -> None:
    """Add biases of 0 where a convolution has none, so that it can take over what constants give."""
    for node in model.graph:
        if node.op_type == "Conv" and len(node.inputs) == 2 and is_constant(node, 1):
            zeros = np.zeros(len(constant(Use(node, 1).value)), np.float32)
            bias = add_initialiser(model, f"{node.outputs[0].name}_bias", zeros)
            node.resize_inputs(3)
            node.replace_input_with(2, bias)


def _dead(channels: Channels, incoming: dict[Layer, Floats]) -> Mask:
    """Return which labels no layer would miss."""
    dead = np.ones(len(removable(channels)), bool)
    dead[KEPT] = False
    for layer in channels.layers:
        weights = constant(layer.weights.value)
        unread = (weights == 0).all(axis=tuple(axis for axis in range(weights.ndim) if axis != layer.reads))
        foldable = reads_constants(layer.weights.node, incoming[layer])
        if layer.bias is None:
            foldable &= incoming[layer] == 0
        dead[channels.uses[layer.weights][layer.reads][~(unread | foldable)]] = False
    return dead


def _incoming(layer: Layer, constants: dict[ir.Value, Floats]) -> Floats:
    """Return the constant that each channel is which a layer reads, (channels,), NaN where it is none."""
    value = first(layer.weights.node)
    size = constant(layer.weights.value).shape[layer.reads]
    return along(constants[value], layer.input_axis, size) if value in constants else np.full(size, np.nan, np.float32)
