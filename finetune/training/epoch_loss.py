"""The mean training loss of an epoch."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


class EpochLoss:
    """A mean over the photos of an epoch so far, those of all processes.

    sums: (2,), of this process's losses and photos; `total` is all of the state, which one process has to go on from.
    """

    def __init__(self) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64)

    def add(self, loss: Tensor, photos: int) -> None:
        """loss: the mean over that many photos. Nothing waits for a GPU here."""
        of_batch = torch.stack([photos * loss.detach().double(), torch.full_like(loss, photos, dtype=torch.float64)])
        self.sums = self.sums.to(loss.device) + of_batch

    def restart(self) -> None:
        self.sums = torch.zeros_like(self.sums)

    def total(self, device: torch.device) -> Tensor:
        """device: where processes can add up."""
        total = self.sums.to(device, copy=True)
        if distributed.is_initialized():
            distributed.all_reduce(total)
        return total

    def mean(self, device: torch.device) -> Tensor:
        total = self.total(device)
        return (total[0] / total[1]).float()
