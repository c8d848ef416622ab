from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_calibration_error

from finetune.calibration import BINS, before_and_after, calibration_error, reliability


def drawn(seed: int, photos: int = 300, classes: int = 4) -> tuple[np.ndarray, list[int]]:
    """Return logits and targets that are drawn from their softmax: a model that is exactly as sure as it is right."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (photos, classes)).astype(np.float32)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return logits, [int(generator.choice(classes, p=row / row.sum())) for row in shares.astype(np.float64)]


@given(seed=st.integers(0, 1000), photos=st.integers(1, 60))
def test_the_error_is_that_of_torchmetrics_where_no_probability_is_one(seed: int, photos: int) -> None:
    logits, targets = drawn(seed, photos)
    probabilities = torch.softmax(torch.from_numpy(logits), 1)
    wanted = multiclass_calibration_error(probabilities, torch.tensor(targets), 4, n_bins=BINS).item()
    assert calibration_error(probabilities.numpy(), targets) == pytest.approx(wanted, abs=1e-5)


def test_probabilities_of_exactly_one_share_the_last_bin() -> None:
    probabilities = np.array([[1, 0], [1, 0], [0.95, 0.05], [0.05, 0.95]], dtype=np.float32)
    (last,) = reliability(probabilities, [0, 1, 1, 1])
    assert (last.photos, last.accuracy) == (4, 0.5)
    assert last.confidence == pytest.approx((1 + 1 + 0.95 + 0.95) / 4)
    assert (last.low, last.high) == (pytest.approx(14 / 15), 1.0)


def test_bins_hold_every_photo_and_only_those_with_photos_are_listed() -> None:
    logits, targets = drawn(0)
    probabilities = torch.softmax(torch.from_numpy(logits), 1).numpy()
    bins = reliability(probabilities, targets)
    assert sum(one.photos for one in bins) == len(targets)
    assert all(one.photos and one.low <= one.confidence <= one.high for one in bins)
    # an answer has at least the share of a coin with four sides
    assert bins[0].low >= 0.2


def test_the_right_temperature_undoes_what_made_a_model_too_sure() -> None:
    logits, targets = drawn(1, photos=3000)
    measured = before_and_after(4 * logits, targets, temperature=4.0)
    assert measured.before > 0.1
    assert measured.after < 0.03
    unchanged = before_and_after(logits, targets, temperature=1.0)
    assert unchanged.before == unchanged.after == pytest.approx(measured.after, abs=1e-6)
