"""Photos in batches of pixels, for calibrating and judging a graph; never all in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
from onnxruntime.quantization import CalibrationDataReader

from finetune.bundle import INPUT
from finetune.parallel import ordered_map
from finetune.preprocess import Pixels, Preprocessing, Readable, load_pixels

BATCH_SIZE = 8


def pixel_batches(files: Sequence[Readable], preprocessing: Preprocessing) -> Iterator[Pixels]:
    """Yield (N, image_size, image_size, 3) uint8, N = BATCH_SIZE but for the last; raises ImageError for a bad file."""
    pixels = ordered_map(lambda file: load_pixels(file, preprocessing), files)
    while batch := list(islice(pixels, BATCH_SIZE)):
        yield np.stack(batch)


class PhotoReader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Batches of photos, (N, H, W, 3) uint8, as onnxruntime's calibration asks for them."""

    def __init__(self, batches: Iterable[Pixels]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, Pixels] | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch}
