"""After quantisation: float nodes read what other float nodes made, not its rounding to 8 bits.

onnxruntime.quantization hands a tensor's rounding to all who read it if one of them computes in int8. Features that a
head takes from a block left in float would be rounded for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

Makers = Mapping[str, onnx.NodeProto]


def read_unrounded(quantised: onnx.ModelProto) -> onnx.ModelProto:
    """Take the rounding away where neither the maker nor the reader of a tensor is in int8; changes its argument."""
    graph = quantised.graph
    makers = {name: node for node in graph.node for name in node.output}
    in_float = {value.name for value in (*graph.input, *graph.initializer)} | {""}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        exact = [_exact(name, makers) for name in node.input]
        if in_float.issuperset(exact):
            node.input[:] = exact
            in_float.update(node.output)
    _drop_unread(graph)
    onnx.checker.check_model(quantised)
    return quantised


def _exact(name: str, makers: Makers) -> str:
    """Return the tensor that was rounded to make this one, or this one; 8-bit weights have none."""
    restored = makers.get(name)
    if restored is None or restored.op_type != "DequantizeLinear" or restored.input[0] not in makers:
        return name
    exact: str = makers[restored.input[0]].input[0]
    return exact


def _drop_unread(graph: onnx.GraphProto) -> None:
    read = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if read.intersection(node.output):
            read.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
