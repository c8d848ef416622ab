"""What several processes change about a training, and one process does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor

from finetune.data.datamodule import PhotoData
from finetune.training.batch_norm import synchronise
from finetune.training.deadline import Timer
from finetune.training.imbalance import Judgement
from finetune.training.module import FineTuner
from finetune.training.processes import Processes
from finetune.training.strategies import Sharded, ShardedFineTuner, SharedDDP
from finetune.training.world import Started

Strategy = Literal["auto", "ddp", "fsdp"]
Judge = Callable[[Tensor, Tensor], Judgement]


def fine_tuner_for(strategy: Strategy, processes: Processes) -> type[FineTuner]:
    """Return the module that a classifier trains in."""
    return ShardedFineTuner if strategy == "fsdp" and processes.world.size > 1 else FineTuner


def spread(strategy: Strategy, processes: Processes, module: FineTuner, data: PhotoData) -> dict[str, Any]:
    """Return the options of a Trainer that say where training runs, and let the module look beyond its share."""
    world = processes.world
    where: dict[str, Any] = {"accelerator": "gpu" if processes.device.type == "cuda" else "cpu"}
    if world.size == 1:
        return where
    synchronise(module.classifier, processes.device)
    module.judge = judge_all(module.judge, processes, len(data.manifest.of("val")))
    return where | {
        "devices": world.local_size,
        "num_nodes": world.nodes,
        "strategy": (Sharded if strategy == "fsdp" else SharedDDP)(data.batches),
        "plugins": [Started(world)],
        # batches come in shares
        "use_distributed_sampler": False,
    }


def judge_all(judge: Judge, processes: Processes, photos: int) -> Judge:
    """Return the judge of all validation photos, from logits (N, classes) and targets (N,) of each process's share."""

    def in_order(share: Tensor) -> Tensor:
        # every process has each `size`-th photo
        return processes.gather(share).transpose(0, 1).flatten(0, 1)[:photos]

    return lambda logits, targets: judge(in_order(logits), in_order(targets))


class AgreedClock(pl.Callback):
    """The time of rank 0, asked for once a batch: all learn at one rate and end after the same step."""

    def __init__(self, clock: Timer, processes: Processes) -> None:
        self.clock, self.processes = clock, processes
        self.share = 0.0

    def on_train_batch_start(self, *_: object) -> None:
        told = torch.tensor([self.clock.share], dtype=torch.float64)
        self.share = float(self.processes.gather(told)[0])
