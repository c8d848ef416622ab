"""A smaller or faster graph than the one that was compared, if it loses little enough accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import cast

import onnx
import onnxruntime

from finetune.bundle import Precision
from finetune.config import ExportConfig
from finetune.export.blocks import BLOCK
from finetune.export.photos import pixel_batches
from finetune.export.precision import choose_precision
from finetune.export.pruning import Pruned, Pruner, search_pruned
from finetune.export.source import Source
from finetune.export.storage import optimise_ahead, store_as_half
from finetune.export.variants import Gate


@dataclass(frozen=True)
class Reduced:
    """exact: whether its answers are still to be the trained network's within parity_limit.

    changes: what was done, for the model card; told: that too, and what was not done and why.
    """

    proto: onnx.ModelProto
    precision: Precision
    exact: bool
    changes: tuple[str, ...]
    told: tuple[str, ...]


def reduce(proto: onnx.ModelProto, source: Source, config: ExportConfig) -> Reduced:
    """Prune, choose a precision and store as the configuration asks; what loses too much accuracy is not done."""
    photos = partial(pixel_batches, source.manifest.files(source.judging), source.card.preprocessing)
    gate = Gate(proto, photos, source.targets(source.judging), config.device, config.max_accuracy_loss)
    told: list[str] = []
    changes: list[str] = []
    precision: Precision = "fp32"
    now, exact = proto, True
    if config.prune is not None:
        files = source.manifest.files(source.calibration)
        pruner = Pruner(proto, pixel_batches(files, source.card.preprocessing))
        pruned, refusal = search_pruned(pruner, config.prune, lambda graph: gate.refusal(gate.score(graph)))
        told.append(_in_words(proto, pruned, config.prune, refusal))
        if pruned is not None and pruned.removed:
            now, exact = pruned.proto, not pruned.share
            changes.append(f"{pruned.removed:,} of {pruned.before:,} filters removed")
    if config.precision != "fp32":
        chosen, why = choose_precision(now, source, config, gate)
        now, precision = chosen.proto, cast(Precision, chosen.name)
        told.append(why)
        if precision != "fp32":
            exact = False
            changes.append(f"computed in {precision}")
    if config.weights == "fp16":
        halved = store_as_half(now)
        refusal = gate.refusal(gate.score(halved))
        sizes = f"{now.ByteSize() / 1e6:.1f} MB become {halved.ByteSize() / 1e6:.1f}"
        told.append(f"weights stay fp32: weights=fp16 {refusal}" if refusal else f"weights stored as fp16: {sizes}")
        if not refusal:
            now, exact = halved, False
            changes.append("weights stored as fp16")
    if config.optimised:
        now = optimise_ahead(now)
        changes.append(f"optimised for CPUs by onnxruntime {onnxruntime.__version__}")
    return Reduced(now, precision, exact, tuple(changes), tuple(told))


def _in_words(proto: onnx.ModelProto, pruned: Pruned | None, asked: float, refusal: str) -> str:
    refused = f"prune={asked:g} {refusal}"
    if pruned is None or not pruned.removed:
        nothing = f"prune={asked:g} is less than {BLOCK} channels of a layer" if asked else "no channel does nothing"
        return f"not pruned: {refused if refusal else nothing}"
    sizes = f"{proto.ByteSize() / 1e6:.1f} MB to {pruned.proto.ByteSize() / 1e6:.1f} MB"
    less = f"; this is prune={pruned.share:.2g}, as {refused}" if refusal else ""
    return f"pruned: {pruned.removed:,} of {pruned.before:,} filters, {sizes}{less}"
