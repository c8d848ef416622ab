"""Exported graphs in 16 bits: fp16, fp16 with what is sensitive in fp32, and bf16.

Photos stay uint8 and probabilities float32; normalisation and head stay in fp32 (`finetune.export.edges`).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx

from finetune.export.casting import cast_nodes
from finetune.export.edges import edge_nodes
from finetune.export.ranges import largest_activations
from finetune.preprocess import Pixels

# What torch.autocast keeps in fp32, as its sums and exponents lose most in half precision.
FP32_OPS = frozenset(
    {"ReduceMean", "ReduceSum", "ReduceL2", "GlobalAveragePool", "Softmax", "LogSoftmax", "Exp", "Log", "Pow"}
    | {"LayerNormalization", "GroupNormalization", "InstanceNormalization", "BatchNormalization"}
)
# A quarter of the largest half-precision number: other photos may reach further than those looked at.
SAFE_MAXIMUM = float(np.finfo(np.float16).max) / 4
# Below it a tensor's values lose digits, as half-precision numbers under 6e-5 have fewer than 11 bits.
SAFE_MINIMUM = 64 * float(np.finfo(np.float16).smallest_normal)
# The first version whose convolutions and poolings may be bf16 by the standard.
BF16_OPSET = 22


def to_fp16(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph in fp16 between its edges."""
    return cast_nodes(proto, edge_nodes(proto), onnx.TensorProto.FLOAT16)


def to_mixed(proto: onnx.ModelProto, batches: Iterable[Pixels]) -> onnx.ModelProto:
    """Return the graph in fp16, its sensitive nodes in fp32: those of FP32_OPS, and those `fragile_nodes` names.

    batches: (N, H, W, 3) uint8 photos of the training split.
    """
    sensitive = {node.name for node in proto.graph.node if node.op_type in FP32_OPS}
    kept = edge_nodes(proto) | sensitive | fragile_nodes(proto, batches)
    return cast_nodes(proto, kept, onnx.TensorProto.FLOAT16)


def to_bf16(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph in bf16 between its edges, at opset 22 at least.

    onnxruntime's CPU provider has no bf16 convolution: opening a session there raises its NOT_IMPLEMENTED.
    """
    opset = next(entry.version for entry in proto.opset_import if entry.domain == "")
    raised = onnx.version_converter.convert_version(proto, max(opset, BF16_OPSET))
    return cast_nodes(raised, edge_nodes(raised), onnx.TensorProto.BFLOAT16)


def fragile_nodes(proto: onnx.ModelProto, batches: Iterable[Pixels]) -> frozenset[str]:
    """Return the nodes that read or write a tensor which fp16 cannot hold well on these photos.

    Its largest absolute value is above SAFE_MAXIMUM, so that other photos' could overflow, below SAFE_MINIMUM, or no
    number.
    """
    largest = largest_activations(proto, batches)
    # not `>`: NaN is in no range
    outside = {name for name, value in largest.items() if value != 0 and not SAFE_MINIMUM <= value <= SAFE_MAXIMUM}
    return frozenset(node.name for node in proto.graph.node if outside.intersection((*node.input, *node.output)))
