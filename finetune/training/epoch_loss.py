"""The mean training loss of an epoch."""

from __future__ import annotations

import torch
from torch import Tensor


class EpochLoss:
    """A mean over the photos of an epoch so far; `sums` (2,) is all of its state: of the losses, and of the photos."""

    def __init__(self) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64)

    def add(self, loss: Tensor, photos: int) -> None:
        """loss: the mean over that many photos. Nothing waits for a GPU here."""
        of_batch = torch.stack([photos * loss.detach().double(), torch.full_like(loss, photos, dtype=torch.float64)])
        self.sums = self.sums.to(loss.device) + of_batch

    def restart(self) -> None:
        self.sums = torch.zeros_like(self.sums)

    def mean(self) -> Tensor:
        return (self.sums[0] / self.sums[1]).float()
