"""Precisions side by side, as a table to read."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.export.timing import WAYS
from finetune.export.variants import Variant

HEADER = (
    "precision",
    "MB",
    *(f"photos/s, {way}" for way in WAYS),
    "speed",
    "accuracy",
    "agrees",
    "difference",
    "passes",
)
Row = Sequence[str]


def variant_table(variants: Sequence[Variant]) -> str:
    """Return a line a variant, then a line for each that does not pass with the reason, and what one photo weighs.

    speed: in multiples of fp32's, the median of all rounds and what half of them lie between; accuracy, and agreement
    with fp32's answers, in percent of the judging photos; difference: the largest of one probability from fp32's.
    """
    rows: list[Row] = [HEADER, *map(_row, variants)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    reasons = [f"{variant.name} {variant.reason}" for variant in variants if variant.reason]
    photos = next(variant.score.photos for variant in variants if variant.score)
    weight = f"accuracy is of {photos:,} photos: one is {100 / photos:.2g} points"
    return "\n".join([*(_line(row, widths) for row in rows), *reasons, weight])


def _row(variant: Variant) -> Row:
    score, speed = variant.score, variant.speed
    if score is None or speed is None:
        return (variant.name, f"{variant.megabytes:.1f}", *["-"] * (len(HEADER) - 3), "no")
    low, high = speed.usual_gains
    return (
        variant.name,
        f"{variant.megabytes:.1f}",
        *(f"{speed.photos_a_second[way]:.1f}" for way in WAYS),
        f"{speed.gain:.2f} ({low:.2f} to {high:.2f})",
        f"{100 * score.accuracy:.1f} %",
        f"{100 * score.agreement:.1f} %",
        f"{score.largest_difference:.2g}",
        "yes" if variant.passes else "no",
    )


def _line(row: Row, widths: Sequence[int]) -> str:
    first, *others = row
    cells = (f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))
    return "  ".join((f"{first:<{widths[0]}}", *cells))
