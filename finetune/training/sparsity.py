"""Weights that are exactly 0: the proximal step of an L1 penalty, and how many there are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def shrink_weights(optimizer: Any, l1: float) -> None:
    """Move the weights that have just made a step by learning rate x l1 towards 0, and no further (soft threshold).

    With plain gradient steps this is ISTA (Beck and Teboulle 2009, section 2.3), which minimises loss + l1 x sum of |w|
    and reaches exact zeros, where a subgradient only hovers about them. Adaptive optimizers step at another rate for
    each weight; all of them shrink by the same one, as by AdamW's decay. Biases and norms are spared.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            # what is frozen has no gradient and stays bit-identical
            if parameter.grad is not None and is_weight(parameter):
                parameter.copy_(nn.functional.softshrink(parameter, group["lr"] * l1))


def is_weight(parameter: Tensor) -> bool:
    """Whether it is a matrix or a kernel, to which penalties apply, and no bias and no scale of a norm."""
    return parameter.ndim > 1


def zero_share(module: nn.Module) -> float:
    """Return which share of the weights that were trained is exactly 0."""
    trained = [weight for weight in module.parameters() if weight.requires_grad and is_weight(weight)]
    return sum(int((weight == 0).sum()) for weight in trained) / sum(weight.numel() for weight in trained)
