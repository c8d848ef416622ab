from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantType

from finetune.export.int8 import quantiser
from finetune.export.processor import Int8Arithmetic
from tests.export.graphs import Convolution, answers, convolutions_graph, noise

X86 = Int8Arithmetic(QuantType.QUInt8, saturates=False)
ARM = Int8Arithmetic(QuantType.QInt8, saturates=False)
ONE_GREY, IMAGENET = [127.5] * 3, [123.7, 116.3, 103.5]


def quantised(mean: list[float], padding: int, arithmetic: Int8Arithmetic) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    generator = np.random.default_rng(0)
    layers = {
        "first": Convolution(generator.normal(scale=0.01, size=(8, 3, 3, 3)), generator.normal(size=8), padding),
        "second": Convolution(generator.normal(size=(8, 8, 1, 1)), generator.normal(size=8)),
    }
    graph = convolutions_graph(layers, mean, generator.normal(scale=0.5, size=(3, 8)))
    with quantiser(graph, [noise(20)], arithmetic) as quantise:
        return graph, quantise.without(())


@pytest.mark.parametrize(("mean", "padding"), [(ONE_GREY, 0), (ONE_GREY, 1), (IMAGENET, 0)])
def test_photos_go_into_the_first_layer_as_bytes(mean: list[float], padding: int) -> None:
    graph, in_int8 = quantised(mean, padding, X86)
    operators = [node.op_type for node in in_int8.graph.node]
    assert "Cast" not in operators
    assert operators.count("QuantizeLinear") == 2
    np.testing.assert_allclose(answers(in_int8, noise(9)), answers(graph, noise(9)), atol=0.05)


@pytest.mark.parametrize(("mean", "padding", "arithmetic"), [(IMAGENET, 1, X86), (ONE_GREY, 0, ARM)])
def test_where_a_byte_would_be_another_colour_pixels_are_normalised(
    mean: list[float], padding: int, arithmetic: Int8Arithmetic
) -> None:
    graph, in_int8 = quantised(mean, padding, arithmetic)
    assert "Cast" in [node.op_type for node in in_int8.graph.node]
    np.testing.assert_allclose(answers(in_int8, noise(9)), answers(graph, noise(9)), atol=0.05)
