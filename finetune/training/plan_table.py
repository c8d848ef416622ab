"""What trains from when and how fast, as a table to read before training."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from finetune.models.freezing import FreezingPlan, PlannedGroup

HEADER = ("depth", "modules", "parameters", "trains from", "learning rate")
ALIGNED = "<<>>>"
Numbered = tuple[int, PlannedGroup]


def describe_plan(plan: FreezingPlan, learning_rate: float) -> str:
    """Return a line for each depth from the stem to the head; neighbours that are treated alike share one."""
    rows: list[Sequence[str]] = [HEADER]
    for _, alike in groupby(enumerate(plan.groups), _treatment):
        rows.append(_row(list(alike), learning_rate))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    return "\n".join(_line(row, widths) for row in rows)


def _treatment(numbered: Numbered) -> tuple[int | None, float, bool]:
    _, group = numbered
    # what is frozen learns at no rate
    rate = 0.0 if group.from_epoch is None else group.rate
    return group.from_epoch, rate, group.modules == "head"


def _row(members: Sequence[Numbered], learning_rate: float) -> tuple[str, ...]:
    (first, bottom), (last, top) = members[0], members[-1]
    frozen = bottom.from_epoch is None
    return (
        str(first) if first == last else f"{first}-{last}",
        bottom.modules if first == last else f"{bottom.modules} ... {top.modules}",
        f"{sum(group.parameters for _, group in members):,}",
        "frozen" if bottom.from_epoch is None else f"epoch {bottom.from_epoch + 1}",
        "-" if frozen else f"{learning_rate * bottom.rate:.2g}",
    )


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [f"{cell:{side}{width}}" for cell, side, width in zip(row, ALIGNED, widths, strict=True)]
    return "  ".join(cells)
