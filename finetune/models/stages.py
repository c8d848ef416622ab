"""A timm network without its top stages."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from finetune.errors import FinetuneError

# share of the parameters: what keeps more has branches that go through all stages
MOST_LEFT = 0.995


def drop_top_stages(network: nn.Module, name: str, drop: int, image_size: int) -> int:
    """Take the top stages off a network, and what only they or a classifier needed; return how many are left.

    A stage is what `forward_intermediates` gives a map of: a resolution of a CNN, a block of a ViT. Raises
    FinetuneError where there are not so many, or where timm cannot take them off this architecture.
    """
    was_training, parameters = network.training, _parameters(network)
    network.eval()
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    # not inference_mode: some networks keep what they make here, and train with it
    with torch.no_grad():
        before = lower_stages(network, images, None)
        left = len(before) - drop
        if left < 1:
            raise FinetuneError(
                f"model.drop_stages={drop}: {name} has {len(before)} stages, of which one must stay; "
                f"use 0 to {len(before) - 1}"
            )
        try:
            network.prune_intermediate_layers([left - 1], prune_norm=True, prune_head=True)  # type: ignore[operator]
            after = lower_stages(network, images, left)
        except (AttributeError, AssertionError, IndexError, RuntimeError, TypeError) as error:
            raise _cannot(name, drop, f"{type(error).__name__} inside it") from None
    if _parameters(network) > MOST_LEFT * parameters:
        raise _cannot(name, drop, "hardly anything of it would go")
    if not _alike(after, before[:left]):
        raise _cannot(name, drop, "the stages below would change")
    network.train(was_training)
    return left


def lower_stages(network: Any, images: Tensor, count: int | None) -> list[Tensor]:
    """Return the maps (N, C, H, W) of the lowest `count` stages, or of all; nothing above them runs."""
    maps: list[Tensor] = network.forward_intermediates(
        images, indices=None if count is None else list(range(count)), intermediates_only=True, stop_early=True
    )
    return maps


def _alike(here: list[Tensor], there: list[Tensor]) -> bool:
    shapes = [[each.shape for each in maps] for maps in (here, there)]
    return shapes[0] == shapes[1] and all(map(torch.allclose, here, there))


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _cannot(name: str, drop: int, reason: str) -> FinetuneError:
    return FinetuneError(f"model.drop_stages={drop}: timm cannot take stages off {name} ({reason}); use 0")
