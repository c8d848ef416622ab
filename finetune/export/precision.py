"""Which precision of a graph is published: all that are asked for are made, judged and timed here."""

from __future__ import annotations

import logging

import numpy as np
import onnx

from finetune.config import ExportConfig
from finetune.export.halves import to_bf16, to_fp16, to_mixed
from finetune.export.int8 import search_int8
from finetune.export.photos import pixel_batches
from finetune.export.processor import int8_arithmetic
from finetune.export.source import Source
from finetune.export.variant_table import variant_table
from finetune.export.variants import FP32, Gate, Variant, choose, measure
from finetune.golden import spread_over_classes

log = logging.getLogger(__name__)

PRECISIONS = ("fp16", "mixed", "bf16", "int8")
# On which layers are ranked by what int8 does to them.
RANKING_PHOTOS = 12


def choose_precision(proto: onnx.ModelProto, source: Source, config: ExportConfig, gate: Gate) -> tuple[Variant, str]:
    """Return the graph in the precision asked for if it keeps its accuracy, else in fp32; and why, with a table."""
    wanted = _candidates(config)
    variants = measure({FP32: proto, **{name: _made(name, proto, source, gate) for name in wanted}}, gate)
    chosen, why = choose(variants, config.precision)
    return chosen, f"{variant_table(variants)}\n{why}"


def _candidates(config: ExportConfig) -> tuple[str, ...]:
    if config.precision != "auto":
        return (config.precision,)
    # Triton in kserve.yaml does not know bf16's opset
    return tuple(name for name in PRECISIONS if not (config.kserve and name == "bf16"))


def _made(name: str, proto: onnx.ModelProto, source: Source, gate: Gate) -> onnx.ModelProto:
    files, preprocessing = source.manifest.files(source.calibration), source.card.preprocessing
    if name == "fp16":
        return to_fp16(proto)
    if name == "bf16":
        return to_bf16(proto)
    if name == "mixed":
        return to_mixed(proto, pixel_batches(files, preprocessing))
    few = spread_over_classes([photo.label for photo in source.calibration], RANKING_PHOTOS)
    sample = np.concatenate(list(pixel_batches([files[place] for place in few], preprocessing)))
    found = search_int8(proto, pixel_batches(files, preprocessing), sample, int8_arithmetic(), gate.accepts)
    log.info("int8: %d of %d layers stay in float", len(found.in_float), found.layers)
    return found.proto
