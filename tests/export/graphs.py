"""Graphs small enough to be quantised in a blink."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

PIXELS = 16
Array = np.ndarray


class Convolution(NamedTuple):
    """weights: (filters, channels a group, height, width); bias: (filters,)."""

    weights: Array
    bias: Array | None = None
    padding: int = 0
    group: int = 1


def steep_graph(gain: float) -> onnx.ModelProto:
    """Return a classifier whose second layer undoes the gain of its first: between them values reach 255 * gain."""
    generator = np.random.default_rng(0)
    first = generator.uniform(0, 1 / 27, (4, 3, 3, 3))
    second = generator.normal(size=(8, 4, 1, 1))
    layers = {"first": Convolution(first * gain), "second": Convolution(second / gain)}
    return convolutions_graph(layers, mean=[1, 1, 1], head=generator.normal(scale=0.02, size=(3, 8)))


def convolutions_graph(layers: dict[str, Convolution], mean: list[float], head: Array) -> onnx.ModelProto:
    """Return a classifier of layers by name, a Relu after each but the last; mean: taken off each channel of a photo.

    head: (classes, features).
    """
    nodes = [
        helper.make_node("Transpose", ["images"], ["planes"], "planes", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["levels"], "levels", to=TensorProto.FLOAT),
        helper.make_node("Sub", ["levels", "classifier.normalise.mean"], ["normalised"], "normalise"),
    ]
    weights = {"classifier.normalise.mean": np.reshape(mean, (1, 3, 1, 1))}
    given = "normalised"
    for number, (name, layer) in enumerate(layers.items()):
        weights[name] = layer.weights
        inputs = [given, name]
        if layer.bias is not None:
            weights[f"{name}_bias"] = layer.bias
            inputs.append(f"{name}_bias")
        given = f"{name}_output"
        options = {"pads": [layer.padding] * 4, "group": layer.group}
        nodes.append(helper.make_node("Conv", inputs, [given], f"{name}_conv", **options))
        if number < len(layers) - 1:
            nodes.append(helper.make_node("Relu", [given], [f"{name}_relu"], f"{name}_relu"))
            given = f"{name}_relu"
    nodes += [
        helper.make_node("GlobalAveragePool", [given], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["features"], "flatten"),
        helper.make_node("Sub", ["features", "classifier.head.mean"], ["centred"], "centre"),
        helper.make_node("Gemm", ["centred", "classifier.head.linear.weight"], ["logits"], "linear", transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], "softmax", axis=1),
    ]
    weights |= {"classifier.head.mean": np.full(head.shape[1], 0.1), "classifier.head.linear.weight": head}
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["photos", PIXELS, PIXELS, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["photos", len(head)])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"finetune.name": "convolutions"})
    return model


def noise(photos: int, pixels: int = PIXELS) -> Array:
    """Return (photos, pixels, pixels, 3) uint8, each photo of its own brightness and colour."""
    generator = np.random.default_rng(photos)
    tops = generator.integers(30, 256, (photos, 1, 1, 3))
    return (generator.random((photos, pixels, pixels, 3)) * tops).astype(np.uint8)


def answers(model: onnx.ModelProto, photos: Array) -> Array:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(None, {"images": photos})
    result: Array = probabilities
    return result


def answers_as_written(model: onnx.ModelProto, photos: Array) -> Array:
    """Answer by the nodes that are there, none of them optimised."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(None, {"images": photos})
    result: Array = probabilities
    return result


def by_the_standard(model: onnx.ModelProto, photos: Array) -> Array:
    """Answer with onnx's own evaluator; onnxruntime rounds less on a processor than the types say."""
    with np.errstate(over="ignore", invalid="ignore"):
        (probabilities,) = ReferenceEvaluator(model).run(None, {"images": photos})
    result: Array = probabilities
    return result


def weight_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the type of each convolution's weights as they are stored, by the node's name."""
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    restored = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    convolutions = (node for node in model.graph.node if node.op_type == "Conv")
    return {node.name: types[restored.get(node.input[1], node.input[1])] for node in convolutions}
