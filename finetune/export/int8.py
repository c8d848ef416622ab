"""Exported graphs in int8: static quantisation with calibration photos, the layers that suffer most left in float.

QuantizeLinear and DequantizeLinear around each layer (QDQ), which onnxruntime turns into integer kernels. Weights are
quantised by channel (Krishnamoorthi 2018): it costs no time, and depthwise convolutions need it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnxruntime.quantization import QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from finetune.bundle import INPUT
from finetune.export.biases import correct_biases, correct_logits, input_means, mean_logits
from finetune.export.edges import edge_nodes
from finetune.export.photos import PhotoReader
from finetune.export.pixel_bytes import read_bytes
from finetune.export.processor import Int8Arithmetic
from finetune.export.qdq import QuantisedGraph
from finetune.export.unrounded import read_unrounded, stay_in_float
from finetune.preprocess import Pixels
from finetune.progress import track
from finetune.runtime import open_session

log = logging.getLogger(__name__)

# What computes, and what is fused with it. Sums are left to onnxruntime, which fuses those between int8 layers.
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
FUSED = ("Relu", "Clip", "MaxPool")
# Of the layers, to be left in float at most: with more of them, int8 is not faster.
MOST_IN_FLOAT = 1 / 2


@dataclass(frozen=True)
class Int8:
    """A quantised graph. in_float: the layers left in float, the most sensitive first; accepted: whether it passed."""

    proto: onnx.ModelProto
    layers: int
    in_float: tuple[str, ...]
    accepted: bool


def search_int8(
    proto: onnx.ModelProto,
    batches: Iterable[Pixels],
    sample: Pixels,
    arithmetic: Int8Arithmetic,
    accepts: Callable[[onnx.ModelProto], bool],
) -> Int8:
    """Quantise all layers, then leave the most sensitive in float, twice as many each time, until `accepts` holds.

    batches: (N, H, W, 3) uint8 photos of the training split, some tens, for the ranges of activations; sample: a dozen
    more, on which layers are ranked. Where no step is accepted, the last is returned.
    """
    with quantiser(proto, batches, arithmetic) as quantise:
        found = quantise.without(())
        if accepts(found):
            return Int8(found, len(quantise.layers), (), accepted=True)
        ranked = rank_layers(quantise, proto, sample)
        for count in _doubling(max(1, round(MOST_IN_FLOAT * len(ranked)))):
            found = quantise.without(ranked[:count])
            accepted = accepts(found)
            log.info("int8 with %d of %d layers in float: %s", count, len(ranked), "kept" if accepted else "too lossy")
            if accepted:
                break
        return Int8(found, len(ranked), tuple(ranked[:count]), accepted)


def rank_layers(quantise: Quantiser, proto: onnx.ModelProto, sample: Pixels) -> list[str]:
    """Return the layers, first those which change the probabilities of `sample` most when they alone are in int8.

    Dearer than comparing activations of the whole int8 graph with the float ones, where a layer is also blamed for the
    errors of those before it.
    """
    exact = _probabilities(proto, sample)
    change = {
        layer: float(np.abs(_probabilities(quantise.alone(layer), sample) - exact).mean())
        for layer in track(quantise.layers, "ranking layers by what int8 does to them", len(quantise.layers), "layers")
    }
    return sorted(quantise.layers, key=lambda layer: -change[layer])


@contextmanager
def quantiser(proto: onnx.ModelProto, batches: Iterable[Pixels], arithmetic: Int8Arithmetic) -> Iterator[Quantiser]:
    """Find the ranges of all activations; the graph can then be quantised in any selection of its layers."""
    with TemporaryDirectory() as folder:
        yield Quantiser(proto, batches, arithmetic, Path(folder))


class Quantiser:
    """A graph with the ranges of its activations, in a folder of work files."""

    def __init__(
        self, proto: onnx.ModelProto, batches: Iterable[Pixels], arithmetic: Int8Arithmetic, folder: Path
    ) -> None:
        self.arithmetic = arithmetic
        self.prepared, self.ranges, self.result = (folder / name for name in ("model.onnx", "ranges", "int8.onnx"))
        self.edges = edge_nodes(proto)
        self.metadata = list(proto.metadata_props)
        # symbolic inference cannot follow every graph, and the plain one finds all shapes of ours
        # by files, as it would take the weights out of a graph in memory
        given = folder / "given.onnx"
        onnx.save(proto, given)
        quant_pre_process(given, self.prepared, skip_symbolic_shape=True)
        self.exact = onnx.load(self.prepared)
        nodes = self.exact.graph.node
        self.layers = tuple(node.name for node in nodes if node.op_type in LAYERS and node.name not in self.edges)
        self.photos = list(batches)
        self.means, self.logits = input_means(self.exact, self.photos), mean_logits(self.exact, self.photos)
        self._quantise(PhotoReader(self.photos), ())

    def without(self, in_float: Collection[str]) -> onnx.ModelProto:
        """Return the graph with all layers but these in int8."""
        return self._quantise(None, in_float)

    def alone(self, layer: str) -> onnx.ModelProto:
        """Return the graph with this layer alone in int8."""
        return self.without([other for other in self.layers if other != layer])

    def _quantise(self, reader: PhotoReader | None, in_float: Collection[str]) -> onnx.ModelProto:
        """reader: photos for the ranges, which are kept; None where they are there."""
        quantize_static(
            self.prepared,
            self.result,
            reader,
            op_types_to_quantize=[*LAYERS, *FUSED],
            per_channel=True,
            reduce_range=self.arithmetic.saturates,
            activation_type=self.arithmetic.activations,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=sorted(self.edges.union(in_float)),
            calibration_cache_path=self.ranges,
        )
        quantised = QuantisedGraph(onnx.load(self.result))
        read_unrounded(quantised)
        stay_in_float(quantised)
        correct_biases(quantised, self.exact, self.means)
        read_bytes(quantised)
        proto = quantised.finish()
        correct_logits(proto, self.logits, self.photos)
        del proto.metadata_props[:]
        proto.metadata_props.extend(self.metadata)
        return proto


def _doubling(most: int) -> Iterator[int]:
    """Yield 1, 2, 4 and so on, and `most` at last."""
    count = 1
    while count < most:
        yield count
        count *= 2
    yield most


def _probabilities(proto: onnx.ModelProto, sample: Pixels) -> np.ndarray:
    session = open_session(proto.SerializeToString(), "cpu").ort
    answers: np.ndarray = session.run(None, {INPUT: sample})[0]
    return answers
