from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from finetune.export.casting import cast_nodes
from tests.export.graphs import answers, noise, steep_graph

ALL = {node.name for node in steep_graph(1.0).graph.node}


def casts(graph: onnx.ModelProto) -> list[str]:
    return [node.output[0] for node in graph.graph.node if node.op_type == "Cast"]


def test_with_all_nodes_kept_the_graph_is_as_it_was() -> None:
    same = cast_nodes(steep_graph(1.0), ALL, TensorProto.FLOAT16)
    assert list(same.graph.node) == list(steep_graph(1.0).graph.node)
    assert list(same.graph.initializer) == list(steep_graph(1.0).graph.initializer)


def test_a_tensor_that_two_kept_nodes_read_is_cast_once() -> None:
    graph = steep_graph(1.0)
    flatten = next(number for number, node in enumerate(graph.graph.node) if node.name == "flatten")
    graph.graph.node.insert(flatten, helper.make_node("GlobalAveragePool", ["second_output"], ["again"], "pool_again"))
    found = cast_nodes(graph, (ALL | {"pool_again"}) - {"second_conv"}, TensorProto.FLOAT16)
    assert casts(found) == ["levels", "first_relu_float16", "second_output_float"]


def test_weights_read_in_half_precision_are_stored_so_and_no_others() -> None:
    half = cast_nodes(steep_graph(1.0), ALL - {"second_conv"}, TensorProto.FLOAT16)
    types = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    assert types["second_float16"] == TensorProto.FLOAT16
    assert "second" not in types
    assert set(types.values()) == {TensorProto.FLOAT16, TensorProto.FLOAT}
    assert answers(half, noise(2)).shape == (2, 3)


def test_a_type_that_an_operator_does_not_have_is_refused() -> None:
    with pytest.raises(onnx.shape_inference.InferenceError, match="bfloat16"):
        cast_nodes(steep_graph(1.0), ALL - {"second_conv"}, TensorProto.BFLOAT16)
