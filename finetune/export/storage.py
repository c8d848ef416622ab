"""Files that are smaller, or open sooner, for the same arithmetic. Both come last: other steps would undo them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

# Below this many numbers a Cast takes about as much room as it saves.
LEAST_NUMBERS = 1024


def store_as_half(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Store large float32 weights as float16, each with a Cast to float32 behind it.

    onnxruntime computes the casts once, on loading: the arithmetic and its speed stay those of float32. Weights lose
    13 of 24 bits of precision; a tensor with a number that float16 cannot hold (beyond 65,504) stays as it is.
    """
    halved = onnx.ModelProto()
    halved.CopyFrom(proto)
    casts = []
    for tensor in halved.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < LEAST_NUMBERS:
            continue
        weights = numpy_helper.to_array(tensor)
        if np.abs(weights).max() > np.finfo(np.float16).max:
            continue
        half = f"{tensor.name}.half"
        casts.append(helper.make_node("Cast", [half], [tensor.name], to=TensorProto.FLOAT))
        tensor.CopyFrom(numpy_helper.from_array(weights.astype(np.float16), half))
    nodes = list(halved.graph.node)
    del halved.graph.node[:]
    halved.graph.node.extend([*casts, *nodes])
    return halved


def optimise_ahead(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Save what onnxruntime makes of the graph before it looks at the processor: fused layers, computed constants.

    The level is "extended": the file runs on any processor, but only in an onnxruntime at least as new as this one, as
    it holds onnxruntime's own operators. The next level lays weights out for this processor's vector unit.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(path)
