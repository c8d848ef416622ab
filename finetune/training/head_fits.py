"""The heads that can be fitted to kept features: one linear layer, or hidden layers too."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from finetune.config import TrainConfig
from finetune.models.head import Head
from finetune.training.deep_head import WEIGHT_DECAY, DeepFit, fit_deep_head, refit_deep_head
from finetune.training.features import Features
from finetune.training.imbalance import Handling
from finetune.training.probe import LinearFit, cross_validate, fit_linear

HeadFit = LinearFit | DeepFit


def cross_validated(
    config: TrainConfig,
    features: Features,
    targets: Sequence[int],
    folds: Sequence[int],
    own: int,
    classes: int,
    handling: Handling,
) -> list[tuple[float, Tensor]]:
    """Return each penalty's weight and the logits (M, classes) of the photos with a fold of 0 or more, in their order,
    by heads that learned from the rows of other folds and of -1.

    own: how many of the rows, the first ones, are photos as they are; the others are learned from only. Heads with
    hidden layers are stopped by the photos that they are judged on, which flatters all of them alike.
    """
    if not config.head.hidden:
        loss = handling.training_loss(targets, classes)
        answers = cross_validate(features, targets, folds, classes, config.probe.l2, loss)
        held_out_photos = sum(fold >= 0 for fold in folds[:own])
        return [(l2, answer[:held_out_photos]) for l2, answer in zip(config.probe.l2, answers, strict=True)]
    fold, wanted = np.array(folds), np.array(targets)
    logits = torch.zeros(own, classes)
    for number in np.unique(fold[fold >= 0]):
        learned = fold != number
        held_out = np.flatnonzero(fold[:own] == number)
        known, unknown = wanted[learned].tolist(), wanted[held_out].tolist()
        fit = fit_once(config, WEIGHT_DECAY, features[learned], known, classes, handling, features[held_out], unknown)
        logits[torch.from_numpy(held_out)] = fit.logits(features[held_out])
    return [(WEIGHT_DECAY, logits[torch.from_numpy(fold[:own] >= 0)])]


def fit_once(
    config: TrainConfig,
    l2: float,
    features: Features,
    targets: Sequence[int],
    classes: int,
    handling: Handling,
    held_out: Features,
    held_out_targets: Sequence[int],
) -> HeadFit:
    """Return a head that has not learned from the held-out rows; one with hidden layers is stopped by them."""
    loss = handling.training_loss(targets, classes)
    if not config.head.hidden:
        return fit_linear(features, targets, classes, [l2], loss)[0]
    judge = partial(handling.judge, targets=torch.tensor(held_out_targets))
    return fit_deep_head(config.head, features, targets, classes, loss, judge, held_out, config.seed)


def refit(
    config: TrainConfig,
    fit: HeadFit,
    l2: float,
    features: Features,
    targets: Sequence[int],
    classes: int,
    handling: Handling,
) -> HeadFit:
    """Fit the same head again, to more photos."""
    loss = handling.training_loss(targets, classes)
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
