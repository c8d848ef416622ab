"""The heads that can be fitted to kept features: one linear layer, or hidden layers too."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from finetune.config import TrainConfig
from finetune.models.head import Head
from finetune.training.deep_head import WEIGHT_DECAY, DeepFit, fit_deep_head, refit_deep_head
from finetune.training.features import Features
from finetune.training.imbalance import Judgement
from finetune.training.loss import ClassificationLoss
from finetune.training.probe import LinearFit, fit_linear

HeadFit = LinearFit | DeepFit


def fit_heads(
    config: TrainConfig,
    features: Features,
    targets: Sequence[int],
    classes: int,
    loss: ClassificationLoss,
    judge: Callable[[Tensor], Judgement],
    held_out: Features,
) -> list[tuple[float, HeadFit]]:
    """Return heads with the weight of their penalty; judge: from logits of the held-out photos (M, F)."""
    if config.head.hidden:
        deep = fit_deep_head(config.head, features, targets, classes, loss, judge, held_out, config.seed)
        return [(WEIGHT_DECAY, deep)]
    return list(zip(config.probe.l2, fit_linear(features, targets, classes, config.probe.l2, loss), strict=True))


def refit(
    config: TrainConfig,
    fit: HeadFit,
    l2: float,
    features: Features,
    targets: Sequence[int],
    classes: int,
    loss: ClassificationLoss,
) -> HeadFit:
    """Fit the same head again, to more photos."""
    if isinstance(fit, DeepFit):
        return refit_deep_head(config.head, features, targets, classes, loss, fit.epochs, config.seed)
    return fit_linear(features, targets, classes, [l2], loss)[0]


def load_fit(head: Head, fit: HeadFit) -> None:
    """Give a network's head the fitted weights."""
    if isinstance(fit, DeepFit):
        head.load_state_dict(fit.head.state_dict())
        return
    with torch.no_grad():
        head.mean.copy_(fit.mean)
        head.scale.copy_(fit.scale)
        head.linear.weight.copy_(fit.weight)
        head.linear.bias.copy_(fit.bias)
