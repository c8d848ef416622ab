from __future__ import annotations

import numpy as np
import pytest

from finetune.calibration import Bin
from finetune.drawing import PAPER
from finetune.evaluation.pictures import draw_confusion, draw_reliability


def names(classes: int) -> list[str]:
    return [f"class {number}" for number in range(classes)]


def coloured(picture: np.ndarray, hue: str) -> int:
    """Return how many px are clearly blue or clearly red."""
    red, blue = picture[..., 0].astype(int), picture[..., 2].astype(int)
    return int(((blue - red if hue == "blue" else red - blue) > 40).sum())


@pytest.mark.parametrize("classes", [2, 3, 10, 100, 1000])
def test_a_matrix_of_any_number_of_classes_fits_a_screen_and_shows_its_diagonal(classes: int) -> None:
    picture = draw_confusion(np.eye(classes, dtype=np.int64) * 7, names(classes))
    assert picture.dtype == np.uint8
    assert max(picture.shape) < 3600
    cell = min(128, max(3, 1600 // classes))
    assert coloured(picture, "blue") > 0.4 * classes * (cell - 1) ** 2
    assert coloured(picture, "red") == 0


def test_a_single_mistake_among_hundreds_shows_in_red() -> None:
    confusion = np.eye(3, dtype=np.int64) * 300
    confusion[2, 0] = 3
    assert coloured(draw_confusion(confusion, names(3)), "red") == 0
    confusion[2, 0] = 60
    assert coloured(draw_confusion(confusion, names(3)), "red") > 10_000


def test_numbers_and_names_are_written_and_long_names_are_cut() -> None:
    one = draw_confusion(np.full((2, 2), 1), ["cat", "dog"])
    assert not np.array_equal(one, draw_confusion(np.full((2, 2), 2), ["cat", "dog"]))
    assert not np.array_equal(one, draw_confusion(np.full((2, 2), 1), ["cat", "cow"]))
    long = draw_confusion(np.full((2, 2), 1), ["cat" * 100, "dog"])
    assert long.shape[1] < 1200
    # a row that no photo shows, and letters of other scripts
    draw_confusion(np.array([[0, 0], [1, 2]]), ["布料", "ткань"])


def test_a_bar_is_as_high_as_its_share_and_the_counts_below_are_compared_with_the_most() -> None:
    half, all_ = (draw_reliability([Bin(14 / 15, 1.0, 400, 0.97, share)]) for share in (0.5, 1.0))
    assert coloured(all_, "blue") == pytest.approx(2 * coloured(half, "blue"), rel=0.1)
    few = draw_reliability([Bin(0.6, 2 / 3, 1, 0.65, 1.0), Bin(14 / 15, 1.0, 400, 0.97, 0.5)])
    assert few.shape == half.shape
    assert not np.array_equal(few, half)
    assert (few[0] == PAPER).all()
