"""Which parameters train: a pure function of the configuration, applied anew, never a state to be restored."""

from __future__ import annotations

import math
from typing import Literal

from timm.models import group_parameters
from torch import nn

from finetune.errors import FinetuneError
from finetune.models.classifier import Classifier

Depth = Literal["head", "partial", "full"]


def depth_groups(classifier: Classifier) -> list[list[str]]:
    """Return the backbone's parameter names in groups from the stem to the top, by timm's own `group_matcher`.

    Names are those of the classifier's parameters.
    """
    network = classifier.backbone.network
    groups = group_parameters(network, network.group_matcher(coarse=False), reverse=False)  # type: ignore[operator]
    return [[f"backbone.network.{name}" for name in groups[number]] for number in sorted(groups)]


def trainable_names(classifier: Classifier, depth: Depth, top_groups: float) -> frozenset[str]:
    """Return the names of the parameters that train.

    top_groups, for partial: how many depth groups from the top; below 1 a fraction of them, rounded up.
    """
    head = [f"head.{name}" for name, _ in classifier.head.named_parameters()]
    if depth == "head":
        return frozenset(head)
    groups = depth_groups(classifier)
    if depth == "full":
        return frozenset(name for name, _ in classifier.named_parameters())
    count = math.ceil(top_groups * len(groups)) if top_groups < 1 else round(top_groups)
    if count > len(groups):
        raise FinetuneError(
            f"freeze.top_groups={top_groups:g}, but this backbone has {len(groups)} depth groups; "
            f"use 1 to {len(groups)}, or freeze=full"
        )
    return frozenset(head + [name for group in groups[-count:] for name in group])


def apply_freezing(classifier: Classifier, trainable: frozenset[str]) -> None:
    """Set `requires_grad` by name, and put every wholly frozen module into eval mode.

    Frozen batch norm must use its running statistics and leave them alone: gradients have no part in those, so
    `requires_grad=False` alone would let them drift. Dropout and stochastic depth of frozen parts are off the same way.
    """
    for name, parameter in classifier.named_parameters():
        parameter.requires_grad_(name in trainable)
    classifier.train()
    _rest_frozen(classifier)


def _rest_frozen(module: nn.Module) -> None:
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        module.eval()
        return
    for child in module.children():
        _rest_frozen(child)
