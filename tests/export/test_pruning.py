from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper

from finetune.errors import FinetuneError
from finetune.export.folding import fold_batch_norm, lean
from finetune.export.pruning import BLOCK, prune, remove_dead_channels
from finetune.runtime import open_session
from tests.export.networks import NETWORKS, answers, graph_of


@functools.cache
def _folded(name: str) -> onnx.ModelProto:
    return fold_batch_norm(lean(graph_of(name)))


def _with_dead_filters(proto: onnx.ModelProto, share: float, seed: int) -> onnx.ModelProto:
    """Set a share of every layer's filters to 0, not their biases: such channels are constant, and seldom 0."""
    draw = np.random.default_rng(seed)
    killed = onnx.ModelProto()
    killed.CopyFrom(proto)
    layers = [node for node in proto.graph.node if node.op_type in ("Conv", "MatMul")]
    axes = {node.input[1]: 1 if node.op_type == "MatMul" else 0 for node in layers}
    for tensor in killed.graph.initializer:
        if tensor.name in axes:
            weights = np.moveaxis(numpy_helper.to_array(tensor).copy(), axes[tensor.name], 0)
            weights[draw.random(len(weights)) < share] = 0
            tensor.CopyFrom(numpy_helper.from_array(np.moveaxis(weights, 0, axes[tensor.name]).copy(), tensor.name))
    return killed


@pytest.mark.parametrize("name", NETWORKS)
def test_a_pruned_network_is_smaller_and_valid(name: str) -> None:
    before = _folded(name)
    pruned = prune(before, 0.5)
    onnx.checker.check_model(pruned.proto, full_check=True)
    answers(pruned.proto)
    assert pruned.proto.ByteSize() < 0.9 * before.ByteSize()
    assert pruned.layers
    shapes = {tensor.name: tensor.dims for tensor in pruned.proto.graph.initializer}
    for layer, (had, has) in pruned.layers.items():
        assert 0 < has < had
        assert has in shapes[layer]


@pytest.mark.parametrize("name", NETWORKS)
def test_dead_channels_go_and_the_answers_stay(name: str) -> None:
    before = _with_dead_filters(_folded(name), 0.6, seed=0)
    pruned = remove_dead_channels(before)
    onnx.checker.check_model(pruned.proto, full_check=True)
    assert pruned.layers
    assert pruned.proto.ByteSize() < before.ByteSize()
    np.testing.assert_allclose(answers(pruned.proto), answers(before), atol=1e-5)


@hypothesis_settings(max_examples=10)
@given(share=st.floats(0, 1), seed=st.integers(0, 1000))
def test_dead_channels_anywhere_in_any_number(share: float, seed: int) -> None:
    before = _with_dead_filters(_folded("test_resnet"), share, seed)
    np.testing.assert_allclose(_logits(remove_dead_channels(before).proto), _logits(before), rtol=1e-5, atol=1e-5)


def _logits(proto: onnx.ModelProto) -> NDArray[np.float32]:
    """Return the answers to noise and to black, which may all be the same one."""
    photos = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    photos[1] = 0
    (found,) = open_session(proto.SerializeToString(), "cpu", threads=1).ort.run(None, {"images": photos})
    return found  # type: ignore[no-any-return]


def test_a_network_without_dead_channels_stays_as_it_is() -> None:
    pruned = remove_dead_channels(_folded("test_resnet"))
    assert pruned.layers == {}
    np.testing.assert_array_equal(answers(pruned.proto), answers(_folded("test_resnet")))


def test_the_weakest_filters_go_first_and_whole_blocks_stay() -> None:
    before = _folded("test_resnet")
    (name,) = {tensor.name for tensor in before.graph.initializer if tensor.name.endswith("layer4.0.conv1.weight")}
    weakened = onnx.ModelProto()
    weakened.CopyFrom(before)
    tensor = next(tensor for tensor in weakened.graph.initializer if tensor.name == name)
    weights = numpy_helper.to_array(tensor).copy()
    weak = np.random.default_rng(0).permutation(len(weights))[: len(weights) // 2]
    weights[weak] *= 1e-4
    tensor.CopyFrom(numpy_helper.from_array(weights, name))
    pruned = prune(weakened, 0.1)
    had, has = pruned.layers[name]
    assert had == len(weights)
    assert has % BLOCK == 0
    left = next(numpy_helper.to_array(each) for each in pruned.proto.graph.initializer if each.name == name)
    strong = np.delete(np.abs(weights).sum((1, 2, 3)), weak)
    assert np.abs(left).sum((1, 2, 3)).max() == pytest.approx(strong.max(), rel=0.5)
    assert (np.abs(left).sum((1, 2, 3)) > 0.1 * strong.min()).sum() == min(has, len(strong))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(FinetuneError, match="between 0 and 1"):
        prune(_folded("test_resnet"), share)
