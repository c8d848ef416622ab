"""After quantisation: biases make up for what rounding the weights does in the mean."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from numpy.typing import NDArray

from finetune.bundle import INPUT
from finetune.export.qdq import Array, QuantisedGraph, attribute
from finetune.preprocess import Pixels
from finetune.runtime import open_session

Means = dict[str, NDArray[np.float32]]


def input_means(proto: onnx.ModelProto, batches: Iterable[Pixels]) -> Means:
    """Return the mean of each channel that convolutions and linear layers read, (channels,), by the input's name."""
    measuring = onnx.ModelProto()
    measuring.CopyFrom(proto)
    graph = measuring.graph
    ranks = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm") and node.input[1] in ranks]
    inputs = {layer.input[0]: ranks[layer.input[1]] for layer in layers}
    del graph.output[:]
    for name, rank in inputs.items():
        mean = f"mean of {name}"
        others = np.array([axis for axis in range(rank) if axis != 1])
        graph.initializer.append(onnx.numpy_helper.from_array(others, f"axes of {mean}"))
        graph.node.append(onnx.helper.make_node("ReduceMean", [name, f"axes of {mean}"], [mean], mean, keepdims=0))
        graph.output.append(onnx.ValueInfoProto(name=mean))
    session = open_session(measuring.SerializeToString(), "cpu").ort
    found = [([len(batch) * mean for mean in session.run(None, {INPUT: batch})], len(batch)) for batch in batches]
    photos = sum(count for _, count in found)
    return {name: sum(sums[place] for sums, _ in found) / photos for place, name in enumerate(inputs)}


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
