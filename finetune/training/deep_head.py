"""A head with hidden layers on kept features: AdamW in small batches, stopped early by validation.

A linear head is the one answer of a convex problem, whose penalty validation chooses; here validation chooses the
number of epochs, by the same rank, and the head is refitted on all photos for as many.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.config import HeadConfig
from finetune.models.head import Head
from finetune.training.imbalance import Judgement
from finetune.training.probe import deviations, threads_for

Features = NDArray[np.float32]
Loss = Callable[[Tensor, Tensor], Tensor]

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.05
BATCH = 64
MOST_EPOCHS, PATIENCE = 300, 20


@dataclass(frozen=True)
class DeepFit:
    """A trained head on the CPU, in eval mode, and after how many epochs it was stopped."""

    head: Head
    epochs: int

    def logits(self, features: Features) -> Tensor:
        """features: (N, F); returns (N, classes)."""
        with torch.inference_mode():
            logits: Tensor = self.head(torch.from_numpy(features))
        return logits


def fit_deep_head(
    config: HeadConfig,
    features: Features,
    targets: Sequence[int],
    classes: int,
    loss: Loss,
    judge: Callable[[Tensor], Judgement],
    held_out: Features,
    seed: int,
) -> DeepFit:
    """Train until the held-out photos have not been answered better for some epochs; return the head that did best.

    features: (N, F) to train on, in their own scale; loss: from logits (N, classes) and class numbers (N,), the mean
    over photos; judge: from logits of the held-out photos (M, F). The same arguments give the same head on a machine.
    """
    best: DeepFit | None = None
    highest = (-math.inf, -math.inf)
    epochs = _epochs(config, features, targets, classes, loss, seed)
    for epoch, head in enumerate(islice(epochs, MOST_EPOCHS), start=1):
        rank = judge(DeepFit(head, epoch).logits(held_out)).rank
        if best is None or rank > highest:
            best, highest = DeepFit(copy.deepcopy(head), epoch), rank
        elif epoch - best.epochs >= PATIENCE:
            break
    assert best is not None
    return best


def refit_deep_head(
    config: HeadConfig, features: Features, targets: Sequence[int], classes: int, loss: Loss, epochs: int, seed: int
) -> DeepFit:
    """Train for a given number of epochs: on all photos, those that stopped the first fit among them."""
    *_, head = islice(_epochs(config, features, targets, classes, loss, seed), epochs)
    return DeepFit(head, epochs)


def _epochs(
    config: HeadConfig, features: Features, targets: Sequence[int], classes: int, loss: Loss, seed: int
) -> Iterator[Head]:
    """Yield the head after each epoch, in eval mode; it is the same module every time."""
    raw, wanted = torch.from_numpy(features), torch.tensor(targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Head(raw.shape[1], classes, config)
        drawn = torch.get_rng_state()
    head.mean.copy_(raw.mean(0))
    head.scale.copy_(deviations(raw))
    decaying = [parameter for parameter in head.parameters() if parameter.ndim > 1]
    spared = [parameter for parameter in head.parameters() if parameter.ndim <= 1]
    groups = [{"params": decaying, "weight_decay": WEIGHT_DECAY}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE)
    while True:
        # dropout and the order of photos draw here, whatever else draws between epochs
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(drawn)
            _train_once(head, optimizer, raw, wanted, loss)
            drawn = torch.get_rng_state()
        yield head.eval()


def _train_once(head: Head, optimizer: torch.optim.Optimizer, raw: Tensor, wanted: Tensor, loss: Loss) -> None:
    head.train()
    # parts of nearly one size: a last batch of one photo would give batch norm no variance to work with
    with threads_for(raw.numel()):
        for chosen in torch.randperm(len(raw)).tensor_split(max(1, round(len(raw) / BATCH))):
            optimizer.zero_grad()
            loss(head(raw[chosen]), wanted[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
