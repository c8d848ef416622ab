from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import timm
import torch
from torch import nn

from finetune.errors import FinetuneError
from finetune.models.backbone import build_backbone, describe_backbone
from finetune.models.classifier import Classifier
from finetune.models.freezing import FreezingPlan, apply_freezing
from tests.conftest import ROOT
from tests.models.test_freezing import plan

LINES = [line for line in (ROOT / "docs/architectures.md").read_text().splitlines() if line.startswith("| ")][2:]
SMALLEST = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1] for line in LINES}
# where an architecture takes them, small photos take less time
SIZES_PX = (64, 84, 96, 128, 192, 224, 256)


def build(name: str) -> tuple[Classifier, int]:
    spec = describe_backbone(name)
    for size in [*(size for size in SIZES_PX if size < spec.image_size), spec.image_size]:
        torch.manual_seed(0)
        try:
            backbone, _ = build_backbone(name, size, "none")
        except FinetuneError:
            continue
        return Classifier(spec, backbone, "last", classes=3), size
    raise AssertionError(f"{name} takes none of {SIZES_PX}")


def test_the_table_has_every_module_of_timm() -> None:
    assert list(SMALLEST) == sorted(timm.list_modules())


@pytest.mark.parametrize("module", SMALLEST)
def test_the_table_says_how_deep_a_network_is(module: str) -> None:
    spec = importlib.util.spec_from_file_location("architectures", ROOT / "scripts/architectures.py")
    assert spec is not None
    assert spec.loader is not None
    script: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.line(module, SMALLEST[module]) in LINES


@pytest.mark.parametrize("module", SMALLEST)
def test_one_step_moves_exactly_what_is_planned(module: str) -> None:
    classifier, size = build(SMALLEST[module])
    with torch.no_grad():
        for parameter in classifier.parameters():
            # no zeros: scales that start there keep gradients from the layers before them, and decay moves no zero
            parameter.add_(0.02 * torch.randn_like(parameter))
    start = [tensor.clone() for tensor in held(classifier).values()]
    plans = {
        "head": (plan(classifier, "head"), 0),
        "top": (plan(classifier, "partial", top_groups=1), 0),
        "range": (plan(classifier, "partial", groups=(0, 1)), 0),
        "gradual": (plan(classifier, "gradual", epochs_per_group=1), 2),
        "full": (plan(classifier, "full"), 0),
    }
    for mode, (made, epoch) in plans.items():
        with torch.no_grad():
            for tensor, value in zip(held(classifier).values(), start, strict=True):
                tensor.copy_(value)
        planned = made.trainable(epoch)
        step(classifier, made, epoch, size)
        moved = {
            name
            for (name, tensor), before in zip(held(classifier).items(), start, strict=True)
            if not torch.equal(tensor, before)
        }
        parameters = {name for name, _ in classifier.named_parameters()}
        assert moved & parameters == planned, mode
        # statistics move only in batch norms that train
        assert {f"{name.rpartition('.')[0]}.weight" for name in moved - parameters} <= planned, mode
        assert all(not inner.training for part in frozen_parts(classifier) for inner in part.modules()), mode


def held(classifier: Classifier) -> dict[str, torch.Tensor]:
    """Return every parameter and buffer once; some networks hold a module in several places."""
    return {**dict(classifier.named_parameters()), **dict(classifier.named_buffers())}


def step(classifier: Classifier, made: FreezingPlan, epoch: int, size: int) -> None:
    apply_freezing(classifier, made.trainable(epoch))
    # decay moves whatever the optimizer may touch, dead units included
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.001, weight_decay=5)
    optimizer.zero_grad()
    images = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8)
    nn.functional.cross_entropy(classifier(images), torch.tensor([0, 1])).backward()
    optimizer.step()


def frozen_parts(classifier: Classifier) -> list[nn.Module]:
    return [
        module
        for module in classifier.modules()
        if next(module.parameters(), None) is not None and not any(p.requires_grad for p in module.parameters())
    ]
