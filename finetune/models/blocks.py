"""What comes out of a network's blocks: maps or tokens at every depth, not only at the end of each stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from finetune.models.depth import depth_groups

# Of the pooled features of all blocks. A ResNet-50's would be 30,000: then every second block is taken.
MOST_WIDTH = 16_384


class Block(NamedTuple):
    """A module by its name in the network; reduced: the dimensions of its output that are places, not channels."""

    name: str
    reduced: tuple[int, ...]
    width: int


def find_blocks(network: nn.Module, run: Callable[[], None]) -> list[Block]:
    """Return the modules at which depth groups end, in the order of the forward pass, which `run` makes on an example.

    Only those whose output is one tensor of maps or tokens; evenly thinned out, the last one kept, where pooled they
    would be wider than MOST_WIDTH.
    """
    names = _ends(network)
    with torch.no_grad(), outputs_of(network, names) as outputs:
        run()
    blocks = [_describe(name, output, network) for name, output in outputs.items()]
    found = [block for block in blocks if block is not None]
    step = max(1, ceil(2 * sum(block.width for block in found) / MOST_WIDTH))
    return found[::-1][::step][::-1]


@contextmanager
def outputs_of(network: nn.Module, names: list[str]) -> Iterator[dict[str, Any]]:
    """Yield a dictionary that a forward pass inside the block fills, in its order."""
    outputs: dict[str, Any] = {}

    def keep(name: str) -> Any:
        return lambda module, arguments, output: outputs.__setitem__(name, output)

    # not for good: a copy of the network would go on writing to this one's dictionary
    handles = [network.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def pooled(maps: Tensor, reduced: tuple[int, ...] = (2, 3)) -> list[Tensor]:
    """Return the average and the maximum over all places: two of (N, channels)."""
    return [maps.mean(reduced), maps.amax(reduced)]


def _ends(network: nn.Module) -> list[str]:
    modules = dict(network.named_modules())
    ends = []
    for group in depth_groups(network):
        first, _, last = group.modules.partition(" .. ")
        # of a block and what follows it, such as the top's convolution to the classifier's width, the block
        path = first if not last or any(part.isdigit() for part in first.split(".")) else last
        if path in modules:
            ends.append(path)
    # what holds another end would say again what the last block in it says
    return [end for end in dict.fromkeys(ends) if not any(other.startswith(f"{end}.") for other in ends)]


def _describe(name: str, output: Any, network: nn.Module) -> Block | None:
    if not isinstance(output, Tensor) or output.ndim not in (3, 4):
        return None
    if output.ndim == 3:
        return Block(name, (1,), output.shape[2])
    _, second, third, fourth = output.shape
    channels_first = third == fourth and not (second == third and getattr(network, "output_fmt", "") == "NHWC")
    return Block(name, (2, 3), second) if channels_first else Block(name, (1, 2), fourth)
