"""After quantisation: biases make up for what rounding the weights does in the mean."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx

from finetune.export.activations import Numbers, measure_activity
from finetune.export.qdq import Array, QuantisedGraph, attribute
from finetune.preprocess import Pixels

Means = dict[str, Numbers]


def input_means(proto: onnx.ModelProto, batches: Iterable[Pixels]) -> Means:
    """Return the mean of each channel that convolutions and linear layers read, (channels,), by the input's name."""
    ranks = {tensor.name: len(tensor.dims) for tensor in proto.graph.initializer}
    layers = [node for node in proto.graph.node if node.op_type in ("Conv", "Gemm") and node.input[1] in ranks]
    values = {layer.input[0]: (1, ranks[layer.input[1]]) for layer in layers}
    return {name: activity.mean for name, activity in measure_activity(proto, values, batches).items()}


def correct_biases(quantised: QuantisedGraph, exact: onnx.ModelProto, means: Means) -> None:
    """Take from each bias what rounding the weights adds to the layer's answers in the mean.

    exact: the graph that was quantised; means: of what its layers read. (Nagel et al. 2019, section 4.2.)
    """
    stored = {tensor.name: tensor for tensor in exact.graph.initializer}
    before = {node.name: node for node in exact.graph.node}
    for layer in [node for node in quantised.nodes if quantised.is_in_int8(node)]:
        of_input, of_weights = quantised.restoring(layer, 0), quantised.restoring(layer, 1)
        assert of_input is not None
        assert of_weights is not None
        in_float = before[layer.name]
        rounding = quantised.restored(of_weights) - onnx.numpy_helper.to_array(stored[in_float.input[1]])
        added = answer_to_channels(layer, rounding, means[in_float.input[0]])
        quantised.shift_bias(layer, -added, quantised.array(of_input.input[1]))


def answer_to_channels(layer: onnx.NodeProto, weights: Array, channels: Array) -> Array:
    """Return a layer's answer, (filters,), to channels that are the same everywhere, without its bias."""
    if layer.op_type == "Gemm":
        return weights @ channels if attribute(layer, "transB", 0) else channels @ weights
    group = attribute(layer, "group", 1)
    kernels = weights.reshape(group, -1, weights.shape[1], int(np.prod(weights.shape[2:]))).sum(axis=3)
    answers: Array = np.einsum("gfc,gc->gf", kernels, channels.reshape(group, -1)).reshape(-1)
    return answers
