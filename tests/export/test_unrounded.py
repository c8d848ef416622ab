from __future__ import annotations

import numpy as np
from onnxruntime.quantization import QuantType

from finetune.export.int8 import quantiser
from finetune.export.processor import Int8Arithmetic
from tests.export.graphs import Convolution, answers, answers_as_written, convolutions_graph, noise

X86 = Int8Arithmetic(QuantType.QUInt8, saturates=False)


def test_a_layer_in_float_between_others_in_int8_stays_in_float() -> None:
    """Its filters are of different sizes; with one scale for all, the small ones would be lost."""
    generator = np.random.default_rng(0)
    sizes = np.geomspace(1, 50, 8)[:, None, None, None]
    biases = generator.uniform(1, 2, (3, 8))
    layers = {
        "first": Convolution(generator.normal(scale=0.1, size=(8, 3, 3, 3)), biases[0]),
        "second": Convolution(generator.normal(size=(8, 1, 3, 3)) / sizes, biases[1], group=8),
        "third": Convolution(generator.normal(size=(8, 8, 1, 1)) * sizes.reshape(1, 8, 1, 1), biases[2]),
    }
    graph = convolutions_graph(layers, [127.5] * 3, generator.normal(scale=0.002, size=(3, 8)))
    photos = noise(20)
    with quantiser(graph, [photos], X86) as quantise:
        for in_float in (["second_conv"], ["second_conv", "third_conv"]):
            found = quantise.without(in_float)
            np.testing.assert_allclose(answers(found, photos), answers_as_written(found, photos), atol=1e-3)
