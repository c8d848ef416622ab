"""Channels that are the same number in every photo and at every place, as behind a filter whose weights are all 0."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxscript import ir

from finetune.export.channels import ELEMENTWISE, POOLS, REDUCTIONS
from finetune.export.folding import constant
from finetune.export.tracing import attribute, is_constant, sizes
from finetune.runtime import open_session

Values = NDArray[np.float32]
# Of what is computed here, one that onnxruntime reads.
IR_VERSION = 10


def constant_channels(model: ir.Model) -> dict[ir.Value, Values]:
    """Return each value's constants, NaN where it depends on the photo, in a shape that broadcasts to the value's."""
    found: dict[ir.Value, Values] = {}
    for node in model.graph:
        for value in node.outputs:
            found[value] = np.full([1] * len(sizes(value)), np.nan, np.float32)
        if all(value.shape is not None for value in (*node.inputs, *node.outputs) if value is not None):
            found[node.outputs[0]] = _answer(node, found, model.opset_imports[""])
    return found


def along(constants: Values, axis: int, size: int) -> Values:
    """Return the constants on one axis, (size,); NaN where they differ on another."""
    by_index = np.moveaxis(np.broadcast_to(constants, _with(constants.shape, axis, size)), axis, 0).reshape(size, -1)
    same = (by_index == by_index[:, :1]).all(axis=1)
    return np.where(same, by_index[:, 0], np.float32(np.nan))


def reads_constants(node: ir.Node, incoming: Values) -> NDArray[np.bool_]:
    """Whether each constant that a layer reads is one at the edges too, where a convolution sees zeros beside it."""
    known = ~np.isnan(incoming)
    padded = any(attribute(node, "pads", ())) or attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return known & (incoming == 0) if padded else known


def _with(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return tuple(size if each == axis else length for each, length in enumerate(shape))


def _answer(node: ir.Node, found: dict[ir.Value, Values], opset: int) -> Values:
    unknown = found[node.outputs[0]]
    inputs = [_of(value, found) for value in node.inputs]
    incoming = inputs[0] if inputs else None
    if incoming is None:
        return unknown
    if node.op_type == "Conv" and is_constant(node, 1):
        return _convolved(node, incoming)
    if node.op_type == "MatMul" and is_constant(node, 1):
        return _multiplied(node, incoming)
    if node.op_type in ELEMENTWISE:
        return _computed(node, inputs, opset)
    if node.op_type in POOLS and incoming.shape[2:] == (1,) * (incoming.ndim - 2):
        edges = node.op_type == "AveragePool" and attribute(node, "count_include_pad", 0)
        return np.where(reads_constants(node, incoming), incoming, np.nan) if edges else incoming
    if node.op_type in REDUCTIONS and is_constant(node, 1):
        axes = tuple(int(axis) % incoming.ndim for axis in np.asarray(inputs[1]))
        if all(incoming.shape[axis] == 1 for axis in axes):
            return incoming if attribute(node, "keepdims", 1) else np.squeeze(incoming, axes)
    return unknown


def _of(value: ir.Value | None, found: dict[ir.Value, Values]) -> Values | None:
    if value is None:
        return None
    if value in found:
        return found[value]
    return constant(value) if value.const_value is not None else np.full([1] * len(sizes(value)), np.nan, np.float32)


def _convolved(node: ir.Node, incoming: Values) -> Values:
    """A filter answers a constant where every channel that it reads is one."""
    weights = constant(node.inputs[1])  # type: ignore[arg-type]
    filters, group = len(weights), attribute(node, "group", 1)
    width = weights.shape[1] * group
    channels = along(incoming, 1, width)
    usable = reads_constants(node, channels)
    # row f: what filter f reads
    read = np.arange(width).reshape(group, -1)[np.arange(filters) * group // filters]
    kernel = weights.reshape(*weights.shape[:2], -1)
    blind = ((kernel == 0).all(axis=2) | usable[read]).all(axis=1)
    answers = (kernel.sum(axis=2) * np.where(usable, channels, 0)[read]).sum(axis=1)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        answers = answers + constant(node.inputs[2])
    return np.where(blind, answers, np.nan).astype(np.float32).reshape(1, -1, *(1 for _ in weights.shape[2:]))


def _multiplied(node: ir.Node, incoming: Values) -> Values:
    """As for a convolution, along the last axis."""
    weights = constant(node.inputs[1])  # type: ignore[arg-type]
    if weights.ndim != 2:
        return np.full([1] * len(sizes(node.outputs[0])), np.nan, np.float32)
    channels = along(incoming, incoming.ndim - 1, len(weights))
    known = ~np.isnan(channels)
    blind = ((weights == 0) | known[:, None]).all(axis=0)
    answers = np.where(known, channels, 0) @ weights
    return np.where(blind, answers, np.nan).astype(np.float32).reshape(*(1 for _ in incoming.shape[1:]), -1)


def _computed(node: ir.Node, inputs: list[Values | None], opset: int) -> Values:
    """Compute an operator that takes each number by itself; 0 times anything is 0."""
    given = {f"in{position}": each for position, each in enumerate(inputs) if each is not None}
    numbers = np.broadcast_arrays(*(each for each in given.values() if each.dtype.kind == "f"))
    missing = np.any([np.isnan(each) for each in numbers], axis=0)
    if node.op_type == "Mul":
        missing &= np.all([each != 0 for each in numbers], axis=0)
        answer = np.prod(np.nan_to_num(numbers), axis=0)
    else:
        names = [f"in{position}" if each is not None else "" for position, each in enumerate(inputs)]
        answer = _run_alone(node, names, given, opset)
    return np.where(missing, np.nan, answer).astype(np.float32)


def _run_alone(node: ir.Node, names: list[str], given: dict[str, Values], opset: int) -> NDArray[Any]:
    alone = ir.Node(node.domain, node.op_type, [], node.attributes.values(), name="alone")
    proto = ir.to_proto(alone)
    proto.input.extend(names)
    proto.output[:] = ["out"]
    types = {name: onnx.helper.np_dtype_to_tensor_dtype(each.dtype) for name, each in given.items()}
    entries = [onnx.helper.make_tensor_value_info(name, types[name], each.shape) for name, each in given.items()]
    graph = onnx.helper.make_graph([proto], "alone", entries, [onnx.ValueInfoProto(name="out")])
    opsets = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    model = onnx.shape_inference.infer_shapes(model)
    answer: NDArray[Any] = open_session(model.SerializeToString(), "cpu", threads=1).ort.run(None, given)[0]
    return answer
