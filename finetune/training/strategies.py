"""Lightning's strategies for several processes, each with its share of every batch."""

from __future__ import annotations

import copy
from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from finetune.data.sampling import SharedBatches
from finetune.models.freezing import apply_freezing
from finetune.training.module import Batch, FineTuner


class _Shares:
    """The gradient is the mean over all photos of a batch, not over processes: their shares may differ by a pair."""

    batches: SharedBatches

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss: Tensor = super().training_step(batch, batch_idx)  # type: ignore[misc]
        return loss * (len(batch[0]) * self.batches.share.size / self.batches.photos(batch_idx))


class SharedDDP(_Shares, DDPStrategy):
    """A copy of the network in every process, their gradients averaged.

    A copy is wrapped for what trains now, and wrapped anew when that changes: what is frozen is neither waited for nor
    sent around.
    """

    def __init__(self, batches: SharedBatches, **options: Any) -> None:
        super().__init__(**options)
        self.batches = batches

    def configure_ddp(self) -> None:
        self.wrapped_for = self._training()
        super().configure_ddp()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self._training() != self.wrapped_for:
            self.model = self.lightning_module
            self.configure_ddp()

    def _training(self) -> list[str]:
        assert self.lightning_module is not None
        return [name for name, parameter in self.lightning_module.named_parameters() if parameter.requires_grad]


class Sharded(_Shares, ModelParallelStrategy):
    """Parameters, gradients and optimizer state divided among the processes (torch's FSDP, second version)."""

    def __init__(self, batches: SharedBatches) -> None:
        super().__init__(
            data_parallel_size=batches.share.size, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
        self.batches = batches


class ShardedFineTuner(FineTuner):
    """Trains a copy of the classifier, of which each process keeps a part."""

    def configure_model(self) -> None:
        if self.device_mesh is None:
            # in one process, which searches for a learning rate
            return
        # it divides rows of weights that lie one behind the other
        self.classifier = copy.deepcopy(self.classifier).to(memory_format=torch.contiguous_format)
        self.answer = self.classifier.__call__
        # torch divides what trains; freezing does not change on the way
        apply_freezing(self.classifier, self.plan.ever)
        mesh = self.device_mesh["data_parallel"]
        for block in _blocks(self.classifier):
            fully_shard(block, mesh=mesh)
        fully_shard(self.classifier, mesh=mesh)


def _blocks(module: nn.Module) -> list[nn.Module]:
    """Return the members of the outermost sequences: what is put together, and taken apart again, at a time."""
    if isinstance(module, nn.Sequential | nn.ModuleList):
        return [child for child in module if next(child.parameters(), None) is not None]
    return [block for child in module.children() for block in _blocks(child)]
