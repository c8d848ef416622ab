"""Which parameters train, from which epoch and how fast: a pure function of the configuration, never a state."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import nn

from finetune.config import FreezeConfig, OptimizerConfig
from finetune.errors import FinetuneError
from finetune.models.classifier import Classifier
from finetune.models.depth import depth_groups

Depth = Literal["head", "partial", "full", "gradual"]
PREFIX = "backbone.network."


@dataclass(frozen=True)
class PlannedGroup:
    """A depth of the network. from_epoch: when it begins to train, counted from 0; None: never.

    rate: its learning rate as a share of the head's; parameters: how many numbers, or how many of them train.
    """

    modules: str
    names: tuple[str, ...]
    parameters: int
    from_epoch: int | None
    rate: float


@dataclass(frozen=True)
class FreezingPlan:
    """Every parameter of a classifier in one group each, from the stem to the head.

    idle: parameters that no answer depends on, so that there is nothing to train them by;
    head_epochs: how many epochs are the head's alone, as a phase with a learning rate schedule of its own;
    keeps_statistics: whether batch norm of layers that train goes on with the statistics of pretraining.
    """

    groups: tuple[PlannedGroup, ...]
    idle: frozenset[str] = frozenset()
    head_epochs: int = 0
    keeps_statistics: bool = False

    def trainable(self, epoch: int) -> frozenset[str]:
        """Return the names of the parameters that train in an epoch, counted from 0."""
        opened = (group for group in self.groups if group.from_epoch is not None and group.from_epoch <= epoch)
        return frozenset(name for group in opened for name in group.names) - self.idle

    def within(self, epochs: int) -> FreezingPlan:
        """Return the plan of a training of so many epochs: what would begin after the last one stays frozen."""
        groups = (
            group if group.from_epoch is None or group.from_epoch < epochs else replace(group, from_epoch=None)
            for group in self.groups
        )
        return replace(self, groups=tuple(groups))

    @cached_property
    def ever(self) -> frozenset[str]:
        """The names of the parameters that train in some epoch."""
        opened = (group for group in self.groups if group.from_epoch is not None)
        return frozenset(name for group in opened for name in group.names) - self.idle

    @cached_property
    def rates(self) -> dict[str, float]:
        """Each parameter's learning rate, as a share of the head's."""
        return {name: group.rate for group in self.groups for name in group.names}


def plan_freezing(classifier: Classifier, config: FreezeConfig, depth: Depth, layer_decay: float) -> FreezingPlan:
    """Decide for every depth of the backbone, and for the head, from when and how fast it trains.

    layer_decay: each depth learns at this share of the rate of the one above it. Raises FinetuneError where answers
    depend on none of the depths that would train.
    """
    sizes = {name: parameter.numel() for name, parameter in classifier.named_parameters()}
    found = depth_groups(classifier.backbone.network)
    idle = frozenset[str]() if depth == "head" else idle_parameters(classifier)
    groups = []
    for number, (group, from_epoch) in enumerate(zip(found, _from_epochs(len(found), config, depth), strict=True)):
        names = tuple(PREFIX + name for name in group.names)
        rate = layer_decay ** (len(found) - number)
        moving = [name for name in names if name not in idle]
        begins = from_epoch if moving else None
        counted = sum(sizes[name] for name in (names if begins is None else moving))
        groups.append(PlannedGroup(group.modules, names, counted, begins, rate))
    if depth != "head" and all(group.from_epoch is None for group in groups):
        raise FinetuneError(
            f"freeze={depth} would train nothing of the backbone: model.features={classifier.features} sees none of "
            "the depths that it opens; use freeze=full, more freeze.top_groups, or model.features=last"
        )
    head = tuple(f"head.{name}" for name, _ in classifier.head.named_parameters())
    groups.append(PlannedGroup("head", head, sum(sizes[name] for name in head), 0, 1.0))
    return FreezingPlan(tuple(groups), idle, config.head_epochs, config.statistics == "keep")


def idle_parameters(classifier: Classifier) -> frozenset[str]:
    """Return the names of those that no answer depends on: what stands above the stages that the head sees."""
    modes = [(part, part.training) for part in classifier.modules()]
    trains = {name: (parameter, parameter.requires_grad) for name, parameter in classifier.named_parameters()}
    side_px = classifier.backbone.image_size
    images = torch.zeros(1, side_px, side_px, 3, dtype=torch.uint8, device=classifier.temperature.device)
    classifier.eval().requires_grad_(True)
    try:
        answer = classifier(images).sum()
        slopes = torch.autograd.grad(answer, [parameter for parameter, _ in trains.values()], allow_unused=True)
    finally:
        for part, training in modes:
            part.training = training
        for parameter, training in trains.values():
            parameter.requires_grad_(training)
    return frozenset(name for name, slope in zip(trains, slopes, strict=True) if slope is None)


def decay_per_depth(classifier: Classifier, config: OptimizerConfig) -> float:
    """Return the share of the rate above it at which each depth learns, so that the stem comes out as configured."""
    if config.stem_rate is None:
        return config.layer_decay
    return float(config.stem_rate ** (1 / len(depth_groups(classifier.backbone.network))))


def apply_freezing(classifier: Classifier, trainable: frozenset[str]) -> None:
    """Set `requires_grad` by name, and put every wholly frozen module into eval mode.

    Frozen batch norm must use its running statistics and leave them alone: gradients have no part in those, so
    `requires_grad=False` alone would let them drift. Dropout and stochastic depth of frozen parts are off the same way.
    """
    for name, parameter in classifier.named_parameters():
        parameter.requires_grad_(name in trainable)
    classifier.train()
    _rest_frozen(classifier)


def keep_statistics(classifier: Classifier) -> None:
    """Put the backbone's batch norms into eval mode; what they scale and shift by trains on."""
    for module in classifier.backbone.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def _from_epochs(count: int, config: FreezeConfig, depth: Depth) -> list[int | None]:
    """Return for each depth of the backbone, from the stem up, when it begins to train."""
    if depth == "head":
        return [None] * count
    if depth == "full":
        return [config.head_epochs] * count
    if depth == "gradual":
        begins = [math.ceil((count - number) * config.epochs_per_group) for number in range(count)]
        return [max(config.head_epochs, epoch) for epoch in begins]
    first, last = config.groups if config.groups is not None else _top(count, config.top_groups)
    if last >= count:
        raise FinetuneError(
            f"freeze.groups=[{first},{last}], but this backbone has {count} depth groups, 0 to {count - 1}"
        )
    return [config.head_epochs if first <= number <= last else None for number in range(count)]


def _top(count: int, top_groups: float) -> tuple[int, int]:
    top = math.ceil(top_groups * count) if top_groups < 1 else round(top_groups)
    if top > count:
        raise FinetuneError(
            f"freeze.top_groups={top_groups:g}, but this backbone has {count} depth groups; "
            f"use 1 to {count}, or freeze=full"
        )
    return count - top, count - 1


def _rest_frozen(module: nn.Module) -> bool:
    """Put what is frozen into eval mode; returns whether all of the module is."""
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        module.eval()
        return True
    before_is_frozen = False
    for child in module.children():
        if next(child.parameters(), None) is not None:
            before_is_frozen = _rest_frozen(child)
        elif before_is_frozen:
            # a dropout has nothing to freeze; it belongs to what it follows
            child.eval()
    return False
