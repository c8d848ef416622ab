"""Pictures of the figures: the confusion matrix and the reliability diagram, drawn for screens of twice the density."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from finetune.calibration import Bin
from finetune.drawing import INK, PALE, PAPER, Colour, blank, shortened, text_width, write
from finetune.evaluation.metrics import wilson
from finetune.preprocess import Pixels

MARGIN_PX, GAP_PX = 32, 12
# The matrix is about this large, whatever the number of classes; a cell of ten classes or fewer stays readable.
MATRIX_PX, LEAST_CELL_PX, MOST_CELL_PX = 1600, 3, 128
LEAST_FONT_PX, MOST_FONT_PX = 13, 28
LEAST_NUMBER_PX = 11
MOST_LABEL_PX = 360
LINE_FROM_CELL_PX = 10
LINE, RIGHT, WRONG = (226, 230, 236), (37, 99, 235), (220, 68, 42)
CHART_PX, COUNTS_PX, TICK_PX = 720, 160, 96


def draw_confusion(confusion: NDArray[np.int64], labels: Sequence[str]) -> Pixels:
    """Draw confusion[true][answered]: a row a class, shaded by its share of the row; right answers blue, wrong red."""
    classes = len(labels)
    cell = min(MOST_CELL_PX, max(LEAST_CELL_PX, MATRIX_PX // classes))
    font = min(MOST_FONT_PX, max(LEAST_FONT_PX, round(0.75 * cell)))
    matrix = _matrix(confusion, cell)
    # of very many classes, as many are named as there is room for
    step = -(-round(1.2 * font) // cell)
    names = _names(labels, cell, font, step, "right")
    columns = np.rot90(_names(labels, cell, font, step, "left"))
    heading = font + GAP_PX
    left, top = MARGIN_PX + names.shape[1] + GAP_PX, MARGIN_PX + heading + columns.shape[0] + GAP_PX
    legend = "row: what the photo shows; column: what the model answered; colour: share of the row"
    legend_font = 20
    width = MARGIN_PX + max(left - MARGIN_PX + matrix.shape[1], text_width(legend, legend_font)) + MARGIN_PX
    sheet = blank(width, top + matrix.shape[0] + 2 * GAP_PX + legend_font + MARGIN_PX)
    sheet[top : top + matrix.shape[0], left : left + matrix.shape[1]] = matrix
    sheet[top : top + names.shape[0], MARGIN_PX : MARGIN_PX + names.shape[1]] = names
    sheet[top - GAP_PX - columns.shape[0] : top - GAP_PX, left : left + columns.shape[1]] = columns
    write(sheet, "answered", (left, MARGIN_PX + font), PALE, font)
    write(sheet, legend, (MARGIN_PX, sheet.shape[0] - MARGIN_PX), PALE, legend_font)
    return sheet


def _names(labels: Sequence[str], cell: int, font: int, step: int, flush: Literal["left", "right"]) -> Pixels:
    """Return the headings of rows, one below the other; each `step`-th label has one."""
    shown = {number: shortened(labels[number], MOST_LABEL_PX, font) for number in range(0, len(labels), step)}
    width = max(text_width(label, font) for label in shown.values()) + 4
    strip = blank(width, cell * len(labels) + font)
    for number, label in shown.items():
        baseline = number * cell + (cell + font) // 2 - font // 8
        write(strip, label, (0 if flush == "left" else width - text_width(label, font) - 2, baseline), INK, font)
    return strip[: cell * len(labels)]


def _matrix(confusion: NDArray[np.int64], cell: int) -> Pixels:
    classes = len(confusion)
    shares = confusion / confusion.sum(axis=1, keepdims=True).clip(1)
    # a root, so that a rare mistake still shows
    strength = np.sqrt(shares)[..., None]
    hue = np.where(np.eye(classes, dtype=bool)[..., None], RIGHT, WRONG)
    colours = np.array(PAPER) * (1 - 0.85 * strength) + hue * 0.85 * strength
    picture = colours.round().astype(np.uint8).repeat(cell, axis=0).repeat(cell, axis=1)
    if cell >= LINE_FROM_CELL_PX:
        for number in range(classes):
            picture[number * cell] = picture[:, number * cell] = LINE
    picture = np.ascontiguousarray(np.pad(picture, ((0, 1), (0, 1), (0, 0))))
    picture[-1] = picture[:, -1] = picture[0] = picture[:, 0] = LINE
    font = _number_font(int(confusion.max()), cell)
    if font >= LEAST_NUMBER_PX:
        for row, column in zip(*confusion.nonzero(), strict=True):
            _number(
                picture, int(confusion[row, column]), (column * cell, row * cell), cell, font, strength[row, column]
            )
    return picture


def _number_font(largest: int, cell: int) -> int:
    """Return the size at which the largest number fits its cell."""
    return min(MOST_FONT_PX, round(0.5 * cell), int(20 * 0.8 * cell / text_width(str(largest), 20)))


def _number(
    picture: Pixels, count: int, left_top: tuple[int, int], cell: int, font: int, strength: NDArray[np.float64]
) -> None:
    left, top = left_top
    place = (int(left + (cell - text_width(str(count), font)) // 2), int(top + (cell + font) // 2 - font // 8))
    write(picture, str(count), place, PAPER if strength[0] > 0.75 else INK, font)


def draw_reliability(bins: Sequence[Bin]) -> Pixels:
    """Draw the share that was right against the probability stated, with 95 % bounds; below it, the photos of each."""
    font = 22
    left, top = MARGIN_PX + TICK_PX, MARGIN_PX + font + GAP_PX
    counts_top = top + CHART_PX + 3 * GAP_PX
    bottom = counts_top + COUNTS_PX
    sheet = blank(left + CHART_PX + 2 * MARGIN_PX, bottom + 2 * font + 2 * GAP_PX + MARGIN_PX)
    for tenth in range(0, 11, 2):
        x, y = left + CHART_PX * tenth // 10, top + CHART_PX * (10 - tenth) // 10
        _line(sheet, (left, y), (left + CHART_PX, y), LINE)
        _line(sheet, (x, top), (x, bottom), LINE)
        _write_ended(sheet, f"{10 * tenth} %", (left - GAP_PX, y + font // 3), font)
        write(sheet, f"{10 * tenth} %", (x - text_width(f"{10 * tenth} %", font) // 2, bottom + font + 6), PALE, font)
    most = max(one.photos for one in bins)
    for one in bins:
        _bar(sheet, one, (left, top), counts_top, most)
    _line(sheet, (left, top + CHART_PX), (left + CHART_PX, top), PALE, 2)
    write(sheet, "share that was right", (left, MARGIN_PX + font - 4), PALE, font)
    stated = "probability of the answer"
    write(sheet, stated, (left + CHART_PX - text_width(stated, font), bottom + 2 * font + GAP_PX + 4), PALE, font)
    _write_ended(sheet, "photos", (left - GAP_PX, counts_top + font), font)
    _write_ended(sheet, f"{most:,}", (left - GAP_PX, counts_top + 2 * font + 6), font)
    return sheet


def _bar(sheet: Pixels, one: Bin, left_top: tuple[int, int], counts_top: int, most: int) -> None:
    """Draw a bin: the share as a bar, its bounds as a whisker at the mean probability, its photos below."""
    left, top = left_top
    from_x, to_x = left + round(CHART_PX * one.low) + 3, left + round(CHART_PX * one.high) - 3

    def height(share: float) -> int:
        return top + round(CHART_PX * (1 - share))

    shade = _faded(RIGHT, 0.45)
    cv2.rectangle(sheet, (from_x, height(one.accuracy)), (to_x, top + CHART_PX), shade, cv2.FILLED)
    tall = max(2, round(COUNTS_PX * one.photos / most))
    base = counts_top + COUNTS_PX
    cv2.rectangle(sheet, (from_x, base - tall), (to_x, base), _faded(PALE, 0.6), cv2.FILLED)
    x = left + round(CHART_PX * one.confidence)
    bounds = wilson(round(one.accuracy * one.photos), one.photos)
    _line(sheet, (x, height(bounds.low)), (x, height(bounds.high)), RIGHT, 3)
    cv2.circle(sheet, (x, height(one.accuracy)), 8, RIGHT, cv2.FILLED, cv2.LINE_AA)


def _faded(colour: Colour, strength: float) -> Colour:
    red, green, blue = (round(255 - strength * (255 - level)) for level in colour)
    return red, green, blue


def _line(sheet: Pixels, start: tuple[int, int], end: tuple[int, int], colour: Colour, thick_px: int = 1) -> None:
    cv2.line(sheet, start, end, colour, thick_px, cv2.LINE_AA)


def _write_ended(sheet: Pixels, text: str, right_baseline: tuple[int, int], font: int) -> None:
    right, baseline = right_baseline
    write(sheet, text, (right - text_width(text, font), baseline), PALE, font)
