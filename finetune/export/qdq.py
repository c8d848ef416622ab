"""A graph as onnxruntime.quantization makes it, in the terms of what is mended in it afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

QUANTISE, RESTORE = "QuantizeLinear", "DequantizeLinear"

Array = NDArray[Any]


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((onnx.helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)


class QuantisedGraph:
    """Tensors and nodes by name, with what is added; `finish` returns the graph."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto, self.nodes = proto, list(proto.graph.node)
        self.tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
        self.makers = {name: node for node in self.nodes for name in node.output}

    def array(self, name: str) -> Array:
        return numpy_helper.to_array(self.tensors[name])

    def readers(self, name: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if name in node.input]

    def restoring(self, layer: onnx.NodeProto, position: int) -> onnx.NodeProto | None:
        """Return the node that restores an input of a layer from 8 bits; None where it was never rounded."""
        maker = self.makers.get(layer.input[position]) if position < len(layer.input) else None
        return maker if maker is not None and maker.op_type == RESTORE else None

    def restored(self, node: onnx.NodeProto) -> Array:
        """Return the numbers that a node restores from stored integers without a zero point."""
        stored, scale = self.array(node.input[0]), self.array(node.input[1])
        shape = [1] * stored.ndim
        if scale.ndim:
            shape[attribute(node, "axis", 1)] = -1
        return stored.astype(np.float32) * scale.reshape(shape)

    def is_in_int8(self, layer: onnx.NodeProto) -> bool:
        """Whether it is a convolution or a linear layer whose input, weights and bias are all integers."""
        whole = all(self.restoring(layer, position) is not None for position in range(3))
        return layer.op_type in ("Conv", "Gemm") and whole

    def add(self, name: str, values: Array) -> str:
        self.tensors[name] = numpy_helper.from_array(values, name)
        return name

    def insert(self, before: onnx.NodeProto, node: onnx.NodeProto) -> None:
        self.nodes.insert(self.nodes.index(before), node)
        self.makers[node.output[0]] = node

    def shift_bias(self, layer: onnx.NodeProto, shift: Array, input_scale: Array) -> None:
        """Add to the bias of a layer in int8, (filters,), whose input has the given scale from now on."""
        of_bias, of_weights = self.restoring(layer, 2), self.restoring(layer, 1)
        assert of_bias is not None
        assert of_weights is not None
        values = self.restored(of_bias) + shift
        # a bias is added to sums of products, so its steps are theirs
        scales = np.broadcast_to(input_scale * self.array(of_weights.input[1]), values.shape)
        name = f"{layer.name}_bias_{len(self.nodes)}"
        steps = self.add(f"{name}_steps", np.round(values / scales).astype(np.int32))
        sizes = self.add(f"{name}_scales", scales.astype(np.float32))
        self.insert(layer, onnx.helper.make_node(RESTORE, [steps, sizes], [name], name, axis=0))
        layer.input[2] = name

    def finish(self) -> onnx.ModelProto:
        """Return the graph without what nobody reads any more."""
        graph = self.proto.graph
        read, kept = {value.name for value in graph.output}, []
        for node in reversed(self.nodes):
            if read.intersection(node.output):
                read.update(node.input)
                kept.append(node)
        domains = {node.domain for node in kept}
        opsets = [opset for opset in self.proto.opset_import if opset.domain in domains]
        for field, entries in (
            (graph.node, kept[::-1]),
            (graph.initializer, [tensor for name, tensor in self.tensors.items() if name in read]),
            (self.proto.opset_import, opsets),
        ):
            del field[:]
            field.extend(entries)
        onnx.checker.check_model(self.proto)
        return self.proto
