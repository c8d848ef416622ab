"""The loss that training minimises: cross-entropy, class-weighted or focal."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class ClassificationLoss(nn.Module):
    """-sum_c target_c * weight_c * (1 - p_c)^gamma * log p_c, the mean over photos (Lin et al. 2017, section 3).

    weights: (classes,) or None for 1 each; gamma: 0 is cross-entropy; smoothing: the share of each target that is
    spread evenly over all classes (Szegedy et al. 2016, section 7). It is the mean over a batch's photos and not over
    their weights, so that a photo counts the same in whichever batch it comes.
    """

    weights: Tensor | None

    def __init__(self, weights: Tensor | None = None, gamma: float = 0.0, smoothing: float = 0.0) -> None:
        super().__init__()
        # they follow from the photos, so a checkpoint need not hold them
        self.register_buffer("weights", weights, persistent=False)
        self.gamma, self.smoothing = gamma, smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """logits: (N, classes); targets: (N,) class numbers, or (N, classes) shares that sum to 1."""
        if self.smoothing > 0:
            shares = targets if targets.ndim == 2 else functional.one_hot(targets, logits.shape[1])
            targets = (1 - self.smoothing) * shares + self.smoothing / logits.shape[1]
        if self.gamma == 0:
            return functional.cross_entropy(logits, targets, weight=self.weights, reduction="none").mean()
        log_p = functional.log_softmax(logits, dim=1)
        shares = targets if targets.ndim == 2 else functional.one_hot(targets, logits.shape[1])
        # at p = 1 the slope of a power below 1 would be infinite
        wrong = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).eps)
        losses = -shares * wrong**self.gamma * log_p
        return (losses if self.weights is None else losses * self.weights).sum(dim=1).mean()


def class_weights(targets: Tensor, classes: int) -> Tensor:
    """Return weights (classes,) with which each class present counts the same and the mean photo counts 1.

    targets: (N,) class numbers; a class without photos gets 0.
    """
    counts = torch.bincount(targets, minlength=classes)
    present = int((counts > 0).sum())
    return torch.where(counts > 0, len(targets) / (present * counts.clamp_min(1)), 0.0)
