"""Write docs/architectures.md: the smallest architecture of each of timm's modules, and the depths that freeze.

python scripts/architectures.py > docs/architectures.md

Builds every architecture of timm without its weights, which takes minutes. tests/models/test_architectures.py holds the
table: a training step for each line of it.
"""

from __future__ import annotations

import timm
import torch
from torch import nn

from finetune.models.depth import depth_groups

TEXT = """# Architectures

Freezing follows a network's depth, by timm's own order of its layers, for every architecture of timm. A training step
of the smallest architecture of each of timm's {count} modules, in each way of freezing, is a test
(`tests/models/test_architectures.py`): exactly the planned parameters move, frozen ones and the statistics of frozen
batch norms stay bit-identical, dropout and stochastic depth of frozen parts are off. Written by
`python scripts/architectures.py`.

`freeze.groups=[first,last]` takes depths by number, from the stem, 0, to the top; `finetune train` prints them before
it begins.

| timm's module | smallest architecture | parameters | depths | stem | top |
| --- | --- | --- | --- | --- | --- |
"""


def main() -> None:
    modules = timm.list_modules()
    print(TEXT.format(count=len(modules)), end="")
    for module in sorted(modules):
        print(line(module, min(timm.list_models(module=module), key=size)))


def line(module: str, name: str) -> str:
    """Return an architecture's line of the table."""
    groups = depth_groups(_backbone(name))
    stem, top = groups[0].modules, groups[-1].modules
    return f"| {module} | {name} | {size(name) / 1e6:.1f} M | {len(groups)} | {stem} | {top} |"


def size(name: str) -> int:
    """Return the number of parameters without a classifier."""
    return sum(parameter.numel() for parameter in _backbone(name).parameters())


def _backbone(name: str) -> nn.Module:
    with torch.device("meta"):
        network: nn.Module = timm.create_model(name)
        if hasattr(network, "reset_classifier"):
            network.reset_classifier(0)  # type: ignore[operator]
    return network


if __name__ == "__main__":
    main()
