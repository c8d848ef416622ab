"""After quantisation: what is left in float computes in float, on what other float nodes made and not its rounding."""

from __future__ import annotations

import numpy as np
import onnx

from finetune.export.qdq import QUANTISE, RESTORE, Array, QuantisedGraph, attribute


def read_unrounded(quantised: QuantisedGraph) -> None:
    """Take the rounding away where neither the maker nor the reader of a tensor is in int8.

    onnxruntime.quantization hands a tensor's rounding to all who read it if one of them computes in int8. Features that
    a head takes from a block left in float would be rounded for nothing.
    """
    graph = quantised.proto.graph
    in_float = {value.name for value in graph.input} | set(quantised.tensors) | {""}
    for node in quantised.nodes:
        if node.op_type in (QUANTISE, RESTORE):
            continue
        exact = [_exact(name, quantised) for name in node.input]
        if in_float.issuperset(exact):
            node.input[:] = exact
            in_float.update(node.output)


def _exact(name: str, quantised: QuantisedGraph) -> str:
    """Return the tensor that was rounded to make this one, or this one; 8-bit weights have none."""
    makers = quantised.makers
    restored = makers.get(name)
    if restored is None or restored.op_type != RESTORE or restored.input[0] not in makers:
        return name
    exact: str = makers[restored.input[0]].input[0]
    return exact


def stay_in_float(quantised: QuantisedGraph) -> None:
    """Keep onnxruntime from quantising layers that were left in float between others in int8.

    Its WeightBiasQuantization gives such a layer one scale for all filters, and is passed over only where the layer's
    input is restored by channels; so these have a scale a channel, all alike.
    """
    for layer in list(quantised.nodes):
        given = quantised.restoring(layer, 0)
        if given is None or layer.op_type not in CHANNELS or layer.input[1] not in quantised.tensors:
            continue
        channels = CHANNELS[layer.op_type](layer, quantised.array(layer.input[1]))
        alike = [
            quantised.add(f"{layer.name}_input_{position}", np.full(channels, quantised.array(given.input[position])))
            for position in (1, 2)
        ]
        name = f"{layer.name}_input"
        quantised.insert(layer, onnx.helper.make_node(RESTORE, [given.input[0], *alike], [name], name, axis=1))
        layer.input[0] = name


def _of_conv(layer: onnx.NodeProto, weights: Array) -> int:
    return int(weights.shape[1]) * int(attribute(layer, "group", 1))


def _of_gemm(layer: onnx.NodeProto, weights: Array) -> int:
    return int(weights.shape[1 if attribute(layer, "transB", 0) else 0])


def _of_transposed(layer: onnx.NodeProto, weights: Array) -> int:
    return int(weights.shape[0])


# How many channels each kind of layer reads, of those that onnxruntime would quantise.
CHANNELS = {"Conv": _of_conv, "ConvTranspose": _of_transposed, "Gemm": _of_gemm}
