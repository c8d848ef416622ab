from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finetune.errors import ImageError
from finetune.export.photos import BATCH_SIZE, PhotoReader, pixel_batches
from finetune.preprocess import Preprocessing, load_pixels
from tests.export.graphs import noise

SMALL = Preprocessing(image_size=16, fit="squash")


def test_photos_come_in_order_in_batches_of_the_models_size(photos: Path) -> None:
    files = sorted(photos.rglob("*.jpg"))[: BATCH_SIZE + 3]
    batches = list(pixel_batches(files, SMALL))
    assert [batch.shape for batch in batches] == [(BATCH_SIZE, 16, 16, 3), (3, 16, 16, 3)]
    for pixels, file in zip(np.concatenate(batches), files, strict=True):
        np.testing.assert_array_equal(pixels, load_pixels(file, SMALL))


def test_an_unreadable_photo_is_named(photos: Path) -> None:
    file = photos / "red" / "0.jpg"
    file.write_bytes(b"no photo")
    with pytest.raises(ImageError, match=f"^{file}: not an image"):
        list(pixel_batches([file], SMALL))


def test_calibration_reads_to_the_end() -> None:
    reader = PhotoReader([noise(2), noise(1)])
    assert [len(batch["images"]) for batch in reader] == [2, 1]
    assert reader.get_next() is None
