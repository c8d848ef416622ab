"""What the channels that a graph's layers read are like over real photos."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from finetune.bundle import INPUT
from finetune.preprocess import Pixels
from finetune.runtime import open_session

Numbers = NDArray[np.float64]


class Activity(NamedTuple):
    """Of each channel of a value, over photos and places: mean and variance, (channels,)."""

    mean: Numbers
    variance: Numbers


def measure_activity(
    proto: onnx.ModelProto, values: Mapping[str, tuple[int, int]], batches: Iterable[Pixels]
) -> dict[str, Activity]:
    """Return the activity of values by name; for each the axis of its channels, and how many axes it has."""
    session = open_session(_measuring(proto, values).SerializeToString(), "cpu").ort
    found = [(len(batch), session.run(None, {INPUT: batch})) for batch in batches]
    photos = sum(count for count, _ in found)
    sums = [sum(count * each[place].astype(np.float64) for count, each in found) for place in range(2 * len(values))]
    means, squares = ([each / photos for each in part] for part in (sums[::2], sums[1::2]))
    return {
        name: Activity(mean, np.maximum(square - mean**2, 0))
        for name, mean, square in zip(values, means, squares, strict=True)
    }


def _measuring(proto: onnx.ModelProto, values: Mapping[str, tuple[int, int]]) -> onnx.ModelProto:
    """Return a graph that answers with the mean of each value and that of its square instead of with probabilities."""
    measuring = onnx.ModelProto()
    measuring.CopyFrom(proto)
    graph = measuring.graph
    del graph.output[:]
    for name, (axis, rank) in values.items():
        axes, square = f"{name} axes", f"{name} square"
        others = np.array([other for other in range(rank) if other != axis])
        graph.initializer.append(numpy_helper.from_array(others, axes))
        graph.node.append(helper.make_node("Mul", [name, name], [square], square))
        for each in (name, square):
            mean = f"{each} mean"
            graph.node.append(helper.make_node("ReduceMean", [each, axes], [mean], mean, keepdims=0))
            graph.output.append(onnx.ValueInfoProto(name=mean))
    return measuring
