"""The two ends of an exported graph, which every precision leaves in fp32: its normalisation and its head.

They cost next to nothing, and a rounding there reaches every answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx

# Initializers keep the names that torch gives the classifier's buffers and parameters.
NORMALISE, HEAD = "classifier.normalise.", "classifier.head."
LAYERS = ("Conv", "Gemm", "MatMul")


def edge_nodes(proto: onnx.ModelProto) -> frozenset[str]:
    """Return the names of the nodes from the photos to the normalised ones, and from the features to the probabilities.

    Of a network that brings its own classifier, the last layer is the head. Raises ValueError for a graph that
    `exported_graph` did not make.
    """
    nodes = list(proto.graph.node)
    normalising, head = _readers(nodes, NORMALISE), _readers(nodes, HEAD) or _last_layer(nodes)
    if not normalising or not head:
        raise ValueError("the graph has no normalisation or no head by the names of finetune.models.classifier")
    before = _reached(reversed([(node.name, list(node.output), list(node.input)) for node in nodes]), normalising)
    after = _reached(((node.name, list(node.input), list(node.output)) for node in nodes), head)
    return before | after


def _readers(nodes: Iterable[onnx.NodeProto], prefix: str) -> frozenset[str]:
    """Return the nodes that read an initializer of some module."""
    return frozenset(node.name for node in nodes if any(name.startswith(prefix) for name in node.input))


def _last_layer(nodes: Sequence[onnx.NodeProto]) -> frozenset[str]:
    return frozenset([node.name for node in nodes if node.op_type in LAYERS][-1:])


def _reached(steps: Iterable[tuple[str, list[str], list[str]]], first: frozenset[str]) -> frozenset[str]:
    """Return some nodes and all that can be reached from them.

    steps: (node, the tensors it is reached by, the tensors it leads to), in the order of going.
    """
    reached, tensors = set(first), set[str]()
    for name, by, to in steps:
        if name in reached or tensors.intersection(by):
            reached.add(name)
            tensors.update(to)
    return frozenset(reached)
