"""Precisions side by side, as a table to read."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.export.variants import BATCH_SIZES, FP32, Variant

HEADER = (
    "precision",
    "MB",
    *(f"photos/s at {size}" for size in BATCH_SIZES),
    "speed",
    "accuracy",
    "agrees",
    "difference",
    "passes",
)
Row = Sequence[str]


def variant_table(variants: Sequence[Variant]) -> str:
    """Return a line a variant, then a line for each that does not pass with the reason.

    speed: in multiples of fp32's; accuracy, and agreement with fp32's answers, in percent of the judging photos;
    difference: the largest of one probability from fp32's.
    """
    exact = next(variant for variant in variants if variant.name == FP32)
    rows: list[Row] = [HEADER, *(_row(variant, exact) for variant in variants)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    reasons = [f"{variant.name} {variant.reason}" for variant in variants if variant.reason]
    return "\n".join([*(_line(row, widths) for row in rows), *reasons])


def _row(variant: Variant, exact: Variant) -> Row:
    score, speeds = variant.score, variant.photos_a_second
    if score is None or speeds is None:
        return (variant.name, f"{variant.megabytes:.1f}", *["-"] * (len(HEADER) - 3), "no")
    return (
        variant.name,
        f"{variant.megabytes:.1f}",
        *(f"{speeds[size]:.1f}" for size in BATCH_SIZES),
        f"{exact.seconds_a_photo / variant.seconds_a_photo:.2f}",
        f"{100 * score.accuracy:.1f} %",
        f"{100 * score.agreement:.1f} %",
        f"{score.largest_difference:.2g}",
        "yes" if variant.passes else "no",
    )


def _line(row: Row, widths: Sequence[int]) -> str:
    first, *others = row
    cells = (f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))
    return "  ".join((f"{first:<{widths[0]}}", *cells))
