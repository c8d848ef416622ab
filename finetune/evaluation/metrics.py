"""How well probabilities agree with labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.calibration import Bin, expected_error, reliability
from finetune.data.manifest import Photo

TOP_K = (1, 5)


class Proportion(NamedTuple):
    """A share, and the bounds within which the true one lies, 95 times in 100."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ClassScores:
    """photos: how many show the class; answered: how many were said to. A share of no photos is None."""

    label: str
    photos: int
    answered: int
    precision: Proportion | None
    recall: Proportion | None
    f1: float | None


class Macro(NamedTuple):
    """Means over the classes that the photos show, each counting the same; a class never answered has precision 0."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Scores:
    """Measured on one set of photos.

    top: by k, the share of photos whose class is among the k most probable; balanced: the mean recall of the classes
    that these photos show; log_loss: in nats; confusion[true][answered] counts photos; bins: see `reliability`.
    """

    photos: tuple[Photo, ...]
    targets: tuple[int, ...]
    classes: tuple[str, ...]
    probabilities: NDArray[np.float32]
    top: dict[int, Proportion]
    balanced: Proportion
    macro: Macro
    log_loss: float
    bins: tuple[Bin, ...]
    by_class: tuple[ClassScores, ...]
    confusion: NDArray[np.int64]

    @property
    def answers(self) -> NDArray[np.intp]:
        """The most probable class number of each photo."""
        numbers: NDArray[np.intp] = self.probabilities.argmax(axis=1)
        return numbers

    @property
    def accuracy(self) -> float:
        return self.top[1].value

    @property
    def balanced_accuracy(self) -> float:
        return self.balanced.value

    @property
    def calibration_error(self) -> float:
        return expected_error(self.bins)

    @property
    def shown(self) -> list[ClassScores]:
        """The classes that at least one photo shows."""
        return [row for row in self.by_class if row.photos]


def measure(
    probabilities: NDArray[np.float32],
    targets: Sequence[int],
    classes: Sequence[str],
    photos: Sequence[Photo],
    top_k: Sequence[int] = TOP_K,
) -> Scores:
    """probabilities: (N, classes), rows in the order of targets and photos; a k of all classes or more is left out."""
    wanted = np.asarray(targets)
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion, (wanted, probabilities.argmax(axis=1)), 1)
    by_class = tuple(_of_class(label, number, confusion) for number, label in enumerate(classes))
    shown = [row for row in by_class if row.photos]
    recalls = [row.recall for row in shown if row.recall]
    return Scores(
        photos=tuple(photos),
        targets=tuple(targets),
        classes=tuple(classes),
        probabilities=probabilities,
        top=_top(probabilities, wanted, top_k),
        balanced=mean_of(recalls),
        macro=Macro(
            precision=_mean([row.precision.value if row.precision else 0.0 for row in shown]),
            recall=_mean([recall.value for recall in recalls]),
            f1=_mean([row.f1 or 0.0 for row in shown]),
        ),
        log_loss=_log_loss(probabilities, wanted),
        bins=reliability(probabilities, targets),
        by_class=by_class,
        confusion=confusion,
    )


def _of_class(label: str, number: int, confusion: NDArray[np.int64]) -> ClassScores:
    right, photos, answered = (
        int(count) for count in (confusion[number, number], confusion[number].sum(), confusion[:, number].sum())
    )
    return ClassScores(
        label=label,
        photos=photos,
        answered=answered,
        precision=wilson(right, answered) if answered else None,
        recall=wilson(right, photos) if photos else None,
        f1=2 * right / (photos + answered) if photos else None,
    )


def _top(probabilities: NDArray[np.float32], targets: NDArray[np.intp], top_k: Sequence[int]) -> dict[int, Proportion]:
    # the place of each photo's class; of equal probabilities the first comes first, as in argmax and in the server
    of_true = probabilities[np.arange(len(targets)), targets][:, None]
    before = np.arange(probabilities.shape[1]) < targets[:, None]
    places = (probabilities > of_true).sum(axis=1) + ((probabilities == of_true) & before).sum(axis=1)
    return {
        k: wilson(int((places < k).sum()), len(targets))
        for k in sorted({1, *top_k})
        if k == 1 or k < probabilities.shape[1]
    }


def _log_loss(probabilities: NDArray[np.float32], targets: NDArray[np.intp]) -> float:
    """Return the mean of -log p of the true classes; p counts as float32's epsilon at least, as in scikit-learn."""
    of_true = probabilities[np.arange(len(targets)), targets].astype(np.float64)
    return float(-np.log(of_true.clip(np.finfo(np.float32).eps, 1)).mean())


def balanced_accuracy(answers: Tensor, targets: Tensor) -> float:
    """Return the mean recall of the classes among `targets`; answers and targets: (N,) class numbers."""
    photos = torch.bincount(targets)
    right = torch.bincount(targets[answers == targets], minlength=len(photos))
    return (right[photos > 0] / photos[photos > 0]).double().mean().item()


def wilson(correct: int, total: int, z: float = 1.96) -> Proportion:
    """Return a share with its bounds (Wilson 1927)."""
    share = correct / total
    middle = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return Proportion(share, max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale))


def mean_of(shares: Sequence[Proportion]) -> Proportion:
    """Return the mean of independent shares, its bounds made of theirs (Zou, Huang and Zhang 2009)."""
    value = _mean([share.value for share in shares])
    below = math.hypot(*(share.value - share.low for share in shares)) / len(shares)
    above = math.hypot(*(share.high - share.value for share in shares)) / len(shares)
    return Proportion(value, max(0.0, value - below), min(1.0, value + above))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
