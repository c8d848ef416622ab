"""The optimizer of a fine-tuning: any that timm names, over all parameters from the start."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers  # type: ignore[attr-defined]
from torch import nn
from torch.optim import Optimizer

from finetune.config import OptimizerConfig
from finetune.errors import FinetuneError, nearest
from finetune.models.classifier import Classifier
from finetune.training.sparsity import is_weight

SECOND_BETA = 0.999


def build_optimizer(config: OptimizerConfig, classifier: Classifier, rates: dict[str, float]) -> Optimizer:
    """Build all parameter groups once, frozen parameters included: without a gradient they are not touched.

    rates: each parameter's learning rate as a share of the configured one. Raises FinetuneError where the optimizer is
    unknown or cannot run here.
    """
    alike: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in classifier.named_parameters():
        decay = config.weight_decay if is_weight(parameter) else 0.0
        alike[config.peak * rates[name], decay].append(parameter)
    groups = [{"params": parameters, "lr": rate, "weight_decay": decay} for (rate, decay), parameters in alike.items()]
    # torch wants no Nesterov step where there is no momentum to look ahead with
    name = "momentum" if config.name == "sgd" and config.momentum == 0 else config.name
    try:
        # a list of groups is what its documentation has it take
        return create_optimizer_v2(groups, name, lr=config.peak, **_first_moment(config, name))
    except (AssertionError, ImportError, RuntimeError, TypeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise FinetuneError(f"optimizer.name={config.name} cannot be used here: {reason}") from None


def require_known_optimizer(name: str) -> None:
    """Raise FinetuneError with the nearest name where timm has no such optimizer, or it needs second derivatives."""
    known = [str(known) for known in list_optimizers()]
    if name not in known:
        raise FinetuneError(f"optimizer.name={name}: timm has no such optimizer{nearest(name, known)}")
    if get_optimizer_info(name).second_order:
        raise FinetuneError(f"optimizer.name={name} needs second derivatives, which are not computed; choose another")


def _first_moment(config: OptimizerConfig, name: str) -> dict[str, Any]:
    """Give the momentum as the optimizer calls it; one with three betas or none keeps its own."""
    info = get_optimizer_info(name)
    if info.has_betas and info.num_betas == 2:
        return {"betas": (config.momentum, SECOND_BETA)}
    return {"momentum": config.momentum} if info.has_momentum else {}
