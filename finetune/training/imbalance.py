"""What is done about classes with many more photos than others, and why.

With a method, candidates are judged as they are trained, every class counting the same: by balanced accuracy, then by a
validation loss with class weights. Plain figures would choose what answers the common class most often, which is what
was to be avoided. Without one they are judged by plain figures.

The temperature is fitted on the validation photos as they come, for every method: it makes probabilities as true as one
number can in the folder's own proportions, and never changes an answer. Correcting them for the class frequencies would
take back the very answers that the method was for, and measured it makes them no truer (`docs/figures.md`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from finetune.config import ImbalanceConfig
from finetune.data.sampling import Sampling
from finetune.evaluation.metrics import balanced_accuracy
from finetune.models.freezing import Depth
from finetune.training.loss import ClassificationLoss, class_weights

Method = Literal["none", "class_weights", "balanced_sampler", "focal"]


@dataclass(frozen=True)
class Judgement:
    """How logits do on validation photos; the larger rank is the better candidate.

    not_finite: the numbers of the photos whose logits are no numbers.
    """

    accuracy: float
    balanced_accuracy: float
    loss: float
    rank: tuple[float, float]
    not_finite: tuple[int, ...] = ()


@dataclass(frozen=True)
class Handling:
    """The method, why, and what it comes to: class weights in the loss, the focal exponent, the order of photos."""

    method: Method
    reason: str
    weighted: bool
    focal_gamma: float
    sampling: Sampling

    def training_loss(self, targets: Sequence[int], classes: int, smoothing: float = 0.0) -> ClassificationLoss:
        """targets: the class number of each photo to be trained on."""
        weights = class_weights(torch.tensor(targets), classes) if self.weighted else None
        return ClassificationLoss(weights, self.focal_gamma, smoothing)

    def judge(self, logits: Tensor, targets: Tensor) -> Judgement:
        """logits: (N, classes) of validation photos, targets: (N,)."""
        answers = logits.argmax(1)
        accuracy, balanced = (answers == targets).double().mean().item(), balanced_accuracy(answers, targets)
        weights = None if self.plain else class_weights(targets, logits.shape[1])
        loss = ClassificationLoss(weights)(logits, targets).item()
        rank = (accuracy if self.plain else balanced, -loss)
        return Judgement(accuracy, balanced, loss, rank, tuple((~logits.isfinite().all(1)).nonzero()[:, 0].tolist()))

    @property
    def plain(self) -> bool:
        """Whether candidates are judged by figures in which every photo, not every class, counts the same."""
        return self.method == "none"

    def photo_weights(self, targets: Tensor) -> Tensor:
        """Return (N,): how much each photo counts in the accuracy that is judged by."""
        if self.plain:
            return torch.ones(len(targets))
        return 1 / torch.bincount(targets)[targets]


def choose_handling(config: ImbalanceConfig, depth: Depth, labels: Sequence[str]) -> Handling:
    """Return what to do about the classes of the training photos, of which `labels` has one each."""
    counts = Counter(labels)
    ratio = max(counts.values()) / min(counts.values())
    method, reason = config.method, f"as configured; {_in_words(counts)}"
    if method == "auto":
        method, reason = "none", f"auto: {_in_words(counts)}; classes are weighted from {config.auto_ratio:g} times on"
        if ratio >= config.auto_ratio:
            method, reason = "class_weights", f"auto: {_in_words(counts)}"
    replaced = method == "balanced_sampler" and depth == "head"
    if replaced:
        reason += "; a head is fitted to all photos at once, so class weights stand in for what is drawn on average"
    return Handling(
        method=method,
        reason=reason,
        weighted=method == "class_weights" or replaced,
        focal_gamma=config.focal_gamma if method == "focal" else 0.0,
        sampling="balanced" if method == "balanced_sampler" else "shuffled",
    )


def _in_words(counts: Counter[str]) -> str:
    (largest, most), *_, (smallest, least) = counts.most_common()
    if most == least:
        return f"every class has {most} training photo{'s' if most > 1 else ''}"
    return (
        f"the largest class, '{largest}', has {most / least:.1f} times the training photos of the smallest, "
        f"'{smallest}': {most} to {least}"
    )
