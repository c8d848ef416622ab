from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from finetune.export.storage import LEAST_NUMBERS, optimise_ahead, store_as_half
from tests.export.networks import NETWORKS, answers, graph_of, operators


@pytest.mark.parametrize("name", NETWORKS)
def test_half_the_file_answers_almost_the_same(name: str) -> None:
    before = graph_of(name)
    after = store_as_half(before)
    onnx.checker.check_model(after, full_check=True)
    assert after.ByteSize() < 0.7 * before.ByteSize()
    large = [each for each in after.graph.initializer if each.data_type == TensorProto.FLOAT]
    assert all(np.prod(each.dims) < LEAST_NUMBERS for each in large)
    difference = np.abs(answers(after) - answers(before)).max()
    assert 0 < difference < 5e-3


def test_weights_beyond_half_precision_stay() -> None:
    before = onnx.ModelProto()
    before.CopyFrom(graph_of("test_resnet"))
    tensor = max(before.graph.initializer, key=lambda each: int(np.prod(each.dims)))
    weights = numpy_helper.to_array(tensor).copy()
    weights.flat[0] = 70_000
    tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
    after = {each.name: each for each in store_as_half(before).graph.initializer}
    np.testing.assert_array_equal(numpy_helper.to_array(after[tensor.name]), weights)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_what_was_optimised_ahead_answers_the_same_and_is_tied_to_no_processor(name: str) -> None:
    before = graph_of(name)
    after = optimise_ahead(before)
    assert len(operators(after)) < len(operators(before))
    assert {node.domain for node in after.graph.node} <= {"", "com.microsoft"}
    np.testing.assert_allclose(answers(after), answers(before), atol=1e-5)
