"""How well probabilities agree with labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from finetune.data.manifest import Photo


@dataclass(frozen=True)
class ClassScores:
    label: str
    photos: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Scores:
    """Measured on one set of photos. confusion[true][answered] counts photos; interval: 95 % bounds of the accuracy.

    balanced_accuracy: the mean recall of the classes that these photos show.
    """

    photos: tuple[Photo, ...]
    targets: tuple[int, ...]
    probabilities: NDArray[np.float32]
    accuracy: float
    balanced_accuracy: float
    interval: tuple[float, float]
    calibration_error: float
    by_class: tuple[ClassScores, ...]
    confusion: tuple[tuple[int, ...], ...]

    @property
    def answers(self) -> NDArray[np.intp]:
        """The most probable class number of each photo."""
        numbers: NDArray[np.intp] = self.probabilities.argmax(axis=1)
        return numbers


def measure(
    probabilities: NDArray[np.float32], targets: Sequence[int], classes: Sequence[str], photos: Sequence[Photo]
) -> Scores:
    """probabilities: (N, classes), rows in the order of targets and photos."""
    given, wanted = torch.from_numpy(probabilities), torch.tensor(targets)
    number = len(classes)
    answers = given.argmax(1)
    correct = int((answers == wanted).sum())
    confusion = multiclass_confusion_matrix(given, wanted, number)
    each = [
        metric(given, wanted, number, average="none").tolist()
        for metric in (multiclass_precision, multiclass_recall, multiclass_f1_score)
    ]
    counts = confusion.sum(1).tolist()
    return Scores(
        photos=tuple(photos),
        targets=tuple(targets),
        probabilities=probabilities,
        accuracy=correct / len(targets),
        balanced_accuracy=balanced_accuracy(answers, wanted),
        interval=wilson_interval(correct, len(targets)),
        calibration_error=multiclass_calibration_error(given, wanted, number).item(),
        by_class=tuple(ClassScores(*row) for row in zip(classes, counts, *each, strict=True)),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
    )


def balanced_accuracy(answers: Tensor, targets: Tensor) -> float:
    """Return the mean recall of the classes among `targets`; answers and targets: (N,) class numbers."""
    photos = torch.bincount(targets)
    right = torch.bincount(targets[answers == targets], minlength=len(photos))
    return (right[photos > 0] / photos[photos > 0]).double().mean().item()


def wilson_interval(correct: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Return the bounds within which the true accuracy lies, 95 times in 100 (Wilson 1927)."""
    share = correct / total
    middle = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return (max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale))
