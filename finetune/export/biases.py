"""After quantisation: biases make up for what rounding does in the mean, to each layer's answers and to the last."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx

from finetune.bundle import INPUT, OUTPUT
from finetune.export.activations import Numbers, measure_activity
from finetune.export.qdq import Array, QuantisedGraph, attribute
from finetune.preprocess import Pixels
from finetune.runtime import open_session

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


def mean_logits(proto: onnx.ModelProto, batches: Iterable[Pixels]) -> Array:
    """Return the mean, (classes,), of what the softmax at the end reads."""
    logits = _softmax(proto).input[0]
    asking = onnx.ModelProto()
    asking.CopyFrom(proto)
    del asking.graph.output[:]
    asking.graph.output.append(onnx.ValueInfoProto(name=logits))
    session = open_session(asking.SerializeToString(), "cpu").ort
    mean: Array = np.concatenate([session.run(None, {INPUT: batch})[0] for batch in batches]).mean(axis=0)
    return mean


def correct_logits(proto: onnx.ModelProto, wanted: Array, batches: Iterable[Pixels]) -> None:
    """Move a graph's logits such that their mean over photos is the wanted one, (classes,).

    The largest of many rounded activations is larger than the largest of the exact ones, so features that are maxima
    grow with every layer in 8 bits; so do the logits of the classes that look for them.
    """
    softmax = _softmax(proto)
    shift = (wanted - mean_logits(proto, batches)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(shift, "int8_logits_shift"))
    add = onnx.helper.make_node("Add", [softmax.input[0], "int8_logits_shift"], ["int8_logits"], "int8_logits")
    softmax.input[0] = "int8_logits"
    proto.graph.node.insert(list(proto.graph.node).index(softmax), add)


def _softmax(proto: onnx.ModelProto) -> onnx.NodeProto:
    nodes: Iterable[onnx.NodeProto] = proto.graph.node
    return next(node for node in nodes if node.op_type == "Softmax" and OUTPUT in node.output)
