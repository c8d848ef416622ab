"""Moving average of the weights while they train (Polyak and Juditsky 1992), as Lightning's callback keeps it."""

from __future__ import annotations

import math
from functools import partial

import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor

# Karras et al.'s warm-up as timm's ModelEmaV3 has it: 0.37 after one update, 0.9 after 31, 0.999 after 31,622
WARMUP_POWER = 2 / 3


class MovingAverage(WeightAveraging):
    """Exponential moving average of all weights and batch-norm statistics, after every step.

    Validation sees it, and it is a checkpoint's `state_dict`; the weights that train on stand beside it there. The
    decay is warmed up, or a short run would end with the weights it began with. Lightning's own EMAWeightAveraging has
    no such warm-up, and its formula changes frozen weights by rounding: a x w + (1 - a) x w is not w.
    """

    def __init__(self, decay: float, device: torch.device) -> None:
        """decay: share that each step leaves, in the long run; device: where the average is kept."""
        super().__init__(device=device, multi_avg_fn=partial(_move, decay))


def decay_at(decay: float, updates: int) -> float:
    """Return which share of the average the next update leaves, after so many."""
    return min(decay, 1 - math.pow(1 + updates, -WARMUP_POWER))


@torch.no_grad()
def _move(decay: float, averages: list[Tensor], current: list[Tensor], updates: Tensor | int) -> None:
    """Bring tensors of one kind on one device up to date; all at once, as each would ask a GPU for `updates` again."""
    if averages[0].is_floating_point():
        # between two equal numbers this gives that number, bit for bit
        torch._foreach_lerp_(averages, current, 1 - decay_at(decay, int(updates)))
    else:
        # a count of batches has no mean
        torch._foreach_copy_(averages, current)
