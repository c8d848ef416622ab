"""Which channels of a graph stand or fall together.

A filter, its bias, the kernel that a depthwise layer has for it and every weight that reads it are one channel; a sum
makes one of the channels it adds, through as many blocks as it joins. These are the dependency groups of DepGraph (Fang
et al. 2023, "DepGraph: Towards Any Structural Pruning"), found here in the ONNX graph, operator by operator. An
operator that is not in the table below keeps all the channels it touches: an unknown architecture is pruned less, never
wrongly.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnxscript import ir

from finetune.export.folding import constant
from finetune.export.tracing import (
    KEPT,
    Channels,
    Labels,
    Layer,
    Tracer,
    Use,
    attribute,
    constant_rank,
    first,
    is_constant,
    sizes,
)

# fmt: off
ELEMENTWISE = frozenset({
    "Add", "Sub", "Mul", "Div", "Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Clip", "Sigmoid", "HardSigmoid",
    "HardSwish", "Swish", "Mish", "Gelu", "Erf", "Tanh", "Softplus", "Cast", "Identity",
})
# fmt: on
POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})
REDUCTIONS = frozenset({"ReduceMean", "ReduceMax"})


def find_channels(model: ir.Model) -> Channels:
    """Return the channels of a graph without batch norms and subgraphs, whose shapes are known but for the batch."""
    tracer = Tracer()
    for value in model.graph.inputs:
        tracer.found.values[value] = tracer.kept(value)
    for node in model.graph:
        _visit(tracer, node)
    for value in model.graph.outputs:
        tracer.keep(tracer.found.values[value])
    return tracer.resolved()


def _visit(tracer: Tracer, node: ir.Node) -> None:
    known = all(value.shape is not None for value in (*node.inputs, *node.outputs) if value is not None)
    if not (known and node.op_type in TRACED and TRACED[node.op_type](tracer, node)):
        for position, value in enumerate(node.inputs):
            if value is not None:
                tracer.keep(tracer.of(node, position))
        for value in node.outputs:
            tracer.found.values[value] = tracer.kept(value)


# Each of these sets the labels of a node's output and returns True; False says that the node is not one it can trace.


def _conv(tracer: Tracer, node: ir.Node) -> bool:
    if not is_constant(node, 1):
        return False
    group, width = attribute(node, "group", 1), sizes(first(node))[1]
    if group not in (1, width):
        return False
    incoming, weights = tracer.of(node, 0), tracer.of(node, 1)
    if group == 1:
        tracer.join(incoming[1], weights[1])
        tracer.found.layers.append(Layer(Use(node, 1), _own_bias(node), reads=1, writes=0, input_axis=1))
    else:
        tracer.join(np.repeat(incoming[1], len(weights[0]) // width), weights[0])
        tracer.found.depthwise.append(Use(node, 1))
    tracer.keep(weights[1 if group != 1 else 2 :])
    return _write(tracer, node, axis=1, labels=weights[0])


def _gemm(tracer: Tracer, node: ir.Node) -> bool:
    plain = attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0 and not attribute(node, "transA", 0)
    if not plain or not is_constant(node, 1) or (len(node.inputs) > 2 and constant_rank(node, 2) != 1):
        return False
    reads = 1 if attribute(node, "transB", 0) else 0
    return _multiply(tracer, node, reads, input_axis=1, bias=_own_bias(node))


def _matmul(tracer: Tracer, node: ir.Node) -> bool:
    if not is_constant(node, 1) or constant_rank(node, 1) != 2:
        return False
    bias = _added_bias(node.outputs[0], width=sizes(node.outputs[0])[-1])
    return _multiply(tracer, node, reads=0, input_axis=len(sizes(first(node))) - 1, bias=bias)


def _multiply(tracer: Tracer, node: ir.Node, reads: int, input_axis: int, bias: Use | None) -> bool:
    weights = tracer.of(node, 1)
    tracer.join(tracer.of(node, 0)[input_axis], weights[reads])
    tracer.found.layers.append(Layer(Use(node, 1), bias, reads, writes=1 - reads, input_axis=input_axis))
    return _write(tracer, node, input_axis, weights[1 - reads])


def _own_bias(node: ir.Node) -> Use | None:
    return Use(node, 2) if is_constant(node, 2) else None


def _added_bias(product: ir.Value, width: int) -> Use | None:
    """Return the bias that stands in a node of its own, the only one that reads the product."""
    readers = list(product.uses())
    if len(readers) != 1 or readers[0].node.op_type != "Add":
        return None
    other = Use(readers[0].node, 1 - readers[0].idx)
    return other if is_constant(*other) and constant(other.value).shape == (width,) else None


def _write(tracer: Tracer, node: ir.Node, axis: int, labels: Labels) -> bool:
    """Label one axis of the output, and the bias as it; what else there is stays."""
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        tracer.join(tracer.of(node, 2)[0], labels)
    axes = tracer.kept(node.outputs[0])
    for other, below in enumerate(tracer.of(node, 0)):
        if other < len(axes) and other != axis:
            tracer.keep([below])
    axes[axis] = labels
    tracer.found.values[node.outputs[0]] = axes
    return True


def _elementwise(tracer: Tracer, node: ir.Node) -> bool:
    rank = len(sizes(node.outputs[0]))
    axes = [np.full(1, KEPT) for _ in range(rank)]
    for position, value in enumerate(node.inputs):
        if value is None:
            continue
        labels = tracer.of(node, position)
        for axis, each in enumerate(labels, start=rank - len(labels)):
            if len(each) == 1:  # it is spread over the others' channels
                tracer.keep([each])
            elif len(axes[axis]) == 1:
                axes[axis] = each
            else:
                tracer.join(axes[axis], each)
    tracer.found.values[node.outputs[0]] = axes
    return True


def _pool(tracer: Tracer, node: ir.Node) -> bool:
    if len(node.outputs) != 1:
        return False
    incoming, axes = tracer.of(node, 0), tracer.kept(node.outputs[0])
    tracer.keep(incoming[2:])
    tracer.found.values[node.outputs[0]] = [*incoming[:2], *axes[2:]]
    return True


def _reduce(tracer: Tracer, node: ir.Node) -> bool:
    if not is_constant(node, 1):
        return False
    incoming = tracer.of(node, 0)
    reduced = {int(axis) % len(incoming) for axis in constant(Use(node, 1).value)}
    tracer.keep([incoming[axis] for axis in reduced])
    whole = [np.full(1, KEPT) if axis in reduced else labels for axis, labels in enumerate(incoming)]
    left = [labels for axis, labels in enumerate(incoming) if axis not in reduced]
    tracer.found.values[node.outputs[0]] = whole if attribute(node, "keepdims", 1) else left
    return True


def _concat(tracer: Tracer, node: ir.Node) -> bool:
    parts = [tracer.of(node, position) for position in range(len(node.inputs))]
    axis = attribute(node, "axis", 0) % len(parts[0])
    for part in parts[1:]:
        for other in set(range(len(part))) - {axis}:
            tracer.join(parts[0][other], part[other])
    axes = list(parts[0])
    axes[axis] = np.concatenate([part[axis] for part in parts])
    tracer.found.values[node.outputs[0]] = axes
    return True


def _transpose(tracer: Tracer, node: ir.Node) -> bool:
    incoming = tracer.of(node, 0)
    tracer.found.values[node.outputs[0]] = [incoming[axis] for axis in attribute(node, "perm", ())]
    return True


def _reshape(tracer: Tracer, node: ir.Node) -> bool:
    """Dimensions of 1 come or go."""
    incoming, axes = tracer.of(node, 0), tracer.kept(node.outputs[0])
    before, after = ([axis for axis, labels in enumerate(each) if len(labels) > 1] for each in (incoming, axes))
    if not is_constant(node, 1) or [len(incoming[axis]) for axis in before] != [len(axes[axis]) for axis in after]:
        return False
    for source, target in zip(before, after, strict=True):
        axes[target] = incoming[source]
    tracer.found.values[node.outputs[0]] = axes
    tracer.found.shapes.append(Use(node, 1))
    return True


TRACED: dict[str, Callable[[Tracer, ir.Node], bool]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Concat": _concat,
    "Transpose": _transpose,
    "Reshape": _reshape,
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(POOLS, _pool),
    **dict.fromkeys(REDUCTIONS, _reduce),
}
