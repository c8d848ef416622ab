"""After quantisation: first convolutions read the bytes of photos as they are.

Normalised pixels would be made float, shifted and rounded to 8 bits again: a fifth of a small network's time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx

from finetune.bundle import INPUT
from finetune.export.biases import answer_to_channels
from finetune.export.qdq import QUANTISE, Array, QuantisedGraph, attribute

# How far a convolution's zeros beside the photo may move from the mean's colour, of 255: no further than by rounding.
PADDING_STEPS = 0.5
STEP = np.array(1, np.float32)


class _Normalised(NamedTuple):
    """pixels: the bytes, channels first; mean: what is taken off each channel."""

    pixels: str
    mean: Array


def read_bytes(quantised: QuantisedGraph) -> None:
    """Give the layers that read the rounding of normalised pixels the bytes, and biases that make up for the mean.

    A graph stays as it is where that would change what a convolution sees beside the photo: where it pads, and the
    channels' means are too far apart for one zero point.
    """
    for rounding in [node for node in quantised.nodes if node.op_type == QUANTISE]:
        normalised = _normalised(quantised, rounding)
        restoring = quantised.readers(rounding.output[0])
        layers = [layer for node in restoring for layer in quantised.readers(node.output[0])]
        if normalised is None or not all(map(quantised.is_in_int8, layers)):
            continue
        zero_point = np.asarray(np.round(normalised.mean.mean()), np.uint8)
        left = zero_point - normalised.mean
        if np.abs(left).max() > PADDING_STEPS and any(map(_pads, layers)):
            continue
        one, zero = quantised.add("pixel_scale", STEP), quantised.add("pixel_zero_point", zero_point)
        for layer in layers:
            of_weights = quantised.restoring(layer, 1)
            assert of_weights is not None
            shift = answer_to_channels(layer, quantised.restored(of_weights), left)
            quantised.shift_bias(layer, shift, STEP)
        for node in restoring:
            node.input[:] = [normalised.pixels, one, zero]


def _normalised(quantised: QuantisedGraph, rounding: onnx.NodeProto) -> _Normalised | None:
    """Return the bytes and the mean if what is rounded to unsigned 8 bits are pixels less a mean."""
    less = quantised.makers.get(rounding.input[0])
    cast = quantised.makers.get(less.input[0]) if less is not None and less.op_type == "Sub" else None
    if less is None or cast is None or cast.op_type != "Cast" or less.input[1] not in quantised.tensors:
        return None
    moved = quantised.makers.get(cast.input[0])
    if moved is None or moved.op_type != "Transpose" or moved.input[0] != INPUT:
        return None
    if quantised.array(rounding.input[2]).dtype != np.uint8:
        return None  # the processor's kernels are for signed bytes
    return _Normalised(cast.input[0], quantised.array(less.input[1]).reshape(-1))


def _pads(layer: onnx.NodeProto) -> bool:
    return any(attribute(layer, "pads", ())) or attribute(layer, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
