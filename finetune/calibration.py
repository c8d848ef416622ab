"""Whether probabilities mean what they say: of photos answered with 80 %, are 80 % right?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

BINS = 15


class Bin(NamedTuple):
    """The photos whose answer's probability lies from `low` to `high`: its mean, and the share that was right."""

    low: float
    high: float
    photos: int
    confidence: float
    accuracy: float


class BeforeAfter(BaseModel):
    """The expected calibration error of a split's photos without and with the temperature, as a fraction of 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    before: float
    after: float


class Calibration(BaseModel):
    """What the temperature is worth. val: the photos that it was fitted on; test: None where there are none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float
    bins: int = BINS
    val: BeforeAfter
    test: BeforeAfter | None


def reliability(probabilities: NDArray[np.float32], targets: Sequence[int]) -> tuple[Bin, ...]:
    """Sort photos into equal bins by the probability of their answer; bins without photos are left out.

    probabilities: (N, classes). A probability of exactly 1, of which float32 has many, belongs to the last bin;
    torchmetrics gives it one of its own.
    """
    confidences = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == np.asarray(targets)
    edges = np.linspace(0, 1, BINS + 1)
    numbers = np.clip(np.digitize(confidences, edges) - 1, 0, BINS - 1)
    return tuple(
        Bin(
            float(edges[k]),
            float(edges[k + 1]),
            int(own.sum()),
            float(confidences[own].mean()),
            float(right[own].mean()),
        )
        for k in range(BINS)
        if (own := numbers == k).any()
    )


def calibration_error(probabilities: NDArray[np.float32], targets: Sequence[int]) -> float:
    """Return how far the bins' stated and true shares lie apart, each bin by its photos (Naeini et al. 2015)."""
    return expected_error(reliability(probabilities, targets))


def expected_error(bins: Sequence[Bin]) -> float:
    """Return the mean distance of what the photos of `bins` state from what came true."""
    return sum(one.photos * abs(one.accuracy - one.confidence) for one in bins) / sum(one.photos for one in bins)


def before_and_after(logits: NDArray[np.float32], targets: Sequence[int], temperature: float) -> BeforeAfter:
    """logits: (N, classes), as the network gives them."""
    return BeforeAfter(
        before=calibration_error(_softmax(logits), targets),
        after=calibration_error(_softmax(logits / np.float32(temperature)), targets),
    )


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float32] = powers / powers.sum(axis=1, keepdims=True)
    return shares
