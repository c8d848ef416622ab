from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantType

from finetune.export import int8
from finetune.export.biases import answer_to_channels, correct_logits, input_means, mean_logits
from finetune.export.int8 import quantiser
from finetune.export.processor import Int8Arithmetic
from tests.export.graphs import Array, Convolution, answers, convolutions_graph, noise

X86 = Int8Arithmetic(QuantType.QUInt8, saturates=False)


def test_means_are_of_what_each_layer_reads() -> None:
    generator = np.random.default_rng(0)
    layers = {"first": Convolution(generator.normal(size=(4, 3, 3, 3))), "second": Convolution(np.ones((2, 4, 1, 1)))}
    graph = convolutions_graph(layers, [10, 20, 30], np.ones((2, 2)))
    batches = [noise(5), noise(2)]
    means = input_means(graph, batches)
    photos = np.concatenate(batches).astype(float)
    np.testing.assert_allclose(means["normalised"], photos.mean((0, 1, 2)) - [10, 20, 30], rtol=1e-4)
    assert means["first_relu"].shape == (4,)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_a_constant_photo_is_answered_as_a_convolution_would(group: int) -> None:
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(8, 4 // group, 3, 3)).astype(np.float32)
    channels = generator.normal(size=4).astype(np.float32)
    layer = onnx.helper.make_node("Conv", ["x", "w"], ["y"], group=group)
    each = 8 // group
    wanted = [
        (weights[f].sum((1, 2)) * channels[f // each * (4 // group) : (f // each + 1) * (4 // group)]).sum()
        for f in range(8)
    ]
    np.testing.assert_allclose(answer_to_channels(layer, weights, channels), wanted, rtol=1e-5)


def test_rounding_that_only_adds_is_taken_off_again() -> None:
    """All weights but one a filter are rounded up by almost half a step, which the answers' sums would show."""

    def weights(filters: int, channels: int) -> Array:
        steps = np.full((filters, channels, 1, 1), 0.51)
        steps[:, 0] = 127 / 3
        steps[:, 1] = 127
        return steps / 1e3

    layers = {"first": Convolution(weights(64, 3), np.ones(64)), "second": Convolution(weights(4, 64), np.ones(4))}
    head = np.random.default_rng(0).normal(scale=0.5, size=(3, 4))
    graph = convolutions_graph(layers, [0, 0, 0], head)
    photos = np.random.default_rng(1).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    with quantiser(graph, [photos], X86) as quantise:
        np.testing.assert_allclose(answers(quantise.without(()), photos), answers(graph, photos), atol=0.003)


def test_features_that_are_maxima_do_not_move_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest of many rounded numbers is larger than the largest of the exact ones, for every photo."""
    generator = np.random.default_rng(0)
    layers = {
        name: Convolution(generator.normal(size=(8, channels, 3, 3)) / 9, np.zeros(8))
        for name, channels in (("first", 3), ("second", 8), ("third", 8))
    }
    graph = convolutions_graph(layers, [0, 0, 0], np.array([[0.05] * 8, [0.0] * 8]))
    (pool,) = (node for node in graph.graph.node if node.op_type == "GlobalAveragePool")
    pool.op_type = "GlobalMaxPool"
    photos = noise(40)

    def moved() -> float:
        with quantiser(graph, [photos[:20], photos[20:]], X86) as quantise:
            return float(np.abs(mean_logits(quantise.without(()), [photos]) - mean_logits(graph, [photos])).max())

    corrected = moved()
    monkeypatch.setattr(int8, "correct_logits", lambda *_: None)
    assert corrected < 0.1 * moved()


def test_logits_move_to_where_they_are_wanted() -> None:
    graph, photos = convolutions_graph({"only": Convolution(np.ones((4, 3, 1, 1)) / 9)}, [0, 0, 0], np.eye(4)), noise(5)
    wanted = mean_logits(graph, [photos[:2], photos[2:]]) + np.array([1, -1, 0, 0])
    correct_logits(graph, wanted, [photos])
    np.testing.assert_allclose(mean_logits(graph, [photos]), wanted, atol=1e-4)
