"""A graph's nodes brought from fp32 to a 16-bit type, with casts where both meet.

onnxruntime.transformers.float16 does this for fp16, but it rounds between two nodes that are kept in fp32 (a softmax's
probabilities too), and where two of them read the same tensor it makes that name twice, which is no valid graph.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import ALWAYS_FLOAT_INPUTS, DEFAULT_OP_BLOCK_LIST

FLOAT = TensorProto.FLOAT
# Operators of which some float input or output may not be 16 bits wide.
FLOAT_ONLY = frozenset(DEFAULT_OP_BLOCK_LIST) | frozenset(ALWAYS_FLOAT_INPUTS)


def cast_nodes(proto: onnx.ModelProto, kept: Collection[str], data_type: int) -> onnx.ModelProto:
    """Return the graph with all nodes but the `kept` ones in `data_type`, FLOAT16 or BFLOAT16 of onnx.TensorProto.

    Nothing is rounded between two kept nodes; those that make the graph's outputs must be among them. Raises
    onnx.shape_inference.InferenceError where the standard does not define an operator of the graph for the type.
    """
    casting = _Casting(proto)
    for node in proto.graph.node:
        casting.add(node, FLOAT if node.name in kept or node.op_type in FLOAT_ONLY else data_type)
    casting.drop_unread_weights()
    onnx.checker.check_model(casting.model, full_check=True)
    return casting.model


class _Casting:
    """The new graph, which grows node by node in the order of the old one."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.weights = {tensor.name: tensor for tensor in proto.graph.initializer}
        graph = onnx.shape_inference.infer_shapes(proto).graph
        types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info)}
        types.update((name, tensor.data_type) for name, tensor in self.weights.items())
        self.types: dict[str, int] = {name: FLOAT for name, data_type in types.items() if data_type == FLOAT}
        # each float tensor's name in a type that it was not made in
        self.copies: dict[tuple[str, int], str] = {}
        self.model = onnx.ModelProto()
        self.model.CopyFrom(proto)
        del self.model.graph.node[:], self.model.graph.value_info[:]

    def add(self, node: onnx.NodeProto, data_type: int) -> None:
        """Add a node that computes in this type."""
        inputs = [self._read(name, data_type) for name in node.input]
        changed = self.model.graph.node.add()
        changed.CopyFrom(node)
        changed.input[:] = inputs
        for attribute in changed.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == FLOAT:
                attribute.i = data_type
            elif attribute.t.data_type == FLOAT:
                attribute.t.CopyFrom(_rounded(attribute.t, data_type, attribute.t.name))
        self.types.update((name, data_type) for name in node.output if name in self.types)

    def _read(self, name: str, data_type: int) -> str:
        """Return the name under which a tensor is there in this type; one that holds no floats is as it was."""
        if self.types.get(name, data_type) == data_type:
            return name
        if (name, data_type) not in self.copies:
            copy = f"{name}_{TensorProto.DataType.Name(data_type).lower()}"
            if name in self.weights:
                self.model.graph.initializer.append(_rounded(self.weights[name], data_type, copy))
            else:
                self.model.graph.node.append(helper.make_node("Cast", [name], [copy], f"cast_{copy}", to=data_type))
            self.copies[name, data_type] = copy
        return self.copies[name, data_type]

    def drop_unread_weights(self) -> None:
        """Leave out the fp32 weights of which only a copy is read."""
        read = {name for node in self.model.graph.node for name in node.input}
        kept = [tensor for tensor in self.model.graph.initializer if tensor.name in read]
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(kept)


def _rounded(tensor: TensorProto, data_type: int, name: str) -> TensorProto:
    values = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):  # a bound beyond the type becomes infinity, which bounds as little
        return numpy_helper.from_array(values.astype(helper.tensor_dtype_to_np_dtype(data_type)), name)
