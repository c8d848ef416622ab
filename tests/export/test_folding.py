from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper

from finetune.errors import FinetuneError
from finetune.export.folding import fold_batch_norm, lean
from finetune.runtime import open_session
from tests.export.networks import NETWORKS, answers, graph_of, operators, raw_graph_of


@pytest.mark.parametrize("name", NETWORKS)
def test_no_batch_norm_is_left_and_the_answers_are_the_same(name: str) -> None:
    before = graph_of(name)
    after = fold_batch_norm(before)
    onnx.checker.check_model(after, full_check=True)
    assert "BatchNormalization" not in operators(after)
    if name != "resnetv2_18":  # it normalises sums
        assert len(after.graph.node) == len(before.graph.node) - operators(before).count("BatchNormalization")
    assert np.ptp(answers(before), axis=0).max() > 1e-3, "every photo has the same answer: nothing would show"
    np.testing.assert_allclose(answers(after), answers(before), atol=1e-5)


def test_a_pre_activation_network_has_batch_norms_to_fold() -> None:
    assert operators(graph_of("resnetv2_18")).count("BatchNormalization") >= 8


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_a_lean_graph_is_smaller(name: str) -> None:
    before, after = raw_graph_of(name), graph_of(name)
    assert len(after.graph.node) < len(before.graph.node) / 2
    assert {"Shape", "Range", "Gather", "Identity"}.isdisjoint(operators(after))
    np.testing.assert_allclose(answers(after), answers(before), atol=1e-6)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_photos_are_not_divided_but_the_first_weights(name: str) -> None:
    raw, lean_graph = (operators(graph) for graph in (raw_graph_of(name), graph_of(name)))
    assert raw.count("Div") == lean_graph.count("Div") + 1
    assert "Div" not in lean_graph[: lean_graph.index("Conv")]


@pytest.mark.parametrize("pool", ["MaxPool", "AveragePool"])
def test_zeros_beside_a_pool_stay_zeros(pool: str) -> None:
    """onnxruntime pads in the pool otherwise, where nothing is beside a photo."""
    proto = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 20]>
        pooled (float[photos, 2, 3, 3] images) => (float[photos, 2, 3, 3] probabilities)
        <int64[8] pads = {{0, 0, 0, 0, 0, 0, 1, 1}}, float zero = {{0.0}}>
        {{
            padded = Pad(images, pads, zero)
            probabilities = {pool} <kernel_shape = [2, 2], strides = [1, 1], pads = [0, 0, 0, 0]> (padded)
        }}
    """)
    photos = -1 - np.random.default_rng(0).random((2, 2, 3, 3), dtype=np.float32)
    padded = np.pad(photos, ((0, 0), (0, 0), (0, 1), (0, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2, 2), (2, 3))
    wanted = windows.max((4, 5)) if pool == "MaxPool" else windows.mean((4, 5))
    (found,) = open_session(lean(proto).SerializeToString(), "cpu").ort.run(None, {"images": photos})
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def _normed(layer: str, second_reader: bool = False, constant_statistics: bool = True) -> onnx.ModelProto:
    """Return 4 channels of 5 x 5 -> a layer of 4 -> batch norm."""
    draw = np.random.default_rng(0)
    shapes = {"Conv": (4, 4, 3, 3), "ConvTranspose": (4, 2, 3, 3)}
    arrays = {
        "weights": draw.normal(size=shapes[layer]),
        "scale": draw.uniform(0.5, 2, 4),
        "shift": draw.normal(size=4),
    }
    if constant_statistics:
        arrays |= {"mean": draw.normal(size=4), "var": draw.uniform(0.5, 2, 4)}
    nodes = [
        helper.make_node(layer, ["x", "weights"], ["made"], group=2 if layer == "ConvTranspose" else 1),
        helper.make_node("BatchNormalization", ["made", "scale", "shift", "mean", "var"], ["normed"], epsilon=0.01),
        helper.make_node("Add", ["normed", "made" if second_reader else "normed"], ["y"]),
    ]
    inputs = [("x", ("n", 4, 5, 5))] + ([] if constant_statistics else [("mean", (4,)), ("var", (4,))])
    size = 7 if layer == "ConvTranspose" else 3
    graph = helper.make_graph(
        nodes,
        "normed",
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in inputs],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ("n", 4, size, size))],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(proto)


@pytest.mark.parametrize(
    ("layer", "second_reader", "left"),
    [
        ("Conv", False, ["Conv", "Add"]),
        ("ConvTranspose", False, ["ConvTranspose", "Add"]),
        ("Conv", True, ["Conv", "Mul", "Add", "Add"]),
    ],
)
def test_it_goes_into_the_layer_before_only_where_nothing_else_reads_it(
    layer: str, second_reader: bool, left: list[str]
) -> None:
    before = _normed(layer, second_reader)
    after = fold_batch_norm(before)
    assert operators(after) == left
    x = np.random.default_rng(1).normal(size=(2, 4, 5, 5)).astype(np.float32)
    wanted, found = (
        open_session(each.SerializeToString(), "cpu").ort.run(None, {"x": x})[0] for each in (before, after)
    )
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_statistics_that_are_no_constants_are_refused() -> None:
    with pytest.raises(FinetuneError, match="export the model in eval mode"):
        fold_batch_norm(_normed("Conv", constant_statistics=False))
