"""A smaller or faster graph than the one that was compared, if it loses little enough accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import cast

import onnx

from finetune.bundle import Precision
from finetune.config import ExportConfig
from finetune.export.photos import pixel_batches
from finetune.export.precision import choose_precision
from finetune.export.pruning import Pruned, prune, remove_dead_channels
from finetune.export.source import Source
from finetune.export.storage import optimise_ahead, store_as_half
from finetune.export.variants import Gate

# Of the narrowed layers, named in what is told.
NAMED = 5


@dataclass(frozen=True)
class Reduced:
    """exact: whether its answers are still to be the trained network's within parity_limit; told: what was done."""

    proto: onnx.ModelProto
    precision: Precision
    exact: bool
    told: tuple[str, ...]


def reduce(proto: onnx.ModelProto, source: Source, config: ExportConfig) -> Reduced:
    """Prune, choose a precision and store as the configuration asks; what loses too much accuracy is not done."""
    photos = partial(pixel_batches, source.manifest.files(source.judging), source.card.preprocessing)
    gate = Gate(proto, photos, source.targets(source.judging), config.device, config.max_accuracy_loss)
    told: list[str] = []
    precision: Precision = "fp32"
    now, exact = proto, True
    if config.prune is not None:
        pruned = prune(proto, config.prune) if config.prune else remove_dead_channels(proto)
        refusal = gate.refusal(gate.score(pruned.proto))
        told.append(f"not pruned: prune={config.prune:g} {refusal}" if refusal else _in_words(pruned))
        if not refusal:
            now, exact = pruned.proto, not config.prune
    if config.precision != "fp32":
        chosen, why = choose_precision(now, source, config.precision, gate)
        now, precision = chosen.proto, cast(Precision, chosen.name)
        exact = exact and precision == "fp32"
        told.append(why)
    if config.weights == "fp16":
        halved = store_as_half(now)
        refusal = gate.refusal(gate.score(halved))
        sizes = f"{now.ByteSize() / 1e6:.1f} MB become {halved.ByteSize() / 1e6:.1f}"
        told.append(f"weights stay fp32: weights=fp16 {refusal}" if refusal else f"weights stored as fp16: {sizes}")
        if not refusal:
            now, exact = halved, False
    if config.optimised:
        now = optimise_ahead(now)
    return Reduced(now, precision, exact, tuple(told))


def _in_words(pruned: Pruned) -> str:
    if not pruned.layers:
        return "pruned: no channel does nothing"
    gone = sum(before - after for before, after in pruned.layers.values())
    layers = [f"{name} {before} to {after}" for name, (before, after) in list(pruned.layers.items())[:NAMED]]
    more = f" and {len(pruned.layers) - NAMED} more" if len(pruned.layers) > NAMED else ""
    return f"pruned: {gone} filters of {len(pruned.layers)} layers: {', '.join(layers)}{more}"
