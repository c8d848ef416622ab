"""Text on pictures: class names in any script, in OpenCV's own font."""

from __future__ import annotations

import cv2
import numpy as np

from finetune.preprocess import Pixels

Colour = tuple[int, int, int]

INK: Colour = (28, 28, 28)
PALE: Colour = (118, 118, 118)
PAPER: Colour = (255, 255, 255)
# OpenCV's own font has letters of all scripts, where Pillow's has those of English
FONT, FONT_WEIGHT = "sans", 420


def blank(width_px: int, height_px: int) -> Pixels:
    """Return a sheet of paper."""
    return np.full((height_px, width_px, 3), PAPER, dtype=np.uint8)


def write(sheet: Pixels, text: str, left_baseline: tuple[int, int], colour: Colour, font_px: int) -> None:
    """Write one line onto the sheet."""
    cv2.putText(sheet, text, left_baseline, colour, cv2.FontFace(FONT), font_px, FONT_WEIGHT)


def text_width(text: str, font_px: int) -> int:
    """Return the px that a line takes."""
    left, _, width, _ = cv2.getTextSize((0, 0), text, (0, 0), cv2.FontFace(FONT), font_px, FONT_WEIGHT)
    return int(left + width)


def shortened(text: str, most_px: int, font_px: int) -> str:
    """Return the text, or as much of it as `most_px` have room for, and dots."""
    kept = text
    while kept and text_width(kept if kept == text else f"{kept}...", font_px) > most_px:
        kept = kept[:-1]
    return kept if kept == text else f"{kept}..."
