"""Batch norm over the photos of all processes, as if they were one batch."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import convert_sync_batchnorm  # type: ignore[attr-defined]
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from finetune.models.classifier import Classifier


def synchronise(classifier: Classifier, device: torch.device) -> None:
    """Let every batch norm, in place and with its own tensors, see the whole batch while it trains.

    One that is frozen, in eval mode, goes by its running statistics as before.
    """
    if device.type == "cuda":
        convert_sync_batchnorm(classifier)  # type: ignore[no-untyped-call]
        return
    for module in classifier.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = SyncBatchNorm


class SyncBatchNorm(_BatchNorm):
    """Synchronised batch norm in ordinary operations, for a CPU: torch has kernels for GPUs only."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and distributed.is_initialized():
            exact = input.to(torch.promote_types(input.dtype, torch.float32))
            normalised = self._over_all(exact).to(input.dtype)
        else:
            statistics = (self.running_mean, self.running_var, self.weight, self.bias)
            normalised = nn.functional.batch_norm(input, *statistics, training=self.training, eps=self.eps)
        # timm puts the activation into its batch norms
        for name in ("drop", "act"):
            normalised = getattr(self, name, nn.Identity())(normalised)
        return normalised

    def _over_all(self, photos: Tensor) -> Tensor:
        over = [0, *range(2, photos.ndim)]
        shape = [1, -1] + [1] * (photos.ndim - 2)
        count = photos.new_tensor(photos.numel() / photos.shape[1])
        distributed.all_reduce(count)
        mean = Total.apply(photos.sum(over)) / count
        centred = photos - mean.view(shape)
        variance = Total.apply(centred.square().sum(over)) / count
        # as of a sample of the population
        self._follow(mean.detach(), variance.detach() * count / (count - 1))
        normalised: Tensor = centred * torch.rsqrt(variance + self.eps).view(shape)
        return normalised * self.weight.view(shape) + self.bias.view(shape) if self.affine else normalised

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class Total(torch.autograd.Function):
    """The sum over all processes, whose gradient is summed over them too."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return Total.apply(gradients[0])
