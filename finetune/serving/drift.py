"""Does what a server sees still look like what its model was judged on?

The right answers that travel in a bundle, to validation and test photos, are the reference; the last thousands of
answers are compared with it by their classes and by how sure they are. Labels are not needed for that, so it says that
photos are others than those that the accuracy was measured on, not that answers are wrong.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from threading import Lock
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# After so many photos one counts half. The window's weight is that of 2,900 photos (2 / ln 2 half-lives): chance moves
# ten shares of so many by a PSI of 0.003 only, and some hundred photos of another kind still show among them.
HALF_LIFE_PHOTOS = 1000
# The usual word for "another population": Siddiqi, Credit Risk Scorecards, 2006.
ALERT_PSI = 0.25
# Of the normal distribution, 99.9 %.
CHANCE_QUANTILE = 3.0902
# Before, a single client's burst would be the whole window. With it, 0.5 % at most of simulated streams of 4,000 photos
# of the reference's own population ever raised one alert, looked at 160 times.
LEAST_PHOTOS = 100
# Added to each count, so that a class that was never seen does not make the index infinite.
SMOOTHING = 0.5
CONFIDENCE_BINS = 10
# Classes of fewer reference photos are counted together: a chi-squared distribution wants about five in each group.
RARE_PHOTOS = 5
GROWTH = 0.5 ** (-1 / HALF_LIFE_PHOTOS)
LARGEST_WEIGHT = 1e100

Counts = NDArray[np.float64]
Probabilities = NDArray[np.float32]


class Shift(NamedTuple):
    """How far two populations' shares lie apart: psi, 0 and up, and what chance exceeds in 0.1 % of cases.

    chance: infinite where too few photos were seen to say.
    """

    psi: float
    chance: float

    @property
    def alert(self) -> bool:
        return self.psi > ALERT_PSI and self.psi > self.chance


class Drift:
    """A window over a model's answers that fades exponentially, in constant memory; safe to use from several threads.

    reference: (photos, classes), None where a bundle has none. has_reference: False where there is nothing to compare
    with; every shift is 0 then.
    """

    def __init__(self, reference: Probabilities | None) -> None:
        usable = reference is not None and reference.ndim == 2 and reference.size and np.isfinite(reference).all()
        table = reference if reference is not None and usable else np.ones((0, 1), np.float32)
        best, confidences = table.argmax(axis=1), table.max(axis=1, initial=0).astype(np.float64)
        self.has_reference = bool(usable)
        self._group = _groups(np.bincount(best, minlength=table.shape[1]))
        self._edges = _edges(confidences)
        self._reference_classes = np.zeros(max(self._group, default=0) + 1)
        self._reference_confidence = np.zeros(len(self._edges) + 1)
        for number, confidence in zip(best.tolist(), confidences.tolist(), strict=True):
            self._reference_classes[self._group[number]] += 1
            self._reference_confidence[bisect_right(self._edges, confidence)] += 1
        self._classes = [0.0] * len(self._reference_classes)
        self._confidence = [0.0] * len(self._reference_confidence)
        # the newest photo's weight, and the sums of all weights and of their squares
        self._weight, self._sum, self._squares = 1.0, 0.0, 0.0
        self._lock = Lock()

    def add(self, classes: Sequence[int], confidences: Sequence[float]) -> None:
        """Take answers into the window, each as the number of its class and that class's probability."""
        if not self.has_reference:
            return
        with self._lock:
            for number, confidence in zip(classes, confidences, strict=True):
                # growing weights are old ones fading, without a pass over all counts for each photo
                self._weight *= GROWTH
                if number < len(self._group):
                    self._classes[self._group[number]] += self._weight
                self._confidence[bisect_right(self._edges, confidence)] += self._weight
                self._sum += self._weight
                self._squares += self._weight * self._weight
                if self._weight > LARGEST_WEIGHT:
                    self._rescale()

    @property
    def photos(self) -> float:
        """How many photos of equal weight say as much as the window does (Kish), 0 to 2,885."""
        with self._lock:
            return self._photos()

    @property
    def of_classes(self) -> Shift:
        """How far the shares of predicted classes are from the reference's."""
        return self._shift(self._classes, self._reference_classes)

    @property
    def of_confidence(self) -> Shift:
        """How far the largest probabilities are from the reference's, by their shares in its deciles."""
        return self._shift(self._confidence, self._reference_confidence)

    def _shift(self, counts: list[float], reference: Counts) -> Shift:
        with self._lock:
            photos, weighed, total = self._photos(), np.array(counts), self._sum
        if not photos:
            return Shift(0.0, math.inf)
        shift = compare(weighed * (photos / total), reference)
        return shift if photos >= LEAST_PHOTOS else Shift(shift.psi, math.inf)

    def _photos(self) -> float:
        return self._sum * self._sum / self._squares if self._squares else 0.0

    def _rescale(self) -> None:
        scale = 1 / self._weight
        self._classes[:] = [count * scale for count in self._classes]
        self._confidence[:] = [count * scale for count in self._confidence]
        self._weight, self._sum, self._squares = 1.0, self._sum * scale, self._squares * scale * scale


def compare(counts: Counts, reference: Counts) -> Shift:
    """Return the population stability index of two tables of counts, which need not be whole numbers.

    Of two samples of one population it is (1/n + 1/m) times a chi-squared with one degree of freedom less than there
    are groups; the quantile is Wilson and Hilferty's. With the smoothing, simulated pairs of 2 to
    1,000 groups exceeded it in 0.18 % of cases at most, and in fewer where groups are small.
    """
    groups = len(reference)
    if groups < 2:
        return Shift(0.0, math.inf)
    now = (counts + SMOOTHING) / (counts.sum() + SMOOTHING * groups)
    then = (reference + SMOOTHING) / (reference.sum() + SMOOTHING * groups)
    psi = float(((now - then) * np.log(now / then)).sum())
    spread = 2 / (9 * (groups - 1))
    quantile = (groups - 1) * (1 - spread + CHANCE_QUANTILE * math.sqrt(spread)) ** 3
    return Shift(psi, (1 / float(counts.sum()) + 1 / float(reference.sum())) * quantile)


def _groups(counts: NDArray[np.int64]) -> list[int]:
    """Return the group of each class: its own, or one that rare classes share in their order."""
    groups: list[int] = []
    shared, inside, last = -1, RARE_PHOTOS, -1
    for count in counts.tolist():
        if count >= RARE_PHOTOS:
            last += 1
            groups.append(last)
            continue
        if inside >= RARE_PHOTOS:
            last += 1
            shared, inside = last, 0
        groups.append(shared)
        inside += count
    # a small reference is better compared roughly than not at all
    return groups if last + 1 >= min(len(groups), CONFIDENCE_BINS) else list(range(len(groups)))


def _edges(confidences: Counts) -> list[float]:
    """Return where ten equally filled bins meet; fewer where many photos have the same confidence, such as 1."""
    if not len(confidences):
        return []
    inner = np.quantile(confidences, np.linspace(0, 1, CONFIDENCE_BINS + 1)[1:-1], method="higher")
    return sorted({float(edge) for edge in inner} - {float(confidences.min())})
