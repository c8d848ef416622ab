from __future__ import annotations

import onnx
import pytest

from finetune.export.edges import edge_nodes
from tests.export.graphs import steep_graph


def test_the_edges_are_the_normalisation_and_the_head() -> None:
    assert edge_nodes(steep_graph(1.0)) == {"planes", "levels", "normalise", "centre", "linear", "softmax"}


def test_no_layer_of_a_real_backbone_is_an_edge(stages_graph: onnx.ModelProto) -> None:
    edges = edge_nodes(stages_graph)
    kinds = {node.op_type for node in stages_graph.graph.node if node.name in edges}
    assert {"Transpose", "Cast", "Gemm", "Softmax"} <= kinds
    assert not kinds & {"Conv", "Clip", "Relu", "ReduceMean", "ReduceMax", "Concat"}


def test_a_graph_of_other_names_is_refused() -> None:
    graph = steep_graph(1.0)
    graph.graph.node[2].input[1] = "mean"
    with pytest.raises(ValueError, match="no normalisation or no head"):
        edge_nodes(graph)
