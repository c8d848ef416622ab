"""The picture of a learning-rate search: loss against rate, drawn for screens of twice the density."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from finetune.drawing import INK, PALE, Colour, blank, text_width, write
from finetune.preprocess import Pixels

WIDTH_PX, HEIGHT_PX = 1200, 640
LEFT_PX, TOP_PX, MARGIN_PX, FONT_PX = 110, 70, 40, 24
GRID: Colour = (226, 230, 236)
FAINT: Colour = (183, 205, 250)
CURVE: Colour = (37, 99, 235)
CHOSEN: Colour = (220, 68, 42)
# what a diverging loss shoots up to would press the curve flat
MOST_ABOVE_START = 1.5

Numbers = NDArray[np.float64]


def draw_rate_curve(rates: Numbers, losses: Numbers, smoothed: Numbers, chosen: float | None) -> Pixels:
    """Draw the losses of single steps faintly, the smoothed ones over them, and the chosen rate if there is one."""
    sheet = blank(LEFT_PX + WIDTH_PX + MARGIN_PX, TOP_PX + HEIGHT_PX + 3 * FONT_PX + MARGIN_PX)
    low = float(smoothed.min())
    high = min(float(smoothed.max()), MOST_ABOVE_START * float(smoothed[0]))
    low, high = low - 0.08 * (high - low), high + 0.08 * (high - low)
    first, last = math.log10(rates[0]), math.log10(rates[-1])

    def place(rate: float, loss: float) -> tuple[int, int]:
        across = (math.log10(rate) - first) / (last - first)
        return LEFT_PX + round(WIDTH_PX * across), TOP_PX + round(HEIGHT_PX * (high - loss) / (high - low))

    for exponent in range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1):
        x, bottom = place(10.0**exponent, low)
        cv2.line(sheet, (x, TOP_PX), (x, bottom), GRID, 2)
        _centred(sheet, f"{10.0**exponent:g}", x, bottom + FONT_PX + 8, PALE)
    for loss in np.linspace(low, high, 6):
        x, y = place(float(rates[0]), float(loss))
        cv2.line(sheet, (x, y), (x + WIDTH_PX, y), GRID, 2)
        write(sheet, f"{loss:.3g}", (MARGIN_PX // 2, y + FONT_PX // 3), PALE, FONT_PX)
    # what lies above the sheet's top edge is cut off there, so that it does not run through the heading
    inside = sheet[TOP_PX : TOP_PX + HEIGHT_PX]
    for values, colour, thick_px in ((losses, FAINT, 2), (smoothed, CURVE, 5)):
        points = np.array([place(*point) for point in zip(rates, values, strict=True)], dtype=np.int32)
        cv2.polylines(inside, [points - (0, TOP_PX)], False, colour, thick_px, cv2.LINE_AA)
    write(sheet, "training loss", (LEFT_PX, MARGIN_PX), PALE, FONT_PX)
    if chosen is not None:
        nearest = int(np.abs(np.log(rates / chosen)).argmin())
        x, y = place(chosen, float(smoothed[nearest]))
        cv2.line(sheet, (x, TOP_PX), (x, TOP_PX + HEIGHT_PX), CHOSEN, 2, cv2.LINE_AA)
        cv2.circle(sheet, (x, y), 11, CHOSEN, cv2.FILLED, cv2.LINE_AA)
        _centred(sheet, f"chosen: {chosen:g}", x, MARGIN_PX + FONT_PX - 4, CHOSEN)
    _centred(sheet, "learning rate", LEFT_PX + WIDTH_PX // 2, TOP_PX + HEIGHT_PX + 2 * FONT_PX + 20, INK)
    return sheet


def _centred(sheet: Pixels, text: str, middle: int, baseline: int, colour: Colour) -> None:
    write(sheet, text, (middle - text_width(text, FONT_PX) // 2, baseline), colour, FONT_PX)
