from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from finetune.export.halves import fragile_nodes, to_bf16, to_fp16, to_mixed
from tests.export.graphs import answers, by_the_standard, noise, steep_graph, weight_types


def test_fp16_answers_as_fp32_with_half_the_weights(stages_graph: onnx.ModelProto) -> None:
    photos = noise(5, 64)
    half = to_fp16(stages_graph)
    assert set(weight_types(half).values()) == {TensorProto.FLOAT16}
    assert half.ByteSize() < 0.7 * stages_graph.ByteSize()
    np.testing.assert_allclose(answers(half, photos), answers(stages_graph, photos), atol=2e-3)


def test_what_is_given_stays_as_it_was() -> None:
    graph = steep_graph(1.0)
    before = graph.SerializeToString(deterministic=True)
    half = to_fp16(graph)
    assert graph.SerializeToString(deterministic=True) == before
    assert half.metadata_props[0].value == "convolutions"


def test_probabilities_are_not_rounded_to_half_precision() -> None:
    graph = steep_graph(1.0)
    photos = noise(9)
    half = answers(to_fp16(graph), photos)
    assert half.dtype == np.float32
    np.testing.assert_allclose(half.sum(1), 1, atol=1e-6)
    assert (half != half.astype(np.float16)).mean() > 0.9


def test_mixed_keeps_in_fp32_what_would_overflow() -> None:
    graph, photos = steep_graph(1e5), noise(4)
    assert fragile_nodes(graph, [photos]) == {"first_conv", "first_relu", "second_conv"}
    assert not np.isfinite(by_the_standard(to_fp16(graph), photos)).all()
    np.testing.assert_allclose(by_the_standard(to_mixed(graph, [photos]), photos), answers(graph, photos), atol=2e-3)


def test_mixed_keeps_in_fp32_what_would_lose_its_digits() -> None:
    graph, photos = steep_graph(1e-9), noise(4)
    exact = answers(graph, photos)
    mixed = np.abs(answers(to_mixed(graph, [photos]), photos) - exact).max()
    assert mixed < 2e-3
    assert not np.abs(answers(to_fp16(graph), photos) - exact).max() < 10 * mixed


def test_mixed_is_fp16_where_nothing_is_sensitive_but_sums() -> None:
    graph, photos = steep_graph(1.0), noise(4)
    mixed = to_mixed(graph, [photos])
    assert fragile_nodes(graph, [photos]) == frozenset()
    assert set(weight_types(mixed).values()) == {TensorProto.FLOAT16}
    pool = next(node for node in mixed.graph.node if node.name == "pool")
    assert pool.input[0] == "second_output_float"


def test_bf16_is_a_valid_graph_that_onnxruntime_cannot_run_on_a_processor() -> None:
    half = to_bf16(steep_graph(1e5))
    assert set(weight_types(half).values()) == {TensorProto.BFLOAT16}
    assert half.opset_import[0].version >= 22
    with pytest.raises(Exception, match=r"NOT_IMPLEMENTED.*Conv\(22\)"):
        onnxruntime.InferenceSession(half.SerializeToString(), providers=["CPUExecutionProvider"])


def test_bf16_answers_as_fp32_by_the_standard() -> None:
    graph, photos = steep_graph(1e5), noise(2)
    found = by_the_standard(to_bf16(graph), photos)
    np.testing.assert_allclose(found, answers(graph, photos), atol=0.05)
