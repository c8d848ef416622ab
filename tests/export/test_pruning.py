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
from finetune.export.blocks import BLOCK
from finetune.export.dead_channels import remove_dead_channels
from finetune.export.folding import fold_batch_norm, lean
from finetune.export.pruning import PARTS, Pruner, search_pruned
from finetune.runtime import open_session
from tests.export.graphs import Convolution, convolutions_graph, noise
from tests.export.graphs import answers as small_answers
from tests.export.networks import NETWORKS, SIZES, answers, graph_of


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


def _pruner(name: str, proto: onnx.ModelProto) -> Pruner:
    return Pruner(proto, [noise(8, SIZES[name]), noise(3, SIZES[name])])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_pruned_network_is_smaller_and_valid(name: str) -> None:
    before = _folded(name)
    pruned = _pruner(name, before).without(0.5)
    onnx.checker.check_model(pruned.proto, full_check=True)
    answers(pruned.proto)
    assert pruned.proto.ByteSize() < 0.9 * before.ByteSize()
    assert pruned.share == 0.5
    shapes = {tensor.name: tensor.dims for tensor in pruned.proto.graph.initializer}
    for layer, (had, has) in pruned.filters.items():
        assert 0 < has <= had
        assert has in shapes[layer]
        assert has == had or has % BLOCK == 0
    assert pruned.removed == sum(had - has for had, has in pruned.filters.values()) > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_dead_channels_go_and_the_answers_stay(name: str) -> None:
    before = _with_dead_filters(_folded(name), 0.6, seed=0)
    pruned = remove_dead_channels(before)
    onnx.checker.check_model(pruned, full_check=True)
    assert pruned.ByteSize() < before.ByteSize()
    np.testing.assert_allclose(answers(pruned), answers(before), atol=1e-5)


@hypothesis_settings(max_examples=10)
@given(share=st.floats(0, 1), seed=st.integers(0, 1000))
def test_dead_channels_anywhere_in_any_number(share: float, seed: int) -> None:
    before = _with_dead_filters(_folded("test_resnet"), share, seed)
    np.testing.assert_allclose(_logits(remove_dead_channels(before)), _logits(before), rtol=1e-5, atol=1e-5)


def _logits(proto: onnx.ModelProto) -> NDArray[np.float32]:
    """Return the answers to noise and to black, which may all be the same one."""
    photos = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    photos[1] = 0
    (found,) = open_session(proto.SerializeToString(), "cpu", threads=1).ort.run(None, {"images": photos})
    return found  # type: ignore[no-any-return]


def test_a_network_without_dead_channels_stays_as_it_is() -> None:
    pruned = _pruner("test_resnet", _folded("test_resnet")).without(0)
    assert pruned.removed == 0
    np.testing.assert_array_equal(answers(pruned.proto), answers(_folded("test_resnet")))


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_dead_channels_go_before_all_others_whatever_the_share(name: str) -> None:
    before = _with_dead_filters(_folded(name), 0.5, seed=0)
    pruner = _pruner(name, before)
    dead, few, many = (pruner.without(share) for share in (0, 0.01, 0.8))
    assert few.filters == dead.filters
    assert few.share == 0
    np.testing.assert_allclose(answers(few.proto), answers(before), atol=1e-5)
    assert many.removed > dead.removed
    assert all(many.filters[layer][1] <= left for layer, (_, left) in dead.filters.items())


@hypothesis_settings(max_examples=10)
@given(share=st.floats(0, 0.99))
def test_never_more_than_the_share_goes(share: float) -> None:
    pruner = _pruner("test_resnet", _folded("test_resnet"))
    left = Pruner(pruner.without(share).proto, []).channels
    assert pruner.channels - left <= round(share * pruner.channels)


def _layers(*weights: NDArray[np.float64], bias: NDArray[np.float64]) -> onnx.ModelProto:
    """Return a classifier of 1x1 convolutions, (filters, channels) each, with a bias in the first."""
    layers = {str(number): Convolution(each[:, :, None, None]) for number, each in enumerate(weights)}
    layers["0"] = layers["0"]._replace(bias=bias)
    head = np.random.default_rng(1).normal(scale=0.02, size=(3, len(weights[-1])))
    return convolutions_graph(layers, mean=[100, 100, 100], head=head)


def test_channels_that_hardly_change_go_and_their_mean_stays_in_the_bias() -> None:
    """They have the larger biases and are read by the larger weights: by magnitude they would be the last to go."""
    draw = np.random.default_rng(0)
    first, bias, second = draw.normal(size=(16, 3)), np.zeros(16), draw.normal(size=(BLOCK, 16))
    still = draw.permutation(16)[:BLOCK]
    first[still] *= 1e-4
    bias[still] = 20
    second[:, still] *= 3
    before = _layers(first, second, bias=bias)
    pruned = Pruner(before, [noise(8)]).without(0.5)
    assert pruned.filters["0"] == (16, 8)
    left = next(numpy_helper.to_array(each) for each in pruned.proto.graph.initializer if each.name == "0")
    np.testing.assert_array_equal(left[:, :, 0, 0], np.delete(first, still, axis=0).astype(np.float32))
    np.testing.assert_allclose(small_answers(pruned.proto, noise(12)), small_answers(before, noise(12)), atol=1e-2)


def test_a_narrow_layer_is_not_the_first_to_go() -> None:
    draw = np.random.default_rng(0)
    weights = [draw.normal(size=size) for size in ((16, 3), (128, 16), (8, 128))]
    pruned = Pruner(_layers(*weights, bias=np.zeros(16)), [noise(8)]).without(0.4)
    assert [pruned.filters[layer] for layer in "012"] == [(16, 16), (128, 72), (8, 8)]


def test_the_largest_part_of_the_share_that_is_not_refused_is_found() -> None:
    pruner = _pruner("test_resnet", _folded("test_resnet"))
    most = pruner.without(0.2).removed

    def refusal(proto: onnx.ModelProto) -> str:
        removed = pruner.channels - Pruner(proto, []).channels
        return f"loses {removed} channels" if removed > round(0.2 * pruner.channels) else ""

    found, why = search_pruned(pruner, 0.8, refusal)
    assert found is not None
    assert (found.share, found.removed) == (0.2, most)
    assert why.startswith("loses ")
    assert int(why.split()[1]) > 2 * most
    assert search_pruned(pruner, 0.2, refusal)[1] == ""


def test_none_is_found_where_all_are_refused() -> None:
    asked = []
    found, why = search_pruned(_pruner("test_resnet", _folded("test_resnet")), 0.8, lambda p: asked.append(p) or "no")  # type: ignore[func-returns-value]
    assert (found, why) == (None, "no")
    assert len(asked) == len(PARTS)


def test_a_network_whose_channels_all_have_to_stay_is_refused() -> None:
    graph = convolutions_graph({"only": Convolution(np.ones((4, 3, 1, 1)))}, [0, 0, 0], np.ones((3, 4)))
    pool = next(node for node in graph.graph.node if node.op_type == "GlobalAveragePool")
    pool.op_type = "GlobalLpPool"
    with pytest.raises(FinetuneError, match="no channel of this network can be removed"):
        Pruner(graph, []).without(0.5)
    assert Pruner(graph, []).without(0).removed == 0
