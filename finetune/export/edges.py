"""The two ends of an exported graph, which every precision leaves in fp32: its normalisation and its head.

They cost next to nothing, and a rounding there reaches every answer.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx

# Initializers keep the names that torch gives the classifier's buffers and parameters.
NORMALISE, HEAD = "classifier.normalise.", "classifier.head."


def edge_nodes(proto: onnx.ModelProto) -> frozenset[str]:
    """Return the names of the nodes from the photos to the normalised ones, and from the features to the probabilities.

    Raises ValueError for a graph that `lasting_graph` did not make of a classifier.
    """
    nodes = list(proto.graph.node)
    before = _reached(reversed([(node.name, list(node.output), list(node.input)) for node in nodes]), NORMALISE, nodes)
    after = _reached(((node.name, list(node.input), list(node.output)) for node in nodes), HEAD, nodes)
    if not before or not after:
        raise ValueError("the graph has no normalisation or no head by the names of finetune.models.classifier")
    return before | after


def _reached(
    steps: Iterable[tuple[str, list[str], list[str]]], prefix: str, nodes: Iterable[onnx.NodeProto]
) -> frozenset[str]:
    """Return the nodes that read an initializer by the prefix, and all that can be reached from them.

    steps: (node, the tensors it is reached by, the tensors it leads to), in the order of going.
    """
    reached = {node.name for node in nodes if any(name.startswith(prefix) for name in node.input)}
    tensors: set[str] = set()
    for name, by, to in steps:
        if name in reached or tensors.intersection(by):
            reached.add(name)
            tensors.update(to)
    return frozenset(reached)
